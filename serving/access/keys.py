"""API keys: what one is, how it is written and recognised, and the file that holds them.

A key is `us_<public id>_<secret>`. The file keeps the SHA-256 of the secret, never the secret: with
its 256 random bits a slow hash would protect nothing more. Belongs here: making, listing, revoking,
recognising. Does not belong here: what a request may do (`admission`), counting (`quotas`).
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from serving.errors import InvalidInputError
from serving.files import PRIVATE_MODE, atomic_path

Scope = Literal[
    "ask", "ask:prefer_quality", "feedback:write", "curate:write", "traces:read", "release:read",
    "metrics:read",
]  # fmt: skip
SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("ask", "feedback:write")

PREFIX = "us_"
KEYS_FILE = "api_keys.json"
PUBLIC_ID_BYTES, SECRET_BYTES = 6, 32
LONGEST_KEY_CHARS = 200  # longer is not hashed: nobody makes a server work for a header
_NO_HASH = hashlib.sha256(b"nobody").hexdigest()


class ApiKey(BaseModel):
    """One key as the file holds it. The limits are per minute and per day of this key alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    tenant: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")]
    env: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")] = "prod"
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    requests_per_minute: Annotated[int, Field(ge=1)] = 120
    teacher_calls_per_minute: Annotated[int, Field(ge=0)] = 10
    teacher_calls_per_day: Annotated[int, Field(ge=0)] = 200
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def describe_refusal(self, now: datetime) -> str | None:
        """Return why this key opens nothing at `now`, None when it does."""
        if self.revoked_at is not None:
            return "a revoked key"
        if self.expires_at is not None and now >= self.expires_at:
            return "an expired key"
        return None


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key just made. `text` is shown once and kept nowhere."""

    text: str
    entry: ApiKey


def create_key(
    folder: Path,
    *,
    tenant: str,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    valid_days: int | None = 365,
    now: datetime | None = None,
    **limits: object,
) -> NewKey:
    """Make a key and add it to the file in `folder`.

    Args:
        folder: `keys/` of the home.
        tenant: who the key is for, stored with every trace's key id.
        scopes: what it opens, of `SCOPES`.
        valid_days: days until it expires; None never does.
        now: the moment it is made.
        limits: other fields of `ApiKey`, such as `requests_per_minute` or `env`.

    Raises:
        InvalidInputError: a field is illegal, or the file cannot be read.
    """
    moment = now or datetime.now(UTC)
    public, secret = secrets.token_hex(PUBLIC_ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
    fields: Mapping[str, object] = {
        "key_id": public,
        "secret_sha256": _hash(secret),
        "tenant": tenant,
        "scopes": tuple(scopes),
        "created_at": moment,
        "expires_at": None if valid_days is None else moment + timedelta(days=valid_days),
        **limits,
    }
    try:
        entry = ApiKey.model_validate(fields)
    except ValidationError as error:
        raise _explain_fields(error) from None
    with _exclusive(folder):
        _write(folder, (*read_keys(folder), entry))
    return NewKey(text=f"{PREFIX}{public}_{secret}", entry=entry)


def revoke_key(folder: Path, key_id: str, *, now: datetime | None = None) -> ApiKey:
    """Revoke a key; servers stop taking it within `ring.RELOAD_SECONDS`.

    Raises:
        InvalidInputError: there is no such key.
    """
    with _exclusive(folder):
        known = read_keys(folder)
        found = next((key for key in known if key.key_id == key_id), None)
        if found is None:
            raise InvalidInputError(
                f"revoking the key {key_id!r}",
                expected=f"one of {', '.join(k.key_id for k in known)}"
                if known
                else "nothing: there are no keys",
                found=repr(key_id),
                next_step="list the keys with `understudy keys list`",
            )
        revoked = found.model_copy(
            update={"revoked_at": found.revoked_at or now or datetime.now(UTC)}
        )
        _write(folder, tuple(revoked if key.key_id == key_id else key for key in known))
    return revoked


def remove_keys(folder: Path, key_ids: Collection[str]) -> None:
    """Take keys out of the file, and the file away with the last one; other keys stay as they are.

    For keys that nobody will ask about again: a revoked one stays listed. End the server first:
    one that runs keeps the keys it knows in force when the file goes, and stays closed.
    """
    with _exclusive(folder):
        left = tuple(key for key in read_keys(folder) if key.key_id not in key_ids)
        if left:
            _write(folder, left)
        else:
            (folder / KEYS_FILE).unlink(missing_ok=True)


def read_keys(folder: Path) -> tuple[ApiKey, ...]:
    """Return the keys of the file in `folder`, none when there is no file.

    Raises:
        InvalidInputError: the file is not one this version wrote.
    """
    path = folder / KEYS_FILE
    try:
        return _KeysFile.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        found = str(error) if isinstance(error, OSError) else _name_errors(error)
        next_step = "restore the file, or move it away and make new keys"
        if isinstance(error, PermissionError):
            next_step = _advise_reader(path)
        raise InvalidInputError(
            f"reading the API keys in {path}",
            expected="the file that `understudy keys create` writes",
            found=found,
            next_step=next_step,
        ) from None


def _advise_reader(path: Path) -> str:
    """Say how a person may read the file; only a user that serves is to be given it."""
    user = os.geteuid()
    try:
        owner = f"the user {path.stat().st_uid}"
    except OSError:  # its folder may not be entered
        owner = "the user who owns it"
    return (
        f"run as root or as {owner}; if the user {user} is the one that serves, as root: `chown` "
        f"the file to {user}"
    )


def find_key(keys: Mapping[str, ApiKey], text: str) -> ApiKey | None:
    """Return the key that `text` is, also a revoked or expired one; None for any other text.

    An unknown id costs the same comparison as a wrong secret, so times tell nobody which ids exist.
    """
    if len(text) > LONGEST_KEY_CHARS or not text.startswith(PREFIX):
        return None
    public, _, secret = text.removeprefix(PREFIX).partition("_")
    entry = keys.get(public)
    is_same = hmac.compare_digest(_hash(secret), entry.secret_sha256 if entry else _NO_HASH)
    return entry if is_same else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _write(folder: Path, keys: tuple[ApiKey, ...]) -> None:
    owner = _find_owner(folder)
    with atomic_path(folder / KEYS_FILE) as temporary:
        temporary.chmod(PRIVATE_MODE)
        content = _KeysFile(keys=keys).model_dump(mode="json")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.chown(temporary, *owner)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time change the file."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = _find_owner(folder)
    path = folder / f".{KEYS_FILE}.lock"
    with path.open("w") as lock:
        os.chown(path, *owner)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find_owner(folder: Path) -> tuple[int, int]:
    """Return the user and group that the file is left to; -1 where it is simply who runs this.

    A server runs as a user of its own, who alone may read the file. One that root replaced and kept
    would shut the server out, and a revoked key would go on opening it.

    Raises:
        InvalidInputError: the file is another user's, and only root may leave it to them.
    """
    path = folder / KEYS_FILE
    if os.geteuid() == 0:
        found = (path if path.exists() else folder).stat()
        return found.st_uid, found.st_gid
    if path.exists() and path.stat().st_uid != os.geteuid():
        owner = path.stat().st_uid
        raise InvalidInputError(
            f"changing the API keys in {path}",
            expected=f"to run as root, or as the user {owner} who owns the file",
            found=f"the user {os.geteuid()}",
            next_step=f"run it again as root, or as the user {owner}",
        )
    return -1, -1


def _explain_fields(error: ValidationError) -> InvalidInputError:
    return InvalidInputError(
        "making an API key",
        expected=f"a tenant of 1-32 of a-z 0-9 _ -, scopes among {', '.join(SCOPES)}, whole limits",
        found=_name_errors(error),
        next_step="see `understudy keys create --help`",
    )


def _name_errors(error: ValidationError) -> str:
    """Name keys and reasons, never values: a value may be a hash."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
