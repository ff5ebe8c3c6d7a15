"""Personal data and secrets out of a text, before it is stored.

Patterns, not a model: what they cannot see (names, addresses) stays. Belongs here: the patterns and
their placeholders. Does not belong here: which fields are scrubbed (`record`).
"""

import re

EMAIL, PHONE, CARD, SECRET = "[email]", "[phone]", "[card]", "[secret]"

_KEY_LIKE = re.compile(
    r"""
    -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    | \beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?                       # JSON web tokens
    | \b(?:sk|pk|rk)[-_](?=[\w-]{0,99}\d)[\w-]{16,}                # OpenAI, Anthropic, Stripe
    | \b(?:gh[pousr]_|github_pat_|glpat-|hf_|npm_|pypi-|us_)(?=[\w-]{0,99}\d)[\w-]{16,}
    | \bxox[abeprs]-[A-Za-z0-9-]{10,}                              # Slack
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b | \bAIza[\w-]{30,}             # AWS, Google
    | \b(?=[A-Za-z]{0,99}\d)(?=\d{0,99}[A-Za-z])[A-Za-z0-9]{32,}   # letters and digits, too long
    """,
    re.DOTALL | re.VERBOSE,
)
_ASSIGNED = re.compile(
    r"(?i)(\w{0,40}(?:api[_-]?key|token|secret|password|passwd)\s{0,3}[:=]\s{0,3}|\bbearer\s{1,3})"
    r"['\"]?(?=[^\s'\"]{0,99}\d)[^\s'\",;]{8,}"
)
"""`password=hunter2aa`, `Bearer abc12345`: the word stays, a value with a digit in it goes."""

_ASSIGNED_WORDS = ("key", "token", "secret", "passw", "bearer")

_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_PHONE = re.compile(
    r"""
    (?<![\w.:/+-])(?:
      (?:\+|\(\+|00)\d{1,15}\)?(?:[ ()./-]{1,3}\d{1,12}){0,6}              # +44 20 7946 0958
    | (?:1[ .-]?)?(?:\(\d{3}\)[ ]?|\d{3}[ .-])\d{3}[ .-]\d{4}            # (415) 555-2671
    | \(?0\d{1,4}\)?[ /.-]\d{2,4}(?:[ /.-]?\d{2,4}){1,3}                 # 020 7946 0958
    | 0\d{9,10} | [2-9]\d{9}                                             # 07946095812
    )(?!\w|[:-]\w)
    """,
    re.VERBOSE,
)
"""Ten bare digits that start with 1 are more often a Unix time than a number to call."""


def scrub(text: str) -> str:
    """Replace emails, phone numbers, card numbers (Luhn) and key-like tokens by placeholders.

    Lone surrogates, which no UTF-8 file can hold, become `?`.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = _KEY_LIKE.sub(SECRET, text)
    # What every match holds is looked for first: most texts have none, and a search is cheap.
    folded = text.casefold()
    if any(word in folded for word in _ASSIGNED_WORDS):
        text = _ASSIGNED.sub(lambda m: m[1] + SECRET, text)
    if "@" in text:
        text = _EMAIL.sub(EMAIL, text)
    if not any(map(str.isdecimal, text)):
        return text
    text = _CARD.sub(lambda m: CARD if _passes_luhn(m[0]) else m[0], text)
    return _PHONE.sub(lambda m: PHONE if 9 <= _count_digits(m[0]) <= 18 else m[0], text)


def _passes_luhn(candidate: str) -> bool:
    digits = [int(c) for c in candidate if c.isdecimal()]
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0 and any(digits)


def _count_digits(candidate: str) -> int:
    return sum(c.isdecimal() for c in candidate)
