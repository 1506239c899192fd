"""Faults on purpose happen where the run's file says, once, and only on a host whose environment names that file."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.config import load_settings
from agent.errors import LedgerUnavailable, NoSpace, PeerUnavailable
from agent.faults import VARIABLE, Faults, find_faults
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger, open_ledger
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster, RosterEntry
from agent.wiring import open_host
from tests.chaos.points import points

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Door:
    """A port of two methods: what passed, in order."""

    name = "a door"

    def __init__(self) -> None:
        self.passed: list[str] = []

    def knock(self, who: str) -> str:
        self.passed.append(who)
        return f"come in, {who}"

    @contextmanager
    def hold(self) -> Iterator[bool]:
        yield False

    @contextmanager
    def open(self) -> Iterator["Door"]:
        self.passed.append("opened")
        try:
            yield self
        finally:
            self.passed.append("closed")


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    made = Faults(tmp_path / "faults.json")
    arm(made)
    return made


def arm(faults: Faults, clock_s: float = 0.0, **armed: dict[str, object]) -> None:
    """Write the run's file anew; points with `__` for the dots."""
    told = {name.replace("__", "."): {"id": name, **what} for name, what in armed.items()}
    beside = faults.file.with_name("part")
    beside.write_text(json.dumps({"clock_s": clock_s, "armed": told}))
    beside.rename(faults.file)


def home_of(folder: Path) -> Path:
    """The home of an agent that can be wired."""
    key = SigningKey.generate()
    key.save(folder / "identity.pem")
    dates = {"valid_from": datetime.now(UTC), "valid_until": datetime.now(UTC) + timedelta(days=1)}
    roster = Roster((RosterEntry.of(key.public, Role.AGENT, "me", **dates),))
    (folder / "roster.toml").write_text(roster.to_toml())
    (folder / "policy.toml").write_text("")
    (folder / "agent.toml").write_text('[identity]\nkey = "identity.pem"\n')
    return folder


def test_an_agent_that_is_not_under_test_has_nothing_wrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    with open_host(load_settings(home_of(tmp_path), {})) as host:
        ledger = host.ports.ledger

        assert type(ledger) is SqlAlchemyLedger
        assert type(host.ports.runtime).__name__ in {"PodmanRuntime", "RuncRuntime"}
        assert host.ports.now.__module__ == "agent.wiring"
    assert find_faults({}) is None
    assert find_faults({VARIABLE: ""}) is None


def test_an_agent_under_test_says_so_loudly_and_passes_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(tmp_path / "faults.json")
    arm(faults, clock_s=3600.0, ledger__check__before={"act": "raise"})
    monkeypatch.setenv(VARIABLE, str(faults.file))

    with capture_logs() as logged, open_host(load_settings(home_of(tmp_path), {})) as host:
        with pytest.raises(LedgerUnavailable, match="a fault was armed at"):
            host.ports.ledger.check()
        host.ports.ledger.check()
        ahead = host.ports.now() - datetime.now(UTC)

    assert timedelta(minutes=59) < ahead < timedelta(minutes=61)
    assert [(one["event"], one["log_level"]) for one in logged if one["event"] == "faults.armed"] == [
        ("faults.armed", "critical")
    ]
    hits = {path.name for path in (tmp_path / "faults.json.hits").iterdir()}
    assert {"ledger.check.before", "ledger.check.after", "ledger.commit"} <= hits <= set(points())


def test_what_is_armed_happens_once_after_the_passages_that_are_let_by(faults: Faults) -> None:
    door = faults.around("peers", Door(), PeerUnavailable)
    arm(faults, peers__knock__before={"act": "raise", "skip": 1})

    assert door.knock("first") == "come in, first"
    with pytest.raises(PeerUnavailable):
        door.knock("second")
    assert door.knock("third") == "come in, third"

    assert door.passed == ["first", "third"]
    assert door.name == "a door"


def test_a_fault_after_a_method_finds_it_done(faults: Faults) -> None:
    door = faults.around("peers", Door(), PeerUnavailable)
    arm(faults, peers__knock__after={"act": "full"})

    with pytest.raises(NoSpace):
        door.knock("one")

    assert door.passed == ["one"]


def test_what_was_opened_is_closed_when_a_fault_follows(faults: Faults) -> None:
    door = faults.around("peers", Door(), PeerUnavailable)
    arm(faults, peers__open__after={"act": "raise"}, peers__open__knock__before={"act": "raise"})

    with pytest.raises(PeerUnavailable), door.open():
        pytest.fail("it never opened")
    assert door.passed == ["opened", "closed"]
    with door.open() as opened, pytest.raises(PeerUnavailable, match=r"peers\.open\.knock\.before"):
        opened.knock("one")

    assert door.passed == ["opened", "closed", "opened", "closed"]


def test_what_is_opened_and_no_port_stays_what_it_is(faults: Faults) -> None:
    door = faults.around("hands", Door(), LedgerUnavailable)

    with door.hold() as is_mine:
        assert is_mine is False


def test_a_process_is_killed_at_its_point_and_its_next_life_is_not(faults: Faults) -> None:
    arm(faults, ledger__commit={"act": "kill"})
    program = (
        f"from pathlib import Path; from agent.faults import Faults; faults = Faults(Path({str(faults.file)!r}));"
        "faults.before_commit(); print('lives')"
    )

    lives = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        for _ in range(2)
    ]

    assert [life.returncode for life in lives] == [-signal.SIGKILL, 0]
    assert lives[1].stdout == "lives\n"
    mark = json.loads((faults.file.with_name("faults.json.fired") / "ledger__commit").read_bytes())
    assert (mark["point"], mark["act"]) == ("ledger.commit", "kill")


@pytest.mark.parametrize("act", ["raise", "full"])
def test_a_fault_at_the_commit_undoes_what_was_written(tmp_path: Path, faults: Faults, act: str) -> None:
    ledger = open_ledger(tmp_path / "ledger" / "ledger.sqlite", before_commit=faults.before_commit)
    arm(faults, ledger__commit={"act": act})

    with pytest.raises(LedgerUnavailable):
        ledger.record_event("lost", NOW)
    ledger.record_event("kept", NOW)

    assert [event.name for event in ledger.events()] == ["kept"]
    ledger.close()


def test_the_clock_moves_with_the_file_and_stands_right_without_it(faults: Faults) -> None:
    clock = faults.clock(lambda: NOW)
    arm(faults, clock_s=-7200.0)

    moved = clock()
    os.unlink(faults.file)

    assert moved == NOW - timedelta(hours=2)
    assert clock() == NOW
