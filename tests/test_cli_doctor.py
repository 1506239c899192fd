"""`dc-compute doctor` on real files of this host: its lines, its JSON, its exit codes.

Beside a consortium that runs: tests/chain/test_doctor.py.
"""

import json
import os
import pwd
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from agent.cli import doctor
from agent.cli import doctor_sections as sections
from agent.cli import selftest as cli_selftest
from agent.cli.doctor_patient import Patient
from agent.cli.files import as_owner_of
from agent.config import Settings, load_settings
from agent.doctor.lines import Check
from agent.domain.file_systems import IN_MEMORY
from agent.pipeline.checkup import CHECKUP_FILE, last_checkup
from agent.pipeline.space import file_system_of
from agent.ports.runtime import Runtime
from agent.selftest.suite import Finding
from agent.wiring import open_host
from tests.test_cli import FAILED, OK, USAGE, Command, command, home, no_traceback

__all__ = ["command", "home"]  # fixtures

GROUPS = [
    "versions", "user ids", "kernel settings", "ceilings", "podman", "memory",
    "files", "trust", "clock", "disk", "reach", "units", "services", "selftest",
]  # fmt: skip


TRIED: dict[str, list[Finding]] = {}  # the engines of this host, by name: what the self-test found in each


@pytest.fixture(autouse=True)
def an_engine_is_attacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred attempts in a real cage take seconds, and what comes of them does not depend on the agent's files."""
    really = cli_selftest.findings_of

    def once(runtime: Runtime, settings: Settings, *, is_quick: bool) -> list[Finding]:
        if runtime.name not in TRIED:
            TRIED[runtime.name] = really(runtime, settings, is_quick=is_quick)
        return TRIED[runtime.name]

    monkeypatch.setattr(cli_selftest, "findings_of", once)


def checks_of(said: Any) -> dict[tuple[str, str], Any]:
    return {(check["group"], check["name"]): check for check in said["checks"]}


def make_agent(command: Command) -> None:
    command("init", "--name", "a", "--url", "https://localhost:9", "--certificate", "localhost")


def test_the_doctor_looks_at_everything(command: Command) -> None:
    make_agent(command)

    said = command("doctor", "--json")

    told = said.json["checks"]
    # As root the agent would be root's own: then its user is the one line of its group.
    assert list(dict.fromkeys(check["group"] for check in told)) == GROUPS
    assert {tuple(check) for check in told} == {("group", "name", "state", "seen", "mend")}
    assert {check["state"] for check in told} <= {"ok", "warn", "fail", "note"}


def test_every_failing_line_has_the_command_that_mends_it(command: Command) -> None:
    told = command("doctor", "--json").json["checks"]

    failing = [check for check in told if check["state"] == "fail"]
    assert failing
    assert all(check["mend"] for check in failing)
    assert len({(check["group"], check["name"]) for check in told}) == len(told)


def test_what_was_found_is_kept_for_the_status_page(command: Command, home: Path) -> None:
    make_agent(command)
    told = command("doctor", "--json").json["checks"]

    kept = last_checkup(load_settings(home, {}).paths.data)

    assert kept is not None
    assert [asdict(one) for one in kept.findings] == told
    assert (load_settings(home, {}).paths.data / CHECKUP_FILE).stat().st_mode & 0o777 == 0o600


def test_what_fails_is_exit_code_1(command: Command) -> None:
    assert command("doctor").code == FAILED


