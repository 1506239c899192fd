"""What the routes do: intake, reading, who may read what. Signatures are real, the ports in memory, the TLS left out."""

from datetime import timedelta
from pathlib import Path

import pytest

from agent.api.refusals import BUDGET
from agent.domain.ids import digest_of, job_id
from agent.domain.jobs import JobEvent
from agent.domain.orders import LEARNUPLET_TYPE
from agent.pipeline.gate import Breach, Gate
from agent.ports.broker import Queue
from agent.trust.handoff import build_handoff
from agent.trust.http_signatures import HttpAnswer, HttpRequest, content_digest, verify_answer
from agent.trust.job_log import seal_log
from tests.api.house import House, open_house, signed_headers
from tests.builders import (
    NOW,
    SKEW,
    dataset,
    key_of,
    payload_of,
    policy_for,
    preduplet,
    sign_payload,
    tamper,
    uuid_of,
)
from tests.ports.ledger_stage import arrival


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path)


def submit(house: House) -> str:
    """Let o1's order in; its id."""
    order = house.world.order()
    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)
    assert answer.status_code == 202
    return order.order.id


# ------------------------------------------------------------------ orders come in


def test_an_order_is_accepted_recorded_and_rung(house: House) -> None:
    order = house.world.order()

    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)

    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/orders/{order.order.id}"
    assert answer.json()["state"] == "received"
    assert house.ledger.order(order.order.id).envelope == order.envelope
    assert house.bells.rung == [(Queue.LEARNUPLETS, job_id(order.order.id, 0))]


def test_the_same_bytes_again_give_the_same_resource(house: House) -> None:
    order = house.world.order()
    first = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)

    again = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)

    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["location"] == first.headers["location"]
    assert again.json()["id"] == first.json()["id"]


def test_another_order_under_a_known_id_is_a_conflict(house: House) -> None:
    submit(house)
    other = house.world.order(rank=1)

    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", other.envelope)

    assert (answer.status_code, answer.json()["code"]) == (409, "order-conflict")


def test_a_prediction_order_has_a_route_of_its_own(tmp_path: Path) -> None:
    order = open_house(tmp_path).world.order(preduplet())
    house = open_house(tmp_path, policy=policy_for(order))

    right = house.call(house.world.orchestrator, "POST", "/v1/preduplets", order.envelope)
    wrong = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)

    assert right.status_code == 202
    assert (wrong.status_code, wrong.json()["code"]) == (422, "unknown-payload-type")


def test_an_order_sent_by_another_than_its_signer_is_refused(house: House) -> None:
    order = house.world.order()

    answer = house.call(house.world.other_orchestrator, "POST", "/v1/learnuplets", order.envelope)

    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")


def test_an_altered_order_is_refused(house: House) -> None:
    envelope = tamper(house.world.order().envelope, rank=7)

    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", envelope)

    assert (answer.status_code, answer.json()["code"]) == (401, "bad-signature")


def test_an_order_of_an_agent_is_refused(house: House) -> None:
    agent = house.world.agent("b")
    envelope = sign_payload(LEARNUPLET_TYPE, payload_of(house.world.order().envelope), agent)

    answer = house.call(agent, "POST", "/v1/learnuplets", envelope)

    assert (answer.status_code, answer.json()["code"]) == (403, "wrong-role")


def test_a_full_queue_answers_429_with_a_time_to_come_back(tmp_path: Path) -> None:
    house = open_house(tmp_path, queue_limit=1)
    submit(house)
    other = house.world.order(id=uuid_of("another"))

    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", other.envelope)

    assert (answer.status_code, answer.json()["code"]) == (429, "queue-full")
    assert int(answer.headers["retry-after"]) > 0


def test_a_full_disk_answers_507_and_records_nothing(tmp_path: Path) -> None:
    house = open_house(tmp_path, low_disk_bytes=1 << 60)
    order = house.world.order()

    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)

    assert (answer.status_code, answer.json()["code"]) == (507, "no-space")
    assert house.ledger.digest_of_order(order.order.id) is None


def test_a_broken_ledger_answers_503(house: House) -> None:
    house.ledger.is_broken = True

    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", house.world.order().envelope)

    assert (answer.status_code, answer.json()["code"]) == (503, "ledger-unavailable")
    assert "retry-after" in answer.headers


