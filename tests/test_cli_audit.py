"""`dc-compute audit`: the log of a whole chain verified, exported and asked by the command; and files that were altered."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.cli import run
from agent.domain.audit import RESTORED
from agent.domain.ids import digest_of
from agent.domain.orders import SignedOrder
from agent.pipeline.audit import CHECKPOINT_AGE
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.trust.audit_log import sign_head
from tests.builders import NOW, dataset, key_of
from tests.pipeline.world import ALGO, PROBLEM, World

OK, FAILED, USAGE, UNREACHABLE, NOT_VERIFIED = range(5)


@dataclass(frozen=True)
class Said:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Said]


@dataclass(frozen=True)
class Stage:
    """Hospital a after an order was done: its home, its world, and the order."""

    home: Path
    world: World
    order: SignedOrder

    @property
    def ledger(self) -> Path:
        return self.home / "data" / "ledger.sqlite"

    @property
    def roster(self) -> Path:
        return self.home / "roster.toml"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A home whose ledger is that of hospital a, which is still open: the agent runs."""
    home = tmp_path / "home"
    home.mkdir()

    def open_at(folder: Path) -> Any:
        if folder.name == "a":
            (home / "data").mkdir(mode=0o700)
            return open_ledger(home / "data" / "ledger.sqlite")
        return open_ledger(folder / "ledger.sqlite")

    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", open_at)
    (home / "agent.toml").write_text('[paths]\ndata = "data"\n[identity]\nkey = "identity.pem"\n')
    world.a.key.save(home / "identity.pem")
    (home / "roster.toml").write_text(world.people.roster.to_toml())
    order = world.order(train=("a1", "b1"), test=("a2",))
    world.post(order, world.a)
    world.settle()
    world.pass_time(CHECKPOINT_AGE.total_seconds() + 1)
    world.a.sweep()
    yield Stage(home, world, order)
    for hospital in world:
        hospital.ledger.close()


