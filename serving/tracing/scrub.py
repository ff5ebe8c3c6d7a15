"""Personal data and secrets out of a text, before it is stored.

Patterns, not a model: what they cannot see (names, addresses) stays. Belongs here: the patterns and
their placeholders. Does not belong here: which fields are scrubbed (`record`).
"""

import re

EMAIL, PHONE, CARD, SECRET = "[email]", "[phone]", "[card]", "[secret]"

_WORDS = r"(?:[A-Z]++(?:[a-z]{2,}+|(?![A-Za-z\d]))|[a-z]++|[_-])"
"""A part of what code calls something: `getToken`, `TimeoutError`, `cache_path`."""

_KEY_LIKE = re.compile(
    rf"""
    (?=\[docs:|-----BEGIN|[\w/+.-]{{15}})(?:  # most words are ruled out by this first look
    (?P<cited>\[docs:[\w./%-]{{1,200}}\])                           # a citation, which stays
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY(?:\ BLOCK)?-----.*?
      (?:-----END\ [A-Z ]*PRIVATE\ KEY(?:\ BLOCK)?-----|\Z)
    | \beyJ[\w-]{{8,}}\.[\w-]{{4,}}(?:\.[\w-]*)?                   # JSON web tokens
    | \b(?:(?:sk|pk|rk)[-_]                                        # OpenAI, Anthropic, Stripe
        |gh[pousr]_|github_pat_|glpat-|hf_|npm_|pypi-|us_)(?!{_WORDS}{{1,60}}+(?![\w-]))[\w-]{{16,}}
    | \bxox[abeprs]-[A-Za-z0-9-]{{10,}}                            # Slack
    | \b(?:AKIA|ASIA)[A-Z0-9]{{16}}\b | \bAIza[\w-]{{30,}}         # AWS, Google
    | (?<![\w/+-])(?=[\w/+-]{{0,99}}\d)(?=[\w/+-]{{0,99}}[a-z])(?=[\w/+-]{{0,99}}[A-Z])
      (?!(?:{_WORDS}|/|\d{{1,4}}+(?![a-z]))++(?![\w/+=-]))         # a path, or a long name
      (?:[A-Za-z0-9/+]{{40,}}={{0,2}}|[A-Za-z0-9_-]{{40,}})        # base64: secrets of AWS, Azure
    | \b(?=[A-Za-z]{{0,99}}\d)(?=\d{{0,99}}[A-Za-z])[A-Za-z0-9]{{32,}}  # letters and digits
    )
    """,
    re.DOTALL | re.VERBOSE,
)

_IN_ADDRESS = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,64}:)[^\s/'\"<>]{1,256}@")
"""`postgres://app:hunter@db/docs`: whose address it is stays, the password goes."""

_CODE = r"[$<{(\[%*]|\w+(?:\.\w+)*[(\[]"
"""What a value of code begins with: `${NAME}`, `get_token(`, `os.environ[`."""

_SAID = (
    "required|optional|missing|invalid|incorrect|expired|rejected|unknown|hidden|changed|forgotten"
    "|encrypted|hashed|disabled|enabled|cannot|should|string|undefined"
)
"""What a sentence or a schema says of a password after its colon."""

_ASSIGNED = re.compile(
    rf"""
    (?:
      # A password may be any word; names, calls and placeholders of code are none.
      (?P<any>\w{{0,40}}(?:(?i:password|passwd|passphrase)['"]?\s{{0,3}}(?:[:=]|=>)\s{{0,3}})
        (?:"(?=[^"\n]{{6,200}}")|'(?=[^'\n]{{6,200}}'))?)
      (?!{_CODE}|[a-z_]\w*(?:\.\w+)+(?![^\s'",;)])|(?i:{_SAID})(?![^\s'",;.)]))
      (?:(?<=")[^"\n]{{6,200}}|(?<=')[^'\n]{{6,200}}|[^\s'",;]{{6,}})
    | # Of others it takes a digit, or letters that make no name of code, to tell a key from a word.
      (?P<mixed>
        \w{{0,40}}(?i:pass(?:word|wd|phrase)|token|secret|(?:api|access|account|private|secret)[_-]?key)
        ['"]?(?:\s{{0,3}}(?:[:=]|=>)\s{{0,3}}|\ is:?\ )
        | --(?i:password|token|secret|api-key)\s
        | \b(?i:bearer|authorization['"]?:\s{{0,3}}['"]?basic)\s{{1,3}}
      )
      (?P<quote>['"]?)(?!{_CODE}|(?:{_WORDS}|\.)++(?![^\s'",;:)?!\]]))
      (?=[^\s'"]{{0,99}}(?:\d|[a-z][A-Z]))[^\s'",;]{{8,}}
    )
    """,
    re.VERBOSE,
)
"""`password=hunter`, `Bearer abc12345`, `the token is abc12345`: the words stay, the value goes."""

_ASSIGNED_WORDS = ("key", "token", "secret", "passw", "passp", "bearer", "basic")

_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_DIGIT = re.compile(r"\d")
_FEWEST_DIGITS = 9  # of a phone number; a card has more
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
    text = _KEY_LIKE.sub(lambda m: m["cited"] or SECRET, text)
    # What every match holds is looked for first: most texts have none, and a search is cheap.
    folded = text.casefold()
    if any(word in folded for word in _ASSIGNED_WORDS):
        text = _ASSIGNED.sub(lambda m: (m["any"] or m["mixed"] + m["quote"]) + SECRET, text)
    if "@" in text:
        text = _IN_ADDRESS.sub(lambda m: m[1] + SECRET + "@", text)
        text = _EMAIL.sub(EMAIL, text)
    if len(_DIGIT.findall(text)) < _FEWEST_DIGITS:
        return text
    text = _CARD.sub(lambda m: CARD if _passes_luhn(m[0]) else m[0], text)
    return _PHONE.sub(
        lambda m: PHONE if _FEWEST_DIGITS <= _count_digits(m[0]) <= 18 else m[0], text
    )


def _passes_luhn(candidate: str) -> bool:
    digits = [int(c) for c in candidate if c.isdecimal()]
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0 and any(digits)


def _count_digits(candidate: str) -> int:
    return sum(c.isdecimal() for c in candidate)
