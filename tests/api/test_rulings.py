"""The operator looks at what waits and rules on it; nobody of the network can do either."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.api.operator import listen_for_operator
from agent.api.serving import peer_uid, serving
from agent.domain.approvals import Verdict
from agent.domain.ids import job_id
from agent.domain.images import PAGE_ENTRIES, ImageAbout, ImageDescription, ImageEntry
from agent.domain.jobs import JobEvent, JobState
from agent.pipeline.advance import advance
from agent.ports.broker import Queue
from tests.api.house import House, open_house
from tests.builders import NOW, consortium, dataset, digest_named, policy_for, uuid_of

ORDER = consortium().order()
PROBLEM, ALGO = ORDER.order.images
HOLDS = policy_for(ORDER, images=[PROBLEM], rest="hold_unknown = true\n")

ABOUT = ImageAbout(
    image_id=digest_named("config"),
    platform="linux/amd64",
    entrypoint=("/bin/run",),
    env=(),
    labels=(),
    size_bytes=1,
    layers=(),
    entries=PAGE_ENTRIES + 2,
    set_ids=0,
    is_cut=False,
)


@pytest.fixture
def house(tmp_path: Path) -> House:
    """An agent at which an order waits for the operator."""
    made = open_house(tmp_path, policy=HOLDS)
    answer = made.call(made.world.orchestrator, "POST", "/v1/learnuplets", ORDER.envelope)
    assert answer.status_code == 202
    made.ledger.describe(
        ImageDescription(image=ALGO, read_at=NOW, archive_bytes=5, about=ABOUT),
        [
            ImageEntry(layer=0, path=f"f{n}", kind="file", size_bytes=n, mode=0o644)
            for n in range(ABOUT.entries)
        ],
    )
    advance(job_id(ORDER.order.id, 0), made.host, "worker")
    assert made.ledger.job(job_id(ORDER.order.id, 0)).state is JobState.HELD
    return made


def rule(house: House, target: str, verdict: str, **more: Any) -> httpx.Response:
    body = json.dumps({"target": target, "verdict": verdict, **more}).encode()
    return house.operator.post("/v1/rulings", body)


def state(house: House) -> JobState:
    return house.ledger.job(job_id(ORDER.order.id, 0)).state


# ------------------------------------------------------------------ looking


def test_what_waits_is_shown_with_who_asks_for_what(house: House) -> None:
    (held,) = house.operator.get("/v1/held").json()["held"]

    assert held["order"] == ORDER.order.id
    assert held["orchestrator"] == held["sender"] == house.world.orchestrator.keyid
    assert held["dataset"] == {"id": dataset("a1").id, "version": "1"}
    assert held["task"] == "learn"
    assert [(one["role"], one["digest"], one["is_admitted"], one["is_read"]) for one in held["images"]] == [
        ("problem", PROBLEM, True, False),
        ("algo", ALGO, False, True),
    ]


def test_an_image_is_shown_with_what_a_worker_read_of_it(house: House) -> None:
    view = house.operator.get(f"/v1/images/{ALGO}").json()

    assert view["description"]["about"]["entrypoint"] == ["/bin/run"]
    assert (view["is_listed"], view["rulings"]) == (False, [])
    assert [job["order"] for job in view["asked_by"]] == [ORDER.order.id]


def test_its_files_come_in_pages(house: House) -> None:
    first = house.operator.get(f"/v1/images/{ALGO}/files").json()
    second = house.operator.get(f"/v1/images/{ALGO}/files?page={first['next']}").json()

    paths = [entry["path"] for entry in (*first["entries"], *second["entries"])]
    assert paths == [f"f{n}" for n in range(ABOUT.entries)]
    assert (first["next"], second["next"]) == (1, None)


@pytest.mark.parametrize(
    "path", [f"/v1/images/{digest_named('?')}", f"/v1/images/{digest_named('?')}/files", "/v1/images/x"]
)
def test_an_image_that_nobody_asked_for_is_not_found(house: House, path: str) -> None:
    answer = house.operator.get(path)

    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_an_order_s_orchestrator_sees_that_it_is_held(house: House) -> None:
    answer = house.call(house.world.orchestrator, "GET", f"/v1/orders/{ORDER.order.id}")

    assert answer.json()["jobs"][0]["state"] == "held"
    assert answer.json()["chain"][0]["reason"] == "image-unknown"


# ------------------------------------------------------------------ ruling


@pytest.mark.parametrize("target", [ALGO, ORDER.order.id], ids=["image", "order"])
def test_an_approval_sets_the_order_free_and_rings_it(house: House, target: str) -> None:
    answer = rule(house, target, "approved", reason="read it")

    assert answer.status_code == 202
    assert answer.json()["jobs"] == {job_id(ORDER.order.id, 0): "received"}
    assert [(one["image"], one["verdict"]) for one in answer.json()["rulings"]] == [(ALGO, "approved")]
    assert house.ledger.verdict_on(ALGO) is Verdict.APPROVED
    assert house.ledger.verdict_on(PROBLEM) is None
    assert house.bells.rung[-1] == (Queue.LEARNUPLETS, job_id(ORDER.order.id, 0))


def test_the_same_word_again_is_200_and_changes_nothing(house: House) -> None:
    rule(house, ALGO, "approved")
    before = house.ledger.rulings()

    again = rule(house, ALGO, "approved", reason="once more")

    assert again.status_code == 200
    assert house.ledger.rulings() == before


def test_a_denial_fails_the_order_and_tells_its_orchestrator(house: House) -> None:
    answer = rule(house, ALGO, "denied", reason="what for?")

    assert answer.json()["jobs"] == {job_id(ORDER.order.id, 0): "failed"}
    failed = house.call(house.world.orchestrator, "GET", f"/v1/orders/{ORDER.order.id}")
    assert failed.json()["jobs"][0]["reason"] == "image-denied"
    assert b"what for?" not in failed.content
    (told,) = [d for d in house.ledger.deliveries() if b'"failed"' in d.body]
    assert told.target == house.world.orchestrator.keyid
    assert b"what for?" not in told.body


def test_a_denied_image_is_refused_at_the_door(house: House) -> None:
    rule(house, ALGO, "denied", reason="a secret reason")
    later = house.world.order(id=uuid_of("later"))

    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", later.envelope)

    assert (answer.status_code, answer.json()["code"]) == (403, "image-denied")
    assert b"secret" not in answer.content


def test_an_image_may_be_approved_before_anybody_asks(house: House) -> None:
    image = digest_named("known beforehand")

    assert rule(house, image, "approved").status_code == 202

    assert house.operator.get(f"/v1/images/{image}").json()["rulings"][0]["verdict"] == "approved"
    assert state(house) is JobState.HELD


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"target": ALGO}, "bad-order"),
        ({"target": ALGO, "verdict": "maybe"}, "bad-order"),
        ({"target": "latest", "verdict": "approved"}, "bad-order"),
        ({"target": "", "verdict": "approved"}, "bad-order"),
        ({"target": ALGO, "verdict": "approved", "ceilings": {}}, "bad-order"),
        ({"target": ALGO, "verdict": "approved", "reason": "x" * 501}, "bad-order"),
        ({"target": uuid_of("nothing"), "verdict": "approved"}, "not-found"),
    ],
    ids=str,
)
def test_a_word_that_is_not_understood_rules_nothing(house: House, body: dict[str, Any], code: str) -> None:
    answer = house.operator.post("/v1/rulings", json.dumps(body).encode())

    assert answer.json()["code"] == code
    assert house.ledger.rulings() == ()
    assert state(house) is JobState.HELD


def test_an_approval_after_the_order_ended_moves_nothing(house: House) -> None:
    job = house.ledger.job(job_id(ORDER.order.id, 0))
    house.ledger.move(job, JobEvent.EXPIRE, NOW)

    answer = rule(house, ALGO, "approved")

    assert (answer.status_code, answer.json()["jobs"]) == (202, {})
    assert state(house) is JobState.EXPIRED


@pytest.mark.parametrize("who", ["orchestrator", "agent"])
def test_nobody_of_the_network_looks_or_rules(house: House, who: str) -> None:
    key = house.world.orchestrator if who == "orchestrator" else house.world.agent("b")
    body = json.dumps({"target": ALGO, "verdict": "approved"}).encode()

    ruled = house.call(key, "POST", "/v1/rulings", body)
    looked = [
        house.call(key, "GET", path)
        for path in ("/v1/held", f"/v1/images/{ALGO}", f"/v1/images/{ALGO}/files")
    ]

    assert {(answer.status_code, answer.json()["code"]) for answer in (ruled, *looked)} == {
        (403, "not-yours")
    }
    assert house.ledger.rulings() == ()
    assert state(house) is JobState.HELD


# ------------------------------------------------------------------ who the operator is


@pytest.fixture
def socket_path(tmp_path: Path, house: House) -> Iterator[Path]:
    path = tmp_path / "op" / "operator.sock"
    with ExitStack() as doors:
        doors.enter_context(serving(house.operator.app, listen_for_operator(path), tls=None))
        yield path


def test_a_ruling_names_the_user_at_the_other_end_of_the_socket(house: House, socket_path: Path) -> None:
    body = json.dumps({"target": ALGO, "verdict": "approved"}).encode()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_path))) as client:
        answer = client.post(
            "http://operator/v1/rulings", content=body, headers={"content-type": "application/json"}
        )

    assert answer.status_code == 202
    (ruling,) = house.ledger.rulings()
    assert ruling.uid == os.getuid()


def test_a_user_is_told_of_unix_sockets_only() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as caller,
    ):
        assert peer_uid(caller) is None
    assert peer_uid(None) is None
