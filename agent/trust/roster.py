"""The roster: who is who, with which key, in which role, from when to when.

Source: docs/contracts/roster.md. Reading and writing files is somebody else's: text and bytes come in, text
and bytes go out.
"""

import tomllib
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Final, Self

import msgspec
from msgspec import Meta, Struct, field

from agent.domain.cancellations import CANCEL_TYPE
from agent.domain.ids import KeyId, KeyIdField, is_wire_time, wire_time
from agent.domain.orders import LEARNUPLET_TYPE, PREDUPLET_TYPE
from agent.domain.receipts import RECEIPT_TYPE
from agent.domain.strict_json import decode, encode
from agent.errors import (
    BadSettings,
    KeyNotValid,
    StaleRoster,
    UnknownKey,
    UnknownPayloadType,
    WrongRole,
)
from agent.trust.envelope import pae, parse_envelope, sign_envelope
from agent.trust.keys import PublicKey, SigningKey

AUDIT_HEAD_TYPE: Final = "application/vnd.dc-compute.audit-head.v1+json"
DATASET_TYPE: Final = "application/vnd.dc-compute.dataset.v1+json"
ROSTER_TYPE: Final = "application/vnd.dc-compute.roster.v1+json"

MAX_ROSTER_BYTES: Final = 4 << 20


class Role(StrEnum):
    """What a key may do. A key has one role."""

    ORCHESTRATOR = "orchestrator"
    AGENT = "agent"
    OWNER = "owner"  # of data: signs the headers of sealed datasets
    STORAGE = "storage"


# A payload type admits one role. ROSTER_TYPE is not here: the pinned root key, in no roster, signs it.
PAYLOAD_ROLES: Final = MappingProxyType(
    {
        LEARNUPLET_TYPE: Role.ORCHESTRATOR,
        PREDUPLET_TYPE: Role.ORCHESTRATOR,
        CANCEL_TYPE: Role.ORCHESTRATOR,
        RECEIPT_TYPE: Role.AGENT,
        AUDIT_HEAD_TYPE: Role.AGENT,
        DATASET_TYPE: Role.OWNER,
    }
)

Url = Annotated[str, Meta(pattern=r"^https://[A-Za-z0-9.:\[\]_-]+(/[!-~]*)?(?!\n)$", max_length=300)]


class RosterEntry(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True, dict=True
):
    """One key: whose, in which role, where its owner answers, and when it holds.

    `RosterEntry.of` makes one from a key.
    """

    keyid: KeyIdField
    role: Role
    public_key_base64: str = field(name="public_key")
    name: Annotated[str, Meta(min_length=1, max_length=120)]
    agent_url: Url | None = None
    storage_url: Url | None = None  # an agent's entry names the storage of its own node
    orchestrator_url: Url | None = None
    tls_ca: Annotated[str, Meta(max_length=64 << 10)] | None = None  # PEM; its TLS must lead to one of these
    valid_from: datetime
    valid_until: datetime
    revoked_at: datetime | None = None  # once set the key is refused, whatever the date

    def __post_init__(self) -> None:
        if self.public_key.keyid != self.keyid:
            raise ValueError("`keyid` is not the sha256 of `public_key`")
        moments = (self.valid_from, self.valid_until, self.revoked_at)
        if not all(is_wire_time(moment) for moment in moments if moment is not None):
            raise ValueError("times are RFC 3339 in UTC with Z, whole seconds")
        if self.valid_until <= self.valid_from:
            raise ValueError("`valid_until` must lie after `valid_from`")
        if not self.name.isprintable():
            raise ValueError("`name` holds characters that cannot be printed")

    @cached_property
    def public_key(self) -> PublicKey:
        """The key itself."""
        return PublicKey.from_base64(self.public_key_base64)

    @classmethod
    def of(cls, key: PublicKey, role: Role, name: str, **fields: Any) -> Self:
        """An entry for this key; `fields` are the others by name, times cut to whole seconds."""
        for when in ("valid_from", "valid_until", "revoked_at"):
            if fields.get(when) is not None:
                fields[when] = wire_time(fields[when])
        return cls(keyid=key.keyid, role=role, public_key_base64=key.base64, name=name, **fields)

    def is_valid(self, at: datetime) -> bool:
        """Whether the key holds at that moment. A revoked key never does."""
        return self.revoked_at is None and self.valid_from <= at < self.valid_until


