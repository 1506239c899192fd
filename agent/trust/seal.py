"""Sealed datasets as streams: sealing at the owner's desk, opening on a node. No disk: streams are arguments.

File: `DCDATA1\\n`, the length of the header as 4 bytes big-endian, the header (a DSSE envelope by the
owner), then the plaintext under Cobblestone256 with the sha256 of the header's payload as context. Memory is
constant.

Source: docs/contracts/sealed-data.md, "File".
"""

from collections.abc import Callable, Sequence
from typing import BinaryIO

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import AlreadyFinalized, InvalidTag

from agent.domain.ids import Digest, KeyId, digest_of, hex_of
from agent.domain.orders import DatasetRef
from agent.domain.strict_json import encode
from agent.errors import AgentError, BadSeal, BadSettings
from agent.trust.dataset_header import (
    MAX_HEADER_BYTES,
    DatasetHeader,
    ShareHolder,
    SignedHeader,
    Use,
    check_use,
    parse_header,
    parse_payload,
)
from agent.trust.envelope import parse_envelope, sign_envelope
from agent.trust.keys import SigningKey, encode_base64
from agent.trust.roster import DATASET_TYPE
from agent.trust.shares import new_data_key, new_share, share_commitment, wrap_data_key

__all__ = [  # with the header, which a caller needs beside
    "DATASET_TYPE",
    "MAX_HEADER_BYTES",
    "DatasetHeader",
    "Opener",
    "ShareHolder",
    "SignedHeader",
    "check_use",
    "make_seal",
    "open_sealed",
    "parse_header",
    "read_preamble",
    "seal_stream",
]

MAGIC = b"DCDATA1\n"
LENGTH_BYTES = 4
PIECE_BYTES = 1 << 20


# ------------------------------------------------------------------ sealing


def make_seal(
    plain: BinaryIO,
    out: BinaryIO,
    *,
    size: int,
    dataset: str,
    version: str,
    orchestrators: Sequence[KeyId],
    nodes: Sequence[KeyId],
    uses: Sequence[Use],
    owner: SigningKey,
    share_of: Callable[[KeyId], bytes] = lambda _: new_share(),
) -> tuple[tuple[KeyId, bytes], ...]:
    """Seal `size` bytes of `plain` into `out`; gives each orchestrator's share, to hand over and forget.

    `share_of`: the share of an orchestrator; without it each gets a new one.
    Raises: BadSettings for a header that the contract does not allow, or when `plain` has another size.
    """
    shares = tuple((keyid, share_of(keyid)) for keyid in orchestrators)
    data_key = new_data_key()
    ref = DatasetRef(dataset, version)
    try:
        header = _new_header(data_key, shares, size, ref, nodes, uses, owner.keyid)
    except ValueError as cause:
        raise BadSettings(f"{ref} cannot be sealed: {cause}") from cause
    seal_stream(plain, out, header=header, data_key=data_key, owner=owner)
    return shares


def _new_header(
    data_key: bytes,
    shares: tuple[tuple[KeyId, bytes], ...],
    size: int,
    dataset: DatasetRef,
    nodes: Sequence[KeyId],
    uses: Sequence[Use],
    owner: KeyId,
) -> DatasetHeader:
    wrapped = wrap_data_key(data_key, shares, dataset=dataset, owner=owner)
    return DatasetHeader(
        dataset=dataset.id,
        version=dataset.version,
        size=size,
        orchestrators=tuple(ShareHolder(keyid, share_commitment(share)) for keyid, share in shares),
        wrapped_key=encode_base64(wrapped),
        nodes=tuple(nodes),
        uses=tuple(uses),
    )


def seal_stream(
    plain: BinaryIO, out: BinaryIO, *, header: DatasetHeader, data_key: bytes, owner: SigningKey
) -> SignedHeader:
    """Write the sealed file of `plain`; gives its header as its owner signed it.

    A data key seals one file.
    Raises: BadSettings for a header that nobody would accept, or when `plain` has another size than it tells.
    """
    signed = _sign_header(header, owner)
    out.write(MAGIC + len(signed.envelope).to_bytes(LENGTH_BYTES, "big") + signed.envelope)
    encryptor = Cobblestone256Encryptor(data_key, _context(signed.digest))
    size = 0
    while piece := plain.read(PIECE_BYTES):
        size += len(piece)
        out.write(encryptor.update(piece))
    out.write(encryptor.finalize())
    if size != header.size:
        raise BadSettings(f"the plaintext of {header.ref} has {size} bytes, not {header.size}")
    return signed


def _sign_header(header: DatasetHeader, owner: SigningKey) -> SignedHeader:
    payload = encode(header)
    try:
        parse_payload(payload)
    except BadSeal as cause:
        raise BadSettings(cause.detail) from cause
    envelope = sign_envelope(DATASET_TYPE, payload, owner)
    return SignedHeader(header, digest_of(payload), owner.keyid, envelope)


