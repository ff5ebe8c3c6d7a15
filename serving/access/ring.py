"""The keys as a running server knows them: read again when the file changes.

Belongs here: when the file is read and what happens when it cannot be. Does not belong here: the
file's content (`keys`), what a key opens (`admission`).
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from serving.access.keys import KEYS_FILE, ApiKey, find_key, read_keys
from serving.errors import InvalidInputError

RELOAD_SECONDS = 5.0
"""How old what the server knows may be: a revoked key is refused this much later at most."""

_LOG = logging.getLogger(__name__)


class KeyRing:
    """The keys of one folder. A file that cannot be read leaves the last good keys in force."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file once.

        Raises:
            InvalidInputError: the file is not one this version wrote.
        """
        self._folder = folder
        self._clock = clock
        self._stamp = self._read_stamp()
        self._keys = _by_id(read_keys(folder))
        self._looked_at = clock()
        self._is_stale = False

    @property
    def is_stale(self) -> bool:
        """Whether the file cannot be read: a key revoked since then still opens the server."""
        self._refresh()
        return self._is_stale

    @property
    def is_empty(self) -> bool:
        """Whether no key was ever made."""
        self._refresh()
        return not self._keys

    def find(self, text: str) -> ApiKey | None:
        """Return the key that `text` is (see `keys.find_key`)."""
        self._refresh()
        return find_key(self._keys, text)

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._looked_at < RELOAD_SECONDS:
            return
        self._looked_at = now
        stamp = self._read_stamp()
        if stamp == self._stamp and not self._is_stale:
            return
        try:
            self._keys = self._read_again()
        except InvalidInputError as error:
            if not self._is_stale:
                _LOG.error("%s", error)
            self._is_stale = True
        else:
            self._stamp, self._is_stale = stamp, False

    def _read_again(self) -> Mapping[str, ApiKey]:
        """Read the file; one that is gone does not open the server to everybody."""
        keys = _by_id(read_keys(self._folder))
        if self._keys and not keys:
            raise InvalidInputError(
                f"reading the API keys in {self._folder / KEYS_FILE} again",
                expected="the keys the server knows, or more",
                found="none",
                next_step="put the file back; the keys known so far stay in force",
            )
        return keys

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = (self._folder / KEYS_FILE).stat()
        except OSError:
            return None  # reading the file says what is wrong, and the keys known so far stay
        return (found.st_mtime_ns, found.st_ino, found.st_size)


def _by_id(keys: tuple[ApiKey, ...]) -> Mapping[str, ApiKey]:
    return {key.key_id: key for key in keys}
