"""Receipts: what they say, how they are read, and the rule by which they link."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.chain import TaskKind
from agent.domain.ids import digest_of, hex_of
from agent.domain.orders import ModelRef
from agent.domain.receipts import (
    MAX_RECEIPT_BYTES,
    ImageUse,
    Outcome,
    Output,
    Receipt,
    ReceiptTask,
    SignedReceipt,
    check_link,
    check_place,
    final_scores,
    next_link,
    parse_receipt,
    receipt_payload,
    start_link,
)
from agent.errors import BadJson, BadOrder, BrokenLink, ReceiptRefused, TooLarge, UnknownPayloadType
from tests.domain.values import (
    agent_named,
    digest_named,
    learnuplet,
    preduplet,
    receipt,
    signed,
    signed_receipt,
    uuid_of,
)

ORDER = signed(learnuplet())
FIRST = signed_receipt(receipt(ORDER))
SECOND = signed_receipt(
    receipt(
        ORDER,
        position=1,
        task=ReceiptTask(TaskKind.LEARN, uuid_of("b"), "1"),
        agent=agent_named("b"),
        previous=FIRST.digest,
        model_in=digest_named("model 1"),
        model_out=digest_named("model 2"),
        outputs=(Output("model", digest_named("model 2"), 10),),
    )
)
THIRD = signed_receipt(
    receipt(
        ORDER,
        position=2,
        task=ReceiptTask(TaskKind.TEST, uuid_of("c"), "1"),
        agent=agent_named("c"),
        previous=SECOND.digest,
        model_in=digest_named("model 2"),
        model_out=digest_named("model 2"),
        outputs=(Output("performance", digest_named("performance"), 99),),
        score="0.875",
    )
)
CHAIN = (FIRST, SECOND, THIRD)


def changed(told: SignedReceipt, **changes: Any) -> SignedReceipt:
    """The receipt saying something else, signed anew."""
    return signed_receipt(replace(told.receipt, **changes), told.signer)


def wire(told: Receipt, **changes: Any) -> bytes:
    """The statement as JSON with fields of the statement changed."""
    return json.dumps(json.loads(receipt_payload(told)) | changes).encode()


def wire_predicate(told: Receipt, **changes: Any) -> bytes:
    """The statement as JSON with fields of the receipt changed."""
    statement = json.loads(receipt_payload(told))
    return json.dumps(statement | {"predicate": statement["predicate"] | changes}).encode()


# ------------------------------------------------------------------ on the wire


@pytest.mark.parametrize("told", CHAIN, ids=["learn", "learn again", "test"])
def test_a_receipt_is_read_as_it_was_written(told: SignedReceipt) -> None:
    assert parse_receipt(receipt_payload(told.receipt)) == told.receipt


def test_a_receipt_is_an_in_toto_statement_about_its_outputs() -> None:
    statement = json.loads(receipt_payload(FIRST.receipt))

    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "model", "digest": {"sha256": hex_of(digest_named("model 1"))}}]
    assert set(statement) == {"_type", "subject", "predicateType", "predicate"}


def test_a_receipt_without_outputs_is_about_its_order() -> None:
    told = receipt(ORDER, outcome=Outcome.FAILED, reason="oom", outputs=(), model_out=None)

    statement = json.loads(receipt_payload(told))

    assert statement["subject"] == [
        {"name": f"order/{ORDER.order.id}", "digest": {"sha256": hex_of(ORDER.digest)}}
    ]
    assert parse_receipt(receipt_payload(told)) == told


@pytest.mark.parametrize(
    "subject",
    [
        [],
        [{"name": "model", "digest": {"sha256": "0" * 64}}],
        [{"name": "other", "digest": {"sha256": hex_of(digest_named("model 1"))}}],
        [{"name": "model", "digest": {"sha256": hex_of(digest_named("model 1")), "sha512": "0"}}],
        [{"name": "model", "digest": {"sha256": hex_of(digest_named("model 1"))}}] * 2,
    ],
)
def test_a_subject_that_is_not_the_outputs_is_refused(subject: list[Any]) -> None:
    with pytest.raises(ReceiptRefused):
        parse_receipt(wire(FIRST.receipt, subject=subject))


@pytest.mark.parametrize(
    "changes",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"predicateType": "https://deemcare.example/dc-compute/receipt/v2"},
    ],
)
def test_another_statement_is_no_receipt(changes: dict[str, str]) -> None:
    with pytest.raises(UnknownPayloadType):
        parse_receipt(wire(FIRST.receipt, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"position": -1},
        {"position": 1001},
        {"outcome": "perhaps"},
        {"task": {"kind": "steal", "dataset": uuid_of("a"), "version": "1"}},
        {"agent": agent_named("a").upper()},
        {"previous": None},
        {"score": 0.5},
        {"score": "nan"},
        {"score": "0,5"},
        {"score": "0.5\n"},
        {"score": "1e5 "},
        {"reason": "x" * 201},
        {"usage": {"wall_s": -1}},
        {"outputs": [{"name": "", "digest": digest_named("x"), "size": 1}]},
        {"outputs": [{"name": "model", "digest": digest_named("x"), "size": -1}]},
        {"attempt": "1"},
    ],
    ids=str,
)
def test_a_receipt_with_a_field_that_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadOrder):
        parse_receipt(wire_predicate(FIRST.receipt, **changes))


def test_a_receipt_over_its_limit_is_refused() -> None:
    with pytest.raises(TooLarge):
        parse_receipt(receipt_payload(FIRST.receipt) + b" " * MAX_RECEIPT_BYTES)


def test_a_receipt_with_a_key_twice_is_refused() -> None:
    with pytest.raises(BadJson):
        parse_receipt(receipt_payload(FIRST.receipt).replace(b'"position":0', b'"position":0,"position":0'))


# ------------------------------------------------------------------ its place


def test_each_receipt_of_a_chain_stands_in_its_place() -> None:
    for position, told in enumerate(CHAIN):
        check_place(ORDER, told, position)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"order": digest_named("another order")}, "not for this order"),
        ({"order_id": uuid_of("another order")}, "not for this order"),
        ({"position": 1}, "for position 1"),
        ({"task": ReceiptTask(TaskKind.TEST, uuid_of("a"), "1")}, "another task"),
        ({"task": ReceiptTask(TaskKind.LEARN, uuid_of("b"), "1")}, "another task"),
        ({"task": ReceiptTask(TaskKind.LEARN, uuid_of("a"), "2")}, "another task"),
        ({"outcome": Outcome.FAILED}, "failed task"),
        ({"agent": agent_named("b")}, "another agent"),
    ],
)
def test_a_receipt_out_of_place_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ReceiptRefused, match=why):
        check_place(ORDER, changed(FIRST, **changes), 0)


def test_a_receipt_in_the_place_of_another_is_refused() -> None:
    with pytest.raises(ReceiptRefused):
        check_place(ORDER, SECOND, 0)
    with pytest.raises(ReceiptRefused):
        check_place(ORDER, FIRST, 1)


# ------------------------------------------------------------------ its link


def test_a_whole_chain_links() -> None:
    for position, told in enumerate(CHAIN):
        check_link(ORDER, CHAIN[:position], told)


def test_the_first_receipt_links_to_the_order() -> None:
    assert start_link(ORDER) == next_link(ORDER, ()) == (ORDER.digest, None)
    assert next_link(ORDER, CHAIN[:1]) == (FIRST.digest, digest_named("model 1"))


@pytest.mark.parametrize(
    "order", [learnuplet(model_start=ModelRef(digest_named("m"), agent_named("a"))), preduplet()]
)
def test_a_chain_starts_from_the_model_that_its_order_names(order: Any) -> None:
    told = signed(order)

    assert start_link(told) == (told.digest, order.start_model.digest)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ((), changed(FIRST, previous=digest_named("nothing"))),
        ((), changed(FIRST, model_in=digest_named("a model from nowhere"))),
        ((), changed(FIRST, model_out=None)),
        ((FIRST,), changed(SECOND, previous=ORDER.digest)),
        ((FIRST,), changed(SECOND, model_in=None)),
        ((FIRST,), changed(SECOND, model_in=digest_named("swapped"))),
        ((FIRST, SECOND), changed(THIRD, previous=FIRST.digest)),
        ((FIRST, SECOND), changed(THIRD, model_out=digest_named("a test that trained"))),
        ((FIRST, SECOND), changed(THIRD, model_out=None)),
        ((), SECOND),  # skipped
        ((FIRST,), THIRD),  # dropped
        ((SECOND,), FIRST),  # swapped
    ],
)
def test_a_broken_link_is_refused(before: tuple[SignedReceipt, ...], told: SignedReceipt) -> None:
    with pytest.raises(BrokenLink):
        check_link(ORDER, before, told)


def test_one_changed_byte_anywhere_in_a_receipt_breaks_the_next_link() -> None:
    payload = receipt_payload(FIRST.receipt)

    for place in range(0, len(payload), 7):
        flipped = bytearray(payload)
        flipped[place] ^= 1
        assert digest_of(bytes(flipped)) != SECOND.receipt.previous


def test_scores_are_told_by_test_dataset() -> None:
    assert final_scores(CHAIN) == {uuid_of("c"): "0.875"}
    assert final_scores(()) == {}


def test_an_image_that_the_policy_lists_says_nothing_of_an_approval() -> None:
    listed = replace(receipt(ORDER), images=(ImageUse("algo", digest_named("algo")),))
    approved = replace(listed, images=(ImageUse("algo", digest_named("algo"), listed.finished),))

    assert b"approved" not in receipt_payload(listed)
    assert parse_receipt(receipt_payload(approved)) == approved


def test_the_moment_of_an_approval_is_written_as_every_time_is() -> None:
    use = ImageUse("algo", digest_named("algo"), receipt(ORDER).finished)
    payload = receipt_payload(replace(receipt(ORDER), images=(use,)))
    before, after = payload.split(b'"approved":"')

    with pytest.raises(BadOrder, match="RFC 3339"):
        parse_receipt(before + b'"approved":"' + after.replace(b'Z"', b'.5Z"', 1))
