"""The release key and the signed pointer CURRENT.

Belongs here: making and reading Ed25519 keys, the bytes that are signed, signing, verifying. Does
not belong here: what the pointer points at (`bundle`).
"""

import base64
import binascii
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError

from serving.errors import ReleaseError
from serving.files import flush_to_disk
from serving.releases.manifest import canonical_json

PRIVATE_KEY, PUBLIC_KEY = "release_ed25519.pem", "release_ed25519.pub.pem"
_CONTEXT = b"understudy-release-1\n"
"""Signed in front of the pointer, so that a signature made for anything else is none here."""


class CurrentPointer(BaseModel):
    """The file CURRENT: which bundle is served, and who says so.

    `checksums_sha256` is the hash of the bundle's SHA256SUMS, so the signature covers every byte.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    release_id: str
    sequence: int
    parent: str | None
    checksums_sha256: str
    signature: str = ""

    def signed_bytes(self) -> bytes:
        """Return what the signature is over: every field but the signature, canonically."""
        return _CONTEXT + canonical_json(self.model_dump(mode="json", exclude={"signature"}))


def ensure_signing_key(folder: Path) -> Ed25519PrivateKey:
    """Return the signing key of `folder`, made on first use (private file 0600).

    Raises:
        ReleaseError: the private key is readable by others, is no Ed25519 key, or the public key
            beside it is another one's.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    private, public = folder / PRIVATE_KEY, folder / PUBLIC_KEY
    if not private.exists():
        _write_once(private, _private_pem(Ed25519PrivateKey.generate()), mode=0o600)
    mode = private.stat().st_mode & 0o777
    if mode & 0o077:
        raise ReleaseError(
            f"reading the signing key {private}",
            expected="mode 0600",
            found=f"mode {mode:04o}: others can sign releases",
            next_step=f"chmod 600 {private}; if others could read it, make a new key",
        )
    key = _parse_private(private)
    if not public.exists():
        _write_once(public, _public_pem(key.public_key()), mode=0o644)
    if _raw(load_public_key(folder)) != _raw(key.public_key()):
        raise ReleaseError(
            f"reading the keys in {folder}",
            expected=f"{PUBLIC_KEY} to be the public half of {PRIVATE_KEY}",
            found="another key",
            next_step=f"remove {public} to have it written again, if the private key is yours",
        )
    return key


def load_public_key(folder: Path) -> Ed25519PublicKey:
    """Return the key that verifies CURRENT.

    Raises:
        ReleaseError: there is none, or the file is no Ed25519 public key.
    """
    path = folder / PUBLIC_KEY
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _bad_key(path, type(error).__name__) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _bad_key(path, type(key).__name__)
    return key


def sign_pointer(pointer: CurrentPointer, key: Ed25519PrivateKey) -> CurrentPointer:
    """Return the pointer with its signature."""
    signature = base64.b64encode(key.sign(pointer.signed_bytes())).decode()
    return pointer.model_copy(update={"signature": signature})


def read_pointer(path: Path, public_key: Ed25519PublicKey) -> CurrentPointer | None:
    """Return the verified pointer, or None when nothing was ever published.

    Raises:
        ReleaseError: the file is a link, is malformed, or the signature is not this key's.
    """
    if path.is_symlink():
        raise _bad_pointer(path, "a regular file", "a symbolic link")
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        pointer = CurrentPointer.model_validate_json(text)
    except ValidationError as error:
        raise _bad_pointer(path, "a signed pointer", repr(text[:40])) from error
    try:
        public_key.verify(
            base64.b64decode(pointer.signature, validate=True), pointer.signed_bytes()
        )
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise _bad_pointer(
            path, "a signature by the release key of this home", "a signature that does not verify"
        ) from error
    return pointer


def _write_once(path: Path, data: bytes, *, mode: int) -> None:
    """Create `path` whole or not at all; if another process was first, keep its file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        flush_to_disk(temporary)
        if not path.exists():
            path.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
    flush_to_disk(path.parent)


def _parse_private(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _bad_key(path, type(error).__name__) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_key(path, type(key).__name__)
    return key


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _bad_key(path: Path, found: str) -> ReleaseError:
    return ReleaseError(
        f"reading the release key {path}",
        expected="an Ed25519 key in PEM",
        found=found,
        next_step="publish a release once (that makes the keys), or copy the public key here",
    )


def _bad_pointer(path: Path, expected: str, found: str) -> ReleaseError:
    return ReleaseError(
        f"reading {path}",
        expected=expected,
        found=found,
        next_step="do not serve this; publish the release again from the machine with the key",
    )