def test_the_operator_may_bring_an_order_that_an_orchestrator_signed(house: House) -> None:
    order = house.world.order()

    answer = house.operator.post("/v1/learnuplets", order.envelope)

    assert answer.status_code == 202
    assert house.ledger.order(order.order.id).sender == house.world.orchestrator.keyid


def test_not_even_the_operator_brings_an_order_that_nobody_signed(house: House) -> None:
    answer = house.operator.post("/v1/learnuplets", tamper(house.world.order().envelope, rank=7))

    assert (answer.status_code, answer.json()["code"]) == (401, "bad-signature")


# ------------------------------------------------------------------ hand-offs come in


@pytest.fixture
def next_house(tmp_path: Path) -> House:
    """Hospital b, which goes on after a."""
    house = open_house(tmp_path, hospital="b")
    order = house.world.order()
    for name in ("a", "b", "c"):
        for ref in (*order.order.train_data, *order.order.test_data):  # type: ignore[union-attr]
            if house.world.hospital_of(ref) == name:
                house.storages.keep_dataset(house.world.agent(name).keyid, ref, b"", b"sealed")
    return house


def hand_off(house: House, **changes: bytes) -> tuple[bytes, dict[str, str]]:
    """What a sends to b after its task, and the signed headers."""
    order = house.world.order()
    body = build_handoff(order, house.world.chain(order, 1))
    target = "/v1/handoffs"
    headers = signed_headers(
        house.world.agent("a"), "POST", target, body, now=house.clock(), authority="agent-b.test:8440"
    )
    return changes.get("body", body), headers


def test_a_hand_off_is_accepted_and_its_answer_signed_for_this_request(next_house: House) -> None:
    body, headers = hand_off(next_house)

    answer = next_house.network.request("POST", "/v1/handoffs", content=body, headers=headers)

    assert (answer.status_code, answer.json()["position"]) == (202, 1)
    verified = verify_answer(
        HttpAnswer(answer.status_code, tuple(answer.headers.items())),
        HttpRequest("POST", "https://agent-b.test:8440/v1/handoffs", headers),
        next_house.world.roster,
        expected=next_house.world.agent("b").keyid,
        now=NOW,
        skew=SKEW,
    )
    assert verified.content_digest == content_digest(answer.content)


