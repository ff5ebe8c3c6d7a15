"""The chunks of a site that most need a person's eyes, worst first.

`python -m bench.chunking --worst 50` prints them. A chunk is suspicious that is longer than the
maximum, far shorter than the target, still holds markup that a reader would not see, or has hardly
a letter in it. What is printed is the chunk itself: no count replaces reading it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.chunking_sites import SitePage
from serving.pipeline.chunking import chunk_page, parse_page

SHORT_RATIO = 0.2  # of the target: under it a chunk says little by itself
LETTER_RATIO = 0.5  # of the characters outside white space
MARKUP = {
    "a tag": re.compile(r"</?[A-Za-z][\w.]*(?:\s[^<>]*)?/?>"),
    "an import": re.compile(r"^(?:import|export)\s.+from\s", re.MULTILINE),
    "a link's target": re.compile(r"\]\([^)\s]+\)"),
    "a directive": re.compile(r"^:::", re.MULTILINE),
    "an expression": re.compile(r"\{[^{}\n]*\}"),
}
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)[^`].*?\1")


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A chunk, and what speaks against it; `distance` is its tokens' from the target, relative."""

    chunk_id: str
    heading_path: tuple[str, ...]
    text: str
    token_count: int
    reasons: tuple[str, ...]
    distance: float


def find_reasons(text: str, token_count: int, *, target: int, maximum: int) -> tuple[str, ...]:
    """Return what speaks against a chunk; markup counts outside code, where readers see it."""
    prose = CODE.sub("", FENCE.sub("", text))
    marks = "".join(text.split())
    reasons = [name for name, pattern in MARKUP.items() if pattern.search(prose)]
    if token_count > maximum:
        reasons.append("over the maximum")
    if token_count < SHORT_RATIO * target:
        reasons.append("short")
    if sum(c.isalpha() for c in marks) < LETTER_RATIO * len(marks):
        reasons.append("few letters")
    return tuple(reasons)


def rank_chunks(
    site: Sequence[SitePage],
    *,
    target: int,
    maximum: int,
    count_tokens: Callable[[Sequence[str]], list[int]],
) -> list[Suspect]:
    """Return every chunk of a site, the one with most against it first, then the most unlike."""
    suspects = []
    for page in site:
        parsed = parse_page(page.path, page.source, url_template="/{slug}")
        for chunk in chunk_page(
            parsed, target_tokens=target, maximum_tokens=maximum, count_tokens=count_tokens
        ):
            (tokens,) = count_tokens([chunk.text])
            suspects.append(
                Suspect(
                    chunk_id=chunk.chunk_id,
                    heading_path=tuple(chunk.heading_path),
                    text=chunk.text,
                    token_count=tokens,
                    reasons=find_reasons(chunk.text, tokens, target=target, maximum=maximum),
                    distance=abs(tokens - target) / target,
                )
            )
    return sorted(suspects, key=lambda s: (-len(s.reasons), -s.distance, s.chunk_id))


def print_worst(name: str, ranked: Sequence[Suspect], count: int) -> None:
    """Print the first of a site's ranked chunks, whole."""
    blamed = sum(bool(suspect.reasons) for suspect in ranked)
    print(f"\n{name}: {len(ranked)} chunks, {blamed} with something against them")
    for place, suspect in enumerate(ranked[:count], start=1):
        why = ", ".join(suspect.reasons) or "nothing found"
        print(f"\n{place}. {suspect.chunk_id}, {suspect.token_count} tokens: {why}")
        print(f"   {' > '.join(suspect.heading_path)}")
        print("\n".join(f"   | {line}" for line in suspect.text.splitlines()))
