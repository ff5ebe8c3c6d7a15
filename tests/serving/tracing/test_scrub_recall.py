"""How much scrubbing finds, and how much it takes by mistake: counted on a seeded corpus.

The corpus is made from how people write such things, not from the patterns that look for them.
"""

import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from scipy.stats import binomtest

from serving.tracing.scrub import scrub
from tests.serving.torture import count, report

ROOT = Path(__file__).parents[3]
RECALL_FLOOR_RATIO = 0.98
FALSE_HIT_LIMIT_RATIO = 0.02
SENTENCES = (
    "{}", "my {kind} is {}", "please contact {} about this", "Why was {} refused?", "({})",
    "I put {} into the config and it fails", "error for {}: not found", "{}, is that right?",
    "It says \"{}\" in the log.", "user={}", "see {}.", "before\n{}\nafter",
)  # fmt: skip
SHORTEST_LEFT_CHARS = 6


@dataclass(frozen=True)
class Planted:
    """What a user wrote, and the part of it that must not be stored."""

    shown: str
    secret: str


NAMES = ("jane", "o.neill", "j-p.martin", "anna_b", "x", "ops+alerts", "kai99", "mary.ann.lee")
HOSTS = ("mail.example", "example.co.uk", "uni-jena.example", "sub.team.example.org", "x1.io")


def make_mail(lots: random.Random) -> Planted:
    mail = f"{lots.choice(NAMES)}{lots.choice(('', str(lots.randrange(100))))}@{lots.choice(HOSTS)}"
    mail = lots.choice((mail, mail.upper()))
    return Planted(lots.choice((mail, f"mailto:{mail}", f"<{mail}>")), mail)


def make_phone(lots: random.Random) -> Planted:
    def digits(n: int) -> str:
        return str(lots.randrange(2, 10)) + "".join(lots.choices(string.digits, k=n - 1))

    area, first, last = digits(3), digits(3), digits(4)
    phone = lots.choice(
        (
            f"({area}) {first}-{last}", f"{area}-{first}-{last}", f"{area}.{first}.{last}",
            f"+1 {area} {first} {last}", f"+1-{area}-{first}-{last}", f"1-{area}-{first}-{last}",
            f"+44 20 {digits(4)} {digits(4)}", f"+44 7{digits(3)} {digits(6)}",
            f"07{digits(3)} {digits(6)}", f"+49 30 {digits(6)}", f"+49 (0)30 {digits(7)}",
            f"030 {digits(4)} {digits(4)}", f"0{digits(3)}/{digits(6)}", f"+33 1 {digits(2)} "
            f"{digits(2)} {digits(2)} {digits(2)}", f"0033 1 {digits(8)}",
            f"+91 {digits(5)} {digits(5)}", f"+86 138 {digits(4)} {digits(4)}",
            f"+81-3-{digits(4)}-{digits(4)}", f"+{digits(2)}{digits(9)}",
            f"020 {digits(4)} {digits(4)}",
        )
    )  # fmt: skip
    return Planted(phone, phone)


def make_card(lots: random.Random) -> Planted:
    prefix, length = lots.choice((("4", 16), ("51", 16), ("34", 15), ("6011", 16), ("3530", 16)))
    body = prefix + "".join(lots.choices(string.digits, k=length - len(prefix) - 1))
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(body))]
    check = -sum(d - 9 if d > 9 else d for d in doubled) % 10
    number = body + str(check)
    groups = [number[i : i + 4] for i in range(0, length, 4)]
    if length == 15:
        groups = [number[:4], number[4:10], number[10:]]
    card = lots.choice(("", " ", "-")).join(groups)
    return Planted(card, card)


WORDS = ("horse", "Battery", "staple", "correct", "winter", "Sommer", "drei", "katze", "sesame")
ALNUM = string.ascii_letters + string.digits
BASE64 = ALNUM + "+/"


def make_key(lots: random.Random) -> Planted:
    """A key as services hand it out: letters and digits as they fall, some without a digit."""

    def some(n: int, alphabet: str = ALNUM) -> str:
        return "".join(lots.choices(alphabet, k=n))

    secret = lots.choice(
        (
            f"sk-{some(48)}", f"sk-proj-{some(40)}", f"sk-ant-api03-{some(60)}",
            f"sk_live_{some(24)}", f"ghp_{some(36)}", f"github_pat_{some(22)}_{some(40)}",
            f"glpat-{some(20)}", f"hf_{some(34)}", f"npm_{some(36)}", f"xoxb-{some(12)}-{some(24)}",
            "AKIA" + some(16, string.ascii_uppercase + string.digits), f"AIza{some(35)}",
            f"us_{some(12, '0123456789abcdef')}_{some(43, ALNUM + '-_')}",
            some(64, "0123456789abcdef"), f"eyJ{some(20)}.eyJ{some(30)}.{some(40)}",
            some(40, BASE64), some(86, BASE64) + "==",
        )
    )  # fmt: skip
    return Planted(secret, secret)