def test_the_refusal_of_a_hand_off_is_signed_too(next_house: House) -> None:
    order = next_house.world.order()
    body = build_handoff(order, next_house.world.chain(order, 2))  # c's turn, sent by b's predecessor
    headers = signed_headers(
        next_house.world.agent("a"), "POST", "/v1/handoffs", body, now=NOW, authority="agent-b.test:8440"
    )

    answer = next_house.network.request("POST", "/v1/handoffs", content=body, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (403, "handoff-sender")
    assert "signature" in answer.headers


def test_a_repeated_hand_off_is_answered_200(next_house: House) -> None:
    body, headers = hand_off(next_house)
    next_house.network.request("POST", "/v1/handoffs", content=body, headers=headers)
    _, fresh = hand_off(next_house)

    answer = next_house.network.request("POST", "/v1/handoffs", content=body, headers=fresh)

    assert answer.status_code == 200


def test_an_orchestrator_hands_nothing_off(house: House) -> None:
    order = house.world.order()

    answer = house.call(house.world.orchestrator, "POST", "/v1/handoffs", build_handoff(order, ()))

    assert (answer.status_code, answer.json()["code"]) == (403, "wrong-role")


def test_the_operator_hands_nothing_off(house: House) -> None:
    answer = house.operator.post("/v1/handoffs", build_handoff(house.world.order(), ()))

    assert (answer.status_code, answer.json()["code"]) == (403, "wrong-role")


# ------------------------------------------------------------------ signatures and replays


@pytest.mark.parametrize(
    "path", ["/v1/orders", f"/v1/orders/{uuid_of('x')}", f"/v1/orders/{uuid_of('x')}/receipts"]
)
def test_an_unsigned_request_is_refused(house: House, path: str) -> None:
    answer = house.network.get(path)

    assert (answer.status_code, answer.json()["code"]) == (401, "unsigned-request")


def test_a_request_that_was_answered_once_is_not_answered_again(house: House) -> None:
    headers = signed_headers(house.world.orchestrator, "GET", "/v1/orders", None, now=NOW)
    first = house.network.get("/v1/orders", headers=headers)

    again = house.network.get("/v1/orders", headers=headers)

    assert first.status_code == 200
    assert (again.status_code, again.json()["code"]) == (401, "replayed-request")


def test_a_request_for_another_agent_is_refused(house: House) -> None:
    headers = signed_headers(
        house.world.orchestrator, "GET", "/v1/orders", None, now=NOW, authority="agent-b.test:8440"
    )

    answer = house.network.get("/v1/orders", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (401, "bad-request-signature")


def test_another_body_under_a_right_signature_is_refused(house: House) -> None:
    order, other = house.world.order(), house.world.order(rank=1)

    answer = house.call(
        house.world.orchestrator,
        "POST",
        "/v1/learnuplets",
        order.envelope,
        content=other.envelope[: len(order.envelope)],
    )

    assert (answer.status_code, answer.json()["code"]) == (400, "digest-mismatch")
    assert house.ledger.digest_of_order(order.order.id) is None


def test_a_stranger_is_refused(house: House) -> None:
    answer = house.call(key_of("stranger"), "GET", "/v1/orders")

    assert (answer.status_code, answer.json()["code"]) == (401, "unknown-key")


def test_storage_and_owners_read_nothing(house: House) -> None:
    for key in (house.world.storage("a"), house.world.owner):
        answer = house.call(key, "GET", "/v1/orders")

        assert (answer.status_code, answer.json()["code"]) == (403, "wrong-role")


def test_every_refusal_is_in_the_log_of_events_with_who_and_where(house: House) -> None:
    house.call(house.world.owner, "GET", "/v1/orders")
    house.network.get("/v1/orders")

    told = [event.values for event in house.ledger.events() if event.name == "request.refused"]

    assert [(values["code"], values["path"], values["who"]) for values in told] == [
        ("wrong-role", "/v1/orders", house.world.owner.keyid),
        ("unsigned-request", "/v1/orders", None),
    ]


def test_a_refused_order_is_told_with_what_it_was_about(house: House) -> None:
    order = house.world.order(key=house.world.other_orchestrator)

    answer = house.call(house.world.other_orchestrator, "POST", "/v1/learnuplets", order.envelope)

    (told,) = [event for event in house.ledger.events() if event.name == "request.refused"]
    about = {"order_id": order.order.id, "order": order.digest, "position": 0, "kind": "learn"}
    assert answer.json()["code"] == told.values["code"] == "policy-refused"
    assert told.dataset == told.values["dataset"] == dataset("a1").id
    assert told.values.items() >= about.items()
    assert (told.values["who"], told.values["algo_image"]) == (order.signer, order.order.algo_image.digest)


def test_a_refused_hand_off_is_told_with_the_task_it_was_for(house: House) -> None:
    order = house.world.order()
    body = build_handoff(order, house.world.chain(order, 1))

    house.call(house.world.agent("c"), "POST", "/v1/handoffs", body)

    (told,) = [event for event in house.ledger.events() if event.name == "request.refused"]
    assert (told.values["order_id"], told.values["position"]) == (order.order.id, 1)
    assert told.values["who"] == house.world.agent("c").keyid
    assert told.order_id is None, "nothing of a refused call belongs to an order"


def test_a_body_that_is_no_order_is_told_without_a_word_of_it(house: House) -> None:
    house.call(house.world.orchestrator, "POST", "/v1/learnuplets", b'{"dataset": "of mine"}')

    (told,) = [event for event in house.ledger.events() if event.name == "request.refused"]
    assert told.dataset is None
    assert set(told.values) == {"code", "detail", "method", "path", "who"}


def test_what_was_left_out_is_told_when_the_process_ends(house: House) -> None:
    with house.desk.refusals.telling():
        for _ in range(12):
            house.network.get("/v1/orders")

    assert house.ledger.events()[-1].name == "requests.refused"
    assert house.ledger.events()[-1].values["count"] == 2


def test_a_known_caller_has_a_larger_budget_of_its_own(house: House) -> None:
    for _ in range(BUDGET + 5):
        house.call(house.world.owner, "GET", "/v1/orders")
    house.network.get("/v1/orders")

    who = [event.values["who"] for event in house.ledger.events() if event.name == "request.refused"]
    assert who == [*[house.world.owner.keyid] * BUDGET, None]


def test_a_flood_of_strangers_does_not_fill_the_log_of_events(house: House) -> None:
    for _ in range(100):
        house.network.get("/v1/orders")
    house.clock.pass_by(timedelta(hours=2))
    house.network.get("/v1/orders")

    told = [event for event in house.ledger.events() if event.name.startswith("request")]

    assert [event.name for event in told] == [
        *["request.refused"] * 10,
        "requests.refused",
        "request.refused",
    ]
    assert told[10].values == {
        "who": None,
        "count": 90,
        "codes": "unsigned-request 90",
        "since": NOW.isoformat(timespec="seconds"),
    }


# ------------------------------------------------------------------ who may read what


def test_the_signing_orchestrator_reads_its_order(house: House) -> None:
    order = submit(house)

    answer = house.call(house.world.orchestrator, "GET", f"/v1/orders/{order}")

    assert answer.status_code == 200
    view = answer.json()
    assert view["kind"] == "learnuplet"
    assert [task["kind"] for task in view["chain"]] == ["learn"] * 4 + ["test"]
    assert view["jobs"][0]["state"] == "received"


def test_another_orchestrator_reads_neither_the_order_nor_that_it_is_listed(house: House) -> None:
    order = submit(house)

    one = house.call(house.world.other_orchestrator, "GET", f"/v1/orders/{order}")
    listed = house.call(house.world.other_orchestrator, "GET", "/v1/orders")

    assert (one.status_code, one.json()["code"]) == (403, "not-yours")
    assert listed.json() == {"jobs": [], "next": None}


def test_an_agent_outside_the_chain_reads_nothing(house: House) -> None:
    order = submit(house)

    one = house.call(house.world.agent("c"), "GET", f"/v1/orders/{order}")
    listed = house.call(house.world.agent("c"), "GET", "/v1/orders")

    assert (one.status_code, one.json()["code"]) == (403, "not-yours")
    assert listed.json()["jobs"] == []


def test_the_agent_that_handed_over_and_the_one_that_goes_on_read_the_order(next_house: House) -> None:
    body, headers = hand_off(next_house)
    next_house.network.request("POST", "/v1/handoffs", content=body, headers=headers)
    path = f"/v1/orders/{next_house.world.order().order.id}"
    headers = signed_headers(
        next_house.world.agent("a"), "GET", path, None, now=NOW, authority="agent-b.test:8440"
    )

    answer = next_house.network.get(path, headers=headers)

    assert answer.status_code == 200
    assert answer.json()["chain"][0]["agent"] == next_house.world.agent("a").keyid
    assert answer.json()["chain"][0]["state"] == "done"
    assert answer.json()["chain"][1]["agent"] == next_house.world.agent("b").keyid


def test_an_agent_that_goes_on_with_an_order_finds_it_listed(house: House) -> None:
    order = submit(house)
    job = house.ledger.job(job_id(house.world.order().order.id, 0))
    house.ledger.move(job, JobEvent.FAIL, NOW, next_agent=house.world.agent("b").keyid)

    answer = house.call(house.world.agent("b"), "GET", "/v1/orders")

    assert [job["order"] for job in answer.json()["jobs"]] == [order]


def test_receipts_are_for_the_orchestrator_and_the_operator(house: House) -> None:
    order = submit(house)
    path = f"/v1/orders/{order}/receipts"

    by_orchestrator = house.call(house.world.orchestrator, "GET", path)
    by_other = house.call(house.world.other_orchestrator, "GET", path)
    by_agent = house.call(house.world.agent("a"), "GET", path)
    by_operator = house.operator.get(path)

    assert by_orchestrator.json() == by_operator.json()
    assert digest_of(payload_of(house.world.order().envelope)) == house.world.order().digest
    assert by_operator.json()["receipts"] == []
    assert by_other.json()["code"] == "not-yours"
    assert by_agent.json()["code"] == "not-yours"


def test_an_agent_reads_back_the_receipts_up_to_its_own(house: House) -> None:
    order = house.world.order(train=("c1", "b1", "a1"), test=())
    receipts = house.world.chain(order, 2)
    house.ledger.admit(arrival(order, receipts), NOW, max_attempts=3, queue_limit=9)
    path = f"/v1/orders/{order.order.id}/receipts"

    by_first = house.call(house.world.agent("c"), "GET", path)
    by_second = house.call(house.world.agent("b"), "GET", path)

    assert len(by_first.json()["receipts"]) == 1
    assert len(by_second.json()["receipts"]) == 2
    assert "signature" in by_first.headers


def test_a_log_is_for_the_operator_alone(house: House) -> None:
    order = submit(house)
    job = house.ledger.job(job_id(house.world.order().order.id, 0))
    sealed = seal_log(b"hello \xff\x1b[31m", house.host.key, job=job.id, attempt=job.attempt, run="train")
    house.ledger.keep_log(job, "train", sealed)
    path = f"/v1/orders/{order}/log"

    by_orchestrator = house.call(house.world.orchestrator, "GET", path)
    by_operator = house.operator.get(path)

    assert (by_orchestrator.status_code, by_orchestrator.json()["code"]) == (403, "not-yours")
    assert by_operator.json()["runs"][0]["text"] == "hello \\xff\x1b[31m"
    assert [event.name for event in house.ledger.events(order_id=job.order_id)][-1] == "log.read"


def test_an_output_that_does_not_open_says_why_and_hides_no_other(house: House) -> None:
    order = submit(house)
    job = house.ledger.job(job_id(house.world.order().order.id, 0))
    house.ledger.keep_log(job, "detarget", b"in clear, by an older version")
    for key, run in ((house.world.agent("b"), "predict"), (house.host.key, "perf")):
        sealed = seal_log(b"shown", key, job=job.id, attempt=job.attempt, run=run)
        house.ledger.keep_log(job, run, sealed)

    runs = house.operator.get(f"/v1/orders/{order}/log").json()["runs"]

    assert [run["text"] for run in runs] == ["", "", "shown"]
    assert "not sealed" in runs[0]["unopened"]
    assert "another key" in runs[1]["unopened"]
    assert runs[2]["unopened"] is None


def test_an_unknown_order_is_404(house: House) -> None:
    for order in (uuid_of("unknown"), "not-a-uuid", "..%2f..%2fetc"):
        answer = house.operator.get(f"/v1/orders/{order}")

        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


# ------------------------------------------------------------------ lists


def test_a_list_is_paged_newest_first(house: House) -> None:
    orders = [house.world.order(id=uuid_of(f"order {number}")) for number in range(3)]
    for order in orders:
        house.operator.post("/v1/learnuplets", order.envelope)

    first = house.operator.get("/v1/orders?limit=2").json()
    second = house.operator.get(f"/v1/orders?limit=2&after={first['next']}").json()

    listed = [job["order"] for job in first["jobs"] + second["jobs"]]
    assert listed == [order.order.id for order in reversed(orders)]
    assert second["next"] is None


def test_a_list_is_filtered_by_state(house: House) -> None:
    submit(house)

    assert len(house.operator.get("/v1/orders?state=received&state=failed").json()["jobs"]) == 1
    assert house.operator.get("/v1/orders?state=failed").json()["jobs"] == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=many",
        "state=lost",
        "sate=failed",
        "limit=1&limit=2",
        "after=x",
        "order=..",
        "x=1" + "&x=1" * 60,
    ],
)
def test_a_query_that_cannot_be_read_is_refused(house: House, query: str) -> None:
    answer = house.operator.get(f"/v1/orders?{query}")

    assert (answer.status_code, answer.json()["code"]) == (400, "bad-query")


