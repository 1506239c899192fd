"""The header of a sealed dataset: what its owner signed, and what follows. The file around it: `seal.py`.

Source: docs/contracts/sealed-data.md, "File".
"""

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, DigestField, KeyId, KeyIdField, UuidField, VersionField
from agent.domain.orders import DatasetRef
from agent.domain.strict_json import decode
from agent.errors import BadSeal, OrderError, ShareRefused
from agent.trust.envelope import open_envelope
from agent.trust.roster import DATASET_TYPE, Role, Roster

MAX_HEADER_BYTES = 64 << 10  # of the envelope, as it stands in the file
MAX_ORCHESTRATORS = 32
MAX_NODES = 256

Use = Literal["train", "test", "predict"]
Base64Of40 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{54}==$", min_length=56, max_length=56)]


class ShareHolder(Struct, frozen=True, forbid_unknown_fields=True):
    """An orchestrator that keeps one share of the key; `share_commitment` is the digest of that share."""

    keyid: KeyIdField
    share_commitment: DigestField


class DatasetHeader(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the owner says of one version of one dataset.

    `size`: plaintext, bytes. `orchestrators`: all of them are needed, in this order. `wrapped_key`: base64
    of the data key under the key that their shares make. `nodes`: the agents that may open it. `uses`: the
    kinds of work it may be opened for.
    """

    dataset: UuidField
    version: VersionField
    size: Annotated[int, Meta(ge=0, le=1 << 50)]
    scheme: Literal["n-of-n-hkdf"] = "n-of-n-hkdf"
    cipher: Literal["cobblestone256"] = "cobblestone256"
    orchestrators: Annotated[tuple[ShareHolder, ...], Meta(min_length=1, max_length=MAX_ORCHESTRATORS)]
    wrapped_key: Base64Of40
    nodes: Annotated[tuple[KeyIdField, ...], Meta(min_length=1, max_length=MAX_NODES)]
    uses: Annotated[tuple[Use, ...], Meta(min_length=1, max_length=3)]

    def __post_init__(self) -> None:
        for name, values in (
            ("orchestrators", [holder.keyid for holder in self.orchestrators]),
            ("nodes", self.nodes),
            ("uses", self.uses),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"an entry of `{name}` stands twice")

    @property
    def ref(self) -> DatasetRef:
        """The dataset and version it is the header of."""
        return DatasetRef(self.dataset, self.version)

    def commitment_of(self, orchestrator: KeyId) -> Digest | None:
        """The commitment to this orchestrator's share; None when it holds none."""
        return next((h.share_commitment for h in self.orchestrators if h.keyid == orchestrator), None)


class SignedHeader(Struct, frozen=True):
    """A header whose owner's signature, type and role were verified, or that its owner signed just now.

    `envelope` is the DSSE envelope as it came; `digest` that of its decoded payload.
    """

    header: DatasetHeader
    digest: Digest
    signer: KeyId
    envelope: bytes


def parse_header(envelope: bytes, roster: Roster, *, at: datetime) -> SignedHeader:
    """The header in this envelope, signed by an owner of the roster and naming orchestrators of the roster.

    `at`: when the keys of the owner and the orchestrators must be valid: now, for who is about to open it.
    Raises: as open_envelope; UnknownKey, WrongRole, KeyNotValid of an orchestrator; BadSeal when it is none.
    """
    if len(envelope) > MAX_HEADER_BYTES:
        raise BadSeal(f"the header has {len(envelope)} bytes, the limit is {MAX_HEADER_BYTES}")
    opened = open_envelope(
        envelope, roster, role=Role.OWNER, types={DATASET_TYPE}, at=at, limit_bytes=MAX_HEADER_BYTES
    )
    header = parse_payload(opened.payload)
    for holder in header.orchestrators:
        roster.require(holder.keyid, role=Role.ORCHESTRATOR, at=at)
    return SignedHeader(header, opened.digest, opened.signer, envelope)


def check_use(
    signed: SignedHeader, *, dataset: DatasetRef, agent: KeyId, kind: TaskKind, also: Collection[KeyId] = ()
) -> None:
    """Refuse what the owner did not allow: another dataset, another node, another kind of work.

    `also`: other keys of that agent that hold now; the owner may have named one of them.

    Raises: ShareRefused.
    """
    header = signed.header
    if header.ref != dataset:
        raise ShareRefused(f"the header is of dataset {header.ref}, not of {dataset}")
    if not {agent, *also} & set(header.nodes):
        raise ShareRefused(f"the owner of {dataset} does not let agent {agent[:16]} open it")
    if kind.use not in header.uses:
        raise ShareRefused(f"the owner of {dataset} does not let it be used to {kind.use}")


def parse_payload(payload: bytes) -> DatasetHeader:
    """The header in these payload bytes, whoever signed them. Raises: BadSeal."""
    try:
        return decode(payload, DatasetHeader, limit_bytes=MAX_HEADER_BYTES, what="the dataset's header")
    except OrderError as cause:  # the family of who sends orders; this one is the owner's fault
        raise BadSeal(cause.detail) from cause
