"""The attacks that docs/contracts/chain.md lists, those on envelopes, orders, receipts and hand-offs.

Each is played as an attacker would: from real messages of a running chain, with the keys that the attacker has. `mallory` is
agent a: rostered, and allowed to run task 0. Replayed requests are in test_http_signatures.py.
"""

import base64
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.domain.ids import Digest, OrderId
from agent.domain.orders import LEARNUPLET_TYPE, PREDUPLET_TYPE, SignedOrder
from agent.domain.receipts import SignedReceipt, receipt_payload
from agent.errors import (
    BadEnvelope,
    BadJson,
    BadOrder,
    BadSignature,
    BrokenLink,
    HandoffConflict,
    HandoffSender,
    KeyNotValid,
    OrderConflict,
    OrderError,
    OrderExpired,
    OrderNotYetValid,
    ReceiptRefused,
    TrustError,
    UnknownKey,
    UnknownPayloadType,
    WrongRole,
)
from agent.trust.handoff import Recorded, Repeat, VerifiedHandoff, build_handoff, verify_handoff
from agent.trust.keys import encode_base64
from agent.trust.signed import open_order, open_receipt
from tests.builders import (
    DAY,
    NOW,
    SKEW,
    as_json,
    changed,
    consortium,
    dataset,
    digest_named,
    failed,
    forged_receipt,
    handoff_of,
    key_of,
    payload_of,
    policy_for,
    read_envelope,
    receipt_for,
    sign_payload,
    tamper,
    uuid_of,
)

WORLD = consortium()
MALLORY, B, C = (WORLD.agent(hospital) for hospital in "abc")
ORDER = WORLD.order()
CHAIN = WORLD.chain(ORDER, 5)
OTHER_ORDER = WORLD.order(id=OrderId(uuid_of("another order")), rank=1)
OTHER_CHAIN = WORLD.chain(OTHER_ORDER, 5)


def receive(body: bytes, *, position: int, **changes: Any) -> VerifiedHandoff | Repeat:
    """The hand-off as the agent of that position gets it, from whoever is said to have signed the last receipt."""
    signatures = [s for receipt in json.loads(body)["receipts"] for s in receipt["signatures"]]
    given: dict[str, Any] = {
        "sender": signatures[-1]["keyid"] if signatures else MALLORY.keyid,
        "me": WORLD.next_agent(ORDER, position),
        "roster": WORLD.roster,
        "policy": policy_for(ORDER, OTHER_ORDER),
        "locate": WORLD.locate,
        "recorded": lambda _order, _position: None,
        "recorded_id": lambda _id: None,
        "now": NOW,
        "skew": SKEW,
    }
    return verify_handoff(body, **(given | changes))


def send(order: SignedOrder, receipts: Sequence[SignedReceipt], **changes: Any) -> VerifiedHandoff | Repeat:
    """Build and receive."""
    position = changes.pop("position", len(receipts))
    return receive(build_handoff(order, receipts), position=position, **changes)


def test_the_honest_chain_is_taken_so_the_refusals_below_mean_something() -> None:
    for position in range(5):
        assert isinstance(send(ORDER, CHAIN[:position]), VerifiedHandoff)


# ------------------------------------------------------------------ replay


def test_a_replayed_hand_off_gives_no_second_job() -> None:
    ledger = {(ORDER.digest, 2): Recorded(CHAIN[1].digest)}

    assert isinstance(send(ORDER, CHAIN[:2], recorded=lambda *place: ledger.get(place)), Repeat)


def test_a_replayed_hand_off_by_somebody_else_is_refused() -> None:
    with pytest.raises(HandoffSender):
        send(ORDER, CHAIN[:2], sender=MALLORY.keyid)


def test_a_replayed_hand_off_to_another_node_is_refused() -> None:
    with pytest.raises(TrustError):
        send(ORDER, CHAIN[:2], me=MALLORY.keyid)


def test_a_replayed_order_under_its_id_with_other_content_is_refused() -> None:
    reissued = WORLD.order(rank=1)

    with pytest.raises(OrderConflict):
        send(reissued, (), recorded_id={ORDER.order.id: ORDER.digest}.get)


def test_the_first_task_run_again_with_another_result_is_refused() -> None:
    ledger = {(ORDER.digest, 1): Recorded(CHAIN[0].digest)}
    again = WORLD.receipt(ORDER, [], model_out=digest_named("a model mallory likes better"))

    with pytest.raises(HandoffConflict):
        send(ORDER, (again,), recorded=lambda *place: ledger.get(place))