def test_a_query_where_none_is_known_is_refused(house: House) -> None:
    order = submit(house)

    answer = house.operator.get(f"/v1/orders/{order}?state=done")

    assert (answer.status_code, answer.json()["code"]) == (400, "bad-query")


# ------------------------------------------------------------------ health, readiness, metrics


def test_health_tells_that_the_process_answers(house: House) -> None:
    answer = house.network.get("/health")

    assert answer.json() | {"version": ""} == {
        "status": "alive", "version": "", "agent": house.host.me
    }  # fmt: skip


def test_readiness_names_each_check(house: House) -> None:
    answer = house.operator.get("/ready")

    checks = {check["name"]: check["is_ok"] for check in answer.json()["checks"]}
    assert answer.status_code == 200
    names = ("ledger", "mode", "queue", "bells", "disk", "outbox", "identity", "storage", "cage", "reload")
    assert checks == dict.fromkeys(names, True)


def test_one_failing_check_makes_it_503(house: House) -> None:
    house.storages.down.add(house.world.storage("a").keyid)

    answer = house.operator.get("/ready")

    failed = [check for check in answer.json()["checks"] if not check["is_ok"]]
    assert answer.status_code == 503
    assert [(check["name"], check["code"]) for check in failed] == [("storage", "storage-unavailable")]


