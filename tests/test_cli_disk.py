"""`df` and `gc` on an agent's real files."""

import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.config import load_settings
from agent.ports.ledger import Ledger
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.wiring import make_folders
from tests.ports.ledger_stage import attested, report
from tests.test_cli import OK, USAGE, Command, command, home, no_traceback

__all__ = ["command", "home"]  # fixtures


def make_agent(command: Command, home: Path) -> Path:
    """An agent with a folder for its workspaces; the file of its ledger."""
    command("init", "--name", "a", "--url", "https://localhost:9", "--certificate", "localhost")
    settings = load_settings(home, os.environ)
    make_folders(settings)
    settings.workspace.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return settings.paths.ledger


def long_done(ledger: Ledger) -> str:
    """The id of an order of years ago that is done and told."""
    job = attested(ledger, report(b"x" * 5000))
    ledger.keep_log(job, "train", b"y" * 5000)
    ledger.acknowledge(ledger.deliveries()[0].id, datetime.now(UTC) - timedelta(days=1))
    return job.order_id


def test_df_tells_who_holds_what(command: Command, home: Path) -> None:
    with closing(open_ledger(make_agent(command, home))) as ledger:
        long_done(ledger)

        said = command("df", "--json")

    assert said.code == OK
    holders = {holder["name"]: holder for holder in said.json["holders"]}
    assert holders["ledger: job logs"]["size_bytes"] == 5000
    assert holders["ledger: deliveries"]["size_bytes"] == 5000
    assert holders["ledger: orders"]["count"] == 1
    assert holders["ledger: audit log"]["count"] > 3
    assert holders["ledger"]["size_bytes"] > 10_000
    assert {"queues", "spool", "workspaces", "ledger: free pages"} <= holders.keys()
    assert any(name.startswith("images: ") for name in holders)
    held = [name for disk in said.json["disks"] for name in disk["holds"]]
    assert sorted(held) == ["ledger", "queues", "spool", "workspaces"]
    assert all(disk["free_bytes"] > 0 for disk in said.json["disks"])


def test_df_for_people_names_the_low_mark(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_agent(command, home)
    monkeypatch.setenv("DC_COMPUTE_LIMITS_LOW_DISK_BYTES", str(1 << 50))

    said = command("df")

    assert said.code == OK
    assert "NO ORDER IS ACCEPTED" in said.out
    assert "ledger: audit log" in said.out


def test_gc_tells_first_and_collects_then(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_agent(command, home)
    with closing(open_ledger(path)) as ledger:
        order = long_done(ledger)
    monkeypatch.setenv("DC_COMPUTE_LIMITS_LOG_DAYS", "1")

    would = command("gc", "--dry-run", "--json")
    did = command("gc", "--json")
    again = command("gc", "--json")

    def counts(gone: list[dict[str, object]]) -> dict[object, object]:
        return {one["kind"]: one["count"] for one in gone}

    assert counts(would.json["gone"])["job logs"] == counts(did.json["gone"])["job logs"] == 1
    assert counts(again.json["gone"])["job logs"] == 0
    with closing(open_ledger(path)) as ledger:
        assert ledger.logs(order) == ()  # type: ignore[arg-type]


def test_without_settings_both_say_what_to_do(command: Command, home: Path) -> None:
    for name in ("df", "gc"):
        said = command(name)

        assert said.code == USAGE
        assert no_traceback(said)
