"""Questions of known forms, and the other forms the same question can take.

Belongs here: patterns and templates. Does not belong here: synonyms, spelling, choosing among
variants (`paraphrasing`). Untouchable parts arrive as holes (private-use characters) and stay.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_SUBJECT = r"(?:i|we|you)"  # not "one": "how should one line look" is about a line
_NOUN_PHRASE = r"(?P<x>(?:the|a|an|this|that|my|our|your|\ue000)[^,;.?!]{1,60})"
_NOT_A_NOUN_PHRASE = re.compile(
    r"\b(?:is|are|was|does|do|did|if|when|which|that|who|why|how|and|or|to|for|by|with|of what|"
    r"like|about|from|good|made|between|in)\s*$"
    r"|\b(?:is|are|was|does|do|if|when|which|who|why|how|because)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Questions of one form, and templates over their captured parts."""

    pattern: re.Pattern[str]
    templates: tuple[str, ...]
    is_noun_phrase: bool = False


def _form(pattern: str, *templates: str, is_noun_phrase: bool = False) -> _Form:
    return _Form(
        pattern=re.compile(pattern, re.IGNORECASE),
        templates=templates,
        is_noun_phrase=is_noun_phrase,
    )


_FORMS = (
    _form(
        rf"^how (?:do|can|could|should|would|must) {_SUBJECT} (?P<x>[^?.;]+?)\??$",
        "What is the way to {x}?", "I want to {x}, how?", "Explain how to {x}.", "how to {x}",
        "Which steps does it take to {x}?", "What do I have to do to {x}?",
        "Can you tell me how to {x}?", "Is there a way to {x}, and what is it?",
        "What's the right way to {x}?", "I need to {x}. How?",
    ),
    _form(
        r"^how to (?P<x>[^?.;]+?)\??$",
        "How do I {x}?", "What is the way to {x}?", "I want to {x}, how?", "Explain how to {x}.",
        "What do I have to do to {x}?", "Can you tell me how to {x}?",
    ),
    _form(
        r"^how (?:does|do) (?P<x>[^?.;,]+?) work\??$",
        "Explain how {x} works.", "What is the idea behind {x}?", "Tell me how {x} works.",
        "In which way does {x} work?", "{x}: how does it work?", "How should I understand {x}?",
        is_noun_phrase=True,
    ),
    _form(
        rf"^(?:what is|what's|whats) {_NOUN_PHRASE}\??$",
        "Tell me what {x} is.", "Can you tell me what {x} is?", "{x}: what is it?",
        "I would like to know what {x} is.", "What exactly is {x}?", "Explain what {x} is.",
        "Please state {x}.", "what's {x}",
        is_noun_phrase=True,
    ),
    _form(
        rf"^what are {_NOUN_PHRASE}\??$",
        "Tell me what {x} are.", "Can you tell me what {x} are?", "{x}: what are they?",
        "Please list {x}.", "What exactly are {x}?",
        is_noun_phrase=True,
    ),
    _form(
        r"^what (?:does|do) (?P<x>[^?.;,]+?) (?:actually |really |exactly )?do\??$",
        "Tell me what {x} does.", "What is {x} for?", "What is the purpose of {x}?",
        "Explain what {x} does.", "Which effect does {x} have?", "What job does {x} do?",
        is_noun_phrase=True,
    ),
    _form(
        r"^what (?:does|do) (?P<x>[^?.;,]+?) mean\??$",
        "What is the meaning of {x}?", "Explain the meaning of {x}.",
        "How is {x} to be understood?", "Tell me what {x} means.", "What is meant by {x}?",
        "{x}: what does it mean?",
        is_noun_phrase=True,
    ),
    _form(
        r"^what does (?P<x>[^?.;,]+?) (?:actually |really |exactly )?(?P<w>return|contain|print|"
        r"count|protect|compare|cost|measure|store|need|decide|say|show|delete|install|include|"
        r"hold|read|require|write|send|record|check|report)\??$",
        "Tell me what {x} {w}s.", "What exactly does {x} {w}?", "Explain what {x} {w}s.",
        "I want to know what {x} {w}s.", "Do you know what {x} {w}s?", "{x}: what does it {w}?",
        is_noun_phrase=True,
    ),
    _form(
        r"^what (?:is|are|'s) (?P<x>[^?.;,]+?) (?:good )?for\??$",
        "What does {x} do?", "What is the purpose of {x}?", "Why is there {x}?",
        "What would I use {x} for?", "Explain the purpose of {x}.",
        is_noun_phrase=True,
    ),
    _form(
        r"^where (?P<v>is|are) (?P<x>(?:the|my|our|a|an|\ue000)[^?.;,]+?)\??$",
        "Where can I find {x}?", "In which place {v} {x}?", "Tell me where to find {x}.",
        "Location of {x}?", "I am looking for {x}. Where would that be?",
        "Where do I look for {x}?",
        is_noun_phrase=True,
    ),
    _form(
        r"^why (?P<v>is|are|was|were|does|do|did|must|should|can|has|have) (?P<x>[^?.;]+?)\??$",
        "For what reason {v} {x}?", "What is the reason: why {v} {x}?", "How come: why {v} {x}?",
        "Explain this to me: why {v} {x}?", "I do not see why. Why {v} {x}?",
    ),
    _form(
        r"^(?:what|which) (?!(?:is|are|was|do|does|did|has|have|can|should|to)\b)"
        r"(?P<x>[^?.;]+?)\??$",
        "Which {x}?", "What {x}?", "Tell me: which {x}?", "Do you know which {x}?",
    ),
    _form(
        r"^how (?P<q>many|much|long|big|large|often) (?P<x>[^?.;]+?)\??$",
        "Tell me: how {q} {x}?", "Do you know how {q} {x}?", "Exactly how {q} {x}?",
    ),
    _form(
        r"^what happens (?P<c>if|when|to) (?P<x>[^?.;]+?)\??$",
        "What is the result {c} {x}?" , "{c} {x}, what happens then?", "What will happen {c} {x}?",
        "Tell me what happens {c} {x}.", "What should I expect {c} {x}?",
    ),
    _form(
        r"^(?:difference between|what is the difference between|what's the difference between) "
        r"(?P<x>[^?.;,]+?) and (?P<y>[^?.;,]+?)\??$",
        "How do {x} and {y} differ?", "{x} vs {y}", "{x} or {y}: what is the difference?",
        "Explain how {x} differs from {y}.", "Compare {x} and {y}.",
    ),
    _form(
        r"^(?P<x>[^?.;,:]{2,60}?) (?:vs\.?|versus) (?P<y>[^?.;,]{2,60}?)\??$",
        "What is the difference between {x} and {y}?", "How do {x} and {y} differ?",
        "Explain how {x} differs from {y}.", "Compare {x} and {y}.", "{x} or {y}: what is what?",
    ),
)  # fmt: skip


def reformulate(text: str) -> Iterator[str]:
    """Yield the question in the other forms of the first pattern it has."""
    for form in _FORMS:
        match = form.pattern.match(text)
        if match is None:
            continue
        parts = {name: value.strip() for name, value in match.groupdict().items()}
        if form.is_noun_phrase and _NOT_A_NOUN_PHRASE.search(parts["x"]):
            continue
        is_upper = text[:1].isupper()
        for template in form.templates:
            variant = template.format(**parts)
            yield variant[:1].upper() + variant[1:] if is_upper else variant
        return
