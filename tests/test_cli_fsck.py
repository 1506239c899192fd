"""`fsck` as an operator calls it: what lies beside the ledger, what is mended, what waits until no service runs."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent import wiring
from agent.domain.ids import digest_of, hex_of
from agent.errors import RuntimeUnavailable
from agent.pipeline.run import ATTEMPT_LABEL, JOB_LABEL
from agent.pipeline.trials import TRIAL_LABEL, trial
from agent.ports.broker import Queue
from agent.ports.broker_huey import HueyBroker
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.ports.runtime import ImageInfo, Leftover
from tests.builders import NOW, consortium
from tests.ports.ledger_stage import received, running
from tests.test_cli import FAILED, OK, Command, command, home

__all__ = ["command", "home"]  # fixtures

LOADED = digest_of(b"an image that the engine has")


class Engine:
    """A container engine with what a test left in it."""

    name = "podman"

    def __init__(self) -> None:
        self.containers: list[Leftover] = []
        self.cleared: list[Path] = []
        self.is_away = False

    def leftovers(self) -> tuple[Leftover, ...]:
        if self.is_away:
            raise RuntimeUnavailable("nobody listens at the socket")
        return tuple(self.containers)

    def remove(self, name: str) -> None:
        self.containers = [one for one in self.containers if one.name != name]

    def reclaim(self, folder: Path) -> None:
        """Nothing of a guest's lies here."""

    def images(self) -> tuple[ImageInfo, ...]:
        return (ImageInfo(LOADED, 1, (), NOW),)

    def clear_images(self) -> int:
        for path in self.cleared:
            path.unlink()
        return len(self.cleared)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(wiring, "make_runtime", lambda *_: engine)
    return engine


@pytest.fixture
def agent(command: Command, home: Path, engine: Engine) -> Path:
    """The folder of an agent's data; its ledger holds one order that waits and one that runs, in attempt 1."""
    assert command("init").code == OK
    (home / "roster.toml").write_text(consortium().roster.to_toml())
    with closing(open_ledger(home / "data" / "ledger.sqlite")) as ledger:
        received(ledger, "waits")
        running(ledger, "runs")
    (home / "data" / "spool").mkdir(exist_ok=True)
    workspaces(home).mkdir(parents=True, exist_ok=True)
    assert engine.name
    return home / "data"


def workspaces(home: Path) -> Path:
    from agent.config import load_settings

    return load_settings(home, {"XDG_RUNTIME_DIR": str(home.parent / "run")}).workspace.root


def job_named(data: Path, name: str) -> str:
    from tests.ports.ledger_stage import order_named

    return f"{order_named(name).order.id}.0"


def found(said: Any) -> set[tuple[str, str]]:
    return {(one["code"], one["where"].rpartition("/")[2]) for one in said["findings"]}


def test_an_agent_that_agrees_with_itself_has_no_finding(command: Command, agent: Path) -> None:
    said = command("fsck")

    assert (said.code, said.out) == (OK, "0 findings\n"), agent


def test_an_agent_without_a_ledger_yet_has_none_either(command: Command, home: Path, engine: Engine) -> None:
    assert command("init").code == OK
    before = sorted(path.name for path in (home / "data").iterdir())

    said = command("fsck", "--json")

    assert (said.code, said.json["findings"]) == (OK, []), engine
    assert sorted(path.name for path in (home / "data").iterdir()) in (
        before,
        [*before, "ledger.sqlite.lock"],
    )


def test_what_no_attempt_owns_is_found_and_goes_and_what_one_owns_stays(
    command: Command, agent: Path, home: Path, engine: Engine
) -> None:
    root, job = workspaces(home), job_named(agent, "runs")
    left = [root / f"{job}.2", agent / "spool" / f"{job_named(agent, 'waits')}.1"]
    kept = [root / f"{job}.1", agent / "spool" / "builds", agent / "spool" / "held"]
    for folder in (*left, *kept):
        folder.mkdir()
    (root / "somebody's").mkdir()
    engine.containers = [
        Leftover("lives", {JOB_LABEL: job, ATTEMPT_LABEL: "1"}, True),
        Leftover("left", {JOB_LABEL: job, ATTEMPT_LABEL: "2"}, True),
    ]

    seen, mended, after = (
        command("fsck", "--json"),
        command("fsck", "--mend", "--json"),
        command("fsck", "--json"),
    )

    expected = {("folder-left", folder.name) for folder in left} | {("container-left", "container left")}
    strange = ("folder-strange", "somebody's")
    assert (seen.code, found(seen.json)) == (FAILED, expected | {strange})
    assert (mended.code, found(mended.json), len(mended.json["mended"])) == (FAILED, {strange}, 3)
    assert found(after.json) == {strange}
    assert not any(folder.exists() for folder in left)
    assert all(folder.exists() for folder in kept)
    assert [one.name for one in engine.containers] == ["lives"]