@pytest.fixture
def command(
    stage: Stage, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs `dc-compute audit` for the agent of the stage, at the time of its world."""
    for name in [name for name in os.environ if name.startswith("DC_COMPUTE_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("agent.wiring.now", stage.world.clock)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        capfd.readouterr()
        code = run(["--home", str(stage.home), "audit", *map(str, arguments)])
        told = capfd.readouterr()
        return Said(code, told.out, told.err)

    return call


@pytest.fixture
def auditor(tmp_path: Path, capfd: pytest.CaptureFixture[str], stage: Stage) -> Command:
    """Runs `dc-compute audit` far away, with an empty home and the roster."""

    def call(*arguments: object) -> Said:
        capfd.readouterr()
        code = run(
            ["--home", str(tmp_path / "away"), "audit", *map(str, arguments), "--roster", str(stage.roster)]
        )
        told = capfd.readouterr()
        return Said(code, told.out, told.err)

    return call


def tamper(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as plain, plain:
        for trigger in ("events_stay", "events_last", "events_once"):
            plain.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            plain.execute(statement)


# ------------------------------------------------------------------ verify


def test_the_log_of_a_running_agent_is_verified(command: Command, stage: Stage) -> None:
    said = command("verify")

    count = len(stage.world.a.ledger.events(limit=10_000))
    assert said.code == OK, said.err
    assert f"verified: {count} lines hold and link" in said.out
    assert f"signed heads of agent-a vouch for all up to {count - 1}" in said.out


def test_a_line_that_was_edited_is_named_with_exit_code_4(command: Command, stage: Stage) -> None:
    tamper(stage.ledger, "UPDATE events SET name = 'job.done' WHERE seq = 3")

    said = command("verify")
    told = command("verify", "--json")

    assert said.code == told.code == NOT_VERIFIED
    assert said.err.startswith("error [broken-log]: line 3: ")
    assert "verified" not in said.out
    assert (told.json["is_verified"], told.json["faults"][0]["seq"]) == (False, 3)


def test_a_head_kept_elsewhere_shows_a_cut(command: Command, stage: Stage, tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    head.write_text(command("head").out)
    assert command("verify", "--head", head).code == OK
    stage.world.a.ledger.record_event("later", NOW)
    assert command("verify", "--head", head).code == OK, "a log may grow"

    tamper(stage.ledger, "DELETE FROM events WHERE seq > 5", "UPDATE sqlite_sequence SET seq = 5")

    assert command("verify").code == OK
    said = command("verify", "--head", head)
    assert said.code == NOT_VERIFIED
    assert "error [log-truncated]" in said.err


def test_a_restored_backup_is_told_as_one(command: Command, stage: Stage, tmp_path: Path) -> None:
    command("export", tmp_path / "before.jsonl")
    tamper(stage.ledger, "DELETE FROM events WHERE seq > 5", "UPDATE sqlite_sequence SET seq = 5")
    later = stage.world.clock() + timedelta(hours=1)
    stage.world.a.ledger.record_event(RESTORED, later, values={"uid": 1000})

    said = command("verify", "--head", tmp_path / "before.jsonl")

    assert said.code == NOT_VERIFIED
    assert "error [log-restored]" in said.err
    assert command("verify").code == OK
    assert "a backup was restored at" in command("verify").err


def test_a_head_that_another_party_signed_is_refused(command: Command, stage: Stage, tmp_path: Path) -> None:
    for key in (key_of("stranger"), key_of("o1")):
        (tmp_path / "head.json").write_bytes(sign_head(key, seq=1, digest=digest_of(b""), at=NOW))

        assert command("verify", "--head", tmp_path / "head.json").code == FAILED


# ------------------------------------------------------------------ export


def test_an_export_is_verified_with_nothing_but_the_roster(
    command: Command, auditor: Command, stage: Stage, tmp_path: Path
) -> None:
    said = command("export", tmp_path / "log.jsonl")

    events = stage.world.a.ledger.events(limit=10_000)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert said.code == OK, said.err
    assert [json.loads(line)["name"] for line in lines[:-1]] == [event.name for event in events]
    assert digest_of(lines[0].encode()) == json.loads(lines[1])["previous"] == events[0].digest
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o777 == 0o600
    told = auditor("verify", tmp_path / "log.jsonl")
    assert told.code == OK, told.err
    assert f"verified: {len(events)} lines" in told.out


ALTERED: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "first edited": (lambda lines: [lines[0].replace("job", "run"), *lines[1:]], "broken-log"),
    "one gone": (lambda lines: [lines[0], *lines[2:]], "broken-log"),
    "first gone": (lambda lines: lines[1:], "broken-log"),
    "two swapped": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "broken-log"),
    "last doubled": (lambda lines: [*lines[:-1], lines[-2], lines[-1]], "broken-log"),
    "last gone": (lambda lines: [*lines[:-2], lines[-1]], "broken-log"),
    "last edited": (
        lambda lines: [*lines[:-2], lines[-2].replace("audit", "other"), lines[-1]],
        "broken-log",
    ),
    "head gone": (lambda lines: lines[:-1], "log-truncated"),
    "end gone": (lambda lines: lines[:5], "log-truncated"),
    "more behind the head": (lambda lines: [*lines, lines[-2]], "broken-log"),
    "head that is none": (lambda lines: [*lines[:-1], lines[-1][:-1]], "bad-json"),
    "head of another content": (lambda lines: [*lines[:-1], lines[-1].replace("W", "X", 1)], "bad-signature"),
    "no line": (lambda lines: ["nonsense", *lines[1:]], "broken-log"),
}


def test_an_altered_export_is_refused(command: Command, auditor: Command, tmp_path: Path) -> None:
    command("export", tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()

    for name, (alter, code) in ALTERED.items():
        (tmp_path / "altered.jsonl").write_text("\n".join(alter(lines)) + "\n")
        said = auditor("verify", tmp_path / "altered.jsonl")

        assert said.code == NOT_VERIFIED, name
        assert f"error [{code}]" in said.err, name


def test_a_part_of_the_log_is_exported_by_time_and_holds_by_itself(
    command: Command, auditor: Command, stage: Stage, tmp_path: Path
) -> None:
    stage.world.a.ledger.record_event("later", NOW + timedelta(days=2))
    stage.world.a.ledger.record_event("last", NOW + timedelta(days=4))

    for name, ends in {
        "from": ("--since", "2026-03-03"),
        "to": ("--until", "2026-03-02T00:00:00Z"),
        "none": ("--since", "2027-01-01"),
    }.items():
        assert command("export", tmp_path / name, *ends).code == OK
        assert auditor("verify", tmp_path / name).code == OK

    names = {
        name: [json.loads(line).get("name") for line in (tmp_path / name).read_text().splitlines()][:-1]
        for name in ("from", "to", "none")
    }
    assert names["from"] == ["later", "last"]
    assert names["to"][-1] == "audit.checkpoint"
    assert names["none"] == []


def test_an_export_to_standard_output_is_the_same(command: Command, tmp_path: Path) -> None:
    command("export", tmp_path / "log.jsonl")

    said = command("export", "-")

    assert said.out.splitlines() == (tmp_path / "log.jsonl").read_text().splitlines()


def test_an_earlier_export_holds_a_later_one_to_what_was(
    command: Command, auditor: Command, stage: Stage, tmp_path: Path
) -> None:
    command("export", tmp_path / "old.jsonl")
    stage.world.a.ledger.record_event("later", NOW)
    command("export", tmp_path / "new.jsonl")
    tamper(stage.ledger, "DELETE FROM events WHERE seq > 5", "UPDATE sqlite_sequence SET seq = 5")
    command("export", tmp_path / "cut.jsonl")

    assert auditor("verify", tmp_path / "new.jsonl", "--head", tmp_path / "old.jsonl").code == OK
    for export, head in (
        ("cut", "old"),
        ("old", "new"),
    ):  # the second is whole, and not what was asked for today
        said = auditor("verify", tmp_path / f"{export}.jsonl", "--head", tmp_path / f"{head}.jsonl")
        assert said.code == NOT_VERIFIED
        assert "error [log-truncated]" in said.err


def test_a_head_from_before_a_part_of_the_log_is_told_as_not_judged(
    command: Command, auditor: Command, stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / "head.json").write_text(command("head").out)
    stage.world.a.ledger.record_event("one", NOW + timedelta(days=2))
    stage.world.a.ledger.record_event("two", NOW + timedelta(days=4))
    command("export", tmp_path / "next.jsonl", "--since", "2026-03-02")
    command("export", tmp_path / "later.jsonl", "--since", "2026-03-04")

    met = auditor("verify", tmp_path / "next.jsonl", "--head", tmp_path / "head.json")
    missed = auditor("verify", tmp_path / "later.jsonl", "--head", tmp_path / "head.json")

    assert (met.code, met.err) == (OK, "")
    assert missed.code == OK
    assert "not judged" in missed.err


def test_a_broken_log_is_exported_as_it_is_and_told(
    command: Command, auditor: Command, stage: Stage, tmp_path: Path
) -> None:
    tamper(stage.ledger, "UPDATE events SET name = 'job.done' WHERE seq = 3")

    said = command("export", tmp_path / "log.jsonl")

    assert said.code == NOT_VERIFIED
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) > 10
    assert auditor("verify", tmp_path / "log.jsonl").code == NOT_VERIFIED


# ------------------------------------------------------------------ query


def test_who_ran_what_on_a_dataset_and_what_left(command: Command, stage: Stage) -> None:
    said = command("query", "--dataset", dataset("a1").id, "--json")

    (task,) = said.json["tasks"]
    assert (task["order"], task["kind"], task["orchestrator"]) == (
        stage.order.order.id,
        "learn",
        stage.order.signer,
    )
    assert [(run["run"], run["image"], run["outcome"]) for run in task["runs"]] == [("train", ALGO, "done")]
    assert {share["of"] for share in task["shares"]} == {stage.world.o1, stage.world.o2}
    assert [left["what"] for left in task["left"]] == ["model", "report", "handoff", "report"]
    assert task["bytes_left"] == sum(left["bytes"] for left in task["left"]) == said.json["bytes_left"]
    assert said.json["names"][stage.order.signer] == "o1"


def test_the_answer_for_people_is_one_table_with_names(command: Command, stage: Stage) -> None:
    said = command("query", "--order", stage.order.order.id)

    assert said.code == OK, said.err
    for word in ("run train", "run perf", "key share", "model out", "handoff 1 out", "o1", "agent-b", "done"):
        assert word in said.out
    assert "2 tasks of 1 orders, 4 runs" in said.out


@pytest.mark.parametrize(
    ("option", "value", "count"),
    [
        ("--image", ALGO, 2),
        ("--image", PROBLEM, 1),
        ("--who", "agent-b", 2),
        ("--who", key_of("o1").keyid, 2),
        ("--who", key_of("stranger").keyid, 0),
        ("--dataset", dataset("c1").id, 0),
    ],
)
def test_tasks_are_found_by_image_and_by_party(command: Command, option: str, value: str, count: int) -> None:
    assert len(command("query", option, value, "--json").json["tasks"]) == count


def test_what_happened_before_a_time_is_left_out(command: Command, stage: Stage) -> None:
    order = stage.order.order.id

    assert len(command("query", "--order", order, "--since", "2026-03-01", "--json").json["tasks"]) == 2
    assert command("query", "--order", order, "--since", "2026-03-09").out == "nothing is told of it\n"


def test_a_refused_order_is_found_by_its_dataset(command: Command, stage: Stage) -> None:
    values = {"who": key_of("o2").keyid, "code": "policy-refused", "order_id": "x", "kind": "learn"}
    stage.world.a.ledger.record_event("request.refused", NOW, dataset=dataset("a2").id, values=dict(values))

    said = command("query", "--dataset", dataset("a2").id)

    assert "request.refused" in said.out
    assert "policy-refused" in said.out
    assert "o2" in said.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--dataset", "x"),
        ("--image", "sha256:1"),
        ("--who", "nobody"),
        ("--order", "1", "--dataset", "2"),
    ],
)
def test_a_question_that_is_none_is_told(command: Command, arguments: tuple[str, ...]) -> None:
    said = command("query", *arguments)

    assert said.code == USAGE
    assert said.err.startswith("error [bad-settings]")


def test_a_ledger_that_is_not_there_is_told(command: Command, tmp_path: Path) -> None:
    said = command("query", "--order", "f12b8b9b-3ca4-59f7-a87e-36b5298eda25", "--ledger", tmp_path / "none")

    assert (said.code, said.err.partition(":")[0]) == (FAILED, "error [ledger-unavailable]")
    assert not (tmp_path / "none").exists()
