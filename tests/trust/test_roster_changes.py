"""Changes of a roster: what is refused before anything is written, and what a person is shown."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from agent.errors import BadRotation, RosterConflict
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster
from agent.trust.roster_changes import Kind, plan_sync, with_entry, with_rotation
from agent.trust.rotation import sign_rotation
from tests.builders import DAY, NOW, changed, consortium, entry_for, key_of

WORLD = consortium()
ROSTER = WORLD.roster
OLD, NEW = WORLD.agent("a"), key_of("agent-a, the second")
UNTIL = NOW + 60 * DAY
STATEMENT = sign_rotation(OLD, NEW, issued=NOW - DAY, until=UNTIL)
LATER = NOW + 365 * DAY


def kinds(roster: Roster, signed: Roster, *, accepted: tuple[str, ...] = ()) -> dict[str, Kind]:
    _, changes = plan_sync(roster, signed, OLD.keyid, accepted)
    return {change.entry.name: change.kind for change in changes}


# ------------------------------------------------------------------ one entry more


def test_somebody_new_is_added() -> None:
    assert with_entry(ROSTER, entry_for("agent-d", Role.AGENT)).find(key_of("agent-d").keyid) is not None


@pytest.mark.parametrize(
    "entry",
    [
        replace(entry_for("agent-a", Role.AGENT), name="another"),
        replace(entry_for("stranger", Role.AGENT), name="agent-a"),
        replace(entry_for("stranger", Role.AGENT), agent_url="https://agent-a.test:8440/"),
        replace(entry_for("stranger", Role.ORCHESTRATOR), name="o1"),
    ],
)
def test_a_known_key_name_or_address_of_an_agent_is_a_conflict(entry: object) -> None:
    with pytest.raises(RosterConflict):
        with_entry(ROSTER, entry)  # type: ignore[arg-type]


def test_a_storage_that_rotates_has_two_entries_at_one_address_and_a_revoked_name_is_free() -> None:
    second = entry_for("storage-a, 2027", Role.STORAGE, storage_url="https://storage-a.test:8450")
    assert len(with_entry(ROSTER, second).entries) == len(ROSTER.entries) + 1

    barred = changed(ROSTER, OLD.keyid, revoked_at=NOW)
    again = with_entry(barred, replace(entry_for("stranger", Role.AGENT), name="agent-a"))
    assert [entry.name for entry in again.entries].count("agent-a") == 2


# ------------------------------------------------------------------ a rotation


def test_both_keys_stand_in_the_roster_and_the_old_one_ends() -> None:
    roster = with_rotation(ROSTER, STATEMENT, now=NOW, valid_until=LATER)

    old, new = roster.find(OLD.keyid), roster.find(NEW.keyid)
    assert old is not None
    assert new is not None
    assert old.valid_until == UNTIL
    assert (new.name, new.agent_url, new.storage_url) == (old.name, old.agent_url, old.storage_url)
    assert new.valid_until == LATER
    assert new.is_valid(NOW - DAY)  # a receipt that was signed before its statement came here holds too
    assert roster.is_same_agent(OLD.keyid, NEW.keyid)


def test_the_same_statement_again_changes_nothing() -> None:
    roster = with_rotation(ROSTER, STATEMENT, now=NOW, valid_until=LATER)

    assert with_rotation(roster, STATEMENT, now=NOW + DAY, valid_until=LATER + DAY) == roster


def test_a_rotation_never_prolongs_the_old_key() -> None:
    ends = NOW + 5 * DAY

    roster = with_rotation(
        changed(ROSTER, OLD.keyid, valid_until=ends), STATEMENT, now=NOW, valid_until=LATER
    )

    old = roster.find(OLD.keyid)
    assert old is not None
    assert old.valid_until == ends


@pytest.mark.parametrize(
    "roster",
    [
        changed(ROSTER, OLD.keyid, revoked_at=NOW),
        changed(ROSTER, OLD.keyid, valid_until=NOW),
        Roster(tuple(entry for entry in ROSTER.entries if entry.keyid != OLD.keyid)),
    ],
)
def test_a_key_that_is_revoked_over_or_unknown_hands_on_nothing(roster: Roster) -> None:
    with pytest.raises(BadRotation):
        with_rotation(roster, STATEMENT, now=NOW, valid_until=LATER)


def test_a_statement_whose_overlap_is_over_is_refused() -> None:
    with pytest.raises(BadRotation, match="overlap ended"):
        with_rotation(ROSTER, STATEMENT, now=UNTIL, valid_until=LATER)


def test_a_new_key_that_is_known_without_the_statement_is_a_conflict() -> None:
    with pytest.raises(RosterConflict):
        with_rotation(
            with_entry(ROSTER, replace(entry_for("agent-a, the second", Role.AGENT))),
            STATEMENT,
            now=NOW,
            valid_until=LATER,
        )


# ------------------------------------------------------------------ a signed roster


def test_what_is_added_removed_and_changed_is_told() -> None:
    o2, c = key_of("o2"), WORLD.agent("c")
    signed = Roster((
        *(entry for entry in changed(ROSTER, c.keyid, valid_until=LATER).entries if entry.keyid != o2.keyid),
        entry_for("agent-d", Role.AGENT),
    ))  # fmt: skip
    moved = changed(signed, c.keyid, valid_until=LATER + DAY)

    wanted, changes = plan_sync(ROSTER, moved, OLD.keyid)

    assert {change.entry.name: change.kind for change in changes} == {
        "agent-c": Kind.CHANGED,
        "agent-d": Kind.ADDED,
        "o2": Kind.REMOVED,
    }
    assert [change.fields for change in changes if change.kind is Kind.CHANGED] == [("valid_until",)]
    assert wanted == moved


def test_the_own_entry_stays_though_the_signed_roster_lacks_it() -> None:
    signed = Roster(tuple(entry for entry in ROSTER.entries if entry.keyid != OLD.keyid))

    wanted, changes = plan_sync(ROSTER, signed, OLD.keyid)

    assert wanted.find(OLD.keyid) == ROSTER.find(OLD.keyid)
    assert [change.kind for change in changes] == [Kind.KEPT]


def test_both_keys_of_the_own_rotation_stay() -> None:
    roster = with_rotation(ROSTER, STATEMENT, now=NOW, valid_until=LATER)

    wanted, _ = plan_sync(roster, Roster((entry_for("o1", Role.ORCHESTRATOR),)), NEW.keyid)

    assert wanted.keys_of(NEW.keyid) == (OLD.keyid, NEW.keyid)


def swapped(role: Role, name: str, **fields: str) -> Roster:
    """A signed roster in which a stranger's key has the name or the address of somebody known, who is gone."""
    known = key_of(name).keyid
    entry = replace(entry_for("stranger", role, **fields), name=fields.get("name", "stranger"))
    return Roster((*(one for one in ROSTER.entries if one.keyid != known), entry))