class Roster(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Everybody this node knows. A key stands once, so it has one role."""

    entries: tuple[RosterEntry, ...] = ()

    def __post_init__(self) -> None:
        if len(self._by_keyid) != len(self.entries):
            raise ValueError("a key stands twice in the roster")

    @cached_property
    def _by_keyid(self) -> dict[KeyId, RosterEntry]:
        return {entry.keyid: entry for entry in self.entries}

    def find(self, keyid: KeyId) -> RosterEntry | None:
        """The entry of this key, valid or not; None when it is unknown."""
        return self._by_keyid.get(keyid)

    def require(self, keyid: KeyId, *, role: Role | None, at: datetime | None) -> RosterEntry:
        """The entry of a key that is known, of that role (None: any), not revoked, and valid at that moment.

        `at` is None only where the caller judges the dates later, by this same method.
        Raises: UnknownKey, WrongRole, KeyNotValid.
        """
        entry = self.find(keyid)
        if entry is None:
            raise UnknownKey(f"key {keyid} is not in the roster")
        if role is not None and entry.role is not role:
            raise WrongRole(f"key {keyid} is {_an(entry.role)}'s, not {_an(role)}'s")
        if entry.revoked_at is not None:
            raise KeyNotValid(f"key {keyid} was revoked at {entry.revoked_at.isoformat()}")
        if at is not None and not entry.is_valid(at):
            raise KeyNotValid(
                f"key {keyid} holds from {entry.valid_from.isoformat()} to {entry.valid_until.isoformat()}, "
                f"not at {at.isoformat()}"
            )
        return entry

    def require_signer(
        self, payload_type: str, keyid: KeyId, *, role: Role | None = None, at: datetime | None
    ) -> RosterEntry:
        """The entry of a key that may sign this payload type; the rest as `require`.

        Raises: UnknownPayloadType for a type that no role may sign; UnknownKey, WrongRole, KeyNotValid.
        """
        admitted = PAYLOAD_ROLES.get(payload_type)
        if admitted is None:
            raise UnknownPayloadType(f"no role may sign {payload_type!r}")
        if role is not None and role is not admitted:
            raise WrongRole(f"{payload_type!r} is signed by {_an(admitted)}, not by {_an(role)}")
        return self.require(keyid, role=admitted, at=at)

    def agents(self) -> tuple[RosterEntry, ...]:
        """Every agent's entry, valid or not."""
        return self._of_role(Role.AGENT)

    def orchestrators(self) -> tuple[RosterEntry, ...]:
        """Every orchestrator's entry, valid or not."""
        return self._of_role(Role.ORCHESTRATOR)

    def storage_of(self, agent: KeyId) -> RosterEntry | None:
        """The storage of this agent's own node: the storage entry with the agent's `storage_url`.

        While storage rotates its key two entries carry that URL: the one whose dates began last counts.
        Revoked keys do not.
        """
        home = self.find(agent)
        if home is None or home.role is not Role.AGENT or home.storage_url is None:
            return None
        there = [
            entry
            for entry in self._of_role(Role.STORAGE)
            if entry.revoked_at is None and _same_url(entry.storage_url, home.storage_url)
        ]
        return max(there, key=lambda entry: entry.valid_from, default=None)

    def _of_role(self, role: Role) -> tuple[RosterEntry, ...]:
        return tuple(entry for entry in self.entries if entry.role is role)

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The roster in this file's text: `[[entries]]` tables. Raises: BadSettings."""
        try:
            return msgspec.convert(tomllib.loads(text), cls)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as cause:
            raise BadSettings(f"the roster: {cause}") from cause

    def to_toml(self) -> str:
        """The text that `from_toml` reads."""
        return msgspec.toml.encode(self).decode("utf-8")

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The roster as JSON: {"entries": […]}. Raises: TooLarge, BadJson, BadSettings."""
        return decode(data, cls, limit_bytes=MAX_ROSTER_BYTES, what="the roster", error=BadSettings)

    def to_json(self) -> bytes:
        """The bytes that `from_json` reads."""
        return encode(self)


class _Bundle(Struct, frozen=True, forbid_unknown_fields=True):
    """What the consortium's root key signs."""

    version: Annotated[int, Meta(ge=1, le=1 << 53)]
    entries: tuple[RosterEntry, ...]


def sign_roster(roster: Roster, version: int, key: SigningKey) -> bytes:
    """The envelope of this roster under the consortium's root key. `version` counts up from 1."""
    return sign_envelope(ROSTER_TYPE, encode(_Bundle(version, roster.entries)), key)


def open_roster_bundle(data: bytes, root: PublicKey, known_version: int) -> tuple[int, Roster]:
    """The version and the roster that the pinned root key signed.

    `known_version` is that of the roster in use, 0 when there is none; the same version again is welcome.
    Raises: as parse_envelope; UnknownPayloadType, UnknownKey, BadSignature, BadSettings; StaleRoster for an
    older version.
    """
    envelope = parse_envelope(data, limit_bytes=MAX_ROSTER_BYTES)
    if envelope.payload_type != ROSTER_TYPE:
        raise UnknownPayloadType(f"{envelope.payload_type!r} is not a roster")
    if envelope.keyid != root.keyid:
        raise UnknownKey(f"the roster is signed by key {envelope.keyid}, pinned is {root.keyid}")
    root.verify(envelope.signature, pae(ROSTER_TYPE, envelope.payload))
    bundle = decode(
        envelope.payload, _Bundle, limit_bytes=MAX_ROSTER_BYTES, what="the roster", error=BadSettings
    )
    if bundle.version < known_version:
        raise StaleRoster(f"the roster offered has version {bundle.version}, in use is {known_version}")
    return bundle.version, _roster_of(bundle.entries)


def _roster_of(entries: Iterable[RosterEntry]) -> Roster:
    try:
        return Roster(tuple(entries))
    except ValueError as cause:
        raise BadSettings(f"the roster: {cause}") from cause


def _same_url(one: str | None, other: str) -> bool:
    return one is not None and one.rstrip("/") == other.rstrip("/")


def _an(role: Role) -> str:
    return f"a {role}" if role is Role.STORAGE else f"an {role}"
