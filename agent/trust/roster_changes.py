"""Changes of a roster, planned before anything is written: an entry more, a rotation, a signed roster instead of this one.

A key is never put in another's place without the word of somebody who may give it: the old key's own statement, or a person's.
"""

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import asdict, replace

from agent.domain.ids import KeyId
from agent.errors import BadRotation, BadSettings, RosterConflict
from agent.trust.roster import Role, Roster, RosterEntry
from agent.trust.rotation import open_rotation


class Kind(StrEnum):
    """What happens to an entry."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    ROTATED = "rotated"  # added, by a statement of a key that is known
    NEW_KEY = "new key"  # it takes the name or the address of a key that is known: a person must say so
    KEPT = "kept"  # this agent's own, which the other roster lacks


class Change(Struct, frozen=True, kw_only=True):
    """One entry that changes. `fields`: which of its fields do; `instead_of`: the entry whose name or address it takes."""

    kind: Kind
    entry: RosterEntry
    fields: tuple[str, ...] = ()
    instead_of: RosterEntry | None = None


def with_entry(roster: Roster, entry: RosterEntry) -> Roster:
    """The roster with this entry more. Raises: RosterConflict when its key, name, or an agent's address is there already."""
    if roster.find(entry.keyid) is not None:
        raise RosterConflict(f"key {entry.keyid} is in the roster already")
    known = _whose_place(entry, roster)
    if known is not None and (known.name == entry.name or entry.role is Role.AGENT):
        what = f"named {known.name}" if known.name == entry.name else f"at {entry.agent_url}"
        raise RosterConflict(f"the roster has an {known.role} {what} already, key {known.keyid}")
    return _roster_of((*roster.entries, entry))


def with_rotation(roster: Roster, text: str, *, now: datetime, valid_until: datetime) -> Roster:
    """The roster in which an agent's new key stands beside its old one, which ends when the statement says.

    The new entry is the old one but for its key and dates. Taken over before, the roster is as it was.
    Raises: BadRotation, RosterConflict.
    """
    told = open_rotation(text)
    known = roster.find(told.new)
    if known is not None and known.took_place_of == told:
        return roster
    if now >= told.until:
        raise BadRotation(f"its overlap ended at {told.until.isoformat()}")
    old = roster.find(told.old)
    if old is None:
        raise BadRotation(f"key {told.old}, which is to be followed, is not in the roster")
    if old.role is not Role.AGENT or not old.is_valid(now):
        raise BadRotation(f"key {told.old}, which is to be followed, is no agent's that holds now")
    if known is not None:
        raise RosterConflict(f"key {told.new} is in the roster already, without this statement")
    ended = replace(old, valid_until=min(old.valid_until, told.until))
    new = RosterEntry.of(
        told.new_key,
        Role.AGENT,
        old.name,
        agent_url=old.agent_url,
        storage_url=old.storage_url,
        tls_ca=old.tls_ca,
        valid_from=min(told.issued, now),
        valid_until=valid_until,
        rotation=text,
    )
    others = (ended if entry.keyid == old.keyid else entry for entry in roster.entries)
    return _roster_of((*others, new))


def plan_sync(
    roster: Roster, signed: Roster, me: KeyId | None, accepted: Collection[str] = ()
) -> tuple[Roster, tuple[Change, ...]]:
    """The roster that is to be in use, and what changes with it, the own entry of agent `me` kept in any case.

    `accepted`: names and key ids for which a person accepts a new key without a statement.
    Raises: RosterConflict naming each that nobody accepted.
    """
    own = () if me is None else roster.keys_of(me)
    kept = tuple(entry for key in own if signed.find(key) is None and (entry := roster.find(key)) is not None)
    wanted = _roster_of((*signed.entries, *kept))
    changes = [_change(entry, roster) for entry in signed.entries if roster.find(entry.keyid) != entry]
    changes += [Change(kind=Kind.KEPT, entry=entry) for entry in kept]
    changes += [
        Change(kind=Kind.REMOVED, entry=entry) for entry in roster.entries if wanted.find(entry.keyid) is None
    ]
    refused = [
        change
        for change in changes
        if change.kind is Kind.NEW_KEY and not {change.entry.name, change.entry.keyid} & set(accepted)
    ]
    if refused:
        names = ", ".join(f"{change.entry.role} {change.entry.name}" for change in refused)
        raise RosterConflict(
            f"the signed roster gives another key, without a statement of the old one, to: {names}"
        )
    return wanted, tuple(changes)


def _change(entry: RosterEntry, roster: Roster) -> Change:
    before = roster.find(entry.keyid)
    old = None if entry.took_place_of is None else roster.find(entry.took_place_of.old)
    if old is not None and old.revoked_at is not None:
        old = None
    self_or_old = before or old
    own = () if self_or_old is None else roster.keys_of(self_or_old.keyid)
    known = _whose_place(entry, roster, own, before) or (None if before else _successor(old, roster))
    if known is not None:
        return Change(kind=Kind.NEW_KEY, entry=entry, instead_of=known)
    if before is not None:
        told = asdict(before)
        return Change(
            kind=Kind.CHANGED,
            entry=entry,
            fields=tuple(name for name, value in asdict(entry).items() if value != told[name]),
        )
    if old is not None:
        return Change(kind=Kind.ROTATED, entry=entry, instead_of=old)
    return Change(kind=Kind.ADDED, entry=entry)


def _successor(old: RosterEntry | None, roster: Roster) -> RosterEntry | None:
    """The key that took this one's place already. Whoever stole the old one signs for another."""
    told = ((known, known.took_place_of) for known in roster.entries)
    return next(
        (
            known
            for known, rotation in told
            if old is not None and rotation is not None and rotation.old == old.keyid
        ),
        None,
    )


def _whose_place(
    entry: RosterEntry, roster: Roster, own: Collection[KeyId] = (), before: RosterEntry | None = None
) -> RosterEntry | None:
    """The entry of the same role, not revoked, that has the name or the address of this one.

    `own`: keys of the same agent, in whose place it may stand. `before`: what this entry was; what it had then it takes from
    nobody.
    """
    name: str | None = entry.name
    address = entry.address
    if before is not None and before.role is entry.role:
        name = None if name == before.name else name
        address = None if address == before.address else address
    return next(
        (
            known
            for known in roster.entries
            if known.role is entry.role
            and known.revoked_at is None
            and known.keyid not in own
            and (known.name == name or (address is not None and known.address == address))
        ),
        None,
    )


def _roster_of(entries: tuple[RosterEntry, ...]) -> Roster:
    try:
        return Roster(entries)
    except ValueError as cause:
        raise BadSettings(f"the roster would not hold together: {cause}") from cause
