"""The key of a sealed dataset, made from one share of each of n orchestrators: all of them, or nothing.

Three parts: the key from its shares; a share on its way to one agent; the rules by which an orchestrator
gives one out.

Source: docs/contracts/sealed-data.md, "Key" and "Release".
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from msgspec import Meta, Raw, Struct
from msgspec.structs import asdict

from agent.domain.chain import Task, plan
from agent.domain.ids import Digest, KeyId, UuidField, VersionField, digest_of
from agent.domain.orders import MAX_TASKS, DatasetRef, SignedOrder, check_window
from agent.domain.receipts import SignedReceipt, check_link, check_place
from agent.domain.strict_json import decode, encode
from agent.errors import BadSeal, BadShare, ShareRefused, ShareWithheld
from agent.trust.dataset_header import SignedHeader, check_use, parse_header
from agent.trust.envelope import WireEnvelope
from agent.trust.keys import decode_base64, encode_base64
from agent.trust.roster import Role, Roster
from agent.trust.signed import open_order, open_receipt

SHARE_BYTES = 32
DATA_KEY_BYTES = 32
KEK_LABEL = b"dc-compute/kek/v1"
MAX_REQUEST_BYTES = 32 << 20
MAX_ANSWER_BYTES = 4 << 10

Base64Of32 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{43}=$", min_length=44, max_length=44)]


# ------------------------------------------------------------------ the key from its shares


def new_share() -> bytes:
    """A share as an orchestrator keeps it: 32 random bytes."""
    return secrets.token_bytes(SHARE_BYTES)


def new_data_key() -> bytes:
    """A key for one sealed file: 32 random bytes."""
    return secrets.token_bytes(DATA_KEY_BYTES)


def share_commitment(share: bytes) -> Digest:
    """What the header tells of a share. Gives nothing away, for a share is 32 random bytes."""
    return digest_of(share)


def concat(*parts: bytes) -> bytes:
    """`a ‖ b` of the contract: of each part its length in decimal, a space, its bytes; spaces between."""
    return b" ".join(b"%d %b" % (len(part), part) for part in parts)


def wrap_data_key(
    data_key: bytes, shares: Sequence[tuple[KeyId, bytes]], *, dataset: DatasetRef, owner: KeyId
) -> bytes:
    """The data key under the key that these shares make: 40 bytes. The order of `shares` is the header's.

    Raises: ValueError when a share or the data key is not 32 bytes.
    """
    if len(data_key) != DATA_KEY_BYTES or any(len(share) != SHARE_BYTES for _, share in shares):
        raise ValueError("a data key and each share have 32 bytes")
    return aes_key_wrap(_kek(shares, dataset, owner), data_key)


def unwrap_data_key(signed: SignedHeader, shares: Mapping[KeyId, bytes]) -> bytes:
    """The data key of this dataset, from the shares of all its orchestrators.

    Raises: ShareWithheld naming the orchestrators without a share; BadShare naming the one whose share
    misses its commitment; BadSeal when the header's key does not open with the right shares.
    """
    header = signed.header
    missing = [holder.keyid for holder in header.orchestrators if holder.keyid not in shares]
    if missing:
        raise ShareWithheld(f"no share of orchestrator {', '.join(keyid[:16] for keyid in missing)}")
    for holder in header.orchestrators:
        check_share(signed, holder.keyid, shares[holder.keyid])
    ordered = [(holder.keyid, shares[holder.keyid]) for holder in header.orchestrators]
    kek = _kek(ordered, header.ref, signed.signer)
    try:
        return aes_key_unwrap(kek, decode_base64(header.wrapped_key))
    except (InvalidUnwrap, ValueError) as cause:  # ValueError: its base64 is not canonical
        raise BadSeal(f"the key in the header of {header.ref} does not open with its shares") from cause


def check_share(signed: SignedHeader, orchestrator: KeyId, share: bytes) -> None:
    """Refuse a share that is not the one the owner gave this orchestrator. Raises: BadShare."""
    commitment = signed.header.commitment_of(orchestrator)
    if commitment is None:
        raise BadShare(f"orchestrator {orchestrator[:16]} holds no share of {signed.header.ref}")
    if len(share) != SHARE_BYTES or share_commitment(share) != commitment:
        raise BadShare(f"the share of orchestrator {orchestrator[:16]} misses its commitment")


def _kek(shares: Sequence[tuple[KeyId, bytes]], dataset: DatasetRef, owner: KeyId) -> bytes:
    """The key that wraps the data key: HKDF-SHA-512 of all shares, without a salt."""
    names = (dataset.id, dataset.version, owner, *(keyid for keyid, _ in shares))
    info = concat(KEK_LABEL, *(name.encode("ascii") for name in names))
    return HKDF(algorithm=SHA512(), length=32, salt=None, info=info).derive(
        concat(*(share for _, share in shares))
    )


# ------------------------------------------------------------------ a share on its way

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class ShareKeyPair:
    """An X25519 key made for one task, in memory only: a share sealed to it opens here and nowhere else."""

    __slots__ = ("_private", "public_base64")

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public_base64 = encode_base64(self._private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"ShareKeyPair({self.public_base64!r})"

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """The share in this answer, if it was sealed to this key for just this `info`. Raises: BadShare."""
        try:
            return _SUITE.decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as cause:
            raise BadShare("the sealed share does not open: it was made for another request") from cause


def seal_share(share: bytes, hpke_key: str, info: bytes) -> bytes:
    """The share under HPKE for the asker's key (base64), bound to `info`.

    Raises: ShareRefused when the key is none.
    """
    try:
        return _SUITE.encrypt(share, X25519PublicKey.from_public_bytes(decode_base64(hpke_key)), info)
    except ValueError as cause:
        raise ShareRefused("`hpke_key` is not an X25519 public key") from cause


def share_info(order: Digest, position: int, dataset: str, agent: KeyId, orchestrator: KeyId) -> bytes:
    """What a sealed share is bound to: this place of this order, this dataset, who asked and who answers."""
    return concat(*(part.encode("ascii") for part in (order, str(position), dataset, agent, orchestrator)))


class _WireRequest(Struct, frozen=True, forbid_unknown_fields=True):
    order: WireEnvelope
    receipts: Annotated[tuple[WireEnvelope, ...], Meta(max_length=MAX_TASKS)]
    position: Annotated[int, Meta(ge=0, lt=MAX_TASKS)]
    dataset: UuidField
    version: VersionField
    header: WireEnvelope
    hpke_key: Base64Of32


class ShareRequest(Struct, frozen=True, kw_only=True):
    """The body of POST /v1/shares. `order`, `receipts` and `header` are DSSE envelopes, not yet verified.

    `hpke_key`: base64 of an X25519 public key made for this task.
    """

    order: bytes
    receipts: tuple[bytes, ...]
    position: int
    dataset: str
    version: str
    header: bytes
    hpke_key: str

    def encode(self) -> bytes:
        """The body as JSON."""
        told = asdict(self) | {
            "order": Raw(self.order),
            "receipts": [Raw(receipt) for receipt in self.receipts],
            "header": Raw(self.header),
        }
        return encode(told)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The request in this body. Raises: TooLarge, BadJson, BadOrder."""
        wire = decode(data, _WireRequest, limit_bytes=MAX_REQUEST_BYTES, what="the share request")
        return cls(
            order=encode(wire.order),
            receipts=tuple(encode(receipt) for receipt in wire.receipts),
            position=wire.position,
            dataset=wire.dataset,
            version=wire.version,
            header=encode(wire.header),
            hpke_key=wire.hpke_key,
        )


