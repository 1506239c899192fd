"""`backup` and `restore` as an operator calls them, on the ledger of a home whose services run or do not."""

import json
import os
import stat
from contextlib import closing
from pathlib import Path

import pytest

from agent.domain.control import Mode
from agent.errors import NotFound
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.trust.keys import SigningKey
from tests.ports.ledger_stage import received
from tests.test_cli import FAILED, OK, USAGE, Command, command, home
from tests.test_cli_processes import make_home, service

__all__ = ["command", "home"]  # fixtures


@pytest.fixture
def ledger(command: Command, home: Path) -> Path:
    """The ledger's path, with one order in it."""
    assert command("init").code == OK
    path = home / "data" / "ledger.sqlite"
    with closing(open_ledger(path)) as opened:
        received(opened)
    return path


def test_a_backup_is_taken_and_put_back(command: Command, ledger: Path, tmp_path: Path) -> None:
    file = tmp_path / "monday.backup"

    taken = command("backup", file)
    with closing(open_ledger(ledger)) as opened:
        later = received(opened, "later")
    put_back = command("restore", file)

    assert (taken.code, put_back.code) == (OK, OK)
    assert "1 orders, 1 jobs under way" in taken.out
    assert "its mode is `restored`" in put_back.out
    assert "kept in" in put_back.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with closing(open_ledger(ledger)) as opened:
        assert (opened.control().mode, opened.control().uid) == (Mode.RESTORED, os.getuid())
        with pytest.raises(NotFound):
            opened.job(later.id)


def test_programs_are_told_in_json(command: Command, ledger: Path, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "monday.backup"

    taken, put_back = command("backup", file, "--json").json, command("restore", file, "--json").json

    me = SigningKey.load(home / "data" / "identity.pem").keyid
    assert taken["backup"]["agent"] == put_back["backup"]["agent"] == me
    assert Path(put_back["kept"]).is_dir()
    assert put_back["open_jobs"] == 1
    assert ledger.exists()


def test_a_file_that_is_there_stays_unless_forced(command: Command, ledger: Path, tmp_path: Path) -> None:
    file = tmp_path / "monday.backup"
    file.write_text("tuesday")

    refused, forced = command("backup", file), command("backup", file, "--force")

    assert (refused.code, forced.code) == (USAGE, OK)
    assert "--force" in refused.err
    assert ledger.exists()


def test_a_backup_of_another_agent_is_refused(
    command: Command, ledger: Path, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "monday.backup"
    command("backup", file)
    key = home / "data" / "identity.pem"
    key.unlink()
    assert command("keys", "new", key).code == OK

    said = command("restore", file)

    assert said.code == FAILED
    assert "bad-backup" in said.err
    assert ledger.exists()


def test_a_file_that_is_not_there_is_told(command: Command, ledger: Path, tmp_path: Path) -> None:
    assert command("restore", tmp_path / "nothing").code == USAGE
    assert ledger.exists()


def test_a_backup_is_taken_while_services_run_and_put_back_only_when_they_are_stopped(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "monday.backup"
    make_home(home)

    with service(home, "serve", "api.started") as running:
        taken = running.command("backup", file, "--json")
        refused = running.command("restore", file)
    put_back = running.command("restore", file, "--json")

    assert taken.code == OK
    assert refused.code == FAILED
    assert "ledger-in-use" in refused.err
    assert put_back.code == OK
    with service(home, "serve", "api.started"):
        pass  # it opens what was put back
    assert json.loads(put_back.out)["restore"]["generation"] == 1
