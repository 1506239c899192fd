"""Certificate, roster, policy: what is over, what ends within 30 days, and what does not fit."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.doctor.lines import Check, State, Unknown
from agent.doctor.look_trust import look_at_tls
from agent.doctor.trust import Tls, Trust, judge
from agent.trust.certificates import CertificateAuthority, CertificateView, is_key_of, read_certificate
from agent.trust.policy import HostPolicy
from agent.trust.roster import Roster
from tests.builders import DAY, NOW, changed, consortium, digest_named, key_of

ME = key_of("agent-a").keyid
HOST = "agent-a.test"
TLS = Tls(
    certificate_path="/d/tls.crt",
    key_path="/d/tls.key",
    certificate=CertificateView((HOST,), NOW - DAY, NOW + 365 * DAY),
    key_fits=True,
)
POLICY = HostPolicy.from_toml(
    f'orchestrators = ["{key_of("o1").keyid}"]\nimages = ["{digest_named("image")}"]\ndatasets = "*"\nkinds = ["learn"]\n'
)
FACTS = Trust(
    command="dc-compute",
    now=NOW,
    me=ME,
    mend_key="dc-compute init",
    tls=TLS,
    hosts=(HOST,),
    roster=consortium().roster,
    roster_path="/etc/dc-compute/roster.toml",
    policy=POLICY,
    policy_path="/etc/dc-compute/policy.toml",
)


def line(facts: Trust, name: str) -> Check:
    (found,) = [check for check in judge(facts) if check.name == name]
    return found


def with_own(**changes: Any) -> Trust:
    return replace(FACTS, roster=changed(consortium().roster, ME, **changes))


def test_an_agent_in_order_has_nothing_to_mend() -> None:
    assert {check.state for check in judge(FACTS)} == {State.OK}


# ------------------------------------------------------------------ the certificate


@pytest.mark.parametrize(
    ("until", "state"),
    [
        (NOW + 31 * DAY, State.OK),
        (NOW + 30 * DAY, State.WARN),
        (NOW + timedelta(seconds=1), State.WARN),
        (NOW, State.FAIL),
        (NOW - DAY, State.FAIL),
    ],
)
def test_a_certificate_that_ends(until: Any, state: State) -> None:
    certificate = CertificateView((HOST,), NOW - DAY, until)

    found = line(replace(FACTS, tls=replace(TLS, certificate=certificate)), "certificate")

    assert found.state is state
    if state is not State.OK:
        assert found.mend == (
            "mv /d/tls.crt /d/tls.crt.old && mv /d/tls.key /d/tls.key.old && dc-compute init --certificate agent-a.test"
        )


def test_a_certificate_of_tomorrow_fails() -> None:
    certificate = CertificateView((HOST,), NOW + DAY, NOW + 365 * DAY)

    assert line(replace(FACTS, tls=replace(TLS, certificate=certificate)), "certificate").state is State.FAIL


@pytest.mark.parametrize(
    ("names", "hosts", "state"),
    [
        ((HOST,), (HOST,), State.OK),
        (("AGENT-A.TEST",), (HOST,), State.OK),
        (("*.test",), (HOST,), State.OK),
        (("*.test",), ("a.b.test",), State.FAIL),
        (("127.0.0.1", "::1"), ("127.0.0.1", "[::1]"), State.OK),
        (("other.test",), (HOST,), State.FAIL),
        ((HOST,), (HOST, "agent-a.internal"), State.FAIL),
        ((), (HOST,), State.FAIL),
        ((HOST,), (), State.NOTE),
    ],
)
def test_a_certificate_names_the_hosts_of_the_roster(
    names: tuple[str, ...], hosts: tuple[str, ...], state: State
) -> None:
    certificate = CertificateView(names, NOW - DAY, NOW + 365 * DAY)
    facts = replace(FACTS, hosts=hosts, tls=replace(TLS, certificate=certificate))

    assert line(facts, "certificate names").state is state


@pytest.mark.parametrize("fits", [False, Unknown("it is encrypted")])
def test_the_key_of_another_certificate_fails(fits: bool | Unknown) -> None:
    assert line(replace(FACTS, tls=replace(TLS, key_fits=fits)), "certificate key").state is State.FAIL


def test_a_certificate_that_is_missing_is_made_by_one_command() -> None:
    found = line(replace(FACTS, tls=replace(TLS, certificate=Unknown("No such file"))), "certificate")

    assert (found.state, found.mend) == (State.FAIL, "dc-compute init --certificate agent-a.test")


def test_certificate_and_key_are_read_from_their_files(tmp_path: Path) -> None:
    authority = CertificateAuthority("town", now=NOW)
    one, other = (authority.server([HOST, "127.0.0.1"], now=NOW, days=90) for _ in range(2))
    (tmp_path / "crt").write_bytes(one.certificate + authority.certificate)
    (tmp_path / "key").write_bytes(one.private_key)

    seen = look_at_tls(tmp_path / "crt", tmp_path / "key")

    assert isinstance(seen.certificate, CertificateView)
    assert replace(seen.certificate, serial="") == CertificateView(
        (HOST, "127.0.0.1"), NOW - timedelta(minutes=5), NOW + 90 * DAY, f"CN={HOST}"
    )
    assert seen.key_fits is True
    assert not is_key_of(other.private_key, one.certificate)


@pytest.mark.parametrize(
    "text", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff\x00"]
)
def test_what_is_no_certificate_is_refused_as_such(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "crt").write_bytes(text)
    (tmp_path / "key").write_bytes(text)

    with pytest.raises(ValueError, match=r"."):
        read_certificate(text)
    seen = look_at_tls(tmp_path / "crt", tmp_path / "key")

    assert isinstance(seen.certificate, Unknown)
    assert isinstance(seen.key_fits, Unknown)


# ------------------------------------------------------------------ the roster


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, State.OK),
        ({"valid_until": NOW + 30 * DAY}, State.WARN),
        ({"valid_until": NOW}, State.FAIL),
        ({"valid_from": NOW + DAY}, State.FAIL),
        ({"revoked_at": NOW - DAY}, State.FAIL),
    ],
)
def test_the_own_entry_holds(changes: dict[str, Any], state: State) -> None:
    assert line(with_own(**changes), "own entry").state is state


def test_an_agent_that_its_own_roster_does_not_know_fails() -> None:
    facts = replace(FACTS, me=key_of("stranger").keyid)

    assert line(facts, "own entry").state is State.FAIL


def test_an_agent_that_is_another_role_in_its_roster_fails() -> None:
    assert line(replace(FACTS, me=key_of("o1").keyid), "own entry").state is State.FAIL


@pytest.mark.parametrize(
    ("changes", "name"), [({"agent_url": None}, "own address"), ({"storage_url": None}, "own storage")]
)
def test_an_entry_without_its_addresses_fails(changes: dict[str, Any], name: str) -> None:
    assert line(with_own(**changes), name).state is State.FAIL


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"valid_until": NOW + 30 * DAY}, {"agent agent-b"}),
        ({"valid_until": NOW - DAY + timedelta(seconds=1)}, {"agent agent-b"}),
        ({"revoked_at": NOW}, {"roster"}),
        ({"valid_until": NOW + 31 * DAY}, {"roster"}),
    ],
)
def test_a_peer_that_ends_is_named_and_a_revoked_one_is_not(
    changes: dict[str, Any], expected: set[str]
) -> None:
    facts = replace(FACTS, roster=changed(consortium().roster, key_of("agent-b").keyid, **changes))

    told = {check.name for check in judge(facts) if check.name.startswith(("agent ", "roster"))}

    assert told == expected
    assert all(check.state in (State.OK, State.WARN) for check in judge(facts))


def test_a_roster_that_cannot_be_read_fails_and_the_rest_is_still_told() -> None:
    found = judge(replace(FACTS, roster=Unknown("not TOML")))

    assert {check.name: check.state for check in found}["roster"] is State.FAIL
    assert "policy" in {check.name for check in found}


def test_without_a_key_the_entry_is_not_judged() -> None:
    facts = replace(FACTS, me=Unknown("no file"))

    assert line(facts, "identity").state is State.FAIL
    assert line(facts, "own entry").state is State.NOTE


# ------------------------------------------------------------------ the policy


@pytest.mark.parametrize("name", ["orchestrators", "images", "datasets", "kinds"])
def test_a_policy_with_an_empty_list_admits_nothing(name: str) -> None:
    found = line(replace(FACTS, policy=replace(POLICY, **{name: ()})), "policy")

    assert found.state is State.WARN
    assert f"admits nothing: {name}" in found.seen


def test_a_policy_that_admits_a_stranger_is_told() -> None:
    facts = replace(FACTS, policy=replace(POLICY, orchestrators=(key_of("o9").keyid,)))

    assert line(facts, "policy orchestrators").state is State.WARN


def test_a_policy_that_cannot_be_read_fails() -> None:
    assert line(replace(FACTS, policy=Unknown("not TOML")), "policy").state is State.FAIL


def test_an_empty_roster_is_judged_too() -> None:
    assert line(replace(FACTS, roster=Roster()), "own entry").state is State.FAIL