# ------------------------------------------------------------------ reorder, truncate, extend, splice


def _without(data: list[Any], at: int) -> list[Any]:
    return data[:at] + data[at + 1 :]


TASK_EDITS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "reordered": lambda o: {"train_data": o["train_data"][::-1]},
    "truncated": lambda o: {"train_data": o["train_data"][:2], "test_data": []},
    "skipped": lambda o: {"train_data": _without(o["train_data"], 1)},
    "extended": lambda o: {"train_data": [*o["train_data"], as_json(dataset("b2"))]},
    "spliced": lambda _: {"test_data": [as_json(dataset("a3"))]},
    "moved to test": lambda o: {
        "train_data": o["train_data"][:3],
        "test_data": o["train_data"][3:] + o["test_data"],
    },
    "dataset": lambda o: {"train_data": [as_json(dataset("a9")), *o["train_data"][1:]]},
    "version": lambda o: {"train_data": [as_json(dataset("a1", "2")), *o["train_data"][1:]]},
    "limits": lambda _: {"limits": {"memory_bytes": 1 << 40}},
    "problem image": lambda o: {"problem_image": o["problem_image"] | {"digest": digest_named("evil")}},
    "algo image": lambda o: {"algo_image": o["algo_image"] | {"digest": digest_named("evil")}},
    "model": lambda _: {"model_start": {"digest": digest_named("evil"), "agent": MALLORY.keyid}},
    "expires": lambda _: {"expires": "2099-01-01T00:00:00Z"},
    "max_attempts": lambda _: {"max_attempts": 100},
    "id": lambda _: {"id": uuid_of("another id")},
}


