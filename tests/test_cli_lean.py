"""The services start without the command line's libraries, and mean the same by their arguments as the whole command does."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from agent.cli import services
from agent.cli.app import app
from agent.cli.home import Here
from agent.cli.lean import SERVICES, Asked, asked_for

# What each service needs before its first work, and what would cost it memory for weeks and serve nothing.
OF_BOTH = (
    "agent.cli.services",
    "agent.wiring_reload",
    "agent.ports.ledger_sqlalchemy",
    "agent.ports.broker_huey",
)
HTTPS = ("agent.ports.storage_https", "agent.ports.orchestrators_https", "agent.ports.peers_https")
API = (
    "agent.api.doors",
    "agent.api.expiring",
    "agent.api.routes",
    "agent.api.serving",
    "agent.ports.runtime_none",
)
WORK = ("agent.worker", "agent.ports.runtime_runc", "agent.ports.runtime_podman")
NEVER = ("typer", "rich.console", "pygments", "alembic", "mako", "sqlalchemy.dialects.postgresql", "jinja2")
NEVER_OF_API = (*NEVER, "podman", "requests", "agent.ports.runtime_podman", "agent.ports.runtime_runc")
NEVER_OF_WORK = (*NEVER, "starlette", "uvicorn", "prometheus_client", "agent.api")


def loaded(*modules: str) -> set[str]:
    """What a lean process has imported after these modules."""
    lines = (
        "import sys\n"
        "from agent.cli.lean import hide_terminals\n"
        "hide_terminals()\n"
        f"import {', '.join(modules)}\n"
        "print('\\n'.join(name for name, module in sys.modules.items() if module is not None))\n"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_api_starts_without_what_it_never_needs() -> None:
    assert not loaded(*OF_BOTH, *HTTPS, *API) & set(NEVER_OF_API)


def test_the_worker_starts_without_what_it_never_needs() -> None:
    assert not loaded(*OF_BOTH, *HTTPS, *WORK) & set(NEVER_OF_WORK)


PLAIN = [
    ["serve"],
    ["work"],
    ["run"],
    ["--home", "/etc/x", "serve"],
    ["--home=/etc/x", "work", "--set", "log.level=debug", "--set=workers.learn_tasks=8"],
    ["--home", "/a", "--home", "/b", "run"],
    ["serve", "--set", "a=b=c"],
]


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_the_plain_forms_mean_what_the_whole_command_takes_them_for(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meant: list[Asked] = []

    def noting(name: str) -> None:
        def note(here: Here) -> None:
            meant.append(Asked(name, here.flag, here.flags))

        monkeypatch.setattr(services, name, note)

    for name in SERVICES:
        noting(name)

    done = CliRunner().invoke(app, words)

    assert done.exit_code == 0, done.output
    assert meant == [asked_for(words)]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["serve", "--help"],
        ["serve", "more"],
        ["--version"],
        ["orders"],
        ["--home"],
        ["--home", "serve"],
        ["--home", "--set", "serve"],
        ["serve", "--set"],
        ["serve", "--home", "/x"],
        ["--set", "log.level=debug", "serve"],
        ["--", "serve"],
    ],
    ids=" ".join,
)
def test_everything_else_is_the_whole_command_s(words: list[str]) -> None:
    assert asked_for(words) is None


def test_every_service_is_a_command_too() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    assert set(SERVICES) <= set(commands)


def test_a_service_that_cannot_start_says_why_as_every_command_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "--home", str(tmp_path / "nowhere"), "serve"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith("error [")
    assert "→" in done.stderr