# ------------------------------------------------------------------ opening


class Opener:
    """Opens one sealed file that is fed to it from its first byte, piece by piece, as a download brings it.

    What `feed` gives is verified, but only `finish` tells that nothing is missing: publish after that, never
    before. After a refusal everything it gave is to be thrown away.
    """

    def __init__(self, signed: SignedHeader, data_key: bytes) -> None:
        self._signed = signed
        self._ref = signed.header.ref
        self._head: bytearray | None = bytearray()  # the file's own header while it is incomplete
        self._decryptor = Cobblestone256Decryptor(data_key, _context(signed.digest))
        self._opened_bytes = 0

    def __repr__(self) -> str:
        return f"Opener({self._ref})"

    def feed(self, piece: bytes | memoryview) -> bytes:
        """The plaintext that these next bytes of the file complete. Raises: BadSeal."""
        if self._head is not None:
            self._head += piece
            length = _preamble_length(self._head)
            if length is None or len(self._head) < length:
                return b""
            self._check_header(bytes(self._head[len(MAGIC) + LENGTH_BYTES : length]))
            piece, self._head = bytes(self._head[length:]), None
        return self._count(self._decrypt(lambda: self._decryptor.update(piece)))

    def finish(self) -> bytes:
        """The rest of the plaintext, if the file was whole and of the size in its header. Raises: BadSeal."""
        if self._head is not None:
            raise BadSeal(f"the file of {self._ref} ends within its header")
        rest = self._count(self._decrypt(self._decryptor.finalize))
        if self._opened_bytes != self._signed.header.size:
            raise BadSeal(
                f"{self._ref} holds {self._opened_bytes} bytes, its header says {self._signed.header.size}"
            )
        return rest

    @property
    def opened_bytes(self) -> int:
        """How much plaintext was given so far."""
        return self._opened_bytes

    def _check_header(self, envelope: bytes) -> None:
        """The file's own header must be the verified one, though its envelope may be written otherwise."""
        try:
            digest = parse_envelope(envelope, limit_bytes=MAX_HEADER_BYTES).digest
        except AgentError as cause:
            raise BadSeal(f"the file of {self._ref} has no readable header") from cause
        if digest != self._signed.digest:
            raise BadSeal(f"the file's header is not the one of {self._ref} that was verified")

    def _decrypt(self, step: Callable[[], bytes]) -> bytes:
        try:
            return step()
        except (InvalidTag, AlreadyFinalized) as cause:
            raise BadSeal(f"the file of {self._ref} does not open: altered, cut, or the wrong key") from cause

    def _count(self, plain: bytes) -> bytes:
        self._opened_bytes += len(plain)
        if self._opened_bytes > self._signed.header.size:
            raise BadSeal(f"{self._ref} holds more than the bytes its header tells")
        return plain


def open_sealed(source: BinaryIO, out: BinaryIO, *, header: SignedHeader, data_key: bytes) -> int:
    """Write the plaintext of this sealed file to `out`; gives its size in bytes.

    `out` is to be published only after this returned, and thrown away when it did not. Raises: BadSeal.
    """
    opener = Opener(header, data_key)
    while piece := source.read(PIECE_BYTES):
        out.write(opener.feed(piece))
    out.write(opener.finish())
    return opener.opened_bytes


def read_preamble(stream: BinaryIO) -> bytes:
    """The header's envelope, from a stream at its first byte; leaves it at the first of the ciphertext.

    Nothing is verified: that is `parse_header`. Raises: BadSeal when it is no sealed file, or ends too early.
    """
    head = _read_exactly(stream, len(MAGIC) + LENGTH_BYTES)
    length = _preamble_length(head)
    if length is None:
        raise BadSeal("the file ends within its header")
    envelope = _read_exactly(stream, length - len(head))
    if len(envelope) != length - len(head):
        raise BadSeal("the file ends within its header")
    return envelope


def _preamble_length(head: bytes | bytearray) -> int | None:
    """How many bytes stand before the ciphertext; None while too few are there to tell. Raises: BadSeal."""
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise BadSeal("this is no sealed dataset of version 1")
    if len(head) < len(MAGIC) + LENGTH_BYTES:
        return None
    header_bytes = int.from_bytes(head[len(MAGIC) : len(MAGIC) + LENGTH_BYTES], "big")
    if not 0 < header_bytes <= MAX_HEADER_BYTES:
        raise BadSeal(f"the file's header has {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")
    return len(MAGIC) + LENGTH_BYTES + header_bytes


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    """`count` bytes, or fewer at the end of the stream; a pipe may give them in pieces."""
    data = b""
    while len(data) < count and (piece := stream.read(count - len(data))):
        data += piece
    return data


def _context(digest: Digest) -> bytes:
    """The ciphertext's context: the sha256 of the header's payload, 32 bytes."""
    return bytes.fromhex(hex_of(digest))
