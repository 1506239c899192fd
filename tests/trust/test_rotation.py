"""Rotation: two keys say that they are one agent, and what that gives the new one, and for how long."""

import json
from datetime import datetime, timedelta
from functools import partial

import pytest
from msgspec.structs import replace

from agent.domain.chain import TaskKind
from agent.domain.ids import KeyId
from agent.errors import (
    BadRotation,
    BadSettings,
    HandoffSender,
    KeyNotValid,
    ReceiptRefused,
)
from agent.trust.envelope import pae
from agent.trust.handoff import VerifiedHandoff, build_handoff, verify_handoff
from agent.trust.keys import SigningKey, decode_base64, encode_base64
from agent.trust.roster import Role, Roster, RosterEntry
from agent.trust.rotation import ROTATION_TYPE, open_rotation, sign_rotation
from agent.trust.signed import open_receipt, sign_receipt
from tests.builders import DAY, NOW, SKEW, changed, consortium, entry_for, key_of, policy_for

WORLD = consortium()
OLD, NEW, THIRD = WORLD.agent("a"), key_of("agent-a, the second"), key_of("agent-a, the third")
UNTIL = NOW + 60 * DAY
STATEMENT = sign_rotation(OLD, NEW, issued=NOW - DAY, until=UNTIL)


def rotated(roster: Roster, old: SigningKey, new: SigningKey, *, until: datetime = UNTIL) -> Roster:
    """The roster with the second key of an agent in it, valid beside the first."""
    before = roster.find(old.keyid)
    assert before is not None
    entry = RosterEntry.of(
        new.public,
        Role.AGENT,
        f"{before.name}, rotated",
        agent_url=before.agent_url,
        storage_url=before.storage_url,
        valid_from=NOW - DAY,
        valid_until=NOW + 365 * DAY,
        rotation=sign_rotation(old, new, issued=NOW - DAY, until=until),
    )
    return Roster((*changed(roster, old.keyid, valid_until=until).entries, entry))


ROSTER = rotated(WORLD.roster, OLD, NEW)


# ------------------------------------------------------------------ the statement


def test_a_statement_says_which_key_takes_whose_place_and_until_when() -> None:
    told = open_rotation(STATEMENT)

    assert (told.old, told.new, told.until) == (OLD.keyid, NEW.keyid, UNTIL)
    assert (told.old_key, told.new_key) == (OLD.public, NEW.public)


def altered(**changes: object) -> str:
    wire = json.loads(STATEMENT)
    payload = json.loads(decode_base64(wire["payload"])) | changes
    wire["payload"] = encode_base64(json.dumps(payload).encode())
    return json.dumps(wire)


def resigned(place: int, key: SigningKey) -> str:
    """The statement with one of its two signatures made by somebody else, over the very same payload."""
    wire = json.loads(STATEMENT)
    signature = key.sign(pae(ROTATION_TYPE, decode_base64(wire["payload"])))
    wire["signatures"][place]["sig"] = encode_base64(signature)
    return json.dumps(wire)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        altered(until="2031-01-01T00:00:00Z"),
        altered(new=key_of("thief").keyid),
        resigned(0, key_of("thief")),
        resigned(0, NEW),
        resigned(1, key_of("thief")),
        resigned(1, OLD),
        json.dumps(json.loads(STATEMENT) | {"signatures": json.loads(STATEMENT)["signatures"][:1]}),
        json.dumps(json.loads(STATEMENT) | {"signatures": json.loads(STATEMENT)["signatures"][::-1]}),
        json.dumps(json.loads(STATEMENT) | {"payloadType": "application/vnd.in-toto+json"}),
        json.dumps(json.loads(STATEMENT) | {"also": 1}),
    ],
)
def test_a_statement_that_not_both_keys_signed_as_it_stands_is_refused(text: str) -> None:
    with pytest.raises(BadRotation):
        open_rotation(text)


