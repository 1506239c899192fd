"""What ends when: everything is found, soonest first, and told 30 days before."""

from datetime import datetime, timedelta

import pytest

from agent.trust.certificates import CertificateAuthority
from agent.trust.expiry import AHEAD, Kind, due, expiries
from agent.trust.roster import Role, Roster
from agent.trust.roster_changes import with_rotation
from agent.trust.rotation import sign_rotation
from tests.builders import DAY, NOW, changed, consortium, entry_for, key_of

WORLD = consortium()
ME = WORLD.agent("a")
NEW = key_of("agent-a, the second")


def told(roster: Roster, chain: bytes | None = None, now: datetime = NOW) -> list[tuple[Kind, str, datetime]]:
    return [(one.kind, one.name, one.at) for one in expiries(roster, ME.keyid, chain, now)]


def test_every_key_of_the_roster_is_told_and_the_own_one_apart() -> None:
    found = told(WORLD.roster)

    assert len(found) == len(WORLD.roster.entries)
    assert [name for kind, name, _ in found if kind is Kind.OWN_KEY] == [f"agent agent-a ({ME.keyid[:12]})"]
    assert {at for _, _, at in found} == {NOW + 365 * DAY}


def test_the_certificate_is_told_and_the_authority_that_is_served_with_it() -> None:
    ca = CertificateAuthority("our authority", now=NOW, days=500)
    chain = ca.server(["a.test"], now=NOW, days=90).certificate + ca.certificate

    found = told(Roster(), chain)

    assert found == [
        (Kind.CERTIFICATE, "CN=a.test", NOW + 90 * DAY),
        (Kind.CHAIN, "CN=our authority", NOW + 500 * DAY),
    ]


def test_an_authority_of_many_entries_is_told_once() -> None:
    pem = CertificateAuthority("theirs", now=NOW, days=10).certificate.decode()
    roster = Roster(
        (entry_for("o1", Role.ORCHESTRATOR, tls_ca=pem), entry_for("agent-b", Role.AGENT, tls_ca=pem))
    )

    found = [one for one in told(roster) if one[0] is Kind.AUTHORITY]

    assert found == [(Kind.AUTHORITY, "CN=theirs, of o1, agent-b", NOW + 10 * DAY)]


def test_an_overlap_is_told_while_it_lasts_and_a_key_that_was_followed_is_not_missed() -> None:
    until = NOW + 20 * DAY
    roster = with_rotation(
        WORLD.roster,
        sign_rotation(ME, NEW, issued=NOW, until=until),
        now=NOW,
        valid_until=NOW + 365 * DAY,
    )

    during = {(kind, at) for kind, name, at in told(roster) if "agent-a" in name}
    after = {kind for kind, name, _ in told(roster, now=until) if "agent-a" in name}

    assert during == {(Kind.OVERLAP, until), (Kind.OWN_KEY, NOW + 365 * DAY)}
    assert after == {Kind.OWN_KEY}


def test_a_revoked_key_ends_on_purpose() -> None:
    o1 = key_of("o1").keyid

    assert not [name for _, name, _ in told(changed(WORLD.roster, o1, revoked_at=NOW)) if o1[:12] in name]


def test_what_cannot_be_read_is_somebody_else_s_to_tell() -> None:
    roster = Roster((entry_for("o1", Role.ORCHESTRATOR, tls_ca="nonsense"),))

    assert {kind for kind, _, _ in told(roster, b"nonsense")} == {Kind.KEY}


@pytest.mark.parametrize(
    ("left", "is_due", "is_over"),
    [
        (AHEAD + timedelta(seconds=1), False, False),
        (AHEAD, True, False),
        (timedelta(seconds=1), True, False),
        (timedelta(), True, True),
        (-DAY, True, True),
    ],
)
def test_an_end_is_told_thirty_days_before_and_after_it(left: timedelta, is_due: bool, is_over: bool) -> None:
    roster = Roster((entry_for("o1", Role.ORCHESTRATOR, valid_until=NOW + 400 * DAY),))
    (one,) = expiries(roster, ME.keyid, None, NOW)
    now = one.at - left

    assert (bool(due((one,), now)), one.is_over(now)) == (is_due, is_over)
