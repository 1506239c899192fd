"""The hand-off's rulebook: for each numbered check the refusals that only this check gives.

The file has the rulebook's order and numbers. `taken` plays agent c, to whom b hands the order at position 2.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, KeyId, OrderId
from agent.domain.orders import LEARNUPLET_TYPE, PREDUPLET_TYPE, DatasetRef, SignedOrder
from agent.domain.receipts import SignedReceipt
from agent.errors import (
    BadEnvelope,
    BadJson,
    BadSignature,
    BrokenLink,
    DatasetNotHere,
    HandoffConflict,
    HandoffSender,
    KeyNotValid,
    NotYours,
    OrderConflict,
    OrderExpired,
    OrderNotYetValid,
    PolicyRefused,
    ReceiptRefused,
    TooLarge,
    UnknownKey,
    UnknownPayloadType,
    WrongRole,
)
from agent.trust.handoff import (
    MAX_HANDOFF_BYTES,
    Recorded,
    Repeat,
    VerifiedHandoff,
    build_handoff,
    parse_handoff,
    verify_handoff,
    verify_order,
)
from agent.trust.keys import SigningKey
from tests.builders import (
    DAY,
    HOUR,
    NOW,
    SKEW,
    changed,
    consortium,
    digest_named,
    failed,
    forged_receipt,
    handoff_of,
    key_of,
    learnuplet,
    policy_for,
    preduplet,
    read_envelope,
    receipt_for,
    tamper,
    uuid_of,
)

WORLD = consortium()
ORDER = WORLD.order()
CHAIN = WORLD.chain(ORDER, 5)
A, B, C = (WORLD.agent(hospital) for hospital in "abc")
SECOND = timedelta(seconds=1)

Ledger = dict[tuple[Digest, int], Recorded]


def taken(
    order: SignedOrder = ORDER,
    receipts: Sequence[SignedReceipt] = CHAIN[:2],
    *,
    body: bytes | None = None,
    ledger: Ledger | None = None,
    ids: dict[OrderId, Digest] | None = None,
    **changes: Any,
) -> VerifiedHandoff | Repeat:
    """What c makes of this hand-off from b; everything but what is named is in order."""
    given: dict[str, Any] = {
        "sender": receipts[-1].signer if receipts else A.keyid,
        "me": C.keyid,
        "roster": WORLD.roster,
        "policy": policy_for(order),
        "locate": WORLD.locate,
        "recorded": lambda digest, position: (ledger or {}).get((digest, position)),
        "recorded_id": (ids or {}).get,
        "now": NOW,
        "skew": SKEW,
    }
    return verify_handoff(body or build_handoff(order, receipts), **(given | changes))


def at_c(*receipts: SignedReceipt) -> Sequence[SignedReceipt]:
    """The chain up to c's task with its last receipts replaced by these."""
    return (*CHAIN[: 2 - len(receipts)], *receipts)


def by_b(**changes: Any) -> SignedReceipt:
    """B's receipt with fields changed, rightly signed by b."""
    return forged_receipt(receipt_for(ORDER, CHAIN[:1], B.keyid, **changes), B)


# ------------------------------------------------------------------ what is in order


@pytest.mark.parametrize("position", range(5))
def test_a_hand_off_in_order_is_taken_at_every_position(position: int) -> None:
    me = WORLD.next_agent(ORDER, position)

    verified = taken(receipts=CHAIN[:position], me=me)

    assert isinstance(verified, VerifiedHandoff)
    assert verified.order.order == ORDER.order
    assert verified.order.digest == ORDER.digest
    assert [receipt.digest for receipt in verified.receipts] == [r.digest for r in CHAIN[:position]]
    assert verified.position == position
    assert WORLD.locate(verified.task.dataset) == {me}


def test_a_prediction_order_and_an_order_from_a_model_are_taken() -> None:
    prediction = WORLD.order(preduplet(data=("a1", "c1")))
    retraining = WORLD.order(train=("a1", "c1"), model_start=preduplet().model, rank=1)

    for order in (prediction, retraining):
        assert isinstance(taken(order, WORLD.chain(order, 1)), VerifiedHandoff)


def test_what_was_verified_can_be_handed_on_as_it_is() -> None:
    verified = taken()

    assert isinstance(verified, VerifiedHandoff)
    assert taken(verified.order, verified.receipts) == verified