@pytest.mark.parametrize("end", [NOW, NOW - DAY])
def test_a_statement_that_ends_before_it_begins_is_not_made(end: datetime) -> None:
    with pytest.raises(ValueError, match="until"):
        sign_rotation(OLD, NEW, issued=NOW, until=end)


def test_a_key_does_not_take_its_own_place() -> None:
    with pytest.raises(ValueError, match="same"):
        sign_rotation(OLD, OLD, issued=NOW, until=UNTIL)


# ------------------------------------------------------------------ in the roster


def test_the_roster_of_a_rotation_is_read_back_from_toml_and_json() -> None:
    assert Roster.from_toml(ROSTER.to_toml()) == ROSTER
    assert Roster.from_json(ROSTER.to_json()) == ROSTER


def test_an_entry_under_another_key_s_statement_is_none() -> None:
    with pytest.raises(ValueError, match="another key"):
        entry_for("thief", Role.AGENT, rotation=STATEMENT)


def test_only_an_agent_rotates_so() -> None:
    statement = sign_rotation(key_of("o1"), key_of("o1, the second"), issued=NOW, until=UNTIL)

    with pytest.raises(ValueError, match="no agent's"):
        entry_for("o1, the second", Role.ORCHESTRATOR, rotation=statement)


def test_an_agent_s_key_does_not_take_the_place_of_an_orchestrator_s() -> None:
    statement = sign_rotation(key_of("o1"), NEW, issued=NOW, until=NOW + 365 * DAY)
    entry = entry_for("agent-a, the second", Role.AGENT, rotation=statement)

    with pytest.raises(ValueError, match="another role"):
        Roster((*WORLD.roster.entries, entry))


def test_a_key_has_one_successor() -> None:
    fork = entry_for(
        "agent-a, the third", Role.AGENT, rotation=sign_rotation(OLD, THIRD, issued=NOW, until=UNTIL)
    )

    with pytest.raises(ValueError, match="one and the same"):
        Roster((*ROSTER.entries, fork))


def test_keys_that_took_each_other_s_place_are_refused() -> None:
    back = sign_rotation(NEW, OLD, issued=NOW, until=NOW + 365 * DAY)

    with pytest.raises(ValueError, match="its own place"):
        Roster(tuple(replace(e, rotation=back) if e.keyid == OLD.keyid else e for e in ROSTER.entries))


def test_a_rotated_key_that_holds_longer_than_its_statement_says_is_refused() -> None:
    longer = changed(WORLD.roster, OLD.keyid, valid_until=UNTIL + timedelta(seconds=1))

    with pytest.raises(ValueError, match="was rotated"):
        Roster((*longer.entries, *[e for e in ROSTER.entries if e.keyid == NEW.keyid]))


def test_a_roster_s_file_with_a_broken_statement_is_refused_whole() -> None:
    text = ROSTER.to_toml().replace(ROTATION_TYPE, "application/json")

    with pytest.raises(BadSettings, match="no rotation statement"):
        Roster.from_toml(text)


# ------------------------------------------------------------------ who is who


def test_both_keys_are_one_agent_and_nobody_else_is() -> None:
    assert ROSTER.keys_of(OLD.keyid) == ROSTER.keys_of(NEW.keyid) == (OLD.keyid, NEW.keyid)
    assert ROSTER.is_same_agent(OLD.keyid, NEW.keyid)
    assert not ROSTER.is_same_agent(NEW.keyid, WORLD.agent("b").keyid)
    assert not WORLD.roster.is_same_agent(OLD.keyid, NEW.keyid)


def test_three_keys_in_a_row_are_one_agent() -> None:
    roster = rotated(ROSTER, NEW, THIRD, until=NOW + 90 * DAY)

    assert roster.keys_of(NEW.keyid) == (OLD.keyid, NEW.keyid, THIRD.keyid)
    assert roster.origin(THIRD.keyid) == OLD.keyid


