from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from serving.errors import ReleaseError
from serving.releases.signing import (
    PRIVATE_KEY,
    PUBLIC_KEY,
    CurrentPointer,
    ensure_signing_key,
    load_public_key,
    read_pointer,
    sign_pointer,
)

POINTER = CurrentPointer(release_id="a" * 12, sequence=1, parent=None, checksums_sha256="b" * 64)


def test_keys_are_made_once_and_the_private_one_is_private(tmp_path: Path) -> None:
    first = ensure_signing_key(tmp_path / "keys")
    second = ensure_signing_key(tmp_path / "keys")
    assert first.private_bytes_raw() == second.private_bytes_raw()
    assert (tmp_path / "keys" / PRIVATE_KEY).stat().st_mode & 0o777 == 0o600
    assert {p.name for p in (tmp_path / "keys").iterdir()} == {PRIVATE_KEY, PUBLIC_KEY}


def test_a_lost_public_key_is_written_again(tmp_path: Path) -> None:
    key = ensure_signing_key(tmp_path)
    (tmp_path / PUBLIC_KEY).unlink()
    ensure_signing_key(tmp_path)
    assert load_public_key(tmp_path).public_bytes_raw() == key.public_key().public_bytes_raw()


def test_a_private_key_others_can_read_is_refused(tmp_path: Path) -> None:
    ensure_signing_key(tmp_path)
    (tmp_path / PRIVATE_KEY).chmod(0o640)
    with pytest.raises(ReleaseError, match="0640"):
        ensure_signing_key(tmp_path)


def test_a_public_key_of_another_pair_is_refused(tmp_path: Path) -> None:
    ensure_signing_key(tmp_path / "one")
    ensure_signing_key(tmp_path / "two")
    (tmp_path / "two" / PUBLIC_KEY).write_bytes((tmp_path / "one" / PUBLIC_KEY).read_bytes())
    with pytest.raises(ReleaseError, match="another key"):
        ensure_signing_key(tmp_path / "two")


def test_only_ed25519_keys_are_taken(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="FileNotFoundError"):
        load_public_key(tmp_path)
    other = generate_private_key(SECP256R1())
    (tmp_path / PUBLIC_KEY).write_bytes(
        other.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(ReleaseError, match="Ed25519"):
        load_public_key(tmp_path)
    (tmp_path / PUBLIC_KEY).write_text("no key")
    with pytest.raises(ReleaseError, match="Ed25519"):
        load_public_key(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"release_id": "c" * 12},
        {"sequence": 2},
        {"parent": "d" * 12},
        {"checksums_sha256": "e" * 64},
        {"signature": ""},
        {"signature": "not base64!"},
        {"signature": "AAAA"},
    ],
)
def test_any_change_of_a_signed_pointer_is_noticed(
    tmp_path: Path, change: dict[str, object]
) -> None:
    key = ensure_signing_key(tmp_path)
    signed = sign_pointer(POINTER, key)
    path = tmp_path / "CURRENT"
    path.write_text(signed.model_dump_json())
    assert read_pointer(path, key.public_key()) == signed
    path.write_text(signed.model_copy(update=change).model_dump_json())
    with pytest.raises(ReleaseError, match="CURRENT"):
        read_pointer(path, key.public_key())


def test_a_pointer_that_is_a_link_or_no_json_is_refused(tmp_path: Path) -> None:
    key = ensure_signing_key(tmp_path)
    path = tmp_path / "CURRENT"
    assert read_pointer(path, key.public_key()) is None
    path.write_text("{}")
    with pytest.raises(ReleaseError, match=r"found b'\{\}'"):
        read_pointer(path, key.public_key())
    path.unlink()
    (tmp_path / "real").write_text(sign_pointer(POINTER, key).model_dump_json())
    path.symlink_to(tmp_path / "real")
    with pytest.raises(ReleaseError, match="link"):
        read_pointer(path, key.public_key())