# ------------------------------------------------------------------ the body


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-1] + b',"position":2}',
        lambda body: body.replace(b'"receipts"', b'"receipt"'),
        lambda body: b'{"order":null,"receipts":[]}',
        lambda body: b"[]",
        lambda body: body.replace(b'"signatures":[{', b'"signatures":[{"alg":"none",', 1),
    ],
)
def test_a_body_of_another_shape_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadEnvelope):
        taken(body=spoil(build_handoff(ORDER, CHAIN[:2])))


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'{"order":NaN}', b'{"order":1,"order":1}'])
def test_a_body_that_is_not_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadJson):
        taken(body=body)


def test_a_body_over_the_limit_is_refused() -> None:
    with pytest.raises(TooLarge):
        taken(body=b" " * (MAX_HANDOFF_BYTES + 1))


def test_more_than_a_thousand_receipts_are_refused() -> None:
    with pytest.raises(BadEnvelope):
        parse_handoff(handoff_of(ORDER.envelope, [CHAIN[0].envelope] * 1001))


# ------------------------------------------------------------------ (0) the sender


def test_0_a_sender_who_is_not_in_the_roster_is_refused() -> None:
    with pytest.raises(UnknownKey):
        taken(receipts=(), me=A.keyid, sender=key_of("stranger").keyid)


def test_0_a_sender_who_is_no_agent_is_refused() -> None:
    with pytest.raises(WrongRole):
        taken(receipts=(), me=A.keyid, sender=WORLD.orchestrator.keyid)


def test_0_a_sender_whose_key_does_not_hold_now_is_refused() -> None:
    with pytest.raises(KeyNotValid):
        taken(roster=changed(WORLD.roster, B.keyid, valid_until=NOW))


def test_0_a_sender_who_did_not_sign_the_last_receipt_is_refused() -> None:
    with pytest.raises(HandoffSender):
        taken(sender=A.keyid)


def test_0_at_position_0_any_agent_may_send() -> None:
    for agent in (A, B, C):
        assert isinstance(taken(receipts=(), me=A.keyid, sender=agent.keyid), VerifiedHandoff)


# ------------------------------------------------------------------ (1) the order


def test_1_an_altered_order_is_refused() -> None:
    body = handoff_of(tamper(ORDER.envelope, max_attempts=99), ())

    with pytest.raises(BadSignature):
        taken(body=body, receipts=(), me=A.keyid)


def test_1_an_order_signed_by_an_agent_is_refused() -> None:
    order = WORLD.order(key=B)

    with pytest.raises(WrongRole):
        taken(order, (), me=A.keyid)


def test_1_an_order_by_somebody_unknown_is_refused() -> None:
    order = WORLD.order(key=key_of("stranger"))

    with pytest.raises(UnknownKey):
        taken(order, (), me=A.keyid)


def test_1_an_order_by_a_revoked_orchestrator_is_refused() -> None:
    roster = changed(WORLD.roster, WORLD.orchestrator.keyid, revoked_at=NOW + DAY)

    with pytest.raises(KeyNotValid):
        taken(roster=roster)


def test_1_something_else_than_an_order_is_refused() -> None:
    with pytest.raises(UnknownPayloadType):
        taken(body=handoff_of(CHAIN[0].envelope, ()), receipts=(), me=A.keyid)


def test_1_a_hand_off_after_the_last_task_is_refused() -> None:
    with pytest.raises(ReceiptRefused, match="none is left"):
        taken(receipts=CHAIN)


def test_1_a_hand_off_with_more_receipts_than_tasks_is_refused() -> None:
    with pytest.raises(ReceiptRefused, match="none is left"):
        taken(receipts=(*CHAIN, CHAIN[-1]))


# ------------------------------------------------------------------ (2) a repeat


RECORDED: Ledger = {(ORDER.digest, 2): Recorded(CHAIN[1].digest)}


def test_2_the_same_hand_off_again_is_a_repeat() -> None:
    assert taken(ledger=RECORDED, ids={ORDER.order.id: ORDER.digest}) == Repeat(
        ORDER.order.id, ORDER.digest, 2
    )


def test_2_at_position_0_the_order_alone_makes_a_repeat() -> None:
    ledger: Ledger = {(ORDER.digest, 0): Recorded(None)}

    assert taken(receipts=(), ledger=ledger) == Repeat(ORDER.order.id, ORDER.digest, 0)


def nobody(_: DatasetRef) -> frozenset[KeyId]:
    """Storage that knows no place for anything any more."""
    return frozenset()


