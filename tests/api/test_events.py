"""Server-sent events: who sees which lines, nothing twice and nothing lost, and what keeps the server well."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api import events as module
from agent.api import feed as feed_module
from agent.devkit.waiting import wait_for
from agent.domain.jobs import Job, JobEvent
from agent.ports.ledger import EventRecord, Ledger
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster
from agent.trust.roster_changes import with_rotation
from agent.trust.rotation import sign_rotation
from tests.api.streams import SOON_S, Studio, open_studio
from tests.builders import DAY, NOW, changed, key_of
from tests.ports.ledger_stage import (
    arrival,
    at,
    attested,
    order_named,
    report,
)

ALL_OF_HOST = "/v1/events"


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    with open_studio(tmp_path) as studio:
        yield studio


def start(ledger: Ledger, job: Job) -> Job:
    queued = ledger.move(job, JobEvent.ENQUEUE, at(1))
    return ledger.start(queued, at(2), worker="worker-of-this-host", lease_until=at(60))


def fail(ledger: Ledger, job: Job, reason: str = "job-failed") -> Job:
    return ledger.move(job, JobEvent.FAIL, at(3), reason=reason)


# ------------------------------------------------------------------ what is told


def test_an_order_is_told_from_its_first_line_to_its_end(studio: Studio) -> None:
    job = start(studio.house.ledger, studio.receive())
    with studio.operator(studio.path()) as stream:
        before = [stream.next().event for _ in range(3)]
        fail(studio.house.ledger, job)
        after = stream.rest()

    assert before == ["job.received", "job.queued", "job.running"]
    assert [event.event for event in after] == ["job.failed", "order.ended"]
    assert json.loads(after[-1].data) == {"order": job.order_id, "ending": "lost"}
    assert after[-1].id == after[0].id


def test_an_event_carries_its_line_and_the_number_of_it(studio: Studio) -> None:
    studio.receive()
    with studio.operator(studio.path()) as stream:
        event = stream.next()

    (line,) = studio.house.ledger.events()
    told = json.loads(event.data)
    assert (event.id, told["seq"], told["name"]) == (str(line.seq), line.seq, "job.received")
    assert told["values"] == line.values


def test_the_stream_of_an_order_that_is_over_ends_at_once(studio: Studio) -> None:
    fail(studio.house.ledger, studio.receive())

    with studio.operator(studio.path()) as stream:
        assert [event.event for event in stream.rest()] == ["job.received", "job.failed", "order.ended"]


def test_a_stream_tells_nothing_of_other_orders(studio: Studio) -> None:
    mine = studio.receive("mine")
    with studio.operator(studio.path("mine")) as stream:
        studio.receive("another")
        start(studio.house.ledger, studio.receive("third"))
        fail(studio.house.ledger, mine)
        told = [json.loads(event.data)["order"] for event in stream.rest()]

    assert set(told) == {mine.order_id}


def test_an_orchestrator_sees_its_order_move_and_not_what_its_views_hide(studio: Studio) -> None:
    ledger = studio.house.ledger
    job = start(ledger, studio.receive())
    ledger.record_event("run.started", NOW, order_id=job.order_id, position=0, values={"run": "train"})
    ledger.record_event("log.read", NOW, order_id=job.order_id, values={"uid": 1000})
    ledger.record_event(
        "attempt.failed",
        NOW,
        order_id=job.order_id,
        position=0,
        values={"code": "oom", "attempt": 1, "detail": "secret"},
    )
    fail(ledger, job)

    with studio.signed(studio.house.world.orchestrator, studio.path()) as stream:
        told = [(event.event, json.loads(event.data)) for event in stream.rest()]

    assert [name for name, _ in told] == [
        "job.received",
        "job.queued",
        "job.running",
        "attempt.failed",
        "job.failed",
        "order.ended",
    ]
    assert all(body["dataset"] is None for _, body in told[:-1])
    assert "worker-of-this-host" not in str(told)
    assert told[3][1]["values"] == {"attempt": 1, "code": "oom"}


def test_an_agent_of_the_chain_reads_and_one_that_is_not_does_not(studio: Studio) -> None:
    attested(studio.house.ledger, report(), name="order")  # agent b goes on with it

    with studio.signed(studio.house.world.agent("b"), studio.path()) as stream:
        assert stream.next().event == "job.received"
    answer = studio.ask(studio.house.world.agent("c"), studio.path())

    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")


def test_the_order_of_another_orchestrator_is_not_told(studio: Studio) -> None:
    studio.receive()

    answer = studio.ask(studio.house.world.other_orchestrator, studio.path())

    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")


def test_the_host_s_stream_begins_with_what_comes(studio: Studio) -> None:
    studio.receive("before")
    with studio.operator(ALL_OF_HOST) as stream:
        new = studio.receive("after")
        event = stream.next()

    assert json.loads(event.data)["order"] == new.order_id


def test_the_host_s_stream_is_filtered_by_names_order_and_number(studio: Studio) -> None:
    one, ledger = studio.receive("one"), studio.house.ledger
    ledger.record_event("request.refused", NOW, values={"code": "not-yours"})
    start(ledger, studio.receive("two"))

    with studio.operator(f"{ALL_OF_HOST}?after=0&name=request&name=job.running") as stream:
        assert [stream.next().event for _ in range(2)] == ["request.refused", "job.running"]
    with studio.operator(f"{ALL_OF_HOST}?after=0&order={one.order_id}") as stream:
        assert json.loads(stream.next().data)["order"] == one.order_id
        fail(ledger, one)
        assert stream.next().event == "job.failed"


# ------------------------------------------------------------------ nothing twice, nothing lost


def test_who_comes_again_goes_on_behind_what_it_has(studio: Studio) -> None:
    ledger, total = studio.house.ledger, 200
    studio.receive()
    is_over = threading.Event()

    def write() -> None:
        for number in range(total):
            ledger.record_event(
                "share.asked", NOW, order_id=order_named("order").order.id, values={"n": number}
            )
        is_over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[int] = []
    last = "0"
    while len(seen) < total + 1:
        with studio.operator(studio.path(), {"Last-Event-ID": last}) as stream:
            for _ in range(min(17, total + 1 - len(seen))):
                event = stream.next()
                last = event.id
                seen.append(int(event.id))
    writer.join()

    assert is_over.is_set()
    assert seen == [line.seq for line in ledger.events()]


def test_a_number_that_this_ledger_never_reached_begins_with_the_restore(studio: Studio) -> None:
    ledger = studio.house.ledger
    studio.receive("old")
    ledger.record_event("ledger.restored", NOW)
    studio.receive("new")

    with studio.operator(ALL_OF_HOST, {"Last-Event-ID": "99999"}) as stream:
        assert [stream.next().event for _ in range(2)] == ["ledger.restored", "job.received"]


@pytest.mark.parametrize("last", ["x", "-1", "1e3", "9" * 40, "٣"])
def test_what_is_no_number_of_an_event_is_refused(studio: Studio, last: str) -> None:
    with studio.client("operator") as client:
        answer = client.get(ALL_OF_HOST, headers={b"Last-Event-ID": last.encode()})

    assert (answer.status_code, answer.json()["code"]) == (400, "bad-query")


def test_an_order_that_expires_while_nobody_works_on_it_ends_its_stream(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    attested(studio.house.ledger, name="order")  # it went on to another host
    with studio.operator(studio.path()) as stream:
        stream.next("job.attested")
        studio.house.clock.pass_by(timedelta(days=3650))

        assert json.loads(stream.next("order.ended").data)["ending"] == "lost"


# ------------------------------------------------------------------ what keeps the server well


def test_a_head_of_a_stream_is_answered_and_holds_no_place(studio: Studio) -> None:
    with studio.client("operator") as client:
        answer = client.head(ALL_OF_HOST)

    assert answer.headers["content-type"].startswith("text/event-stream")
    wait_for(lambda: studio.house.desk.feed.streams == 0, "the place", timeout_s=SOON_S)


def test_a_reader_that_leaves_gives_its_place_back(studio: Studio) -> None:
    with studio.operator(ALL_OF_HOST):
        assert studio.house.desk.feed.streams == 1

    wait_for(lambda: studio.house.desk.feed.streams == 0, "the place", timeout_s=SOON_S)


def test_one_reader_has_so_many_streams_and_no_more(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "STREAMS_PER_READER", 2)
    studio.receive()
    me, agent = studio.house.world.orchestrator, studio.house.world.agent("b")
    attested(studio.house.ledger, report(), name="other")
    with ExitStack() as streams:
        for _ in range(2):
            streams.enter_context(studio.signed(me, studio.path()))
        answer = studio.ask(me, studio.path())
        streams.enter_context(studio.signed(agent, studio.path("other")))  # another key has its own

    assert (answer.status_code, answer.json()["code"]) == (429, "too-many-streams")
    assert answer.headers["retry-after"] == "5"


def test_the_operator_finds_a_place_when_everybody_else_s_are_taken(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "STREAMS", 3)
    monkeypatch.setattr(feed_module, "KEPT_FOR_OPERATOR", 1)
    studio.receive()
    me = studio.house.world.orchestrator
    with ExitStack() as streams:
        for _ in range(2):
            streams.enter_context(studio.signed(me, studio.path()))
        refused = studio.ask(me, studio.path())
        streams.enter_context(studio.operator(ALL_OF_HOST))
        with studio.client("operator") as client:
            full = client.get(ALL_OF_HOST)

    assert [refused.json()["code"], full.json()["code"]] == ["too-many-streams", "too-many-streams"]


def test_two_hundred_streams_hear_everything_from_one_watcher(studio: Studio) -> None:
    with ExitStack() as streams:
        opened = [streams.enter_context(studio.operator(ALL_OF_HOST)) for _ in range(200)]
        wait_for(lambda: studio.house.desk.feed.streams == 200, "two hundred streams", timeout_s=SOON_S)
        job = studio.receive()

        assert {json.loads(stream.next("job.received").data)["order"] for stream in opened} == {job.order_id}
        watchers = [thread for thread in threading.enumerate() if thread.name == "feed"]
    assert len(watchers) == 1


def test_who_does_not_read_is_dropped_and_holds_nobody_up(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "BUFFER", 40)
    ledger, feed = studio.house.ledger, studio.house.desk.feed
    with closing(studio.silent(ALL_OF_HOST)), studio.operator(f"{ALL_OF_HOST}?name=host") as reader:
        wait_for(lambda: feed.streams == 2, "both", timeout_s=SOON_S)
        for number in range(2000):
            ledger.record_event("request.refused", NOW, values={"n": number, "detail": "x" * 2000})
            if feed.streams == 1:
                break
            time.sleep(0.002)
        wait_for(lambda: feed.streams == 1, "the end of the silent one", timeout_s=SOON_S)
        ledger.record_event("host.paused", NOW)

        assert reader.next().event == "host.paused"


def test_a_key_that_left_the_roster_loses_its_stream(studio: Studio) -> None:
    house = studio.house
    studio.receive()
    me = house.world.orchestrator
    with studio.signed(me, studio.path()) as stream:
        stream.next("job.received")
        others = tuple(entry for entry in house.host.roster.entries if entry.keyid != me.keyid)
        house.desk.begun_with = replace(house.host, roster=Roster(others))

        assert stream.rest() == []


def came_from(sender: SigningKey, ledger: Ledger, name: str) -> Job:
    order = arrival(order_named(name), sender=sender.keyid)
    return ledger.admit(order, NOW, max_attempts=3, queue_limit=100).job


def test_a_key_that_is_the_old_one_s_no_more_loses_the_stream_of_its_order(studio: Studio) -> None:
    house, b, new_b = studio.house, studio.house.world.agent("b"), key_of("agent-b, the second")
    statement = sign_rotation(b, new_b, issued=NOW - DAY, until=NOW + 60 * DAY)
    rotated = with_rotation(house.host.roster, statement, now=NOW, valid_until=NOW + 365 * DAY)
    house.desk.begun_with = replace(house.host, roster=rotated)
    job = came_from(b, house.ledger, "order")
    with studio.signed(new_b, studio.path()) as stream:
        stream.next("job.received")
        time.sleep(1.5 * feed_module.SECOND_S)  # it is judged meanwhile, and goes on
        start(house.ledger, job)
        going_on = stream.next("job.queued").event
    came_from(b, house.ledger, "another")
    with studio.signed(new_b, studio.path("another")) as stream:
        stream.next("job.received")
        house.desk.begun_with = replace(house.host, roster=changed(rotated, b.keyid, revoked_at=NOW))

        assert stream.rest() == []
    assert going_on == "job.queued"
    assert studio.ask(new_b, studio.path("another")).status_code == 403


def test_a_line_that_nobody_can_read_leaves_the_watcher_alive(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, is_read = studio.house.ledger, threading.Event()
    read = ledger.events
    monkeypatch.setattr(feed_module, "REST_S", 0.05)

    def unreadable(**asked: Any) -> tuple[EventRecord, ...]:
        is_read.set()
        raise msgspec.DecodeError("no JSON")

    with studio.operator(ALL_OF_HOST) as stream:
        wait_for(lambda: studio.house.desk.feed.is_watching, "the watcher", timeout_s=SOON_S)
        monkeypatch.setattr(ledger, "events", unreadable)
        ledger.record_event("host.paused", NOW)
        assert is_read.wait(SOON_S)
        monkeypatch.setattr(ledger, "events", read)

        assert stream.next().event == "host.paused"


def test_a_stream_ends_after_a_while_and_is_taken_up_again(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_S", 0.2)
    job = studio.receive()
    with studio.signed(studio.house.world.orchestrator, studio.path()) as stream:
        first = stream.rest()
    fail(studio.house.ledger, job)
    with studio.signed(
        studio.house.world.orchestrator, studio.path(), **{"Last-Event-ID": first[-1].id}
    ) as stream:
        second = stream.rest()

    assert [event.event for event in (*first, *second)] == ["job.received", "job.failed", "order.ended"]


def test_a_stop_ends_every_stream_at_once_also_of_one_who_does_not_read(tmp_path: Path) -> None:
    with open_studio(tmp_path) as studio, ExitStack() as streams:
        opened = [streams.enter_context(studio.operator(ALL_OF_HOST)) for _ in range(5)]
        streams.enter_context(closing(studio.silent(f"{ALL_OF_HOST}?after=0")))
        for number in range(300):
            studio.house.ledger.record_event(
                "request.refused", NOW, values={"n": number, "detail": "x" * 5000}
            )
        opened[0].next()
        began = time.monotonic()
        studio.doors.close()
        took_s = time.monotonic() - began
        ends = [stream.rest()[-1:] for stream in opened]

    assert took_s < 5
    assert len(ends) == 5


def test_no_stream_begins_while_the_service_stops(studio: Studio) -> None:
    studio.house.desk.feed.close()

    with studio.client("operator") as client:
        answer = client.get(ALL_OF_HOST)

    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


def test_a_ledger_that_is_away_ends_what_begins_and_is_waited_for_by_what_runs(studio: Studio) -> None:
    ledger = studio.house.ledger
    studio.receive("before")
    with studio.operator(f"{ALL_OF_HOST}?after=0") as stream:
        stream.next("job.received")
        wait_for(lambda: studio.house.desk.feed.is_watching, "the watcher", timeout_s=SOON_S)
        ledger.is_broken = True
        with studio.client("operator") as client:
            answer = client.get(ALL_OF_HOST)
        ledger.is_broken = False
        job = studio.receive()

        assert json.loads(stream.next("job.received").data)["order"] == job.order_id
    assert answer.json()["code"] == "ledger-unavailable"