@pytest.mark.parametrize("edit", TASK_EDITS.values(), ids=TASK_EDITS)
def test_an_edited_order_under_the_old_signature_is_refused(
    edit: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    fields = json.loads(payload_of(ORDER.envelope))
    edited = tamper(ORDER.envelope, **edit(fields))

    with pytest.raises(BadSignature):
        receive(handoff_of(edited, ()), position=0)


@pytest.mark.parametrize("edit", TASK_EDITS.values(), ids=TASK_EDITS)
def test_an_edited_order_signed_by_the_agent_itself_is_refused(
    edit: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    fields = json.loads(payload_of(ORDER.envelope))
    edited = sign_payload(LEARNUPLET_TYPE, json.dumps(fields | edit(fields)).encode(), MALLORY)

    with pytest.raises(WrongRole):
        receive(handoff_of(edited, ()), position=0)


def test_an_edited_order_cannot_carry_the_old_receipts_even_if_the_orchestrator_signs_it() -> None:
    reissued = WORLD.order(max_attempts=4)

    with pytest.raises(ReceiptRefused):
        send(reissued, CHAIN[:2])


@pytest.mark.parametrize(
    ("receipts", "position"),
    [
        (CHAIN[1:2], 1),
        ((CHAIN[0], CHAIN[2]), 2),
        ((CHAIN[1], CHAIN[0]), 2),
        ((CHAIN[0], CHAIN[0]), 2),
        ((CHAIN[0], CHAIN[1], CHAIN[3]), 3),
        ((CHAIN[0], CHAIN[2], CHAIN[1], CHAIN[3]), 4),
        (CHAIN, 4),
        ((*CHAIN, CHAIN[0]), 4),
        (OTHER_CHAIN[:1], 1),
        ((CHAIN[0], OTHER_CHAIN[1]), 2),
        ((OTHER_CHAIN[0], CHAIN[1]), 2),
    ],
    ids=[
        "first dropped",
        "skipped",
        "swapped",
        "doubled",
        "middle dropped",
        "middle swapped",
        "extended to the end",
        "extended past the end",
        "of another order",
        "second of another order",
        "first of another order",
    ],
)
def test_receipts_that_are_not_the_chain_so_far_are_refused(
    receipts: Sequence[SignedReceipt], position: int
) -> None:
    with pytest.raises(ReceiptRefused):
        send(ORDER, receipts, position=position)


def test_a_chain_cut_short_is_a_hand_off_for_an_earlier_place_and_needs_that_places_signer() -> None:
    with pytest.raises(HandoffSender):
        send(ORDER, CHAIN[:1], sender=B.keyid)


def test_a_position_cannot_be_claimed_only_proven() -> None:
    body = json.loads(build_handoff(ORDER, CHAIN[:1])) | {"position": 3}

    with pytest.raises(BadEnvelope):
        receive(json.dumps(body).encode(), position=3)


# ------------------------------------------------------------------ forged and failed receipts


def test_an_agent_that_forges_a_receipt_for_anothers_dataset_is_refused() -> None:
    forged = WORLD.receipt(ORDER, CHAIN[:1], key=MALLORY)

    with pytest.raises(ReceiptRefused, match="does not hold"):
        send(ORDER, (CHAIN[0], forged))


def test_an_agent_that_signs_a_receipt_in_anothers_name_is_refused() -> None:
    forged = forged_receipt(receipt_for(ORDER, CHAIN[:1], B.keyid), MALLORY)

    with pytest.raises(ReceiptRefused):
        send(ORDER, (CHAIN[0], forged))


def test_an_agent_that_puts_anothers_keyid_on_its_signature_is_refused() -> None:
    forged = read_envelope(forged_receipt(receipt_for(ORDER, CHAIN[:1], B.keyid), MALLORY).envelope)
    forged["signatures"][0]["keyid"] = B.keyid
    body = handoff_of(ORDER.envelope, [CHAIN[0].envelope, json.dumps(forged).encode()])

    with pytest.raises(BadSignature):
        receive(body, position=2)


@pytest.mark.parametrize(
    "edit",
    [{"outcome": "done"}, {"model_out": digest_named("evil")}, {"score": "1.0"}, {"previous": ORDER.digest}],
    ids=lambda edit: next(iter(edit)),
)
def test_an_edited_receipt_under_the_old_signature_is_refused(edit: dict[str, Any]) -> None:
    statement = json.loads(payload_of(CHAIN[1].envelope))
    edited = tamper(CHAIN[1].envelope, predicate=statement["predicate"] | edit)

    with pytest.raises(BadSignature):
        receive(handoff_of(ORDER.envelope, [CHAIN[0].envelope, edited]), position=2)


def test_a_failed_receipt_passed_on_as_done_is_refused() -> None:
    receipt = forged_receipt(failed(CHAIN[0].receipt), MALLORY)

    with pytest.raises(ReceiptRefused, match="failed"):
        send(ORDER, (receipt,))


def test_a_failed_receipt_that_keeps_its_model_is_refused() -> None:
    receipt = forged_receipt(
        replace(failed(CHAIN[0].receipt), model_out=digest_named("half a model")), MALLORY
    )

    with pytest.raises(ReceiptRefused, match="failed"):
        send(ORDER, (receipt,))


def test_a_model_swapped_between_hops_is_refused() -> None:
    swapped = WORLD.receipt(ORDER, CHAIN[:1], model_in=digest_named("evil"))

    with pytest.raises(BrokenLink):
        send(ORDER, (CHAIN[0], swapped))


def test_a_model_swapped_by_replacing_an_earlier_receipt_is_refused() -> None:
    """Mallory signs a second receipt for its own task; b's receipt, which links to the first, gives it away."""
    second = WORLD.receipt(ORDER, [], model_out=digest_named("evil"))

    with pytest.raises(BrokenLink):
        send(ORDER, (second, CHAIN[1]))


def test_a_chain_that_starts_from_another_model_than_the_order_names_is_refused() -> None:
    started = WORLD.receipt(ORDER, [], model_in=digest_named("evil"))

    with pytest.raises(BrokenLink):
        send(ORDER, (started,))


def test_a_wrong_agent_at_the_next_place_refuses() -> None:
    with pytest.raises(TrustError) as refusal:
        send(ORDER, CHAIN[:1], me=MALLORY.keyid)

    assert refusal.value.code == "dataset-not-here"


# ------------------------------------------------------------------ one thing for another


def test_a_receipt_as_an_order_is_refused() -> None:
    with pytest.raises(UnknownPayloadType):
        receive(handoff_of(CHAIN[0].envelope, ()), position=0)


def test_an_order_as_a_receipt_is_refused() -> None:
    with pytest.raises(UnknownPayloadType):
        receive(handoff_of(ORDER.envelope, [ORDER.envelope, CHAIN[1].envelope]), position=2)
    with pytest.raises(UnknownPayloadType):
        open_receipt(ORDER.envelope, WORLD.roster)


def test_a_receipt_signed_as_an_order_is_refused() -> None:
    disguised = sign_payload(LEARNUPLET_TYPE, receipt_payload(CHAIN[0].receipt), MALLORY)

    with pytest.raises(WrongRole):
        open_order(disguised, WORLD.roster, NOW)


def test_a_learnuplet_under_the_type_of_a_preduplet_is_refused() -> None:
    renamed = json.dumps(read_envelope(ORDER.envelope) | {"payloadType": PREDUPLET_TYPE}).encode()
    resigned = sign_payload(PREDUPLET_TYPE, payload_of(ORDER.envelope), WORLD.orchestrator)

    with pytest.raises(BadSignature):
        open_order(renamed, WORLD.roster, NOW)
    with pytest.raises(BadOrder):
        open_order(resigned, WORLD.roster, NOW)


@pytest.mark.parametrize("key", [MALLORY, WORLD.storage("a"), WORLD.owner], ids=["agent", "storage", "owner"])
def test_another_role_as_orchestrator_is_refused(key: Any) -> None:
    with pytest.raises(WrongRole):
        send(WORLD.order(key=key), ())


@pytest.mark.parametrize("key", [WORLD.orchestrator, WORLD.storage("a")], ids=["orchestrator", "storage"])
def test_another_role_as_agent_is_refused(key: Any) -> None:
    receipt = WORLD.receipt(ORDER, [], key=key)

    with pytest.raises(WrongRole):
        send(ORDER, (receipt,))
    with pytest.raises(WrongRole):
        open_receipt(receipt.envelope, WORLD.roster)


@pytest.mark.parametrize(
    "payload_type",
    [
        LEARNUPLET_TYPE.replace("v1", "v2"),
        LEARNUPLET_TYPE + " ",
        LEARNUPLET_TYPE.replace("+json", "+cbor"),
        "application/json",
        "text/plain",
    ],
)
def test_an_unknown_type_or_version_is_refused(payload_type: str) -> None:
    with pytest.raises(UnknownPayloadType):
        open_order(
            sign_payload(payload_type, payload_of(ORDER.envelope), WORLD.orchestrator), WORLD.roster, NOW
        )


@pytest.mark.parametrize("field", ["alg", "cert", "type"])
def test_an_algorithm_cannot_be_chosen_by_the_sender(field: str) -> None:
    fields = read_envelope(ORDER.envelope)
    fields["signatures"][0][field] = "none"

    with pytest.raises(BadEnvelope):
        open_order(json.dumps(fields).encode(), WORLD.roster, NOW)


# ------------------------------------------------------------------ time and keys


def test_an_expired_order_and_one_that_is_not_yet_valid_are_refused() -> None:
    with pytest.raises(OrderExpired):
        send(ORDER, CHAIN[:2], now=ORDER.order.expires + SKEW)
    with pytest.raises(OrderNotYetValid):
        send(ORDER, CHAIN[:2], now=ORDER.order.not_before - SKEW - timedelta(seconds=1))


@pytest.mark.parametrize(
    "who", [WORLD.orchestrator, MALLORY, B], ids=["orchestrator", "earlier agent", "sender"]
)
@pytest.mark.parametrize("revoked_at", [NOW - DAY, NOW + DAY])
def test_a_revoked_key_anywhere_in_the_chain_is_refused_whatever_the_date(who: Any, revoked_at: Any) -> None:
    with pytest.raises(KeyNotValid):
        send(ORDER, CHAIN[:2], roster=changed(WORLD.roster, who.keyid, revoked_at=revoked_at))


def test_a_strangers_signature_anywhere_in_the_chain_is_refused() -> None:
    stranger = key_of("stranger")
    first = forged_receipt(receipt_for(ORDER, [], stranger.keyid), stranger)

    for order, receipts in (
        (WORLD.order(key=stranger), ()),
        (ORDER, (first,)),
        (ORDER, (first, WORLD.receipt(ORDER, (first,)))),
    ):
        with pytest.raises(UnknownKey):
            send(order, receipts)


# ------------------------------------------------------------------ signatures


@pytest.mark.parametrize("place", ["order", "receipt"])
@pytest.mark.parametrize(
    "spoil", ["unsigned", "two signatures", "empty signature", "right signature, other body"]
)
def test_what_is_not_signed_exactly_once_over_exactly_these_bytes_is_refused(place: str, spoil: str) -> None:
    envelopes = {"order": ORDER.envelope, "receipt": CHAIN[0].envelope}
    other = {"order": OTHER_ORDER.envelope, "receipt": OTHER_CHAIN[0].envelope}[place]
    fields = read_envelope(envelopes[place])
    match spoil:
        case "unsigned":
            fields["signatures"] = []
        case "two signatures":
            fields["signatures"] += read_envelope(other)["signatures"]
        case "empty signature":
            fields["signatures"][0]["sig"] = encode_base64(bytes(64))
        case _:
            fields["payload"] = read_envelope(other)["payload"]
    envelopes[place] = json.dumps(fields).encode()

    with pytest.raises((BadEnvelope, BadSignature)):
        receive(handoff_of(envelopes["order"], [envelopes["receipt"]]), position=1)


SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "white space": lambda e: json.dumps(read_envelope(e), indent=4).encode() + b"\n\n",
    "field order": lambda e: json.dumps(dict(reversed(read_envelope(e).items()))).encode(),
    "escapes": lambda e: e.replace(b'"payload"', b'"\\u0070ayload"'),
    "url-safe base64": lambda e: json.dumps(
        read_envelope(e) | {"payload": base64.urlsafe_b64encode(payload_of(e)).decode()}
    ).encode(),
}


@pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
def test_another_spelling_of_a_known_envelope_is_the_same_thing(respell: Callable[[bytes], bytes]) -> None:
    ledger: dict[tuple[Digest, int], Recorded] = {(ORDER.digest, 1): Recorded(CHAIN[0].digest)}
    body = handoff_of(respell(ORDER.envelope), [respell(CHAIN[0].envelope)])

    answer = receive(
        body,
        position=1,
        recorded=lambda *place: ledger.get(place),
        recorded_id={ORDER.order.id: ORDER.digest}.get,
    )

    assert answer == Repeat(ORDER.order.id, ORDER.digest, 1)


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: text.rstrip("="),
        lambda text: text + "====",
        lambda text: text[:40] + "\n" + text[40:],
        lambda text: text[:40] + " " + text[40:],
        lambda text: text + "\n",
        lambda text: text[:-3] + {"A": "B", "Q": "R", "g": "h", "w": "x"}.get(text[-3], "B") + text[-2:],
    ],
    ids=["no padding", "more padding", "line break", "blank", "last line break", "unused bits"],
)
def test_a_base64_variant_of_a_known_envelope_is_refused(respell: Callable[[str], str]) -> None:
    payload = payload_of(ORDER.envelope) + b" " * (-(len(payload_of(ORDER.envelope)) + 2) % 3)
    fields = read_envelope(sign_payload(LEARNUPLET_TYPE, payload, WORLD.orchestrator))
    assert fields["payload"].endswith("=")

    with pytest.raises(BadEnvelope):
        open_order(json.dumps(fields | {"payload": respell(fields["payload"])}).encode(), WORLD.roster, NOW)


