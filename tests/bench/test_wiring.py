"""What the bench measures is what is shipped: the same settings, processes and durability, and nothing turned off."""

import ast
import os
from pathlib import Path

import pytest

from agent.bench import engines, town
from agent.cli.services import SERVICES
from agent.config import changed_keys, load_settings
from agent.devkit import consortium
from agent.devkit.consortium import Consortium, found
from agent.devkit.server import open_book
from agent.devkit.settings import read_settings
from agent.domain.ids import Digest
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger
from agent.trust.policy import HostPolicy
from agent.wiring import open_host

ROOT = Path(__file__).resolve().parent.parent.parent
FULL = 2  # PRAGMA synchronous
IMAGE = Digest("sha256:" + "a" * 64)
# Who an agent is, where it lies and is called, and which engine it has: no two agents have these alike.
ITS_OWN = {
    ("identity", "key"),
    ("listen", "host"), ("listen", "port"), ("listen", "tls_cert"), ("listen", "tls_key"), ("listen", "operator_socket"),
    ("trust", "roster"), ("trust", "policy"),
    ("paths", "data"), ("paths", "spool"),
    ("workspace", "root"),
    ("runtime", "engine"), ("runtime", "podman_socket"), ("runtime", "run_dir"), ("runtime", "cgroup_parent"),
    ("log", "format"),
}  # fmt: skip
MEASURED = ("task", "hop", "model")


@pytest.fixture
def made(tmp_path: Path) -> Consortium:
    """The bench's town, not started."""
    runtime = {"engine": "runc", "run_dir": str(tmp_path / "runc")}
    return found(tmp_path / "t", ("A",), runtime=runtime, memory=tmp_path / "m", settings=town.DEFAULTS)


def test_the_settings_are_the_defaults_but_for_who_and_where_an_agent_is(
    made: Consortium, tmp_path: Path
) -> None:
    shipped = load_settings(tmp_path / "nothing-said", {})

    benched = load_settings(made.hospital("A").agent.folder, {})

    assert set(changed_keys(shipped, benched)) <= ITS_OWN


def test_a_runtime_that_is_measured_by_itself_has_the_defaults_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shipped = load_settings(tmp_path / "nothing-said", {})

    benched = engines.settings_of({"engine": "runc", "run_dir": str(tmp_path / "runc")})

    assert set(changed_keys(shipped, benched)) <= ITS_OWN


def test_no_part_that_measures_says_a_setting_of_its_own() -> None:
    said = [
        f"{part}: {ast.unparse(call)}"
        for part in MEASURED
        for call in ast.walk(ast.parse((ROOT / "agent" / "bench" / f"{part}.py").read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "town"
        if "settings" in {word.arg for word in call.keywords}
    ]

    assert said == []


def test_an_agent_is_the_two_services_that_the_units_start(made: Consortium) -> None:
    units = {path.name: path.read_text() for path in (ROOT / "systemd").glob("dc-compute-*.service")}

    assert made.hospital("A").agent.command[1:] == (
        "-m",
        "agent",
        "--home",
        str(made.folder / "agent-A"),
        "run",
    )
    for service in SERVICES:  # what `run` starts
        assert any(f"dc-compute {service}\n" in text for text in units.values())


def test_no_process_gets_a_fault_or_a_setting_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DC_COMPUTE_FAULTS", "somewhere")
    monkeypatch.setenv("DC_COMPUTE_LIMITS_LEASE_S", "3")

    given = consortium._environment()

    assert set(given) <= {"PATH", "HOME", "LANG", "XDG_RUNTIME_DIR"}
    assert "DC_COMPUTE_FAULTS" in os.environ


def test_everything_that_is_acknowledged_is_on_the_disk(made: Consortium) -> None:
    settings = load_settings(made.hospital("A").agent.folder, {})
    with open_host(settings) as host:
        ledger = host.ports.ledger
        assert isinstance(ledger, SqlAlchemyLedger)
        with ledger._file.writing() as tx:
            asked = [
                tx.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "journal_mode")
            ]
    server = read_settings(made.orchestrators[0].folder / "server.toml")
    book = open_book(server).database._connection.execute("PRAGMA synchronous").fetchone()

    assert asked == [FULL, "wal"]
    assert book[0] == FULL


def test_the_policy_lists_what_is_admitted_and_lacks_what_this_host_cannot_enforce(made: Consortium) -> None:
    made.admit([IMAGE], accept_missing=town.ACCEPTED_GAPS)

    policy = HostPolicy.from_toml((made.hospital("A").agent.folder / "policy.toml").read_text())

    assert set(policy.images) == {IMAGE}
    assert set(policy.accept_missing) == {"memory_bytes", "cpu_millis", "pids"}
