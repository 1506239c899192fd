"""Cancelling and controlling over the API: who may, what is answered, what is signed, and that a repeat is a repeat."""

import json
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from agent.domain.cancellations import Cancellation
from agent.domain.control import Control, Mode
from agent.domain.ids import job_id, wire_time
from agent.domain.jobs import JobEvent, JobState
from agent.domain.orders import SignedOrder
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryKind
from agent.trust.http_signatures import HttpAnswer, HttpRequest, content_digest, verify_answer
from agent.trust.keys import SigningKey
from agent.trust.signed import sign_cancellation
from tests.api.house import House, open_house, signed_headers
from tests.builders import NOW, SKEW, consortium

ORDER = consortium().order()
JOB = job_id(ORDER.order.id, 0)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path)


def post_order(house: House, order: SignedOrder = ORDER) -> httpx.Response:
    return house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)


def cancellation(key: SigningKey, order: SignedOrder = ORDER) -> bytes:
    return sign_cancellation(Cancellation(order.digest, wire_time(NOW)), key).envelope


def cancel(house: House, *, by: SigningKey | None = None, sender: SigningKey | None = None) -> httpx.Response:
    by = by or house.world.orchestrator
    return house.call(sender or by, "POST", "/v1/cancellations", cancellation(by))


# ------------------------------------------------------------------ an orchestrator's word


def test_an_orchestrator_cancels_its_order_and_the_same_again_is_200(house: House) -> None:
    post_order(house)

    first, again = cancel(house), cancel(house)

    assert (first.status_code, again.status_code) == (202, 200)
    assert first.headers["location"] == f"/v1/orders/{ORDER.order.id}"
    assert first.json() == again.json()
    assert first.json()["jobs"] == {JOB: "cancelled"}
    assert first.json()["order"] == ORDER.digest
    assert house.ledger.job(JOB).state is JobState.CANCELLED
    assert [d.kind for d in house.ledger.deliveries()] == [DeliveryKind.REPORT]


def test_a_running_job_s_containers_are_rung_for(house: House) -> None:
    post_order(house)
    job = house.ledger.move(house.ledger.job(JOB), JobEvent.ENQUEUE, NOW)
    house.ledger.start(job, NOW, worker="w", lease_until=NOW + timedelta(seconds=60))

    cancel(house)

    assert (Queue.CANCELLATIONS, JOB) in house.bells.rung


def test_an_agent_forwards_it_and_the_answer_is_signed(house: House) -> None:
    body, peer = cancellation(house.world.orchestrator), house.world.agent("b")
    headers = signed_headers(peer, "POST", "/v1/cancellations", body, now=NOW)

    answer = house.network.request("POST", "/v1/cancellations", content=body, headers=headers)

    assert answer.status_code == 202
    assert answer.json()["id"] is None  # the order never came
    check_signed(house, answer, headers)


