"""The same message several times at once, from several threads, over real TLS: taken once, answered alike."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from agent.api.routes import network_app, open_desk
from agent.domain.ids import wire_time
from agent.domain.reports import ReportBody, ReportState, envelope_object
from agent.domain.strict_json import encode
from agent.ports.https import Body, HttpsClient, Peer
from agent.trust.handoff import build_handoff
from agent.trust.http_signatures import authority_of
from tests.builders import NOW, consortium, key_of
from tests.devkit.town import Town, open_town
from tests.pipeline.world import World
from tests.ports.ledger_stage import fresh_ledger
from tests.ports.test_https import reserve

WORLD = consortium()
SENDERS = 8


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with open_town(tmp_path, "o1") as town:
        yield town


def at_once(town: Town, name: str, method: str, target: str, body: bytes) -> list[tuple[int, bytes]]:
    """The (status, body) of each of the same call, made by agent a so many times at once."""
    entry = town.roster.find(key_of(name).keyid)
    assert entry is not None
    client = HttpsClient(town.identity("agent-a"), town.timeouts)
    peer = Peer.of(entry, town.url(name), Exception)  # type: ignore[arg-type]
    start = Barrier(SENDERS)

    def send(_: int) -> tuple[int, bytes]:
        start.wait()
        told = client.call(peer, method, target, body=Body.json(body), limit_bytes=1 << 20)
        client.verify(peer, told)
        return told.status, told.body

    with ThreadPoolExecutor(SENDERS) as threads:
        answers = list(threads.map(send, range(SENDERS)))
    client.close()
    return answers


def statuses(answers: list[tuple[int, bytes]]) -> Counter[int]:
    return Counter(status for status, _ in answers)


def test_a_hand_off_that_comes_several_times_at_once_is_taken_once(tmp_path: Path, town: Town) -> None:
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", fresh_ledger)
    order = WORLD.order(train=("a1", "b1"), test=())
    reserve(town, "agent-b")
    authorities = {authority_of(town.url("agent-b"))}
    town.start("agent-b", network_app(open_desk(world.b.host), lambda: authorities))

    answers = at_once(town, "agent-b", "POST", "/v1/handoffs", build_handoff(order, WORLD.chain(order, 1)))

    assert statuses(answers) == {202: 1, 200: SENDERS - 1}
    assert len({body for _, body in answers}) == 1
    assert len(world.b.jobs()) == 1


def started(position: int = 0) -> Callable[..., Any]:
    return lambda order: ReportBody(
        order=order.digest,
        position=position,
        state=ReportState.STARTED,
        attempt=1,
        max_attempts=3,
        at=wire_time(NOW),
    )


def done(order: Any) -> ReportBody:
    (receipt,) = WORLD.chain(order, 1)
    return ReportBody(
        order=order.digest,
        position=0,
        state=ReportState.DONE,
        attempt=1,
        max_attempts=3,
        receipt=envelope_object(receipt.envelope),
        at=wire_time(NOW),
    )


@pytest.mark.parametrize("report", [started(), done], ids=["started", "done"])
def test_a_report_that_comes_several_times_at_once_is_taken_once(
    town: Town, report: Callable[..., ReportBody]
) -> None:
    order = WORLD.order()
    town.books["o1"].record_order(order, NOW)
    target = f"/v1/orders/{order.order.id}/tasks/0/reports/1"

    answers = at_once(town, "o1", "PUT", target, encode(report(order)))

    assert statuses(answers) == {201: 1, 200: SENDERS - 1}
    assert len(town.books["o1"].reports(order.order.id)) == 1
    assert town.books["o1"].alarms() == ()
