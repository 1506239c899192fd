"""`cancel`, `status`, `pause`, `drain`, `resume`: what they say, and with which exit code they end."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from agent.api.operator import listen_for_operator
from agent.api.serving import serving
from agent.domain.control import Control, Mode
from agent.domain.ids import job_id
from agent.domain.jobs import Job, JobEvent, JobState
from agent.pipeline.intake import take_order
from tests.api.house import House, open_house
from tests.builders import NOW, consortium, key_of
from tests.test_cli import FAILED, NOT_YET, OK, UNREACHABLE, Command, command, home, no_traceback  # noqa: F401 - fixtures

ORDER = consortium().order()
JOB = job_id(ORDER.order.id, 0)


@pytest.fixture
def house(tmp_path: Path, home: Path) -> Iterator[House]:  # noqa: F811
    """An agent behind its operator's socket, with one order."""
    made = open_house(tmp_path)
    take_order(ORDER.envelope, ORDER.order.payload_type, ORDER.signer, made.host)
    home.mkdir()
    (home / "agent.toml").write_text("[listen]\noperator_socket = 'op/operator.sock'\n")
    with ExitStack() as doors:
        listener = listen_for_operator(home / "op" / "operator.sock")
        doors.enter_context(serving(made.operator.app, listener, tls=None))
        yield made


def start(house: House) -> Job:
    """The order's first task runs."""
    job = house.ledger.move(house.ledger.job(JOB), JobEvent.ENQUEUE, NOW)
    return house.ledger.start(job, NOW, worker="w", lease_until=NOW + timedelta(seconds=60))


# ------------------------------------------------------------------ cancel


def test_an_order_is_cancelled_here_and_the_operator_reads_what_that_means(
    command: Command,  # noqa: F811
    house: House,
) -> None:
    said = command("cancel", ORDER.order.id, "--reason", "a noisy disk")

    assert said.code == OK
    assert f"job {JOB} is cancelled" in said.out
    assert house.ledger.job(JOB).state is JobState.CANCELLED
    (event,) = [e for e in house.ledger.events() if e.name == "order.cancelled"]
    assert event.values["reason"] == "a noisy disk"
    assert event.values["uid"] is not None


def test_where_the_order_went_on_it_is_said_who_has_it(command: Command, house: House) -> None:  # noqa: F811
    job = start(house)
    peer = key_of("agent-b").keyid
    receipt = house.world.chain(ORDER, 1)[0]
    house.ledger.move(job, JobEvent.ATTEST, NOW, receipt=receipt, next_agent=peer)

    said = command("cancel", ORDER.order.id)

    assert said.code == OK
    assert f"job {JOB} is done" in said.out
    assert f"the order went on to {peer[:12]}: ask its orchestrator" in said.out


def test_a_cancelled_order_is_told_as_json(command: Command, house: House) -> None:  # noqa: F811
    assert command("cancel", ORDER.order.id, "--json").json["jobs"] == {JOB: "cancelled"}


def test_an_order_that_is_not_known_is_1(command: Command, house: House) -> None:  # noqa: F811
    said = command("cancel", "00000000-0000-0000-0000-000000000000")

    assert said.code == FAILED
    assert no_traceback(said)


# ------------------------------------------------------------------ the host as a whole


def test_the_status_tells_the_mode_the_jobs_and_what_is_amiss(command: Command, house: House) -> None:  # noqa: F811
    start(house)
    command("drain", "--deadline", 0, "--reason", "an update")

    said = command("status")

    assert said.code == OK
    assert said.out.startswith("draining since 2026-03-01 12:00:00 UTC by user ")
    assert ": an update\n" in said.out
    assert "running" in said.out
    assert "not ready: mode: draining since" in said.out
    assert command("status", "--json").json["control"]["mode"] == "draining"


def test_a_paused_host_says_so_until_it_is_resumed(command: Command, house: House) -> None:  # noqa: F811
    paused = command("pause", "--reason", "a new disk")
    mode = house.ledger.control()
    resumed = command("resume")

    assert (paused.code, resumed.code) == (OK, OK)
    assert (mode.mode, mode.reason) == (Mode.PAUSED, "a new disk")
    assert "a new disk" in paused.out
    assert resumed.out.startswith("running since ")
    assert house.ledger.control().mode is Mode.RUNNING


def test_a_drain_waits_until_nothing_runs(
    command: Command,  # noqa: F811
    house: House,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = start(house)
    looked = threading.Event()

    def look_again(_: float) -> None:
        if not looked.is_set():
            looked.set()
            house.ledger.move(job, JobEvent.FAIL, NOW, reason="oom")

    monkeypatch.setattr("agent.cli.control.time.sleep", look_again)

    said = command("drain")

    assert said.code == OK
    assert said.out == "still running: 1\nnothing runs here; dc-compute resume ends the drain\n"


def test_a_drain_that_is_not_over_in_time_is_5_and_goes_on(command: Command, house: House) -> None:  # noqa: F811
    start(house)

    said = command("drain", "--deadline", 0.2)

    assert said.code == NOT_YET
    assert "still running after 0.2 s, and goes on by itself: 1" in said.err
    assert house.ledger.control().mode is Mode.DRAINING
    assert house.ledger.control().until is not None
    assert house.ledger.job(JOB).state is JobState.RUNNING


def test_a_drain_that_somebody_ended_is_1(
    command: Command,  # noqa: F811
    house: House,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start(house)
    monkeypatch.setattr("agent.cli.control.time.sleep", lambda _: house.ledger.set_control(Control(), NOW))

    said = command("drain")

    assert said.code == FAILED
    assert "somebody ended the drain: the host is running" in said.err


def test_a_restored_host_is_resumed_by_force_alone(command: Command, house: House) -> None:  # noqa: F811
    house.ledger.set_control(Control(mode=Mode.RESTORED), NOW)

    refused, forced = command("resume"), command("resume", "--force")

    assert (refused.code, forced.code) == (FAILED, OK)
    assert "host-restored" in refused.err
    assert no_traceback(refused)


@pytest.mark.parametrize("words", [("status",), ("pause",), ("drain",), ("resume",), ("cancel", "x")])
def test_an_agent_that_does_not_answer_is_3(command: Command, words: tuple[str, ...]) -> None:  # noqa: F811
    assert command(*words).code == UNREACHABLE


# ------------------------------------------------------------------ what systemd says


def test_a_drain_of_systemd_s_is_ended_by_its_reason(command: Command, house: House) -> None:  # noqa: F811
    command("drain", "--if-running", "--deadline", 0, "--reason", "a stop")
    other = command("resume", "--if-reason", "something else", "--json").json["mode"]
    own = command("resume", "--if-reason", "a stop", "--json").json["mode"]

    assert (other, own) == ("draining", "running")


def test_a_pause_that_somebody_asked_for_stays_theirs(command: Command, house: House) -> None:  # noqa: F811
    command("pause", "--reason", "a stop")

    drained = command("drain", "--if-running", "--deadline", 0, "--reason", "a stop")
    resumed = command("resume", "--if-reason", "a stop", "--json")

    assert (drained.code, resumed.code) == (OK, OK)
    assert house.ledger.control().mode is Mode.PAUSED