def test_a_self_test_under_way_is_let_alone(
    command: Command, agent: Path, home: Path, engine: Engine
) -> None:
    with trial(workspaces(home), engine) as folder:  # type: ignore[arg-type]
        engine.containers = [Leftover("its", {TRIAL_LABEL: folder.name}, True)]

        said = command("fsck", "--mend", "--json")

        assert (said.code, found(said.json)) == (OK, set()), agent
        assert folder.exists()


def test_an_engine_that_is_away_is_said(command: Command, agent: Path, engine: Engine) -> None:
    engine.is_away = True

    said = command("fsck", "--json")

    assert found(said.json) == {("containers-unseen", "containers")}, agent


def test_a_ring_for_nothing_is_taken_out_and_the_others_stay(command: Command, agent: Path) -> None:
    broker = HueyBroker(agent / "queues.sqlite")
    broker.ring(Queue.LEARNUPLETS, job_named(agent, "waits"))
    broker.ring(Queue.LEARN_TASKS, "nobody.0")
    broker.ring(Queue.DELIVERIES, "nobody.0.report.1", delay_s=600)
    depth = broker.depth()

    mended = command("fsck", "--mend", "--json")

    assert sum(depth.values()) == 3
    assert (mended.code, [one["code"] for one in mended.json["mended"]]) == (OK, ["ring-of-nothing"] * 2)
    assert {queue: count for queue, count in broker.depth().items() if count} == {Queue.LEARNUPLETS: 1}
    broker.close()


def test_queues_that_nobody_can_read_are_set_aside_once_no_service_runs(
    command: Command, agent: Path
) -> None:
    (agent / "queues.sqlite").write_bytes(b"no database" * 1000)
    with closing(open_ledger(agent / "ledger.sqlite")):
        live = command("fsck", "--mend", "--json")
        assert (agent / "queues.sqlite").exists()

    stopped = command("fsck", "--mend", "--json")

    assert (live.code, live.json["is_stopped"], live.json["findings"][0]["code"]) == (
        FAILED,
        False,
        "queues-damaged",
    )
    assert "systemctl stop" in live.json["findings"][0]["mend"]
    assert (stopped.code, stopped.json["is_stopped"]) == (OK, True)
    assert [path.name for path in agent.glob("queues.sqlite*") if "damaged" not in path.name] == []
    assert len(list(agent.glob("queues.sqlite.damaged-*"))) == 1


def test_images_are_judged_when_no_service_runs(command: Command, agent: Path, engine: Engine) -> None:
    store = agent / "images"
    store.mkdir()
    lost, interrupted = hex_of(digest_of(b"lost")), hex_of(digest_of(b"interrupted"))
    for name in (f"{hex_of(LOADED)}.json", f"{lost}.json", f"{interrupted}.loading", "0.lock"):
        (store / name).touch()
    engine.cleared = [store / f"{interrupted}.loading"]

    with closing(open_ledger(agent / "ledger.sqlite")):
        live = command("fsck", "--json")
    stopped = command("fsck", "--mend", "--json")

    assert (live.code, found(live.json)) == (OK, set())
    assert any("when no service runs" in why for why in live.json["not_judged"])
    assert found(stopped.json) == {("images-differ", f"{lost}.json")}
    assert [one["code"] for one in stopped.json["mended"]] == ["image-left"]


def test_a_restore_that_was_interrupted_is_told_and_what_it_left_goes(command: Command, agent: Path) -> None:
    (agent / "ledger.sqlite.lock").write_text("ledger.sqlite.before-restore-1")
    (agent / "ledger.sqlite.restoring").write_text("half")

    said = command("fsck", "--mend", "--json")

    assert found(said.json) == {("restore-interrupted", "ledger")}
    assert [one["code"] for one in said.json["mended"]] == ["file-left"]
    assert not (agent / "ledger.sqlite.restoring").exists()


def test_a_damaged_ledger_is_a_line_and_no_crash(command: Command, agent: Path) -> None:
    (agent / "ledger.sqlite").write_bytes(b"no ledger at all" * 1000)

    said = command("fsck", "--json")

    assert (said.code, found(said.json)) == (FAILED, {("ledger-unreadable", "ledger")})
    assert said.json["not_judged"]


def test_a_ledger_of_an_older_version_is_migrated(command: Command, agent: Path) -> None:
    from tests.ports.test_released_ledgers import unpack

    unpack("0002", agent)

    seen, mended, after = (
        command("fsck", "--json"),
        command("fsck", "--mend", "--json"),
        command("fsck", "--json"),
    )

    assert found(seen.json) == {("ledger-behind", "ledger")}
    assert [one["code"] for one in mended.json["mended"]] == ["ledger-behind"]
    assert "ledger-behind" not in {code for code, _ in found(after.json)}


def test_what_a_person_must_decide_is_not_touched(command: Command, agent: Path) -> None:
    with closing(sqlite3.connect(agent / "ledger.sqlite")) as plain, plain:
        plain.execute("UPDATE jobs SET state = 'lost' WHERE state = 'received'")

    said = command("fsck", "--mend")

    assert said.code == FAILED
    assert "job-unreadable" in said.out
    assert "a person decides" in said.out
    assert said.out.splitlines()[-1] == "1 findings"