@pytest.mark.parametrize(
    "signed",
    [
        swapped(Role.AGENT, "agent-b", agent_url="https://agent-b.test:8440"),
        swapped(Role.ORCHESTRATOR, "o1", orchestrator_url="https://o1.test:8460"),
        swapped(Role.STORAGE, "storage-b", storage_url="https://storage-b.test:8450"),
    ],
)
def test_a_new_key_at_a_known_address_is_refused_until_a_person_accepts_it(signed: Roster) -> None:
    with pytest.raises(RosterConflict, match="stranger"):
        plan_sync(ROSTER, signed, OLD.keyid)

    assert kinds(ROSTER, signed, accepted=("stranger",))["stranger"] is Kind.NEW_KEY
    assert kinds(ROSTER, signed, accepted=(key_of("stranger").keyid,))["stranger"] is Kind.NEW_KEY


def test_a_new_key_under_a_known_name_is_refused_even_beside_the_known_one() -> None:
    signed = Roster((*ROSTER.entries, replace(entry_for("stranger", Role.OWNER), name="owner")))

    with pytest.raises(RosterConflict, match="owner"):
        plan_sync(ROSTER, signed, OLD.keyid)


def test_a_new_key_by_a_statement_of_a_known_one_needs_nobody_s_word() -> None:
    b, new_b = WORLD.agent("b"), key_of("agent-b, the second")
    statement = sign_rotation(b, new_b, issued=NOW - DAY, until=UNTIL)
    signed = with_rotation(ROSTER, statement, now=NOW, valid_until=LATER)

    _, changes = plan_sync(ROSTER, signed, OLD.keyid)

    assert sorted(change.kind for change in changes) == [Kind.CHANGED, Kind.ROTATED]


