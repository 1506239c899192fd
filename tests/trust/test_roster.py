"""The roster: one key one role, dates and revocation, TOML and JSON, and a signed version that never goes back."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import ValidationError, convert
from msgspec.structs import replace

from agent.errors import (
    BadJson,
    BadSettings,
    BadSignature,
    KeyNotValid,
    StaleRoster,
    UnknownKey,
    UnknownPayloadType,
    WrongRole,
)
from agent.trust.roster import ROSTER_TYPE, Role, Roster, RosterEntry, open_roster_bundle, sign_roster
from tests.builders import (
    DAY,
    NOW,
    as_json,
    changed,
    consortium,
    entries,
    entry_for,
    key_of,
    sign_payload,
    tamper,
)

WORLD = consortium()
ROOT = key_of("root")


def entry_as_read(**changes: Any) -> RosterEntry:
    """Agent a's entry as it would be read from a file with fields changed; a field changed to ... is left out."""
    fields = as_json(entry_for("agent-a", Role.AGENT)) | changes
    return convert({name: value for name, value in fields.items() if value is not ...}, RosterEntry)


# ------------------------------------------------------------------ entries


def test_an_entry_says_who_a_key_is() -> None:
    entry = entry_for("agent-a", Role.AGENT)

    assert entry.keyid == key_of("agent-a").keyid
    assert entry.public_key == key_of("agent-a").public


@pytest.mark.parametrize(
    "changes",
    [
        {"keyid": key_of("other").keyid},
        {"public_key": key_of("other").public.base64},
        {"public_key": key_of("agent-a").public.base64.rstrip("=")},
        {"public_key": ""},
        {"keyid": key_of("agent-a").keyid.upper()},
        {"role": "admin"},
        {"role": ["agent", "orchestrator"]},
        {"alg": "ecdsa"},
        {"name": ""},
        {"name": "agent\x1b[31m"},
        {"name": ...},
        {"agent_url": "http://agent.test"},
        {"agent_url": "https://user@agent.test"},
        {"agent_url": "https://agent.test/\n"},
        {"agent_url": "https://agent.test\n"},
        {"valid_from": ...},
        {"valid_until": ...},
        {"valid_from": "2026-01-01T00:00:00"},
        {"valid_from": "2026-01-01T00:00:00+01:00"},
        {"valid_from": "2026-01-01T00:00:00.5Z"},
        {"valid_until": "2026-02-28T12:00:00Z"},
        {"revoked_at": "yesterday"},
    ],
)
def test_an_entry_that_contradicts_itself_or_the_contract_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        entry_as_read(**changes)


def test_the_unchanged_entry_is_read() -> None:
    assert entry_as_read() == entry_for("agent-a", Role.AGENT)


# ------------------------------------------------------------------ asking


def test_a_key_stands_once_so_it_has_one_role() -> None:
    with pytest.raises(ValueError, match="twice"):
        Roster((entry_for("agent-a", Role.AGENT), entry_for("agent-a", Role.ORCHESTRATOR)))


def test_a_known_key_of_the_right_role_is_found() -> None:
    agent = WORLD.agent("a").keyid

    assert WORLD.roster.require(agent, role=Role.AGENT, at=NOW) == WORLD.roster.find(agent)
    assert WORLD.roster.require(agent, role=None, at=NOW) == WORLD.roster.find(agent)


def test_an_unknown_key_is_refused() -> None:
    assert WORLD.roster.find(key_of("stranger").keyid) is None
    with pytest.raises(UnknownKey):
        WORLD.roster.require(key_of("stranger").keyid, role=None, at=NOW)


def test_the_empty_roster_knows_nobody() -> None:
    with pytest.raises(UnknownKey):
        Roster().require(WORLD.agent("a").keyid, role=None, at=NOW)


def test_a_key_of_another_role_is_refused() -> None:
    with pytest.raises(WrongRole):
        WORLD.roster.require(WORLD.agent("a").keyid, role=Role.ORCHESTRATOR, at=NOW)


@pytest.mark.parametrize(
    ("at", "is_valid"),
    [
        (NOW - DAY - timedelta(seconds=1), False),
        (NOW - DAY, True),
        (NOW + 365 * DAY - timedelta(seconds=1), True),
        (NOW + 365 * DAY, False),
    ],
)
def test_a_key_holds_from_its_first_second_and_not_at_its_last(at: datetime, is_valid: bool) -> None:
    keyid = WORLD.agent("a").keyid

    if is_valid:
        assert WORLD.roster.require(keyid, role=Role.AGENT, at=at).keyid == keyid
    else:
        with pytest.raises(KeyNotValid):
            WORLD.roster.require(keyid, role=Role.AGENT, at=at)


@pytest.mark.parametrize("at", [NOW - timedelta(hours=1), NOW, NOW + timedelta(hours=1), None])
def test_a_revoked_key_is_refused_whatever_the_date(at: datetime | None) -> None:
    keyid = WORLD.agent("a").keyid
    roster = changed(WORLD.roster, keyid, revoked_at=NOW)

    with pytest.raises(KeyNotValid, match="revoked"):
        roster.require(keyid, role=Role.AGENT, at=at)


def test_roles_are_listed() -> None:
    assert [entry.name for entry in WORLD.roster.agents()] == ["agent-a", "agent-b", "agent-c"]
    assert [entry.name for entry in WORLD.roster.orchestrators()] == ["o1", "o2"]


