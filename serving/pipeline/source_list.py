"""The numbered list of sources in a prompt: where each begins, and a prompt with fewer of them.

Belongs here: finding sources in what `PromptFormat.write_request` wrote. Does not belong here:
writing them (`prompt`), what is in one (`models.extractive.sources`).
"""

import re
from collections.abc import Sequence

from serving.models.protocols import Message
from serving.pipeline.prompt import CITATION_PATTERN, read_sources_text

_LINE_LABEL = re.compile(rf"^{CITATION_PATTERN.pattern} ", re.MULTILINE)


def find_sources(listed: str) -> list[tuple[int, str]]:
    """Find where each source begins.

    Documentation about prompts quotes lines that look like sources, so a source must stand outside
    code fences, bring the next id, and follow the closing id of the one before it (or the bare
    heading of one without units).
    """
    starts: list[tuple[int, str]] = []
    for match in _LINE_LABEL.finditer(listed):
        label = match["id"]
        before = listed[: match.start()].rstrip("\n ")
        if before.count("```") % 2:
            continue
        is_next = not starts or (
            label not in {known for _, known in starts}
            and before.endswith((f"[{starts[-1][1]}]", ":"))
            and (not label.isdigit() or int(label) == int(starts[-1][1]) + 1)
        )
        if is_next:
            starts.append((match.start(), label))
    return starts


def keep_sources(messages: Sequence[Message], count: int) -> tuple[Message, ...]:
    """Return a request's messages with the first `count` sources alone, the best ones.

    Raises:
        InvalidInputError: the first message lists no sources.
    """
    listed = read_sources_text(messages)
    starts = find_sources(listed)
    system = messages[0]["content"]
    if len(starts) > count:
        end = len(system) - len(listed) + starts[count][0]
        system = system[:end].rstrip("\n")
    return ({"role": "system", "content": system}, *messages[1:])
