"""A small consortium for the tests of trust/: keys that are the same in every run, and rosters of them."""

import hashlib
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster, RosterEntry

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)  # far from the wall clock on purpose
YEAR = timedelta(days=365)


def key_of(name: str) -> SigningKey:
    """The key of this person."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


AGENT, OTHER_AGENT = key_of("agent a"), key_of("agent b")
ORCHESTRATOR, SECOND_ORCHESTRATOR = key_of("orchestrator 1"), key_of("orchestrator 2")
OWNER, STRANGER = key_of("owner"), key_of("stranger")

ROLES = {
    AGENT: Role.AGENT,
    OTHER_AGENT: Role.AGENT,
    ORCHESTRATOR: Role.ORCHESTRATOR,
    SECOND_ORCHESTRATOR: Role.ORCHESTRATOR,
    OWNER: Role.OWNER,
}


def entry_of(
    key: SigningKey,
    role: Role,
    *,
    valid_from: datetime = NOW - YEAR,
    valid_until: datetime = NOW + YEAR,
    revoked_at: datetime | None = None,
) -> RosterEntry:
    """A roster entry, valid a year around NOW unless said otherwise."""
    return RosterEntry.of(
        key.public,
        role,
        f"{role} {key.keyid[:8]}",
        valid_from=valid_from,
        valid_until=valid_until,
        revoked_at=revoked_at,
    )


def roster_with(*changed: RosterEntry, without: SigningKey | None = None) -> Roster:
    """Everybody above but `without`, with these entries in place of their own."""
    entries = {key.keyid: entry_of(key, role) for key, role in ROLES.items() if key is not without}
    return Roster(tuple((entries | {entry.keyid: entry for entry in changed}).values()))


ROSTER = roster_with()