def test_a_second_key_in_the_envelope_does_not_hide_the_first() -> None:
    twice = ORDER.envelope[:-1] + b',"payload":"' + encode_base64(b"{}").encode() + b'"}'

    with pytest.raises(BadJson):
        open_order(twice, WORLD.roster, NOW)


def test_a_second_key_in_the_signed_payload_is_refused_though_the_orchestrator_signed_it() -> None:
    payload = payload_of(ORDER.envelope)[:-1] + b',"max_attempts":100}'

    with pytest.raises(BadJson):
        open_order(sign_payload(LEARNUPLET_TYPE, payload, WORLD.orchestrator), WORLD.roster, NOW)


# ------------------------------------------------------------------ any byte


@settings(max_examples=400)
@given(data=st.data())
def test_one_changed_byte_anywhere_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    body = bytearray(build_handoff(ORDER, CHAIN[:2]))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != body[at]))

    with suppress(OrderError, TrustError):  # anything else would be a 500
        verified = receive_unread(bytes(body))
        assert isinstance(verified, VerifiedHandoff)
        assert verified.order.digest == ORDER.digest
        assert [receipt.digest for receipt in verified.receipts] == [r.digest for r in CHAIN[:2]]


def receive_unread(body: bytes) -> VerifiedHandoff | Repeat:
    """As `receive` at c from b, without reading the body first."""
    return verify_handoff(
        body,
        sender=B.keyid,
        me=C.keyid,
        roster=WORLD.roster,
        policy=policy_for(ORDER),
        locate=WORLD.locate,
        recorded=lambda _order, _position: None,
        recorded_id=lambda _id: None,
        now=NOW,
        skew=SKEW,
    )
