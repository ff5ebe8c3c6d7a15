"""Rewording a question by rules: other question forms, synonyms, casual spelling, polite wrappers.

Never touched: text in backticks or quotes, identifiers, paths, numbers, negations. Belongs here:
generating and choosing variants. Does not belong here: word lists (`wording`), guarding against the
eval set.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from serving.models.extractive.forms import reformulate
from serving.models.extractive.wording import (
    ENGLISH,
    FILLER,
    FOREIGN,
    IMPERATIVES,
    KEYWORD_WRAPPERS,
    NEGATIONS,
    NEUTRAL_WRAPPERS,
    POLITE_WRAPPERS,
    STATEMENT_WRAPPERS,
    SYNONYMS,
)
from serving.pipeline.statements import STOP_WORDS

_PROTECTED = re.compile(
    r"```.*?```|`[^`]*`|\"[^\"]*\"|“[^”]*”|(?<!\w)'[^']+'(?!\w)"
    r"|https?://\S+|\{[^}]*\}|\[[^\]]*\]|<[^>]*>"
    r"|\S*[\d_/\\=@#$%*+^|~]\S*|\b\w+(?:[.:]\w+)+(?:\(\))?|--?\w[\w-]*"
    r"|\b[A-Z]{2,}\w*\b|\b\w*[a-z][A-Z]\w*\b",
    re.DOTALL,
)
_HOLE = re.compile("\ue000(\\d+)\ue001")
_TELLING = frozenset({"why", "where", "when", "who"})
_AMOUNTS = frozenset({"many", "much", "long", "big", "large", "often"})
_WORD = re.compile(r"[A-Za-z][A-Za-z'\u2019-]*")
_TYPO_TEMPERATURE = 0.5  # below: no typos
_TELLING_WORDS_FOR_TYPO = 3  # below: a typo would take the word that the question is about


@dataclass(frozen=True, kw_only=True)
class _Masked:
    """A text whose untouchable parts are holes, and what fills them."""

    text: str
    fillings: tuple[str, ...]

    def fill(self, text: str) -> str:
        return _HOLE.sub(lambda match: self.fillings[int(match[1])], text)


def reword(question: str, *, count: int, temperature: float, seed: int) -> tuple[str, ...]:
    """Return up to `count` rewordings, distinct from the question and from each other.

    Args:
        question: a question, a statement, an error message, keywords, in any language.
        count: how many are wanted; what is not distinct is not returned.
        temperature: 0 gives the plainest rewordings in a fixed order; above, order, synonyms and
            spelling vary more.
        seed: equal arguments give equal results.
    """
    question = " ".join(question.split())
    # Not for cryptography: variety that repeats under one seed.
    draw = random.Random(f"{seed}:{question}")  # noqa: S311
    masked = _mask(question)
    plain = [masked.fill(text) for text in _plain_variants(masked.text)]
    ordered = _shuffle_near(plain, temperature, draw)
    varied = (_vary(text, temperature, draw) for text in ordered)
    spare = (_casual(text) for text in ordered)
    return _take_distinct(_keeps_facts([*varied, *ordered, *spare], question), question, count)


def _mask(question: str) -> _Masked:
    fillings: list[str] = []

    def hide(match: re.Match[str]) -> str:
        text = match[0].rstrip("?!.,;:") or match[0]
        fillings.append(text)
        return f"\ue000{len(fillings) - 1}\ue001{match[0][len(text) :]}"

    return _Masked(text=_PROTECTED.sub(hide, question), fillings=tuple(fillings))


def _plain_variants(text: str) -> list[str]:
    """Return the rewordings the rules know, plainest first, on text with holes."""
    words = [word.casefold() for word in _WORD.findall(text)]
    is_latin = all(c.isascii() or not c.isalpha() for c in _HOLE.sub("", text))
    if not words or set(words) & FOREIGN or not (is_latin and _sounds_english(words)):
        return [wrapper.format(text=text) for wrapper in NEUTRAL_WRAPPERS]
    wrappers = _wrappers_for(text, words)
    swapped = list(_swaps(text))
    forms = list(reformulate(text))
    keywords = [_as_keywords(text)] if not any(word in NEGATIONS for word in words) else []
    wrapped = [
        wrapper.format(text=text, sentence=_as_sentence(text), clause=_lower_first(text))
        for wrapper in wrappers
    ]
    return [v for v in (*_alternate(forms, swapped), *keywords, *wrapped) if v]


def _sounds_english(words: Sequence[str]) -> bool:
    """Keywords have no function words to go by; a sentence has some."""
    return len(words) <= 6 or bool(set(words) & ENGLISH)


def _wrappers_for(text: str, words: Sequence[str]) -> tuple[str, ...]:
    if "?" in text or _OPENS_QUESTION.search(text) or words[0] in IMPERATIVES:
        return POLITE_WRAPPERS
    is_keywords = len(text.split()) <= 6 and not text.endswith((".", "!")) and "error" not in words
    return KEYWORD_WRAPPERS if is_keywords else STATEMENT_WRAPPERS


_OPENS_QUESTION = re.compile(
    r"(?:^|, |\. )(?:how|what|what's|whats|which|where|when|who|why|can|could|do|does|did|is|are|"
    r"should|will|would|may|must|has|have)\b",
    re.IGNORECASE,
)


def _swaps(text: str) -> Iterator[str]:
    """Swap one word at a time for each of its synonyms."""
    for match in _WORD.finditer(text):
        for synonym in SYNONYMS.get(match[0].casefold(), ()):
            new = _upper_first(synonym) if match[0][0].isupper() else synonym
            yield text[: match.start()] + new + text[match.end() :]


def _as_keywords(text: str) -> str:
    """Keep the words that carry one short question; at least two must stay."""
    bare = text.rstrip("?!. ")
    if re.search(r"[.?!;] ", bare):
        return ""
    tokens = bare.split()
    kept = [
        token
        for token, following in zip(tokens, [*tokens[1:], ""], strict=True)
        if token.strip(",;:()").casefold() not in STOP_WORDS - _TELLING
        or (token.casefold() == "how" and following.casefold() in _AMOUNTS)
    ]
    return " ".join(kept).rstrip(",;:") if 2 <= len(kept) <= 10 else ""


def _alternate(first: Sequence[str], second: Sequence[str]) -> list[str]:
    longest = max(len(first), len(second))
    return [s[i] for i in range(longest) for s in (first, second) if i < len(s)]


def _shuffle_near(texts: Sequence[str], temperature: float, draw: random.Random) -> list[str]:
    """Sort by position blurred in proportion to the temperature; at 0 the order stays."""
    blur = temperature * max(len(texts), 1)
    return [t for _, t in sorted((i + draw.random() * blur, t) for i, t in enumerate(texts))]


def _vary(text: str, temperature: float, draw: random.Random) -> str:
    """Apply surface changes, each with a chance that grows with the temperature."""
    changes: tuple[tuple[float, Callable[[str], str]], ...] = (
        (0.30, lambda t: _swap_one(t, draw)),
        (0.20, _casual),
        (0.10 if temperature >= _TYPO_TEMPERATURE else 0.0, lambda t: _mistype(t, draw)),
    )
    for chance, change in changes:
        if draw.random() < chance * min(temperature, 1.0):
            text = change(text)
    return text


def _swap_one(text: str, draw: random.Random) -> str:
    masked = _mask(text)
    swapped = list(_swaps(masked.text))
    return masked.fill(draw.choice(swapped)) if swapped else text


def _casual(text: str) -> str:
    masked = _mask(text)
    return masked.fill(masked.text.lower().rstrip("?.! "))


def _mistype(text: str, draw: random.Random) -> str:
    """Swap two neighbouring letters inside one long lower-case word, unless it is all there is."""
    masked = _mask(text)
    telling = [w for w in _WORD.findall(masked.text) if w.casefold() not in STOP_WORDS | FILLER]
    if len(telling) + len(masked.fillings) < _TELLING_WORDS_FOR_TYPO:
        return text
    words = [
        m
        for m in _WORD.finditer(masked.text)
        if len(m[0]) >= 6 and m[0].islower() and m[0].isalpha() and m[0] not in NEGATIONS
    ]
    if not words:
        return text
    chosen = draw.choice(words)
    at = chosen.start() + draw.randrange(1, len(chosen[0]) - 2)
    mistyped = masked.text[:at] + masked.text[at + 1] + masked.text[at] + masked.text[at + 2 :]
    return masked.fill(mistyped)


def _keeps_facts(texts: Iterable[str], question: str) -> list[str]:
    """Drop variants that lost something untouchable, or a negation."""
    wanted = sorted(_mask(question).fillings)
    negations = _negations(question)
    return [
        text
        for text in texts
        if _negations(text) >= negations and all(part in text for part in wanted)
    ]


def _negations(text: str) -> int:
    return sum(word.casefold() in NEGATIONS for word in _WORD.findall(text.replace("\u2019", "'")))


def _take_distinct(texts: Iterable[str], question: str, count: int) -> tuple[str, ...]:
    seen = {_identity(question)}
    taken: list[str] = []
    for text in texts:
        if len(taken) == count:
            break
        if (identity := _identity(text)) not in seen:
            seen.add(identity)
            taken.append(text)
    return tuple(taken)


def _identity(text: str) -> str:
    """Return what makes two wordings the same: case, spaces and punctuation at the ends do not."""
    return " ".join(text.casefold().split()).strip("?!. ")


def _as_sentence(text: str) -> str:
    if text.endswith(("?", "!", ".")):
        return _upper_first(text)
    last = re.split(r"[.?!] ", text)[-1]
    return _upper_first(f"{text}?" if _OPENS_QUESTION.search(last) else f"{text}.")


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower_first(text: str) -> str:
    is_word = bool(re.match(r"[A-Z][a-z']*\b", text)) and not text.startswith(("I ", "I'"))
    return text[:1].lower() + text[1:] if is_word else text
