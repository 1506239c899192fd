"""Orders and receipts in and out of their envelopes: what is signed is what is read, and each is judged at its time."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.cancellations import CANCEL_TYPE, Cancellation
from agent.domain.ids import digest_of
from agent.domain.orders import LEARNUPLET_TYPE, PREDUPLET_TYPE
from agent.domain.receipts import RECEIPT_TYPE, receipt_payload
from agent.errors import (
    BadJson,
    BadOrder,
    BadSignature,
    KeyNotValid,
    ReceiptRefused,
    TooLarge,
    UnknownPayloadType,
    WrongRole,
)
from agent.trust.signed import (
    open_cancellation,
    open_order,
    open_receipt,
    sign_cancellation,
    sign_order,
    sign_receipt,
)
from tests.builders import (
    DAY,
    HOUR,
    NOW,
    changed,
    consortium,
    dataset,
    forged_receipt,
    learnuplet,
    payload_of,
    preduplet,
    receipt_for,
    sign_payload,
    tamper,
    uuid_of,
)

WORLD = consortium()
ORDER = WORLD.order()
(RECEIPT,) = WORLD.chain(ORDER, 1)
AGENT = WORLD.agent("a")


# ------------------------------------------------------------------ orders


@pytest.mark.parametrize("order", [learnuplet(), preduplet()])
def test_a_signed_order_opens_to_the_same_value(order: Any) -> None:
    signed = sign_order(order, WORLD.orchestrator)

    assert open_order(signed.envelope, WORLD.roster, NOW) == signed
    assert signed.digest == digest_of(payload_of(signed.envelope))


def test_an_order_by_anybody_but_an_orchestrator_is_refused() -> None:
    for key in (AGENT, WORLD.storage("a"), WORLD.owner):
        with pytest.raises(WrongRole):
            open_order(sign_order(learnuplet(), key).envelope, WORLD.roster, NOW)


def test_an_altered_order_is_refused() -> None:
    with pytest.raises(BadSignature):
        open_order(tamper(ORDER.envelope, max_attempts=4), WORLD.roster, NOW)


def test_an_order_is_judged_by_the_orchestrators_dates_unless_they_are_left_to_the_caller() -> None:
    late = NOW + 366 * DAY

    with pytest.raises(KeyNotValid):
        open_order(ORDER.envelope, WORLD.roster, late)
    assert open_order(ORDER.envelope, WORLD.roster, None) == ORDER


def test_only_the_welcome_payload_type_is_opened() -> None:
    with pytest.raises(UnknownPayloadType):
        open_order(ORDER.envelope, WORLD.roster, NOW, types={PREDUPLET_TYPE})
    with pytest.raises(UnknownPayloadType):
        open_order(RECEIPT.envelope, WORLD.roster, NOW)


@pytest.mark.parametrize(
    ("payload", "refusal"),
    [
        (b"{", BadJson),
        (b"{}", BadOrder),
        (b" " * ((1 << 20) + 1), TooLarge),
        (json.dumps(json.loads(payload_of(ORDER.envelope)) | {"run_as": "root"}).encode(), BadOrder),
        (json.dumps(json.loads(payload_of(ORDER.envelope)) | {"limits": {"gpu": 1}}).encode(), BadOrder),
    ],
)
def test_a_payload_that_is_no_order_is_refused_though_rightly_signed(
    payload: bytes, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        open_order(sign_payload(LEARNUPLET_TYPE, payload, WORLD.orchestrator), WORLD.roster, NOW)


def test_an_order_that_nobody_would_accept_is_not_signed() -> None:
    with pytest.raises(BadOrder):
        sign_order(unchecked_learnuplet(max_attempts=0), WORLD.orchestrator)
    with pytest.raises(BadOrder):
        sign_order(unchecked_learnuplet(train_data=(dataset("a1"), dataset("a1"))), WORLD.orchestrator)


def unchecked_learnuplet(**changes: Any) -> Any:
    """A learnuplet made past the checks that reading it would make, as by a bug in a program."""
    order = learnuplet()
    for name, value in changes.items():
        type(order).__dict__[name].__set__(order, value)
    return order


def test_an_order_of_a_thousand_tasks_is_opened() -> None:
    names = [uuid_of(f"dataset {n}") for n in range(1000)]
    train = tuple(replace(dataset("a1"), id=name) for name in names)
    signed = sign_order(replace(learnuplet(), train_data=train, test_data=()), WORLD.orchestrator)

    assert open_order(signed.envelope, WORLD.roster, NOW) == signed


# ------------------------------------------------------------------ receipts


def test_a_signed_receipt_opens_to_the_same_value() -> None:
    for receipt in WORLD.chain(ORDER, 5):
        assert open_receipt(receipt.envelope, WORLD.roster) == receipt


def test_a_receipt_by_anybody_but_an_agent_is_refused() -> None:
    for key in (WORLD.orchestrator, WORLD.storage("a"), WORLD.owner):
        with pytest.raises(WrongRole):
            open_receipt(sign_receipt(RECEIPT.receipt, key).envelope, WORLD.roster)


def test_an_order_is_no_receipt() -> None:
    with pytest.raises(UnknownPayloadType):
        open_receipt(ORDER.envelope, WORLD.roster)


def test_a_receipt_is_judged_at_the_time_it_finished_so_rotation_breaks_no_chain() -> None:
    """Nobody passes `now`: a key whose last day has gone by still proves what it signed before."""
    rotated = changed(WORLD.roster, AGENT.keyid, valid_until=RECEIPT.receipt.finished + timedelta(seconds=1))
    too_early = changed(WORLD.roster, AGENT.keyid, valid_until=RECEIPT.receipt.finished)
    too_late = changed(WORLD.roster, AGENT.keyid, valid_from=RECEIPT.receipt.finished + timedelta(seconds=1))

    assert open_receipt(RECEIPT.envelope, rotated) == RECEIPT
    for roster in (too_early, too_late):
        with pytest.raises(KeyNotValid):
            open_receipt(RECEIPT.envelope, roster)


@pytest.mark.parametrize("revoked_at", [NOW - DAY, NOW, NOW + 10 * DAY])
def test_a_receipt_of_a_revoked_key_is_refused_whatever_the_date(revoked_at: datetime) -> None:
    with pytest.raises(KeyNotValid):
        open_receipt(RECEIPT.envelope, changed(WORLD.roster, AGENT.keyid, revoked_at=revoked_at))


@pytest.mark.parametrize(
    "times",
    [
        {"finished": NOW.replace(tzinfo=None)},
        {"started": NOW.replace(tzinfo=None)},
        {"finished": NOW.replace(microsecond=1)},
        {"started": NOW, "finished": NOW - HOUR},
    ],
)
def test_a_receipt_with_times_that_are_none_is_refused_and_not_signed(times: dict[str, Any]) -> None:
    receipt = receipt_for(ORDER, [], AGENT.keyid, **times)

    with pytest.raises(ReceiptRefused):
        open_receipt(forged_receipt(receipt, AGENT).envelope, WORLD.roster)
    with pytest.raises(ReceiptRefused):
        sign_receipt(receipt, AGENT)


def test_a_receipt_over_its_limit_is_refused() -> None:
    padded = receipt_payload(RECEIPT.receipt) + b" " * (16 << 10)

    with pytest.raises(TooLarge):
        open_receipt(sign_payload(RECEIPT_TYPE, padded, AGENT), WORLD.roster)


@pytest.mark.parametrize("field", ["_type", "predicateType"])
def test_a_statement_of_another_type_or_version_is_refused(field: str) -> None:
    statement = json.loads(payload_of(RECEIPT.envelope))
    statement[field] = statement[field].replace("v1", "v2")

    with pytest.raises(UnknownPayloadType):
        open_receipt(sign_payload(RECEIPT_TYPE, json.dumps(statement).encode(), AGENT), WORLD.roster)


def test_a_statement_about_something_else_than_its_outputs_is_refused() -> None:
    statement = json.loads(payload_of(RECEIPT.envelope))
    statement["subject"] = [{"name": "model", "digest": {"sha256": "0" * 64}}]

    with pytest.raises(ReceiptRefused):
        open_receipt(sign_payload(RECEIPT_TYPE, json.dumps(statement).encode(), AGENT), WORLD.roster)


# ------------------------------------------------------------------ cancellations


CANCELLATION = Cancellation(ORDER.digest, NOW)


def test_a_signed_cancellation_opens_to_the_same_value() -> None:
    signed = sign_cancellation(CANCELLATION, WORLD.orchestrator)

    assert open_cancellation(signed.envelope, WORLD.roster, NOW) == signed


def test_a_cancellation_by_anybody_but_an_orchestrator_is_refused() -> None:
    for key in (AGENT, WORLD.storage("a"), WORLD.owner):
        with pytest.raises(WrongRole):
            open_cancellation(sign_cancellation(CANCELLATION, key).envelope, WORLD.roster, NOW)


def test_a_cancellation_under_an_altered_payload_or_another_type_is_refused() -> None:
    envelope = sign_cancellation(CANCELLATION, WORLD.orchestrator).envelope

    with pytest.raises(BadSignature):
        open_cancellation(tamper(envelope, order=digest_of(b"another")), WORLD.roster, NOW)
    with pytest.raises(UnknownPayloadType):
        open_cancellation(ORDER.envelope, WORLD.roster, NOW)
    with pytest.raises(UnknownPayloadType):
        open_order(envelope, WORLD.roster, NOW)


@pytest.mark.parametrize("when", [NOW - 2 * DAY, NOW + 366 * DAY])
def test_a_cancellation_is_judged_when_it_is_taken(when: datetime) -> None:
    envelope = sign_cancellation(CANCELLATION, WORLD.orchestrator).envelope

    with pytest.raises(KeyNotValid):
        open_cancellation(envelope, WORLD.roster, when)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"order": "sha256:00", "issued": "2026-03-01T12:00:00Z"}',
        b'{"issued": "2026-03-01T12:00:00Z"}',
        b'{"order": "%s", "issued": "2026-03-01T12:00:00.5Z"}' % ORDER.digest.encode(),
        b'{"order": "%s", "issued": "2026-03-01T12:00:00Z", "more": 1}' % ORDER.digest.encode(),
    ],
)
def test_what_is_no_cancellation_is_refused(payload: bytes) -> None:
    with pytest.raises(BadOrder):
        open_cancellation(sign_payload(CANCEL_TYPE, payload, WORLD.orchestrator), WORLD.roster, NOW)