def test_a_refusal_is_signed_too(house: House) -> None:
    post_order(house)
    other = house.world.other_orchestrator
    body = cancellation(other)
    headers = signed_headers(other, "POST", "/v1/cancellations", body, now=NOW)

    answer = house.network.request("POST", "/v1/cancellations", content=body, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")
    check_signed(house, answer, headers)
    assert house.ledger.job(JOB).state is JobState.RECEIVED


def check_signed(house: House, answer: httpx.Response, headers: dict[str, str]) -> None:
    """Raises: TrustError."""
    verify_answer(
        HttpAnswer(answer.status_code, tuple(answer.headers.items())),
        HttpRequest("POST", f"{house.network.base_url}/v1/cancellations", headers),
        house.world.roster,
        expected=house.host.me,
        now=NOW,
        skew=SKEW,
    )
    assert answer.headers["content-digest"] == content_digest(answer.content)


def test_another_orchestrator_forwards_nothing(house: House) -> None:
    answer = cancel(house, sender=house.world.other_orchestrator)

    assert (answer.status_code, answer.json()["code"]) == (403, "wrong-role")


@pytest.mark.parametrize("role", ["storage", "owner"])
def test_no_other_role_cancels(house: House, role: str) -> None:
    key = house.world.owner if role == "owner" else house.world.storage("a")

    answer = cancel(house, sender=key)

    assert (answer.status_code, answer.json()["code"]) == (403, "wrong-role")


def test_nobody_cancels_unsigned(house: House) -> None:
    answer = house.network.post("/v1/cancellations", cancellation(house.world.orchestrator))

    assert (answer.status_code, answer.json()["code"]) == (401, "unsigned-request")


def test_an_order_that_comes_after_its_cancellation_is_answered_as_cancelled(house: House) -> None:
    cancel(house)

    answer = post_order(house)

    assert answer.status_code == 202
    assert answer.json()["state"] == "cancelled"
    assert answer.json()["reason"] == "cancelled"


def test_the_operator_may_bring_what_an_orchestrator_signed(house: House) -> None:
    post_order(house)

    answer = house.operator.post("/v1/cancellations", cancellation(house.world.orchestrator))

    assert answer.status_code == 202
    assert house.ledger.job(JOB).state is JobState.CANCELLED


def test_a_draining_host_takes_cancellations(house: House) -> None:
    post_order(house)
    house.ledger.set_control(Control(mode=Mode.DRAINING), NOW)

    assert cancel(house).status_code == 202


# ------------------------------------------------------------------ the operator's word


def test_the_operator_ends_an_order_here(house: House) -> None:
    post_order(house)

    first = house.operator.post(f"/v1/orders/{ORDER.order.id}/cancel", b'{"reason": "a noisy disk"}')
    again = house.operator.post(f"/v1/orders/{ORDER.order.id}/cancel", b"{}")

    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["jobs"] == {JOB: "cancelled"}
    (event,) = [e for e in house.ledger.events() if e.name == "order.cancelled"]
    assert (event.values["source"], event.values["reason"]) == ("operator", "a noisy disk")


def test_an_unknown_order_is_not_found(house: House) -> None:
    answer = house.operator.post(f"/v1/orders/{ORDER.order.id}/cancel", b"{}")

    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", f"/v1/orders/{ORDER.order.id}/cancel", b"{}"),
        ("POST", "/v1/control", b'{"mode": "paused"}'),
        ("GET", "/v1/control", None),
    ],
)
@pytest.mark.parametrize("who", ["o1", "agent"])
def test_nobody_of_the_network_has_the_operators_word(
    house: House, method: str, target: str, body: bytes | None, who: str
) -> None:
    post_order(house)
    key = house.world.orchestrator if who == "o1" else house.world.agent("b")

    answer = house.call(key, method, target, body)

    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")
    assert house.ledger.job(JOB).state is JobState.RECEIVED
    assert house.ledger.control().mode is Mode.RUNNING


# ------------------------------------------------------------------ the host as a whole


def control(house: House, mode: str, **more: object) -> httpx.Response:
    return house.operator.post("/v1/control", json.dumps({"mode": mode, **more}).encode())


def test_a_pause_is_kept_and_told_with_who_since_and_why(house: House) -> None:
    first, again = control(house, "paused", reason="a new disk"), control(house, "paused")

    seen = house.operator.get("/v1/control").json()
    (check,) = [c for c in house.operator.get("/ready").json()["checks"] if c["name"] == "mode"]
    metrics = house.operator.get("/metrics").text
    assert (first.status_code, again.status_code) == (202, 200)
    assert (seen["mode"], seen["reason"], seen["since"]) == ("paused", "a new disk", "2026-03-01T12:00:00Z")
    assert seen["jobs"]["queued"] == 0
    assert check["is_ok"]
    assert "a new disk" in check["detail"]
    assert 'dc_compute_mode{mode="paused"} 1.0' in metrics
    assert 'dc_compute_mode{mode="running"} 0.0' in metrics


def test_a_draining_host_answers_intake_with_503_and_retry_after_and_is_not_ready(house: House) -> None:
    control(house, "draining")

    answer, ready = post_order(house), house.network.get("/ready")

    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0
    assert ready.status_code == 503
    assert {"name": "mode", "is_ok": False, "code": "draining", "detail": None} in ready.json()["checks"]


def test_what_was_taken_before_a_drain_is_answered_as_ever(house: House) -> None:
    post_order(house)
    control(house, "draining")

    assert post_order(house).status_code == 200


def test_resuming_rings_for_what_waited(house: House) -> None:
    control(house, "draining")
    control(house, "running")
    post_order(house)
    house.bells.rung.clear()

    control(house, "running")

    assert (Queue.LEARNUPLETS, JOB) in house.bells.rung


def test_a_restored_host_is_resumed_by_force_alone(house: House) -> None:
    house.ledger.set_control(Control(mode=Mode.RESTORED), NOW)

    refused, forced = control(house, "running"), control(house, "running", force=True)

    assert (refused.status_code, refused.json()["code"]) == (409, "host-restored")
    assert forced.status_code == 202
    assert house.ledger.control().mode is Mode.RUNNING


def test_nobody_says_that_a_host_was_restored(house: House) -> None:
    assert control(house, "restored").status_code == 422