class ShareAnswer(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of the answer. `sealed_share`: base64 of what `seal_share` made."""

    sealed_share: Annotated[str, Meta(max_length=1024)]

    @classmethod
    def of(cls, sealed: bytes) -> Self:
        """The answer that carries this sealed share."""
        return cls(encode_base64(sealed))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The answer in this body. Raises: TooLarge, BadJson, BadOrder."""
        return decode(data, cls, limit_bytes=MAX_ANSWER_BYTES, what="the answer with a share")

    def encode(self) -> bytes:
        """The body as JSON."""
        return encode(self)

    @property
    def sealed(self) -> bytes:
        """The bytes for `ShareKeyPair.open`. Raises: BadShare when they are not base64."""
        try:
            return decode_base64(self.sealed_share)
        except ValueError as cause:
            raise BadShare("the answer holds no base64") from cause


# ------------------------------------------------------------------ the rules of release


class CheckedShareRequest(Struct, frozen=True):
    """A request that an orchestrator may answer: `asker` is to run `task` on the dataset of `header`."""

    order: SignedOrder
    task: Task
    header: SignedHeader
    asker: KeyId
    me: KeyId
    hpke_key: str


def check_share_request(
    request: ShareRequest,
    *,
    asker: KeyId,
    me: KeyId,
    roster: Roster,
    now: datetime,
    skew: timedelta,
    is_open: Callable[[SignedOrder, int], bool],
) -> CheckedShareRequest:
    """What orchestrator `me` may release to `asker`, who signed the HTTP request, when each of these holds:

    (1) the asker is an agent of the roster, valid now;
    (2) the order is signed by an orchestrator of the roster, valid now, and lies in its time window, give or
        take the skew;
    (3) the order has a task at `position`, and it is on exactly the dataset and version asked for;
    (4) there are as many receipts as `position` says; each is signed by an agent whose key held when the
        task finished, is a done one, and is for this order, its place and the task that stands there;
    (5) each receipt links to the one before it, the first to the order, and so do the models;
    (6) the place is open: `is_open(order, position)` is this orchestrator's word that the order is not
        cancelled or ended, and that it knows of no receipt for the place;
    (7) the header is signed by an owner of the roster and names only orchestrators of the roster, all of
        them valid now;
    (8) the header is of this dataset and version, lists the asker in `nodes`, by any key of its own that
        holds, and the kind of task in `uses`;
    (9) the header says that this orchestrator holds a share.

    The rule left over, (10), is `release_share`'s: the share is the one that the header commits to.
    Raises: UnknownKey, WrongRole, KeyNotValid, BadEnvelope, BadSignature, UnknownPayloadType, BadJson,
    BadOrder, TooLarge, OrderExpired, OrderNotYetValid, ReceiptRefused, BrokenLink, BadSeal, ShareRefused.
    """
    wanted = DatasetRef(request.dataset, request.version)
    # (1) who asks
    roster.require(asker, role=Role.AGENT, at=now)
    # (2) the order
    order = open_order(request.order, roster, now)
    check_window(order.order, now, skew)
    # (3) its task
    task = _task_at(order, request.position, wanted)
    # (4) receipts up to the place, (5) their links
    _check_receipts(order, request, roster)
    # (6) the place
    if not is_open(order, request.position):
        raise ShareRefused(f"position {request.position} of order {order.order.id} is not open")
    # (7) the owner's header
    header = parse_header(request.header, roster, at=now)
    # (8) what the owner allows
    also = roster.valid_keys_of(asker, now)
    check_use(header, dataset=wanted, agent=asker, kind=task.kind, also=also)
    # (9) a share of ours
    if header.header.commitment_of(me) is None:
        raise ShareRefused(f"the owner of {wanted} gave orchestrator {me[:16]} no share")
    return CheckedShareRequest(order, task, header, asker, me, request.hpke_key)


def release_share(checked: CheckedShareRequest, share: bytes) -> bytes:
    """The sealed share to answer with. (10) It must be the one that the header commits to.

    Raises: BadShare, ShareRefused.
    """
    check_share(checked.header, checked.me, share)
    info = share_info(
        checked.order.digest, checked.task.position, checked.task.dataset.id, checked.asker, checked.me
    )
    return seal_share(share, checked.hpke_key, info)


def _task_at(order: SignedOrder, position: int, wanted: DatasetRef) -> Task:
    chain = plan(order.order)
    if not 0 <= position < len(chain) or chain[position].dataset != wanted:
        raise ShareRefused(f"the task at position {position} of order {order.order.id} is not on {wanted}")
    return chain[position]


def _check_receipts(order: SignedOrder, request: ShareRequest, roster: Roster) -> None:
    if len(request.receipts) != request.position:
        raise ShareRefused(f"position {request.position} comes with {len(request.receipts)} receipts")
    before: list[SignedReceipt] = []
    for position, envelope in enumerate(request.receipts):
        receipt = open_receipt(envelope, roster)
        check_place(order, receipt, position)
        check_link(order, before, receipt)
        before.append(receipt)