def test_without_a_failing_line_it_is_0(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECTIONS", [sections.look_at_kernel_settings])

    said = command("doctor")

    assert said.code == OK
    assert said.out.startswith("kernel settings\n")
    assert "0 failed" in said.out.splitlines()[-1]


def test_a_host_that_nobody_foresaw_gives_a_note_and_the_rest(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_at_a_strange_thing(_patient: Patient) -> list[Check]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(doctor, "SECTIONS", [look_at_a_strange_thing, sections.look_at_kernel_settings])

    told = command("doctor", "--json").json["checks"]

    assert told[0]["name"] == "a strange thing"
    assert (told[0]["state"], "Input/output error" in told[0]["seen"]) == ("note", True)
    assert told[-1]["group"] == "kernel settings"


def test_a_host_without_any_of_our_files_is_told_line_by_line(command: Command) -> None:
    said = command("doctor", "--json")

    told = checks_of(said.json)
    assert said.code == FAILED
    assert told["files", "identity key"]["state"] == "fail"
    assert told["files", "identity key"]["mend"].endswith(" init")
    assert told["trust", "roster"]["state"] == "fail"


def test_damaged_files_are_lines_and_no_crash(command: Command, home: Path) -> None:
    make_agent(command)
    for path in (home / "roster.toml", home / "policy.toml", home / "data/tls.crt", home / "data/tls.key"):
        path.write_bytes(b"\xff\x00 nothing of ours")
    (home / "data/ledger.sqlite").write_bytes(b"no ledger at all" * 100)

    said = command("doctor", "--json")

    told = checks_of(said.json)
    failing = {name for name, check in told.items() if check["state"] == "fail"}
    assert failing >= {
        ("trust", "roster"), ("trust", "policy"), ("trust", "certificate"), ("disk", "ledger"),
    }  # fmt: skip


def test_a_key_that_others_may_read_fails_with_its_mend(command: Command, home: Path) -> None:
    make_agent(command)
    key = home / "data" / "identity.pem"
    key.chmod(0o644)

    told = checks_of(command("doctor", "--json").json)

    assert told["files", "identity key"]["mend"] == f"chmod 600 {key}"
    assert told["trust", "identity"]["state"] == "fail"


def test_what_jobs_print_under_runc_lies_in_memory_or_is_told_and_no_worker_starts(
    command: Command, home: Path, tmp_path: Path
) -> None:
    make_agent(command)
    settings = home / "agent.toml"
    runc = f'[runtime]\nengine = "runc"\nrun_dir = "{tmp_path / "runs"}"\n'
    kept = [line for line in settings.read_text().splitlines() if not line.startswith(("engine", "run_dir"))]
    settings.write_text("\n".join(kept).replace("[runtime]\n", runc))

    told = checks_of(command("doctor", "--json").json)
    with open_host(load_settings(home, os.environ)) as host:
        assert host.rules.in_memory == (tmp_path / "runs",)

    is_in_memory = file_system_of(tmp_path) in IN_MEMORY
    assert told["memory", "folder of runs"]["state"] == ("ok" if is_in_memory else "fail")


def test_nothing_secret_is_printed(command: Command, home: Path) -> None:
    make_agent(command)
    secrets = [
        line
        for name in ("identity.pem", "tls.key")
        for line in (home / "data" / name).read_text().splitlines()
        if not line.startswith("-----")
    ]

    said = command("doctor")

    assert secrets
    assert not [line for line in secrets if line in said.out + said.err]


def test_wrong_settings_are_told_as_everywhere(command: Command, home: Path) -> None:
    home.mkdir()
    (home / "agent.toml").write_text("[listen]\nprot = 1\n")

    said = command("doctor")

    assert said.code == USAGE
    assert no_traceback(said)


@pytest.mark.skipif(os.getuid() == 0, reason="needs somebody who is not root, who may look at everything")
def test_somebody_else_than_root_or_the_agents_user_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_agent(command)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)

    said = command("doctor")

    assert said.code == USAGE
    assert "run this as root or as that user" in said.err


@pytest.mark.skipif(os.getuid() == 0, reason="needs somebody who is not root, who may look at everything")
def test_somebody_who_may_not_even_look_is_told_who_may(command: Command, home: Path) -> None:
    make_agent(command)
    (home / "data").chmod(0)

    said = command("doctor")

    (home / "data").chmod(0o700)
    assert said.code == USAGE
    assert "run this as root or as the agent's user" in said.err


# ------------------------------------------------------------------ as root


@pytest.fixture
def somebody() -> pwd.struct_passwd:
    if os.getuid() != 0:
        pytest.skip("needs root, who may give files away")
    return next(user for user in pwd.getpwall() if user.pw_uid not in (0, 65534))


@pytest.fixture
def their_home(somebody: pwd.struct_passwd) -> Iterator[Path]:
    """The home of an agent of that user's."""
    with tempfile.TemporaryDirectory(prefix="dc-") as folder:
        made = Path(folder) / "home"
        run_command(made, "init", "--name", "a", "--url", "https://localhost:9", "--certificate", "localhost")
        for path in (Path(folder), made, *made.rglob("*")):
            os.chown(path, somebody.pw_uid, somebody.pw_gid)
        yield made


def run_command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", "--home", str(home), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_root_judges_for_the_user_who_owns_the_key(somebody: pwd.struct_passwd, their_home: Path) -> None:
    settings = their_home / "agent.toml"  # also where runc is there and nobody listens at Podman's socket
    settings.write_text(settings.read_text().replace("[runtime]", '[runtime]\nengine = "podman"', 1))

    told = checks_of(json.loads(run_command(their_home, "doctor", "--json").stdout))

    assert ("user ids", "agent's user") not in told
    assert somebody.pw_name in told["user ids", "subuid"]["seen"]
    assert told["files", "identity key"]["state"] == "ok"
    assert f"/run/user/{somebody.pw_uid}/" in told["podman", "socket"]["mend"]


def test_root_becomes_that_user_wholly_and_root_again(somebody: pwd.struct_passwd, their_home: Path) -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()

    with as_owner_of(their_home / "data" / "identity.pem"):
        told = subprocess.run(["id", "-ru"], capture_output=True, text=True, check=True).stdout
        status = subprocess.run(
            ["cat", "/proc/self/status"], capture_output=True, text=True, check=True
        ).stdout

    assert int(told) == somebody.pw_uid
    assert f"Uid:\t{somebody.pw_uid}\t{somebody.pw_uid}\t{somebody.pw_uid}\t{somebody.pw_uid}" in status
    assert f"Gid:\t{somebody.pw_gid}\t{somebody.pw_gid}\t{somebody.pw_gid}\t{somebody.pw_gid}" in status
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


def test_an_agent_of_roots_own_fails(somebody: pwd.struct_passwd, their_home: Path) -> None:
    for path in (their_home, *their_home.rglob("*")):
        os.chown(path, 0, 0)

    told = checks_of(json.loads(run_command(their_home, "doctor", "--json").stdout))

    assert told["user ids", "agent's user"]["state"] == "fail"


def test_root_leaves_no_file_of_its_own_though_the_key_is_a_credential_of_roots(
    somebody: pwd.struct_passwd, their_home: Path, tmp_path: Path
) -> None:
    """`[identity] key` may name a credential, which systemd keeps for root: the data folder tells whose agent it is."""
    os.chown(their_home / "data/identity.pem", 0, 0)
    (their_home / "policy.toml").write_text("allow_build = true\n")
    with tarfile.open(tmp_path / "context.tar.gz", "w:gz") as context:
        dockerfile = tarfile.TarInfo("Dockerfile")
        context.addfile(dockerfile)

    run_command(their_home, "image", "build", str(tmp_path / "context.tar.gz"), "--out", str(tmp_path / "o"))

    assert (their_home / "data/spool/builds").is_dir()
    of_root = [path for path in (their_home / "data").rglob("*") if path.stat().st_uid == 0]
    assert of_root == [their_home / "data/identity.pem"]