def make_password(lots: random.Random) -> Planted:
    """A password or token beside the word that says so, in the ways of shells, files and URLs."""
    words = "".join(lots.sample(WORDS, 2))
    secret = lots.choice(
        (
            words, words.lower(), "-".join(lots.sample(WORDS, 3)), f"{words}{lots.randrange(100)}",
            "".join(lots.choices(ALNUM, k=lots.randrange(8, 20))),
            "".join(lots.choices(ALNUM + "!#%&*+-.?^_", k=lots.randrange(8, 20))),
        )
    )  # fmt: skip
    user, host = lots.choice(NAMES), lots.choice((*HOSTS, "localhost", "db", "10.0.0.7:5432"))
    shown = lots.choice(
        (
            f"password={secret}", f"DB_PASSWORD={secret}", f"PGPASSWORD='{secret}'",
            f"password: {secret}", f'"password": "{secret}"', f"passwd = \"{secret}\"",
            f"postgres://{user}:{secret}@{host}/docs", f"https://{user}:{secret}@{host}",
            f"redis://:{secret}@{host}", f"password => '{secret}'",
        )
    )  # fmt: skip
    return Planted(shown, secret)


def make_token(lots: random.Random) -> Planted:
    """A token without a mark of its own, where a word says what it is."""
    secret = "".join(lots.choices(ALNUM, k=lots.randrange(20, 44)))
    aws = "".join(lots.choices(BASE64, k=40))
    shown, found = lots.choice(
        (
            (f"API_KEY: {secret}", secret), (f"Authorization: Bearer {secret}", secret),
            (f'"token": "{secret}"', secret), (f"client_secret={secret}", secret),
            (f"aws_secret_access_key = {aws}", aws), (f"AWS_SECRET_ACCESS_KEY={aws}", aws),
            (f"--token {secret}", secret), (f"my token is {secret}", secret),
        )
    )  # fmt: skip
    return Planted(shown, found)


def make_pem(lots: random.Random) -> Planted:
    """A private key, whole, cut short, or in one line of JSON."""
    kind = lots.choice(("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED ", "PGP "))
    block = " BLOCK" if kind == "PGP " else ""
    lines = ["".join(lots.choices(BASE64, k=64)) for _ in range(lots.randrange(3, 26))]
    text = "\n".join((f"-----BEGIN {kind}PRIVATE KEY{block}-----", *lines))
    text += lots.choice(("", f"\n-----END {kind}PRIVATE KEY{block}-----"))
    return Planted(text.replace("\n", lots.choice(("\n", "\n", "\\n"))), lines[-1])


KINDS: dict[str, Callable[[random.Random], Planted]] = {
    "mail": make_mail,
    "phone": make_phone,
    "card": make_card,
    "key": make_key,
    "password": make_password,
    "token": make_token,
    "pem": make_pem,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_looked_for_is_found(kind: str) -> None:
    lots = random.Random(f"{kind}-2026")  # noqa: S311  (a corpus)
    planted = count(1_000, 20_000)
    missed: list[str] = []
    for _ in range(planted):
        planted_one = KINDS[kind](lots)
        text = lots.choice(SENTENCES).replace("{kind}", kind).replace("{}", planted_one.shown)
        if _is_left(kind, planted_one.secret, scrub(text)):
            missed.append(text)
    found = planted - len(missed)
    lower = binomtest(found, planted).proportion_ci(0.95, method="exact").low
    report(f"{kind}: {found} of {planted} found, at least {lower:.4f}; missed as {missed[:8]}")
    assert lower >= RECALL_FLOOR_RATIO, missed[:20]


def _is_left(kind: str, secret: str, scrubbed: str) -> bool:
    """Say whether any part of it is still there that is long enough to mean something."""
    if kind in ("phone", "card"):
        digits = re.sub(r"\D", "", secret)
        return digits[-7:] in re.sub(r"\D", "", scrubbed)
    starts = range(len(secret) - SHORTEST_LEFT_CHARS + 1)
    return any(secret[at : at + SHORTEST_LEFT_CHARS] in scrubbed for at in starts)


def test_documentation_and_code_stay_as_they_are() -> None:
    lines = [
        (path, line)
        for pattern in ("docs/**/*.mdx", "serving/**/*.py", "assets/**/*.py", "README.md")
        for path in sorted(ROOT.glob(pattern))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    changed = [(path.name, line) for path, line in lines if scrub(line) != line]
    upper = binomtest(len(changed), len(lines)).proportion_ci(0.95, method="exact").high
    report(f"{len(changed)} of {len(lines)} lines changed, at most {upper:.4f}: {changed[:8]}")
    assert upper <= FALSE_HIT_LIMIT_RATIO, changed[:20]
