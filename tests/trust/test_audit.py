"""An audit names each link that does not hold, and goes on to the others."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.chain import plan
from agent.errors import BadSignature, BrokenLink, KeyNotValid, ReceiptRefused, UnknownKey
from agent.trust.audit import Audit, audit_chain
from agent.trust.keys import encode_base64
from agent.trust.roster import Roster
from tests.builders import (
    DAY,
    HOUR,
    NOW,
    changed,
    consortium,
    digest_named,
    failed,
    forged_receipt,
    key_of,
    payload_of,
    read_envelope,
    receipt_for,
    tamper,
)

WORLD = consortium()
ORDER = WORLD.order()
CHAIN = WORLD.chain(ORDER, 5)
ENVELOPES = tuple(receipt.envelope for receipt in CHAIN)


def faults(audit: Audit) -> dict[int, str]:
    """The code of each fault by position; the order's stands at -1."""
    told = {link.position: link.fault.code for link in audit.links if link.fault is not None}
    return told if audit.order_fault is None else {-1: audit.order_fault.code} | told


def test_a_whole_chain_is_sound_and_complete() -> None:
    audit = audit_chain(ORDER.envelope, ENVELOPES, WORLD.roster, locate=WORLD.locate)

    assert (audit.is_sound, audit.is_complete, audit.are_holders_judged) == (True, True, True)
    assert audit.order == ORDER
    assert [link.receipt for link in audit.links] == list(CHAIN)
    assert audit.final_model == CHAIN[3].receipt.model_out


def test_a_chain_under_way_is_sound_and_says_what_is_left() -> None:
    audit = audit_chain(ORDER.envelope, ENVELOPES[:2], WORLD.roster)

    assert (audit.is_sound, audit.is_complete, audit.are_holders_judged) == (True, False, False)
    assert audit.remaining == plan(ORDER.order)[2:]


def test_an_order_without_receipts_is_sound_and_has_no_model() -> None:
    audit = audit_chain(ORDER.envelope, [], WORLD.roster)

    assert (audit.is_sound, audit.is_complete, audit.final_model) == (True, False, None)


def test_a_failed_task_may_stand_last() -> None:
    last = forged_receipt(failed(CHAIN[2].receipt), WORLD.agent("c"))

    audit = audit_chain(ORDER.envelope, (*ENVELOPES[:2], last.envelope), WORLD.roster, locate=WORLD.locate)

    assert (audit.is_sound, audit.is_complete, audit.final_model) == (True, False, None)


def test_nothing_follows_a_failed_task() -> None:
    last = forged_receipt(failed(CHAIN[1].receipt), WORLD.agent("b"))
    after = WORLD.receipt(ORDER, (CHAIN[0], last), model_out=digest_named("m"))

    audit = audit_chain(ORDER.envelope, (ENVELOPES[0], last.envelope, after.envelope), WORLD.roster)

    assert faults(audit) == {2: BrokenLink.code}


def test_a_failed_task_still_has_to_link() -> None:
    wrong = failed(receipt_for(ORDER, CHAIN[:1], WORLD.agent("b").keyid, previous=digest_named("x")))
    last = forged_receipt(wrong, WORLD.agent("b"))

    assert faults(audit_chain(ORDER.envelope, (ENVELOPES[0], last.envelope), WORLD.roster)) == {
        1: BrokenLink.code
    }


def test_an_altered_receipt_is_named_and_the_next_cannot_link_to_it() -> None:
    envelopes = (ENVELOPES[0], tamper(ENVELOPES[1], predicate={}), *ENVELOPES[2:])

    audit = audit_chain(ORDER.envelope, envelopes, WORLD.roster)

    assert faults(audit) == {1: BadSignature.code, 2: BrokenLink.code}
    assert not audit.is_sound
    assert audit.final_model is None


def test_an_altered_order_is_named_and_the_receipts_are_still_opened() -> None:
    audit = audit_chain(tamper(ORDER.envelope, rank=1), ENVELOPES, WORLD.roster)

    assert faults(audit) == {-1: BadSignature.code} | dict.fromkeys(range(5), BrokenLink.code)
    assert [link.receipt for link in audit.links] == list(CHAIN)