def test_a_revoked_key_says_nothing_of_its_successor_any_more() -> None:
    roster = changed(rotated(ROSTER, NEW, THIRD, until=NOW + 90 * DAY), NEW.keyid, revoked_at=NOW)

    assert roster.keys_of(THIRD.keyid) == (THIRD.keyid,)
    assert roster.keys_of(OLD.keyid) == (OLD.keyid,)
    assert roster.origin(THIRD.keyid) == OLD.keyid  # a name, no right


def test_a_key_s_right_ends_with_its_overlap() -> None:
    assert ROSTER.valid_keys_of(NEW.keyid, UNTIL - timedelta(seconds=1)) == (OLD.keyid, NEW.keyid)
    assert ROSTER.valid_keys_of(NEW.keyid, UNTIL) == (NEW.keyid,)


def test_an_agent_is_called_by_its_newest_key_that_holds() -> None:
    assert ROSTER.reach(OLD.keyid, NOW).keyid == NEW.keyid
    assert WORLD.roster.reach(OLD.keyid, NOW).keyid == OLD.keyid
    with pytest.raises(KeyNotValid):
        WORLD.roster.reach(OLD.keyid, NOW + 400 * DAY)


# ------------------------------------------------------------------ in a chain


ORDER = WORLD.order()
RECEIPTS = WORLD.chain(ORDER, 1)  # a has trained
B = WORLD.agent("b").keyid


def hand_over(roster: Roster, *, sender: KeyId, me: KeyId = B, done: int = 1) -> VerifiedHandoff:
    taken = verify_handoff(
        build_handoff(ORDER, WORLD.chain(ORDER, done)),
        sender=sender,
        me=me,
        roster=roster,
        policy=policy_for(ORDER),
        locate=WORLD.locate,
        recorded=lambda _order, _position: None,
        recorded_id=lambda _id: None,
        now=NOW,
        skew=SKEW,
    )
    assert isinstance(taken, VerifiedHandoff)
    return taken


def test_who_signed_the_last_receipt_hands_on_under_its_new_key() -> None:
    assert hand_over(ROSTER, sender=NEW.keyid).position == 1


def test_another_agent_does_not_and_nor_does_a_key_that_says_so_by_itself() -> None:
    with pytest.raises(HandoffSender):
        hand_over(ROSTER, sender=WORLD.agent("c").keyid)
    alone = replace(ROSTER.entries[-1], rotation=None)
    with pytest.raises(HandoffSender):
        hand_over(Roster((*ROSTER.entries[:-1], alone)), sender=NEW.keyid)


def test_a_receipt_of_the_new_key_is_one_of_the_node_that_storage_names_by_the_old() -> None:
    receipt = sign_receipt(replace(RECEIPTS[0].receipt, agent=NEW.keyid), NEW)
    verify = partial(
        verify_handoff,
        build_handoff(ORDER, [receipt]),
        sender=NEW.keyid,
        me=WORLD.agent("b").keyid,
        policy=policy_for(ORDER),
        locate=WORLD.locate,
        recorded=lambda _order, _position: None,
        recorded_id=lambda _id: None,
        now=NOW,
        skew=SKEW,
    )

    assert isinstance(verify(roster=ROSTER), VerifiedHandoff)
    with pytest.raises(ReceiptRefused, match="does not hold"):
        verify(roster=Roster((*WORLD.roster.entries, replace(ROSTER.entries[-1], rotation=None))))


def test_a_node_that_storage_names_by_its_old_key_takes_the_order_under_its_new_one() -> None:
    new_b = key_of("agent-b, the second")

    taken = hand_over(rotated(WORLD.roster, WORLD.agent("b"), new_b), sender=OLD.keyid, me=new_b.keyid)

    assert taken.task.kind is TaskKind.LEARN


def test_a_receipt_of_the_old_key_holds_after_that_key_s_end() -> None:
    ended = changed(ROSTER, OLD.keyid, valid_until=NOW + timedelta(hours=3))

    assert open_receipt(RECEIPTS[0].envelope, ended).signer == OLD.keyid
