"""The roster: who is who, with which key, in which role, from when to when.

Source: docs/contracts/roster.md. Reading and writing files is somebody else's: text and bytes come in, text
and bytes go out.
"""

import tomllib
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Annotated, Any, Final, Self

import msgspec
from msgspec import Meta, Struct, field

from agent.domain.cancellations import CANCEL_TYPE
from agent.domain.ids import KeyId, KeyIdField, is_wire_time, wire_time
from agent.domain.orders import LEARNUPLET_TYPE, PREDUPLET_TYPE
from agent.domain.prepared import prepared
from agent.domain.receipts import RECEIPT_TYPE
from agent.domain.strict_json import decode, encode
from agent.errors import (
    BadRotation,
    BadSettings,
    KeyNotValid,
    StaleRoster,
    UnknownKey,
    UnknownPayloadType,
    WrongRole,
)
from agent.trust.envelope import pae, parse_envelope, sign_envelope
from agent.trust.keys import PublicKey, SigningKey
from agent.trust.rotation import Rotation, open_rotation

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
    rotation: Annotated[str, Meta(max_length=8 << 10)] | None = None  # by which it took an older key's place

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
        self._check_rotation()

    def _check_rotation(self) -> None:
        """An entry whose statement does not hold is no entry."""
        try:
            told = self.took_place_of
        except BadRotation as cause:
            raise ValueError(f"`rotation`: {cause}") from cause
        if told is not None and (self.role is not Role.AGENT or told.new != self.keyid):
            raise ValueError("`rotation` is a statement for another key, or for no agent's")

    @cached_property
    def took_place_of(self) -> Rotation | None:
        """The statement by which this key took an older one's place. Raises: BadRotation, which no made entry does."""
        return None if self.rotation is None else open_rotation(self.rotation)

    @cached_property
    def public_key(self) -> PublicKey:
        """The key itself."""
        return PublicKey.from_base64(self.public_key_base64)

    @property
    def address(self) -> str | None:
        """The base URL at which its owner answers in its own role; None where the roster gives none."""
        urls = {
            Role.AGENT: self.agent_url,
            Role.ORCHESTRATOR: self.orchestrator_url,
            Role.STORAGE: self.storage_url,
            Role.OWNER: None,
        }
        url = urls[self.role]
        return None if url is None else url.rstrip("/")

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
        self._check_rotations()

    def _check_rotations(self) -> None:
        """A key has one successor, no key is its own ancestor, and a key that was rotated ends when its statement says."""
        told = [entry.took_place_of for entry in self.entries if entry.took_place_of is not None]
        if len({rotation.old for rotation in told}) != len(told):
            raise ValueError("two keys took the place of one and the same")
        for rotation in told:
            if rotation.new in self._ancestors(rotation.new):
                raise ValueError("a key took its own place")
            old = self.find(rotation.old)
            if old is not None and old.role is not Role.AGENT:
                raise ValueError("an agent's key took the place of another role's")
            if old is not None and old.valid_until > rotation.until:
                raise ValueError(
                    f"key {old.keyid} was rotated and holds until {rotation.until.isoformat()} at most"
                )

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

    # ---- the keys of one agent

    def line_of(self, keyid: KeyId) -> tuple[KeyId, ...]:
        """The keys that led to this one by statements, oldest first, known or not, revoked or not; this one is the last."""
        return (*reversed(self._ancestors(keyid)), keyid)

    def origin(self, keyid: KeyId) -> KeyId:
        """The oldest of them: a name for the agent that never changes. It gives no right to anything."""
        return self.line_of(keyid)[0]

    def keys_of(self, keyid: KeyId) -> tuple[KeyId, ...]:
        """Every key of the agent that this key is one of, oldest first; a key that never rotated is alone.

        A revoked key is nobody's other key: what it said of its successor counts no more.
        """
        return self._agents.get(keyid, (keyid,))

    def is_same_agent(self, one: KeyId, other: KeyId) -> bool:
        """Whether these two keys are one, or were rotated into each other."""
        return one in self.keys_of(other)

    def is_among(self, keyid: KeyId, named: Collection[KeyId]) -> bool:
        """Whether a key of the same agent is named."""
        return any(key in named for key in self.keys_of(keyid))

    def valid_keys_of(self, keyid: KeyId, at: datetime) -> tuple[KeyId, ...]:
        """Those keys of the same agent that hold at that moment, oldest first."""
        return tuple(key for key in self.keys_of(keyid) if self._holds(key, at))

    def reach(self, agent: KeyId, at: datetime) -> RosterEntry:
        """The entry by which this agent is called: of the newest of its keys that holds. Raises: as `require`."""
        newest = next(reversed(self.valid_keys_of(agent, at)), agent)
        return self.require(newest, role=Role.AGENT, at=at)

    def _holds(self, keyid: KeyId, at: datetime) -> bool:
        entry = self.find(keyid)
        return entry is not None and entry.is_valid(at)

    def _ancestors(self, keyid: KeyId) -> tuple[KeyId, ...]:
        """The keys before this one, newest first. A ring of statements ends where it began."""
        found: list[KeyId] = []
        entry = self.find(keyid)
        while entry is not None and entry.took_place_of is not None and entry.took_place_of.old not in found:
            found.append(entry.took_place_of.old)
            entry = self.find(found[-1])
        return tuple(found)

    @cached_property
    def _agents(self) -> dict[KeyId, tuple[KeyId, ...]]:
        """The keys of each agent that has more than one, oldest first, by each of them."""
        lines: dict[KeyId, list[KeyId]] = {}
        for entry in self.entries:
            if entry.took_place_of is not None:
                line = [entry.keyid, *self._ancestors(entry.keyid)]
                lines[line[-1]] = max(lines.get(line[-1], []), line, key=len)
        found: dict[KeyId, tuple[KeyId, ...]] = {}
        for newest_first in lines.values():
            for part in self._unrevoked(newest_first[::-1]):
                found |= dict.fromkeys(part, part)
        return found

    def _unrevoked(self, line: Sequence[KeyId]) -> Iterator[tuple[KeyId, ...]]:
        """A line of keys cut at those that are revoked or unknown."""
        is_good = {key: (entry := self.find(key)) is not None and entry.revoked_at is None for key in line}
        for good, part in groupby(line, key=is_good.__getitem__):
            if good:
                yield tuple(part)

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
            return msgspec.convert(tomllib.loads(text), prepared(cls))
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


class _Bundle(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the consortium's root key signs."""

    version: Annotated[int, Meta(ge=1, le=1 << 53)]
    entries: tuple[RosterEntry, ...]
    expires: datetime | None = None  # nobody takes it over after that


def sign_roster(roster: Roster, version: int, key: SigningKey, expires: datetime | None = None) -> bytes:
    """The envelope of this roster under the consortium's root key. `version` counts up from 1."""
    until = None if expires is None else wire_time(expires)
    return sign_envelope(ROSTER_TYPE, encode(_Bundle(version, roster.entries, until)), key)


def open_roster_bundle(
    data: bytes, root: PublicKey, known_version: int, *, now: datetime | None = None
) -> tuple[int, Roster]:
    """The version and the roster that the pinned root key signed.

    `known_version` is that of the roster in use, 0 when there is none; the same version again is welcome. `now`: when it is
    to be taken over; None for one that is in use already.
    Raises: as parse_envelope; UnknownPayloadType, UnknownKey, BadSignature, BadSettings; StaleRoster for an
    older version, and for one that ran out.
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
    if now is not None and bundle.expires is not None and now >= bundle.expires:
        raise StaleRoster(f"the roster offered ran out at {bundle.expires.isoformat()}")
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
