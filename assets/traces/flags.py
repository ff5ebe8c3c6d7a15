"""Signs that a question tries to steer the assistant instead of asking it.

Belongs here: the patterns, in the one dialect that Python's `re` and Polars share. Does not belong
here: what follows from a flag (`admission`, `curating`).
"""

import re

INJECTION_PATTERN = "(?i)" + "|".join(
    (
        r"\b(?:ignore|disregard|forget|override)\b.{0,40}"
        r"\b(?:instructions?|rules?|prompts?|guidelines)\b",
        r"\b(?:print|show|reveal|repeat|leak|output)\b.{0,40}"
        r"\b(?:system prompt|your (?:prompt|instructions|rules))\b",
        r"\byou are (?:now|no longer)\b",
        r"\bpretend (?:to be|you are|that you)\b",
        r"\b(?:developer|god|dan|jailbreak) mode\b|\bjailbreak\b",
        r"\[/?inst\]|<\|?/?(?:system|im_start|im_end|assistant)\|?>",
        r"\bnew instructions?\s*:",
    )
)
"""A flag costs a row its place in training and nothing else, so doubt is resolved towards it."""

_INJECTION = re.compile(INJECTION_PATTERN)


def is_injection(text: str) -> bool:
    """Say whether a text carries a sign of prompt injection."""
    return _INJECTION.search(text) is not None