def test_a_statement_of_a_key_that_this_roster_has_revoked_does() -> None:
    b, new_b = WORLD.agent("b"), key_of("agent-b, the second")
    statement = sign_rotation(b, new_b, issued=NOW - DAY, until=UNTIL)
    signed = with_rotation(ROSTER, statement, now=NOW, valid_until=LATER)
    barred = changed(
        with_entry(ROSTER, entry_for("agent-b at home", Role.AGENT, agent_url="https://b.test:1")),
        b.keyid,
        revoked_at=NOW - timedelta(hours=1),
    )

    _, changes = plan_sync(barred, signed, OLD.keyid)

    assert Kind.ROTATED not in {change.kind for change in changes}


def test_a_known_key_does_not_take_the_name_or_the_address_of_another_one_silently() -> None:
    b, c = WORLD.agent("b").keyid, WORLD.agent("c").keyid
    without_b = Roster(tuple(entry for entry in ROSTER.entries if entry.keyid != b))
    of_b = ROSTER.find(b)
    assert of_b is not None
    by_name = changed(without_b, c, name=of_b.name)
    by_address = changed(without_b, c, agent_url=of_b.agent_url)

    for signed in (by_name, by_address):
        with pytest.raises(RosterConflict, match="another key"):
            plan_sync(ROSTER, signed, OLD.keyid)
    assert kinds(ROSTER, by_address, accepted=("agent-c",))["agent-c"] is Kind.NEW_KEY


def test_a_key_that_changes_its_role_takes_nobody_s_name_there_silently() -> None:
    owner, o1 = ROSTER.find(key_of("owner").keyid), ROSTER.find(key_of("o1").keyid)
    assert owner is not None
    assert o1 is not None
    raised = changed(ROSTER, owner.keyid, role=Role.ORCHESTRATOR, name=o1.name)

    with pytest.raises(RosterConflict, match="o1"):
        plan_sync(ROSTER, raised, OLD.keyid)


def test_a_statement_of_one_agent_gives_no_right_to_the_place_of_another() -> None:
    b, new_b = WORLD.agent("b"), key_of("agent-b, the second")
    statement = sign_rotation(b, new_b, issued=NOW - DAY, until=UNTIL)
    rotated = with_rotation(ROSTER, statement, now=NOW, valid_until=LATER)
    of_c = rotated.find(WORLD.agent("c").keyid)
    assert of_c is not None
    signed = changed(rotated, new_b.keyid, name=of_c.name, agent_url=of_c.agent_url)

    with pytest.raises(RosterConflict, match="agent-c"):
        plan_sync(ROSTER, signed, OLD.keyid)


def test_both_keys_of_an_agent_move_to_another_address_with_nobody_s_word() -> None:
    b, new_b = WORLD.agent("b"), key_of("agent-b, the second")
    statement = sign_rotation(b, new_b, issued=NOW - DAY, until=UNTIL)
    rotated = with_rotation(ROSTER, statement, now=NOW, valid_until=LATER)
    half = changed(rotated, new_b.keyid, agent_url="https://moved.test:8440")
    moved = changed(half, b.keyid, agent_url="https://moved.test:8440")

    for before, after in ((rotated, half), (rotated, moved), (half, moved)):
        _, changes = plan_sync(before, after, OLD.keyid)
        assert {change.kind for change in changes} == {Kind.CHANGED}


def test_a_key_that_has_given_way_does_not_give_way_to_another_one_silently() -> None:
    b, new_b, thief = WORLD.agent("b"), key_of("agent-b, the second"), key_of("thief")

    def given_way(to: SigningKey) -> Roster:
        statement = sign_rotation(b, to, issued=NOW - DAY, until=UNTIL)
        return with_rotation(ROSTER, statement, now=NOW, valid_until=LATER)

    with pytest.raises(RosterConflict, match="agent-b"):
        plan_sync(given_way(new_b), given_way(thief), OLD.keyid)
