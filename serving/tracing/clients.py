"""What kind of client asked: one of a few words, read off the User-Agent header.

The header itself is written nowhere: it may name a person's device, and anybody may send anything.
Belongs here: the words and the families they stand for. Does not belong here: who asked (`access`).
"""

import re
from typing import Literal, cast, get_args

ClientKind = Literal[
    "browser", "docs_site", "ide", "support_agent", "cli", "cron", "library", "bot", "other"
]

CLIENT_KINDS: tuple[ClientKind, ...] = get_args(ClientKind)
_READ_CHARS = 512
_OWN_NAME = re.compile(r"understudy-[a-z]+/([a-z_]+)")
"""How a client that knows what it is says so: `understudy-widget/docs_site`.

A word of its own that is none of the kinds is `other`: no family is guessed for it.
"""

_FAMILIES: tuple[tuple[ClientKind, re.Pattern[str]], ...] = (
    ("bot", re.compile(r"bot\b|crawler|spider|slurp|monitor|uptime|kube-probe|healthcheck", re.I)),
    ("ide", re.compile(r"vscode|visual studio|jetbrains|intellij|pycharm|neovim|emacs", re.I)),
    ("cli", re.compile(r"^(curl|wget|httpie|xh|powershell)\b", re.I)),
    (
        "library",
        re.compile(r"^(python|aiohttp|okhttp|java|go-http|axios|node|undici|ruby)\b", re.I),
    ),
    ("browser", re.compile(r"^(mozilla|opera)/", re.I)),
)
"""In this order: a crawler and an editor often call themselves Mozilla too."""


def name_client_kind(user_agent: str | None) -> ClientKind:
    """Return the kind of client that sends this header; `other` where no family fits."""
    told = (user_agent or "")[:_READ_CHARS].strip()
    own = _OWN_NAME.match(told)
    if own:
        return cast("ClientKind", own[1]) if own[1] in CLIENT_KINDS else "other"
    return next((kind for kind, family in _FAMILIES if family.search(told)), "other")
