"""Key files are private, whole and never overwritten; a signature holds for one key and one text."""

import os
import socket
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from agent.errors import BadSettings, BadSignature
from agent.trust.keys import PublicKey, SigningKey
from tests.builders import key_of

NOBODY = 65534


def test_a_saved_key_is_loaded_as_the_same_key(tmp_path: Path) -> None:
    key = SigningKey.generate()

    key.save(tmp_path / "agent.key")
    loaded = SigningKey.load(tmp_path / "agent.key")

    assert loaded.public == key.public
    loaded.public.verify(key.sign(b"x"), b"x")


def test_a_saved_key_is_its_owners_alone_and_stands_alone(tmp_path: Path) -> None:
    SigningKey.generate().save(tmp_path / "agent.key")

    assert (tmp_path / "agent.key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["agent.key"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key_of("first").save(tmp_path / "agent.key")

    with pytest.raises(BadSettings, match="never overwritten"):
        key_of("second").save(tmp_path / "agent.key")

    assert SigningKey.load(tmp_path / "agent.key").keyid == key_of("first").keyid
    assert os.listdir(tmp_path) == ["agent.key"]


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "agent.key").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BadSettings):
        SigningKey.generate().save(tmp_path / "agent.key")

    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="No such file"):
        SigningKey.generate().save(tmp_path / "no" / "agent.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o666])
def test_a_key_file_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "agent.key"
    SigningKey.generate().save(path)
    path.chmod(mode)

    with pytest.raises(BadSettings, match="open to others"):
        SigningKey.load(path)


def test_a_symbolic_link_to_a_key_is_refused(tmp_path: Path) -> None:
    SigningKey.generate().save(tmp_path / "real.key")
    (tmp_path / "agent.key").symlink_to(tmp_path / "real.key")

    with pytest.raises(BadSettings, match="symbolic link"):
        SigningKey.load(tmp_path / "agent.key")


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "agent.key", 0o600)

    with pytest.raises(BadSettings, match="not a regular file"):
        SigningKey.load(tmp_path / "agent.key")


def test_a_folder_or_a_socket_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "socket"))

    for name in ("folder", "socket", "missing"):
        with pytest.raises(BadSettings):
            SigningKey.load(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_key_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.key"
    SigningKey.generate().save(path)
    os.chown(path, NOBODY, NOBODY)

    with pytest.raises(BadSettings, match="another user"):
        SigningKey.load(path)


def grant(path: Path, user_id: int, *, group: int = 0) -> None:
    """Give a user an entry in the access list of a file of mode 0400, as systemd's LoadCredential does."""
    undefined = 0xFFFFFFFF
    rows = [(1, 4, undefined), (2, 4, user_id), (4, group, undefined), (16, 4, undefined), (32, 0, undefined)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)
    path.chmod(0o400)
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("a file system with access lists")


def test_a_credential_of_systemd_is_loaded_though_its_mode_reads_0440(tmp_path: Path) -> None:
    path = tmp_path / "agent.key"
    SigningKey.generate().save(path)

    grant(path, os.geteuid())

    assert path.stat().st_mode & 0o777 == 0o440
    SigningKey.load(path)


def test_an_access_list_that_names_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.key"
    SigningKey.generate().save(path)

    grant(path, NOBODY)

    with pytest.raises(BadSettings, match="open to others"):
        SigningKey.load(path)


def test_an_access_list_that_lets_the_group_in_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.key"
    SigningKey.generate().save(path)

    grant(path, os.geteuid(), group=4)

    with pytest.raises(BadSettings, match="open to others"):
        SigningKey.load(path)


def _other_kind() -> bytes:
    return X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _encrypted() -> bytes:
    private = X25519PrivateKey.generate()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))


@pytest.mark.parametrize(
    "content",
    [b"", b"no key", _other_kind(), _encrypted(), b"\xff" * 20_000],
    ids=["empty", "text", "another kind", "encrypted", "long"],
)
def test_a_file_that_is_no_plain_ed25519_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.key"
    path.touch(mode=0o600)
    path.write_bytes(content)

    with pytest.raises(BadSettings):
        SigningKey.load(path)


def test_a_private_key_shows_its_public_half_only() -> None:
    key = key_of("secret")

    assert repr(key) == f"SigningKey(keyid='{key.keyid}')"
    assert not hasattr(key, "__dict__")


def test_the_keyid_is_the_sha256_of_the_raw_public_key() -> None:
    raw = bytes.fromhex(
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )  # RFC 8032, test 1

    assert PublicKey(raw).keyid == "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"


def test_a_signature_of_another_key_or_over_other_bytes_is_refused() -> None:
    signature = key_of("one").sign(b"text")

    with pytest.raises(BadSignature):
        key_of("two").public.verify(signature, b"text")
    with pytest.raises(BadSignature):
        key_of("one").public.verify(signature, b"other")
    with pytest.raises(BadSignature):
        key_of("one").public.verify(signature[:-1], b"text")


def test_the_second_form_of_a_signature_is_refused() -> None:
    """S plus the group's order is the same point to a lax verifier: a signature must have one form."""
    order = 2**252 + 27742317777372353535851937790883648493
    signature = key_of("one").sign(b"text")
    s = int.from_bytes(signature[32:], "little") + order
    other_form = signature[:32] + s.to_bytes(32, "little")

    with pytest.raises(BadSignature):
        key_of("one").public.verify(other_form, b"text")


def test_a_public_key_survives_base64() -> None:
    public = key_of("one").public

    assert PublicKey.from_base64(public.base64) == public


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text[:-4] + "AAAA",
        lambda text: "ä" * 44,
        lambda text: "",
    ],
)
def test_another_spelling_of_a_public_key_is_refused(spoil: object) -> None:
    assert callable(spoil)

    with pytest.raises(ValueError):  # noqa: PT011 - base64 and cryptography word it each in their own way
        PublicKey.from_base64(spoil(key_of("one").public.base64))