def test_a_host_whose_self_test_failed_is_not_ready_and_says_which_probe(house: House) -> None:
    breach = Breach("podman", "mount", "killed by SIGSYS", "done")
    Gate(house.host, lambda: (breach,)).try_open()

    answer = house.operator.get("/ready")

    (failed,) = [check for check in answer.json()["checks"] if not check["is_ok"]]
    assert answer.status_code == 503
    assert (failed["name"], failed["code"]) == ("cage", "cage-not-applied")
    assert "mount of podman: done" in failed["detail"]


def test_strangers_are_not_told_what_was_seen(house: House) -> None:
    answer = house.network.get("/ready")

    assert {check["detail"] for check in answer.json()["checks"]} == {None}


def test_a_host_without_room_is_not_ready(tmp_path: Path) -> None:
    answer = open_house(tmp_path, low_disk_bytes=1 << 60).network.get("/ready")

    assert answer.status_code == 503


def test_metrics_count_jobs_queues_requests_and_refusals(house: House) -> None:
    submit(house)
    house.network.get("/v1/orders")
    house.network.get("/nowhere")

    page = house.network.get("/metrics").text

    assert 'dc_compute_jobs{state="received"} 1.0' in page
    assert 'dc_compute_queue_depth{queue="learnuplets"} 1.0' in page
    assert (
        'dc_compute_http_requests_total{door="network",method="POST",route="/v1/learnuplets",status="202"} 1.0'
        in page
    )
    assert 'route="unknown",status="404"} 1.0' in page
    assert 'dc_compute_refusals_total{code="unsigned-request"} 1.0' in page
    assert "dc_compute_ledger_up 1.0" in page