@pytest.mark.parametrize(
    "changes",
    [
        {"now": NOW + 2 * DAY},
        {"locate": nobody},
        {"policy": policy_for()},
        {"roster": changed(WORLD.roster, WORLD.orchestrator.keyid, valid_until=NOW - HOUR)},
    ],
    ids=["order expired", "dataset gone", "policy emptied", "orchestrator's key ended"],
)
def test_2_a_repeat_is_one_whatever_time_storage_and_policy_say_now(changes: dict[str, Any]) -> None:
    assert isinstance(taken(ledger=RECORDED, **changes), Repeat)


def test_2_another_last_receipt_for_the_place_is_refused() -> None:
    other = by_b(attempt=2)

    with pytest.raises(HandoffConflict):
        taken(receipts=at_c(other), ledger=RECORDED)


def test_2_the_orders_id_under_another_digest_is_refused() -> None:
    with pytest.raises(OrderConflict):
        taken(ids={ORDER.order.id: digest_named("another order")})


def test_2_the_same_order_at_another_position_is_no_repeat() -> None:
    ledger: Ledger = {(ORDER.digest, 0): Recorded(None), (ORDER.digest, 3): Recorded(CHAIN[2].digest)}

    assert isinstance(taken(ledger=ledger, ids={ORDER.order.id: ORDER.digest}), VerifiedHandoff)


# ------------------------------------------------------------------ (3) the time


def test_3_an_expired_order_is_refused() -> None:
    order = WORLD.order(expires=NOW)

    with pytest.raises(OrderExpired):
        taken(order, WORLD.chain(order, 2), now=NOW + SKEW)
    assert isinstance(taken(order, WORLD.chain(order, 2), now=NOW + SKEW - SECOND), VerifiedHandoff)


def test_3_an_order_that_may_not_start_yet_is_refused() -> None:
    order = WORLD.order(not_before=NOW)

    with pytest.raises(OrderNotYetValid):
        taken(order, WORLD.chain(order, 2), now=NOW - SKEW - SECOND)
    assert isinstance(taken(order, WORLD.chain(order, 2), now=NOW - SKEW), VerifiedHandoff)


def test_3_an_order_whose_orchestrators_key_does_not_hold_now_is_refused() -> None:
    with pytest.raises(KeyNotValid):
        taken(roster=changed(WORLD.roster, WORLD.orchestrator.keyid, valid_until=NOW))


# ------------------------------------------------------------------ (4) the policy


@pytest.mark.parametrize(
    "lists",
    [
        {"orchestrators": [WORLD.other_orchestrator.keyid]},
        {"images": [digest_named("algo-image")]},
        {"images": [digest_named("problem-image")]},
        {"datasets": [uuid_of("dataset/a1")]},
        {"kinds": [TaskKind.TEST, TaskKind.PREDICT]},
    ],
    ids=["orchestrator", "problem image", "algo image", "dataset", "kind"],
)
def test_4_what_the_policy_does_not_list_is_refused(lists: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused):
        taken(policy=policy_for(ORDER, **lists))


def test_4_the_empty_policy_admits_nothing() -> None:
    with pytest.raises(PolicyRefused):
        taken(policy=policy_for())


def test_4_a_host_need_not_list_other_hosts_datasets_or_kinds() -> None:
    policy = policy_for(ORDER, datasets=[uuid_of("dataset/c1")], kinds=[TaskKind.LEARN])

    assert isinstance(taken(policy=policy), VerifiedHandoff)


# ------------------------------------------------------------------ (5) each receipt


def test_5_an_altered_receipt_is_refused() -> None:
    altered = tamper(CHAIN[0].envelope, predicate={})
    body = handoff_of(ORDER.envelope, [altered, CHAIN[1].envelope])

    with pytest.raises(BadSignature):
        taken(body=body)


def test_5_an_altered_last_receipt_is_refused() -> None:
    altered = tamper(CHAIN[1].envelope, predicate={})

    with pytest.raises(BadSignature):
        taken(body=handoff_of(ORDER.envelope, [CHAIN[0].envelope, altered]))


@pytest.mark.parametrize("key", [WORLD.orchestrator, WORLD.storage("a"), WORLD.owner])
def test_5_a_receipt_by_anybody_but_an_agent_is_refused(key: SigningKey) -> None:
    receipt = WORLD.receipt(ORDER, [], key=key)
    chain = (receipt, WORLD.receipt(ORDER, [receipt]))

    with pytest.raises(WrongRole):
        taken(receipts=chain, locate=lambda _: frozenset({key.keyid, B.keyid, C.keyid}))


