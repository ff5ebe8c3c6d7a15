"""What a server does not take of a request, learnt from its refusals and conceded to it.

Chat APIs share a shape, not every field: some know no JSON schema, newer models take no temperature
or call the token limit something else. A refusal that names the field is followed by one request
without it, and what worked is remembered for the model's life. Belongs here: which fields can be
given up, and in which order. Does not belong here: sending anything.
"""

import re
from collections.abc import Mapping, Set
from typing import Any, Literal

Concession = Literal[
    "json_object", "plain_text", "no_seed", "no_temperature", "max_completion_tokens"
]
"""`json_object`: JSON without a schema; `plain_text`: no response format at all."""

StructuredOutput = Literal["json_schema", "json_object", "none"]
"""How JSON is asked for at first, as the configuration says."""

_FIRST: Mapping[StructuredOutput, frozenset[Concession]] = {
    "json_schema": frozenset(),
    "json_object": frozenset({"json_object"}),
    "none": frozenset({"plain_text"}),
}

_FORMAT_WORDS = re.compile(
    r"response_format|json_schema|json_object|output_config|output_format|structured.?output"
    r"|guided|grammar",
    re.IGNORECASE,
)


def start_concessions(structured_output: StructuredOutput) -> set[Concession]:
    """Return what is conceded before the first request."""
    return set(_FIRST[structured_output])


def adapt_arguments(arguments: Mapping[str, Any], concessions: Set[Concession]) -> dict[str, Any]:
    """Return the arguments of an OpenAI-style call without what was conceded."""
    adapted = dict(arguments)
    if "plain_text" in concessions:
        adapted.pop("response_format", None)
    elif "json_object" in concessions and "response_format" in adapted:
        adapted["response_format"] = {"type": "json_object"}
    if "no_seed" in concessions:
        adapted.pop("seed", None)
    if "no_temperature" in concessions:
        adapted.pop("temperature", None)
    if "max_completion_tokens" in concessions and "max_tokens" in adapted:
        adapted["max_completion_tokens"] = adapted.pop("max_tokens")
    return adapted


def find_concession(sent: Mapping[str, Any], refusal: str) -> Concession | None:
    """Return what to give up after a refusal of what was sent; None: it names nothing optional."""
    response_format = sent.get("response_format")
    if response_format and _FORMAT_WORDS.search(refusal):
        return "json_object" if response_format["type"] == "json_schema" else "plain_text"
    if "max_tokens" in sent and "max_completion_tokens" in refusal:
        return "max_completion_tokens"
    if "temperature" in sent and re.search(r"\btemperature\b", refusal):
        return "no_temperature"
    if "seed" in sent and re.search(r"\bseed\b", refusal):
        return "no_seed"
    return None