def test_an_agents_storage_is_the_one_at_its_storage_url() -> None:
    storage = WORLD.roster.storage_of(WORLD.agent("b").keyid)

    assert storage is not None
    assert storage.keyid == WORLD.storage("b").keyid


def test_who_is_no_agent_or_names_no_storage_has_none() -> None:
    roster = changed(WORLD.roster, WORLD.agent("a").keyid, storage_url=None)

    assert roster.storage_of(WORLD.agent("a").keyid) is None
    assert roster.storage_of(WORLD.storage("b").keyid) is None
    assert roster.storage_of(key_of("stranger").keyid) is None


def test_while_storage_rotates_its_key_the_newer_one_counts_unless_revoked() -> None:
    url = "https://storage-a.test:8450/"
    newer = entry_for("storage-a-2027", Role.STORAGE, storage_url=url, valid_from=NOW)
    roster = Roster((newer, *entries()))
    agent = WORLD.agent("a").keyid

    assert roster.storage_of(agent) == newer
    revoked = changed(roster, newer.keyid, revoked_at=NOW)
    assert revoked.storage_of(agent) == WORLD.roster.find(WORLD.storage("a").keyid)


# ------------------------------------------------------------------ TOML and JSON


PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture
def full() -> Roster:
    """A roster with every field in use."""
    entry = entry_for("agent-x", Role.AGENT, tls_ca=PEM, revoked_at=NOW, agent_url="https://[::1]:8440/a")
    return Roster((entry, *entries()))


def test_toml_is_read_as_it_was_written(full: Roster) -> None:
    assert Roster.from_toml(full.to_toml()) == full


def test_json_is_read_as_it_was_written(full: Roster) -> None:
    assert Roster.from_json(full.to_json()) == full


@given(name=st.text(min_size=1, max_size=120).filter(str.isprintable), pem=st.text(max_size=50))
def test_any_text_survives_toml_and_json(name: str, pem: str) -> None:
    roster = Roster((replace(entry_for("agent-x", Role.AGENT), name=name, tls_ca=pem),))

    assert Roster.from_toml(roster.to_toml()) == roster
    assert Roster.from_json(roster.to_json()) == roster


def test_toml_by_hand_is_read() -> None:
    key = key_of("agent-a").public
    text = f"""
        [[entries]]
        keyid = "{key.keyid}"
        role = "agent"
        public_key = "{key.base64}"
        name = "Hôpital A"
        storage_url = "https://storage-a.test"
        valid_from = 2026-01-01T00:00:00Z
        valid_until = "2027-01-01T00:00:00Z"
    """

    (entry,) = Roster.from_toml(text).entries

    assert entry.name == "Hôpital A"
    assert entry.is_valid(NOW)


@pytest.mark.parametrize(
    "text",
    [
        "entries = 1",
        "entry = []",
        "[[entries]]\nkeyid = 'x'",
        "not toml",
        "x = [" * 5000,
        "[[entries]]\nvalid_from = 2026-01-01T00:00:00",
    ],
)
def test_other_toml_is_refused(text: str) -> None:
    with pytest.raises(BadSettings):
        Roster.from_toml(text)


def test_a_key_that_stands_twice_is_refused_when_read() -> None:
    twice = {"entries": [as_json(entry_for("agent-a", role)) for role in (Role.AGENT, Role.OWNER)]}

    with pytest.raises(BadSettings, match="twice"):
        Roster.from_json(json.dumps(twice).encode())
    with pytest.raises(BadJson):
        Roster.from_json(b"{")


# ------------------------------------------------------------------ the signed bundle


def test_a_roster_signed_by_the_root_is_opened() -> None:
    bundle = sign_roster(WORLD.roster, 7, ROOT)

    for known_version in (0, 6, 7):
        assert open_roster_bundle(bundle, ROOT.public, known_version) == (7, WORLD.roster)


def test_a_version_never_goes_back() -> None:
    with pytest.raises(StaleRoster):
        open_roster_bundle(sign_roster(WORLD.roster, 7, ROOT), ROOT.public, 8)


def test_a_roster_signed_by_another_key_is_refused() -> None:
    for key in (key_of("other root"), WORLD.orchestrator):
        with pytest.raises(UnknownKey):
            open_roster_bundle(sign_roster(WORLD.roster, 7, key), ROOT.public, 0)


def test_an_altered_roster_is_refused() -> None:
    with pytest.raises(BadSignature):
        open_roster_bundle(tamper(sign_roster(WORLD.roster, 7, ROOT), version=8), ROOT.public, 0)


def test_something_else_signed_by_the_root_is_no_roster() -> None:
    with pytest.raises(UnknownPayloadType):
        open_roster_bundle(sign_payload("application/vnd.other+json", b"{}", ROOT), ROOT.public, 0)


@pytest.mark.parametrize(
    "payload",
    [
        {"entries": []},
        {"version": 0, "entries": []},
        {"version": "7", "entries": []},
        {"version": 7, "entries": [], "more": 1},
        {"version": 7, "entries": [as_json(entry_for("agent-a", r)) for r in (Role.AGENT, Role.OWNER)]},
    ],
)
def test_a_bundle_of_another_shape_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(BadSettings):
        open_roster_bundle(sign_payload(ROSTER_TYPE, json.dumps(payload).encode(), ROOT), ROOT.public, 0)