def test_5_a_receipt_whose_agents_key_did_not_hold_when_it_finished_is_refused() -> None:
    roster = changed(WORLD.roster, A.keyid, valid_from=CHAIN[0].receipt.finished + SECOND)

    with pytest.raises(KeyNotValid):
        taken(roster=roster)


def test_5_a_receipt_of_a_revoked_agent_is_refused() -> None:
    with pytest.raises(KeyNotValid):
        taken(roster=changed(WORLD.roster, A.keyid, revoked_at=NOW))


@pytest.mark.parametrize(
    "changes",
    [
        {"order": digest_named("another order")},
        {"order_id": uuid_of("another order")},
        {"position": 0},
        {"position": 2},
        {"task": receipt_for(ORDER, CHAIN[:2], B.keyid).task},
        {"task": receipt_for(ORDER, CHAIN[:4], B.keyid).task},
        {"agent": A.keyid},
        {"agent": C.keyid},
    ],
    ids=["order", "order id", "earlier", "later", "dataset", "kind", "agent", "agent"],
)
def test_5_a_receipt_that_is_not_for_this_order_place_and_task_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ReceiptRefused):
        taken(receipts=at_c(by_b(**changes)))


def test_5_a_receipt_for_another_version_of_the_dataset_is_refused() -> None:
    other = WORLD.order(
        learnuplet(train_data=tuple(DatasetRef(ref.id, "2") for ref in learnuplet().train_data))
    )
    task = receipt_for(other, WORLD.chain(other, 1), B.keyid).task

    with pytest.raises(ReceiptRefused):
        taken(receipts=at_c(by_b(task=task)))


def test_5_a_failed_task_is_never_part_of_a_hand_off() -> None:
    receipt = forged_receipt(failed(CHAIN[1].receipt), B)

    with pytest.raises(ReceiptRefused, match="failed"):
        taken(receipts=at_c(receipt))


def test_5_a_receipt_by_an_agent_that_does_not_hold_the_dataset_is_refused() -> None:
    """A rostered agent signs for b's dataset, and everything else about the receipt is right."""
    receipt = WORLD.receipt(ORDER, CHAIN[:1], key=A)

    with pytest.raises(ReceiptRefused, match="does not hold"):
        taken(receipts=at_c(receipt))


def test_5_any_agent_that_holds_the_dataset_may_have_run_the_task() -> None:
    receipt = WORLD.receipt(ORDER, CHAIN[:1], key=A)

    verified = taken(receipts=at_c(receipt), locate=lambda ref: WORLD.locate(ref) | {A.keyid})

    assert isinstance(verified, VerifiedHandoff)


# ------------------------------------------------------------------ (6) the links


def test_6_a_receipt_that_does_not_link_to_the_one_before_is_refused() -> None:
    with pytest.raises(BrokenLink):
        taken(receipts=at_c(by_b(previous=ORDER.digest)))


def test_6_a_first_receipt_that_does_not_link_to_the_order_is_refused() -> None:
    first = WORLD.receipt(ORDER, [], previous=digest_named("another order"))

    with pytest.raises(BrokenLink):
        taken(receipts=(first, WORLD.receipt(ORDER, [first])))


def test_6_a_receipt_that_starts_from_another_model_is_refused() -> None:
    with pytest.raises(BrokenLink):
        taken(receipts=at_c(by_b(model_in=digest_named("another model"))))


def test_6_a_first_receipt_that_starts_from_a_model_the_order_does_not_name_is_refused() -> None:
    first = WORLD.receipt(ORDER, [], model_in=digest_named("another model"))

    with pytest.raises(BrokenLink):
        taken(receipts=(first, WORLD.receipt(ORDER, [first])))


def test_6_a_learn_task_that_left_no_model_is_refused() -> None:
    with pytest.raises(BrokenLink):
        taken(receipts=at_c(by_b(model_out=None)))


def test_6_a_learn_task_that_changed_nothing_is_taken() -> None:
    """Training may have converged: the same bytes have the same digest."""
    assert isinstance(taken(receipts=at_c(by_b(model_out=CHAIN[0].receipt.model_out))), VerifiedHandoff)


