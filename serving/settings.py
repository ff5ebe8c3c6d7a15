"""The server's settings: the only place in `serving` that reads the environment.

Belongs here: names of variables, their types, defaults and errors. Does not belong here: what a
release decides (thresholds, models, prices), and any use of the values.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, get_args

from serving.errors import InvalidInputError
from serving.pipeline.router import Phase

PREFIX = "UNDERSTUDY_SERVE_"
HOME = "UNDERSTUDY_HOME"
VARIABLES = {
    "host": f"{PREFIX}HOST",
    "port": f"{PREFIX}PORT",
    "phase": f"{PREFIX}PHASE",
    "auth": f"{PREFIX}AUTH",
    "allow_prefer_quality": f"{PREFIX}ALLOW_PREFER_QUALITY",
    "admin_prefix": f"{PREFIX}ADMIN_PREFIX",
    "pages": f"{PREFIX}PAGES",
    "env": f"{PREFIX}ENV",
    "request_deadline_seconds": f"{PREFIX}REQUEST_DEADLINE_SECONDS",
    "max_concurrency": f"{PREFIX}MAX_CONCURRENCY",
    "release_poll_seconds": f"{PREFIX}RELEASE_POLL_SECONDS",
    "teacher_calls_per_day": f"{PREFIX}TEACHER_CALLS_PER_DAY",
    "shadow_ratio": f"{PREFIX}SHADOW_RATIO",
    "shadow_calls_per_day": f"{PREFIX}SHADOW_CALLS_PER_DAY",
    "canary_salt": f"{PREFIX}CANARY_SALT",
    "log_format": f"{PREFIX}LOG_FORMAT",
    "otlp_endpoint": f"{PREFIX}OTLP_ENDPOINT",
    "traces": f"{PREFIX}TRACES",
    "student_share": f"{PREFIX}STUDENT_SHARE",
}
MAXIMUM_BODY_BYTES = 64 * 1024
Choice = TypeVar("Choice")
Default = TypeVar("Default")
AuthSetting = Literal["auto", "keys", "open"]
"""`keys`: every request needs one. `open`: none does. `auto`: keys once one was made; until then a
server on loopback is open, and one on another address does not start."""

LogFormat = Literal["text", "json"]

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything an operator decides about one server process."""

    home: Path = Path(".understudy")
    host: str = "127.0.0.1"
    port: int = 8321
    phase: Phase | None = None
    """None: the phase of the release."""
    auth: AuthSetting = "auto"
    allow_prefer_quality: bool = False
    """Of an open server; with keys the scope `ask:prefer_quality` decides."""
    admin_prefix: bool = False
    """Take a leading `[admin]` for a request of `prefer_quality`; it is stripped either way."""
    pages: bool = True
    """Whether browsers get the Ask page at `/` and the API's reference at `/docs`."""
    env: str = "dev"
    request_deadline_seconds: float = 60.0
    max_concurrency: int = 32
    release_poll_seconds: float = 5.0
    """How often CURRENT is looked at for another release."""
    teacher_calls_per_day: int | None = None
    """Of all keys together; None: as many as they may make."""
    shadow_ratio: float | None = None
    """The share of answers that the other model gives too. None: all in the phase `imposter`, which
    is there for them, and none in the others."""
    shadow_calls_per_day: int = 1000
    canary_salt: str = field(default="", repr=False)
    """What a conversation's side of the canary is drawn with; the same on every server. Empty: the
    release's id, which whoever reads /v1/release could forecast sides from."""
    log_format: LogFormat = "text"
    traces: Path | None = None
    """Where traces and feedback go; None: into the home. Several servers may share a home that they
    only read, each with a folder of its own for what it writes."""
    student_share: float = 0.5
    """The share of the deadline that the students may take together, so that the teacher has the
    rest; 1: all of it."""
    otlp_endpoint: str | None = None
    """Where spans go, as `http://127.0.0.1:4318/v1/traces`; None: nowhere."""
    checks_host: bool = False
    """Whether an open loopback server refuses other names than its own; set for one that listens,
    not for an app that is called in process."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where `read_secret` looks; never printed."""

    @property
    def releases_folder(self) -> Path:
        """Where bundles and CURRENT lie."""
        return self.home / "releases"

    @property
    def keys_folder(self) -> Path:
        """Where the key that verifies CURRENT lies."""
        return self.home / "keys"

    @property
    def models_folder(self) -> Path:
        """Where prepared base models lie."""
        return self.home / "models"

    @property
    def traces_folder(self) -> Path:
        """Where all that this server writes lies."""
        return self.traces or self.home / "traces"

    @property
    def segments_folder(self) -> Path:
        """Where this server writes its traces."""
        return self.traces_folder / "segments"

    @property
    def feedback_folder(self) -> Path:
        """Where this server writes feedback: beside the traces, a store of its own."""
        return self.traces_folder / "feedback"

    @property
    def student_seconds(self) -> float:
        """How long the students of one request may take together."""
        return self.student_share * self.request_deadline_seconds

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK_HOSTS

    def read_secret(self, variable: str | None) -> str | None:
        """Return the secret in the named variable, or None when no variable is named.

        Raises:
            InvalidInputError: the variable is named by the release but not set.
        """
        if not variable:
            return None
        value = self.environment.get(variable, "")
        if not value:
            raise InvalidInputError(
                f"reading the teacher's API key from ${variable}",
                expected="a non-empty value",
                found="nothing",
                next_step=f"export {variable}=… in the shell that starts the server",
            )
        return value


