"""Ed25519 keys: signing, verifying, and key files. The only file in `trust/` that touches the disk.

A key file is PEM (PKCS #8, not encrypted), a regular file that nobody but its owner may read. It is never
overwritten.
"""

import base64
import errno
import hashlib
import os
import secrets
import stat
import struct
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from msgspec import Struct

from agent.domain.ids import KeyId
from agent.errors import BadSettings, BadSignature

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MAX_KEY_FILE_BYTES: Final = 16 << 10


@lru_cache(maxsize=512)
def _loaded(raw: bytes) -> Ed25519PublicKey:
    """These bytes as the library has a key: a consortium has few, and each verifies often. Raises: ValueError."""
    return Ed25519PublicKey.from_public_bytes(raw)


class PublicKey(Struct, frozen=True):
    """The public half: 32 raw bytes. Raises ValueError when they are not a key."""

    raw: bytes

    def __post_init__(self) -> None:
        _loaded(self.raw)

    @property
    def keyid(self) -> KeyId:
        """Lowercase hex sha256 of the raw bytes (docs/contracts/roster.md)."""
        return KeyId(hashlib.sha256(self.raw).hexdigest())

    @property
    def base64(self) -> str:
        """Standard base64 with padding, as the roster writes it."""
        return encode_base64(self.raw)

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """The key that `base64` wrote.

        Raises: ValueError for anything else, also for another spelling of the same bytes.
        """
        return cls(decode_base64(text))

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return only when the owner of this key signed exactly these bytes. Raises: BadSignature."""
        try:
            _loaded(self.raw).verify(signature, data)
        except InvalidSignature as cause:
            raise BadSignature(f"the signature is not one of key {self.keyid} over these bytes") from cause


class SigningKey:
    """A private key. Its `repr` names the public half only, and it cannot be pickled."""

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey(keyid={self.keyid!r})"

    @property
    def keyid(self) -> KeyId:
        """The key id of the public half."""
        return self.public.keyid

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature over `data`."""
        return self._private.sign(data)

    def derive(self, salt: bytes, purpose: bytes) -> bytes:
        """32 bytes that only the holder of this key can make, others for each salt and purpose; they tell nothing of it."""
        return HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose).derive(
            self._private.private_bytes_raw()
        )

    @classmethod
    def generate(cls) -> Self:
        """A new key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The key in this file.

        Raises: BadSettings when the file is missing, a link, not a regular file, another user's, open to
        others than its owner, or not an Ed25519 key in PEM (PKCS #8).
        """
        pem = _read_private_file(path)
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as cause:  # TypeError: it is encrypted
            raise BadSettings(f"{path} is not an unencrypted private key in PEM (PKCS #8)") from cause
        if not isinstance(private, Ed25519PrivateKey):
            raise BadSettings(f"{path} holds a key of another kind than Ed25519")
        return cls(private)

    def save(self, path: Path) -> None:
        """Write the key file (mode 0600): whole or not at all, and never over a file that is there.

        Raises: BadSettings when something stands at `path` or the folder cannot be written.
        """
        pem = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            _write_whole(path, pem)
        except FileExistsError as cause:
            raise BadSettings(
                f"{path} exists; a key is never overwritten, move the old file away first"
            ) from cause
        except OSError as cause:
            raise BadSettings(f"cannot write the key file {path}: {cause.strerror}") from cause


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str) -> bytes:
    """The bytes of canonical standard base64: padding there, no white space, unused bits zero.

    Raises: ValueError.
    """
    data = base64.b64decode(text, validate=True)
    if encode_base64(data) != text:
        raise ValueError("the base64 is not canonical")
    return data


# ------------------------------------------------------------------ key files


def next_of(path: Path) -> Path:
    """Where the key lies that is to take this one's place."""
    return path.with_name(f"{path.name}.next")


def previous_of(path: Path) -> Path:
    """Where the key lies whose place this one took, until it is retired."""
    return path.with_name(f"{path.name}.previous")


def load_previous(path: Path) -> tuple[SigningKey, ...]:
    """The key whose place this one took; empty when there is none that can be read. Nothing but old logs needs it."""
    try:
        return (SigningKey.load(previous_of(path)),)
    except BadSettings:
        return ()


def switch_keys(path: Path) -> None:
    """The next key takes the place of the one in use, which becomes the previous one. Done again after a crash it goes on.

    Raises: BadSettings; then the key in use is the one it was.
    """
    kept = previous_of(path)
    try:
        if not kept.exists() or not kept.samefile(path):
            os.link(path, kept)  # refuses to take the place of another one that is still kept
        os.replace(next_of(path), path)
        _sync_folder(path.parent)
    except OSError as cause:
        raise BadSettings(f"the keys at {path} cannot be switched: {cause.strerror}") from cause


def is_private(path: Path) -> bool:
    """Whether `SigningKey.load` would find this file open to its owner alone. What it holds is not looked at."""
    try:
        _read_private_file(path)
    except BadSettings:
        return False
    return True


def _read_private_file(path: Path) -> bytes:
    try:
        # O_NONBLOCK: a fifo must be refused, not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as cause:
        what = "is a symbolic link" if cause.errno == errno.ELOOP else f"cannot be read: {cause.strerror}"
        raise BadSettings(f"the key file {path} {what}") from cause
    try:
        _check_private(fd, path)
        return os.read(fd, MAX_KEY_FILE_BYTES)
    finally:
        os.close(fd)


def _check_private(fd: int, path: Path) -> None:
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        raise BadSettings(f"the key file {path} is not a regular file")
    if about.st_uid not in (0, os.geteuid()):
        raise BadSettings(f"the key file {path} belongs to another user")
    if about.st_mode & 0o077 and not _is_open_to_us_alone(fd):
        raise BadSettings(f"the key file {path} is open to others: chmod 600 {path}")


# Tags and layout of Linux's posix_acl_xattr: a version, then (tag, permissions, id) each.
_ACL_USER_OBJ, _ACL_USER, _ACL_MASK = 0x01, 0x02, 0x10


def _is_open_to_us_alone(fd: int) -> bool:
    """Whether the group bits are only the mask of an access list that names nobody but us.

    systemd's LoadCredential gives a service its file as root's, mode 0440, with an entry for the service's
    user.
    """
    try:
        acl = os.getxattr(fd, "system.posix_acl_access")
    except OSError:
        return False
    for tag, permissions, user_id in struct.iter_unpack("<HHI", acl[4:]):
        is_ours = tag in (_ACL_USER_OBJ, _ACL_MASK) or (tag == _ACL_USER and user_id in (0, os.geteuid()))
        if permissions and not is_ours:
            return False
    return True


def _write_whole(path: Path, data: bytes) -> None:
    """A new file at `path`, durable and whole. Raises: FileExistsError when the name is taken."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        _write_new_file(beside, data)
        os.link(beside, path)  # unlike rename, link fails when the name is taken
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _write_new_file(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o600)
        file.write(data)
        file.flush()
        os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