def test_metrics_are_told_without_a_ledger(house: House) -> None:
    house.ledger.is_broken = True

    answer = house.network.get("/metrics")

    assert answer.status_code == 200
    assert "dc_compute_ledger_up 0.0" in answer.text


# ------------------------------------------------------------------ errors


def test_an_unknown_path_is_a_problem(house: House) -> None:
    answer = house.network.get("/v2/orders")

    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_wrong_method_is_a_problem_that_says_which_are_right(house: House) -> None:
    answer = house.network.request("DELETE", "/v1/orders")

    assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_trailing_slash_is_another_path(house: House) -> None:
    assert house.network.get("/v1/orders/").status_code == 404


def test_head_is_answered(house: House) -> None:
    assert house.network.request("HEAD", "/health").status_code == 200


@pytest.mark.parametrize("host", ["[", "a b", "a@b", "", "x" * 300])
def test_a_strange_host_field_is_no_server_error(house: House, host: str) -> None:
    for path in ("/nowhere", "/v1/orders", "/health"):
        answer = house.network.get(path, headers={"host": host})

        assert answer.status_code < 500


def test_what_nobody_foresaw_is_answered_500_without_its_words(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst(*_: object) -> None:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(house.ledger, "jobs", burst)

    answer = house.operator.get("/v1/orders")

    assert (answer.status_code, answer.json()["code"]) == (500, "agent-error")
    assert "secret" not in answer.text


def test_a_ledger_that_is_away_while_a_refusal_is_kept_does_not_change_the_answer(house: House) -> None:
    house.ledger.is_broken = True

    answer = house.network.get("/v1/orders")

    assert (answer.status_code, answer.json()["code"]) == (401, "unsigned-request")