def test_the_receipts_of_another_order_are_named() -> None:
    other = WORLD.order(rank=1)

    audit = audit_chain(other.envelope, ENVELOPES, WORLD.roster)

    assert faults(audit) == dict.fromkeys(range(5), ReceiptRefused.code)


@pytest.mark.parametrize(
    ("shuffle", "at"),
    [
        (lambda e: e[1:], 0),
        (lambda e: (e[0], *e[2:]), 1),
        (lambda e: (e[1], e[0], *e[2:]), 0),
        (lambda e: (e[0], *e), 1),
        (lambda e: (*e, e[4]), 5),
    ],
    ids=["dropped first", "dropped", "swapped", "twice", "one too many"],
)
def test_a_chain_out_of_order_is_named_at_its_first_wrong_place(
    shuffle: Callable[[tuple[bytes, ...]], tuple[bytes, ...]], at: int
) -> None:
    told = faults(audit_chain(ORDER.envelope, shuffle(ENVELOPES), WORLD.roster))

    assert min(told) == at
    assert told[at] == ReceiptRefused.code


def test_with_storages_word_an_agent_that_does_not_hold_the_dataset_is_named() -> None:
    forged = WORLD.receipt(ORDER, CHAIN[:1], key=WORLD.agent("a"))
    envelopes = (ENVELOPES[0], forged.envelope)

    assert faults(audit_chain(ORDER.envelope, envelopes, WORLD.roster)) == {}
    assert faults(audit_chain(ORDER.envelope, envelopes, WORLD.roster, locate=WORLD.locate)) == {
        1: ReceiptRefused.code
    }


def test_an_agent_whose_key_was_revoked_is_named() -> None:
    roster = changed(WORLD.roster, WORLD.agent("b").keyid, revoked_at=NOW)

    assert faults(audit_chain(ORDER.envelope, ENVELOPES, roster))[1] == KeyNotValid.code


def test_an_empty_roster_proves_nothing() -> None:
    audit = audit_chain(ORDER.envelope, ENVELOPES, Roster())

    assert faults(audit) == dict.fromkeys(range(-1, 5), UnknownKey.code)


def test_years_later_keys_are_judged_by_the_orders_own_window() -> None:
    """There is no `now` in an audit: an orchestrator's key that ended since proves what it signed before."""
    keyid = WORLD.orchestrator.keyid
    just_met = changed(WORLD.roster, keyid, valid_from=NOW + DAY - HOUR)
    too_late = changed(WORLD.roster, keyid, valid_from=NOW + DAY)
    too_early = changed(WORLD.roster, keyid, valid_until=NOW - HOUR)

    assert audit_chain(ORDER.envelope, ENVELOPES, just_met).is_sound
    for roster in (too_late, too_early):
        assert faults(audit_chain(ORDER.envelope, ENVELOPES, roster))[-1] == KeyNotValid.code


@given(place=st.integers(-1, 4), data=st.data())
def test_one_flipped_bit_of_any_payload_is_found_where_it_is(place: int, data: st.DataObject) -> None:
    envelopes = [ORDER.envelope, *ENVELOPES]
    fields = read_envelope(envelopes[place + 1])
    raw = bytearray(payload_of(envelopes[place + 1]))
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << (at % 8)
    fields["payload"] = encode_base64(bytes(raw))
    envelopes[place + 1] = json.dumps(fields).encode()

    told = faults(audit_chain(envelopes[0], envelopes[1:], WORLD.roster))

    assert min(told) == place
    assert told[place] == BadSignature.code


def test_a_stranger_among_the_agents_is_named() -> None:
    stranger = key_of("stranger")
    forged = forged_receipt(receipt_for(ORDER, CHAIN[:4], stranger.keyid), stranger)

    audit = audit_chain(ORDER.envelope, (*ENVELOPES[:4], forged.envelope), WORLD.roster)

    assert faults(audit) == {4: UnknownKey.code}
