import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.access.keys import (
    KEYS_FILE,
    SCOPES,
    ApiKey,
    create_key,
    find_key,
    read_keys,
    revoke_key,
)
from serving.access.ring import RELOAD_SECONDS, KeyRing
from serving.errors import InvalidInputError
from serving.tracing.scrub import scrub

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def _index(folder: Path) -> dict[str, ApiKey]:
    return {key.key_id: key for key in read_keys(folder)}


def test_a_key_is_found_by_its_text_and_its_secret_is_nowhere_on_disk(tmp_path: Path) -> None:
    made = create_key(tmp_path, tenant="docs", scopes=["ask"], now=NOW)
    assert find_key(_index(tmp_path), made.text) == made.entry
    secret = made.text.split("_", 2)[2]
    content = (tmp_path / KEYS_FILE).read_text()
    assert secret not in content
    assert secret not in repr(made.entry)
    assert stat.S_IMODE((tmp_path / KEYS_FILE).stat().st_mode) == 0o600
    assert made.text not in scrub(f"my key is {made.text}")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-1],
        lambda text: text + "x",
        lambda text: text.upper(),
        lambda text: text.replace("us_", "sk_", 1),
        lambda text: "us_000000000000_" + text.split("_", 2)[2],
        lambda text: text.rsplit("_", 1)[0],
        lambda _text: "",
        lambda _text: "us_",
        lambda text: text + "y" * 10_000,
        lambda text: text[:-1] + "\ud800",
    ],
)
def test_any_other_text_is_no_key(tmp_path: Path, damage) -> None:
    made = create_key(tmp_path, tenant="docs")
    assert find_key(_index(tmp_path), damage(made.text)) is None


def test_expiry_and_revocation_close_a_key(tmp_path: Path) -> None:
    made = create_key(tmp_path, tenant="docs", valid_days=1, now=NOW).entry
    assert made.describe_refusal(NOW + timedelta(hours=23)) is None
    assert made.describe_refusal(NOW + timedelta(days=1)) == "an expired key"
    first = revoke_key(tmp_path, made.key_id, now=NOW + timedelta(hours=1))
    again = revoke_key(tmp_path, made.key_id, now=NOW + timedelta(hours=2))
    assert first == again == read_keys(tmp_path)[0]
    assert first.describe_refusal(NOW) == "a revoked key"
    assert create_key(tmp_path, tenant="docs", valid_days=None).entry.expires_at is None


def test_keys_made_at_once_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: create_key(tmp_path, tenant=f"t{n}"), range(24)))
    assert {key.key_id for key in read_keys(tmp_path)} == {key.entry.key_id for key in made}


SERVER_UID = 10001


@pytest.fixture
def keys_of_the_server() -> Iterator[Path]:
    """A folder of keys that belongs to the user of a server, where any user may come by."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "keys"
        folder.mkdir(mode=0o700)
        os.chown(folder, SERVER_UID, SERVER_UID)
        yield folder


_AS_ANOTHER = """
import os
import sys
from pathlib import Path
from serving.access.keys import create_key, read_keys, revoke_key
from serving.errors import InvalidInputError

folder, user = Path(sys.argv[2]), int(sys.argv[3])
os.setgroups([])
os.setgid(user)
os.setuid(user)
try:
    if sys.argv[1] == "create":
        create_key(folder, tenant="own")
    if sys.argv[1] == "revoke":
        revoke_key(folder, read_keys(folder)[0].key_id)
    sys.stdout.write(" ".join(key.tenant for key in read_keys(folder)))
except InvalidInputError as error:
    sys.stdout.write(str(error))
"""


def _run_as(user: int, verb: str, folder: Path) -> str:
    # Here and not `user=`: root's interpreter may lie where others cannot even start it.
    command = [sys.executable, "-c", _AS_ANOTHER, verb, str(folder), str(user)]
    root = Path(__file__).parents[3]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a file for another user")
def test_keys_that_root_makes_are_the_server_s_to_read_and_change(keys_of_the_server: Path) -> None:
    folder = keys_of_the_server
    first = create_key(folder, tenant="first")
    assert _run_as(SERVER_UID, "read", folder) == "first"
    assert _run_as(SERVER_UID, "create", folder) == "first own"
    create_key(folder, tenant="third")
    revoke_key(folder, first.entry.key_id)
    assert _run_as(SERVER_UID, "revoke", folder) == "first own third"
    (found,) = {(p.stat().st_uid, p.stat().st_gid) for p in folder.iterdir()}
    assert found == (SERVER_UID, SERVER_UID)
    assert stat.S_IMODE((folder / KEYS_FILE).stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a file for another user")
def test_another_user_is_told_whose_keys_these_are(keys_of_the_server: Path) -> None:
    create_key(keys_of_the_server, tenant="first")
    keys_of_the_server.chmod(0o777)
    assert f"user {SERVER_UID} who owns the file" in _run_as(10002, "create", keys_of_the_server)
    told = _run_as(10002, "read", keys_of_the_server)
    assert f"run as root or as the user {SERVER_UID}; if the user 10002 is the one that" in told
    assert [key.tenant for key in read_keys(keys_of_the_server)] == ["first"]


def test_wrong_fields_and_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="scopes") as caught:
        create_key(tmp_path, tenant="docs", scopes=["root"])
    assert all(scope in caught.value.expected for scope in SCOPES)
    with pytest.raises(InvalidInputError, match="tenant"):
        create_key(tmp_path, tenant="Docs Team")
    with pytest.raises(InvalidInputError, match="requests_per_minute"):
        create_key(tmp_path, tenant="docs", requests_per_minute=0)
    with pytest.raises(InvalidInputError, match="no keys"):
        revoke_key(tmp_path, "0" * 12)
    made = create_key(tmp_path, tenant="docs")
    content = json.loads((tmp_path / KEYS_FILE).read_text())
    content["keys"][0]["colour"] = made.entry.secret_sha256
    (tmp_path / KEYS_FILE).write_text(json.dumps(content))
    with pytest.raises(InvalidInputError, match="colour") as caught:
        read_keys(tmp_path)
    assert made.entry.secret_sha256 not in str(caught.value)


def test_a_ring_sees_changes_soon_and_keeps_the_last_good_keys(tmp_path: Path) -> None:
    moment = [0.0]
    ring = KeyRing(tmp_path, clock=lambda: moment[0])
    assert ring.is_empty
    made = create_key(tmp_path, tenant="docs")
    moment[0] += RELOAD_SECONDS
    assert ring.find(made.text) == made.entry

    revoke_key(tmp_path, made.entry.key_id)
    moment[0] += RELOAD_SECONDS
    found = ring.find(made.text)
    assert found is not None
    assert found.revoked_at is not None

    whole = (tmp_path / KEYS_FILE).read_bytes()
    for broken in (whole[:40], b"", None):
        if broken is None:
            (tmp_path / KEYS_FILE).unlink()
        else:
            (tmp_path / KEYS_FILE).write_bytes(broken)
        moment[0] += RELOAD_SECONDS
        assert not ring.is_empty
        assert ring.is_stale
    (tmp_path / KEYS_FILE).write_bytes(whole)
    moment[0] += RELOAD_SECONDS
    assert ring.find(made.text) is not None
    assert not ring.is_stale