def test_6_a_test_task_that_changed_the_model_is_refused() -> None:
    order = WORLD.order(train=("a1",), test=("b1", "c1"))
    learnt = WORLD.chain(order, 1)
    tested = WORLD.receipt(order, learnt, model_out=digest_named("another model"))

    with pytest.raises(BrokenLink):
        taken(order, (*learnt, tested))


def test_6_a_predict_task_that_changed_the_model_is_refused() -> None:
    order = WORLD.order(preduplet(data=("b1", "c1")))
    predicted = WORLD.receipt(order, [], model_out=digest_named("another model"))

    with pytest.raises(BrokenLink):
        taken(order, (predicted,))


# ------------------------------------------------------------------ (7) the place


def test_7_a_hand_off_whose_next_dataset_lies_elsewhere_is_refused() -> None:
    with pytest.raises(DatasetNotHere):
        taken(me=A.keyid)


def test_7_a_dataset_that_lies_nowhere_is_refused() -> None:
    def only_of_done_tasks(ref: DatasetRef) -> frozenset[KeyId]:
        return frozenset() if ref == ORDER.order.train_data[2] else WORLD.locate(ref)  # type: ignore[union-attr]

    with pytest.raises(DatasetNotHere):
        taken(locate=only_of_done_tasks)


# ------------------------------------------------------------------ an order from its orchestrator


def offered(order: SignedOrder = ORDER, **changes: Any) -> SignedOrder | Repeat:
    """What an agent makes of an order that o1 posts."""
    given: dict[str, Any] = {
        "payload_type": order.order.payload_type,
        "sender": order.signer,
        "roster": WORLD.roster,
        "policy": policy_for(order),
        "recorded_id": lambda _id: None,
        "now": NOW,
        "skew": SKEW,
    }
    return verify_order(order.envelope, **(given | changes))


@pytest.mark.parametrize("order", [ORDER, WORLD.order(preduplet())])
def test_an_order_in_order_is_taken(order: SignedOrder) -> None:
    assert offered(order) == order


def test_an_order_1_signed_by_an_agent_is_refused() -> None:
    with pytest.raises(WrongRole):
        offered(WORLD.order(key=A))


def test_an_order_1_on_the_wrong_route_is_refused() -> None:
    with pytest.raises(UnknownPayloadType):
        offered(payload_type=PREDUPLET_TYPE)
    with pytest.raises(UnknownPayloadType):
        offered(WORLD.order(preduplet()), payload_type=LEARNUPLET_TYPE)


def test_an_order_1_sent_by_another_than_its_signer_is_refused() -> None:
    with pytest.raises(NotYours):
        offered(sender=WORLD.other_orchestrator.keyid)


def test_an_order_2_again_is_a_repeat_whatever_the_time() -> None:
    known = {ORDER.order.id: ORDER.digest}.get

    for now in (NOW, NOW + 400 * DAY):
        assert offered(recorded_id=known, now=now) == Repeat(ORDER.order.id, ORDER.digest, 0)


def test_an_order_2_under_a_known_id_with_other_content_is_refused() -> None:
    with pytest.raises(OrderConflict):
        offered(recorded_id={ORDER.order.id: digest_named("another order")}.get)


def test_an_order_3_outside_its_time_is_refused() -> None:
    with pytest.raises(OrderExpired):
        offered(now=NOW + 2 * DAY)
    with pytest.raises(OrderNotYetValid):
        offered(now=NOW - 2 * HOUR)
    with pytest.raises(KeyNotValid):
        offered(roster=changed(WORLD.roster, WORLD.orchestrator.keyid, valid_until=NOW))


def test_an_order_4_that_the_policy_does_not_admit_is_refused() -> None:
    for policy in (policy_for(), policy_for(ORDER, datasets=[uuid_of("dataset/b1")])):
        with pytest.raises(PolicyRefused):
            offered(policy=policy)


def test_an_order_4_needs_only_its_first_task_admitted() -> None:
    policy = policy_for(ORDER, datasets=[uuid_of("dataset/a1")], kinds=[TaskKind.LEARN])

    assert offered(policy=policy) == ORDER


def test_an_envelope_of_a_known_order_with_other_spelling_is_a_repeat() -> None:
    respelt = SignedOrder(
        ORDER.order, ORDER.digest, ORDER.signer, str(read_envelope(ORDER.envelope)).replace("'", '"').encode()
    )

    assert isinstance(offered(respelt, recorded_id={ORDER.order.id: ORDER.digest}.get), Repeat)