def load_settings() -> ServerSettings:
    """Read the settings of this process."""
    return from_environment(os.environ)


def from_environment(env: Mapping[str, str]) -> ServerSettings:
    """Read the settings from the given variables; unset or empty ones take their default.

    Raises:
        InvalidInputError: a value is illegal, or a UNDERSTUDY_SERVE_* variable is unknown.
    """
    unknown = sorted(n for n in env if n.startswith(PREFIX) and n not in VARIABLES.values())
    if unknown:
        raise _illegal(unknown[0], f"one of {', '.join(sorted(VARIABLES.values()))}", unknown[0])
    default = ServerSettings()
    given = {name: env.get(variable, "").strip() for name, variable in VARIABLES.items()}
    return ServerSettings(
        home=_read_home(env.get(HOME, "").strip()),
        host=given["host"] or default.host,
        port=int(_read_number("port", given, default.port, 1, 65535, whole=True)),
        phase=_read_phase(given["phase"]),
        auth=_read_auth(given["auth"]),
        allow_prefer_quality=_read_flag("allow_prefer_quality", given),
        admin_prefix=_read_flag("admin_prefix", given),
        pages=_read_flag("pages", given, default="true"),
        env=_read_env(given["env"] or default.env),
        request_deadline_seconds=_read_number(
            "request_deadline_seconds", given, default.request_deadline_seconds, 0.1, 3600
        ),
        max_concurrency=int(
            _read_number("max_concurrency", given, default.max_concurrency, 1, 100_000, whole=True)
        ),
        release_poll_seconds=_read_number(
            "release_poll_seconds", given, default.release_poll_seconds, 0.1, 3600
        ),
        teacher_calls_per_day=_read_optional_count("teacher_calls_per_day", given),
        shadow_ratio=_read_number("shadow_ratio", given, 0, 0, 1)
        if given["shadow_ratio"]
        else None,
        shadow_calls_per_day=int(
            _read_number(
                "shadow_calls_per_day", given, default.shadow_calls_per_day, 0, 10**9, whole=True
            )
        ),
        canary_salt=given["canary_salt"],
        log_format=_read_choice(
            "log_format",
            given["log_format"],
            get_args(LogFormat),
            default=default.log_format,
            otherwise=default.log_format,
        ),
        otlp_endpoint=_read_url("otlp_endpoint", given),
        traces=_read_traces(given["traces"]),
        student_share=_read_number("student_share", given, default.student_share, 0.01, 1),
        environment=dict(env),
    )


def _read_home(value: str) -> Path:
    if "://" in value:
        raise _illegal(HOME, "a local folder (a server reads its release from disk)", value)
    return Path(value).expanduser() if value else ServerSettings().home


def _read_traces(value: str) -> Path | None:
    if "://" in value:
        raise _illegal(VARIABLES["traces"], "a local folder (records are fsynced there)", value)
    return Path(value).expanduser() if value else None


def _read_phase(value: str) -> Phase | None:
    legal: tuple[Phase, ...] = get_args(Phase)
    return _read_choice("phase", value, legal, default=None, otherwise="the release's")


def _read_auth(value: str) -> AuthSetting:
    legal: tuple[AuthSetting, ...] = get_args(AuthSetting)
    default = ServerSettings().auth
    return _read_choice("auth", value, legal, default=default, otherwise=default)


def _read_choice(
    name: str, value: str, legal: Sequence[Choice], *, default: Default, otherwise: str
) -> Choice | Default:
    """Return the legal value that `value` is; `otherwise` says what an empty one means."""
    for choice in legal:
        if value == choice:
            return choice
    if value:
        shown = f"one of {', '.join(map(str, legal))}, or empty for {otherwise}"
        raise _illegal(VARIABLES[name], shown, value)
    return default


def _read_env(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_-]{1,32}", value):
        raise _illegal(VARIABLES["env"], "1-32 of a-z 0-9 _ -, for example dev or prod", value)
    return value


def _read_flag(name: str, given: Mapping[str, str], *, default: str = "false") -> bool:
    value = given[name].casefold() or default
    if value not in _FLAGS:
        raise _illegal(VARIABLES[name], f"one of {', '.join(_FLAGS)}", given[name])
    return _FLAGS[value]


def _read_number(
    name: str,
    given: Mapping[str, str],
    default: float,
    lowest: float,
    highest: float,
    *,
    whole: bool = False,
) -> float:
    text = given[name]
    kind = "a whole number" if whole else "a number"
    try:
        value = float(int(text) if whole else float(text)) if text else default
    except ValueError:
        value = float("nan")
    if not lowest <= value <= highest:
        raise _illegal(VARIABLES[name], f"{kind} from {lowest} to {highest}", text)
    return value


def _read_optional_count(name: str, given: Mapping[str, str]) -> int | None:
    return int(_read_number(name, given, 0, 0, 10**9, whole=True)) if given[name] else None


def _read_url(name: str, given: Mapping[str, str]) -> str | None:
    url = given[name]
    if url and not url.startswith(("http://", "https://")):
        raise _illegal(VARIABLES[name], "an http:// or https:// URL, or empty for none", url)
    return url or None


def _illegal(variable: str, expected: str, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"reading ${variable}",
        expected=expected,
        found=repr(found),
        next_step=f"set {variable} to a legal value, or unset it",
    )
