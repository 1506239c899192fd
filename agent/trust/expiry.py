"""What ends when: certificates, keys of the roster, overlaps of rotations. One list for the doctor, the log, the status and
the metrics. No disk and no clock: bytes and moments are arguments.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from msgspec import Struct

from agent.domain.ids import KeyId
from agent.trust.certificates import read_certificates
from agent.trust.roster import Roster, RosterEntry

AHEAD: Final = timedelta(days=30)  # how long before an end it is told


class Kind(StrEnum):
    """What it is that ends."""

    CERTIFICATE = "certificate"  # this agent's own, for TLS
    CHAIN = "certificate chain"  # the authorities that are served with it
    OWN_KEY = "own key"  # this agent's entry in the roster
    KEY = "key"  # somebody else's
    OVERLAP = "key overlap"  # the time in which a rotated key is taken beside the new one
    AUTHORITY = "authority"  # by which somebody's TLS certificate is judged


class Expiry(Struct, frozen=True, kw_only=True):
    """One thing that ends. `name`: whose, for people."""

    kind: Kind
    name: str
    at: datetime

    def is_due(self, now: datetime) -> bool:
        """Whether its end is near enough to be told, or past."""
        return self.at <= now + AHEAD

    def is_over(self, now: datetime) -> bool:
        """Whether it ended."""
        return self.at <= now


def expiries(roster: Roster, me: KeyId, chain: bytes | None, now: datetime) -> tuple[Expiry, ...]:
    """Everything that ends, soonest first. `chain`: the certificates (PEM) this agent serves, None where it has none.

    Left out is what ends on purpose: revoked keys, and keys that ended after a newer one had taken their place.
    """
    found = [*_of_chain(chain), *_of_keys(roster, me, now), *_of_authorities(roster, now)]
    return tuple(sorted(found, key=lambda one: (one.at, one.kind, one.name)))


def due(told: tuple[Expiry, ...], now: datetime) -> tuple[Expiry, ...]:
    """Those that must be told now."""
    return tuple(one for one in told if one.is_due(now))


def _of_chain(chain: bytes | None) -> Iterator[Expiry]:
    views = () if chain is None else _read(chain)
    for place, view in enumerate(views):
        kind = Kind.CERTIFICATE if place == 0 else Kind.CHAIN
        yield Expiry(kind=kind, name=view[0], at=view[1])


def _of_keys(roster: Roster, me: KeyId, now: datetime) -> Iterator[Expiry]:
    own = roster.keys_of(me)
    for entry in roster.entries:
        if entry.revoked_at is not None:
            continue
        line = roster.keys_of(entry.keyid)
        if line[-1] == entry.keyid:
            kind = Kind.OWN_KEY if entry.keyid in own else Kind.KEY
            yield Expiry(kind=kind, name=_name(entry), at=entry.valid_until)
        elif entry.is_valid(now):
            yield Expiry(kind=Kind.OVERLAP, name=_name(entry), at=entry.valid_until)


def _of_authorities(roster: Roster, now: datetime) -> Iterator[Expiry]:
    """One line for an authority, however many entries carry it."""
    told: dict[tuple[str, datetime], list[str]] = {}
    for entry in roster.entries:
        if entry.tls_ca is not None and entry.revoked_at is None and now < entry.valid_until:
            for subject, at in _read(entry.tls_ca.encode()):
                told.setdefault((subject, at), []).append(entry.name)
    for (subject, at), names in told.items():
        yield Expiry(kind=Kind.AUTHORITY, name=f"{subject}, of {', '.join(dict.fromkeys(names))}", at=at)


def _read(pem: bytes) -> tuple[tuple[str, datetime], ...]:
    """(subject, end) of each certificate; none where they cannot be read, which others tell."""
    try:
        return tuple((view.subject, view.not_after) for view in read_certificates(pem))
    except ValueError:
        return ()


def _name(entry: RosterEntry) -> str:
    return f"{entry.role} {entry.name} ({entry.keyid[:12]})"
