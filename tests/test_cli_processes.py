"""The command's long-running processes, for real: `run`, `serve` and `work` on real files and real HTTPS, no containers."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trustme

from agent.cli import run
from agent.domain.orders import Learnuplet
from agent.domain.strict_json import encode
from agent.trust.keys import SigningKey
from tests.builders import consortium, learnuplet, policy_text
from tests.test_cli import FAILED, OK, UNREACHABLE, USAGE, Said

SOON_S = 60.0


@dataclass
class Running:
    """A service of `dc-compute` as a process, and the ways to ask it."""

    home: Path
    process: subprocess.Popen[bytes]

    def command(self, *arguments: object) -> Said:
        """What the command says of this home."""
        done = subprocess.run(
            line(self.home, *arguments), capture_output=True, text=True, timeout=SOON_S, check=False
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def log(self) -> str:
        return log_of(self.home).read_text()

    def children(self) -> dict[str, int]:
        """Process ids by the name of the service."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(self.home).encode() in words and words[-2] in {b"serve", b"work"}:
                found[words[-2].decode()] = int(folder.name)
        return found


def line(home: Path, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "agent", "--home", str(home), *map(str, arguments))


def log_of(home: Path) -> Path:
    return home.parent / f"{home.name}.log"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port: int = door.getsockname()[1]
        return port


def make_home(home: Path) -> str:
    """A new agent that listens on this machine alone; its URL."""
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    fields = (
        "--name",
        "me",
        "--url",
        url,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--certificate",
        "127.0.0.1",
    )
    assert run(["--home", str(home), "init", *fields]) == OK
    return url


@contextmanager
def service(home: Path, name: str, *events: str) -> Iterator[Running]:
    """This service of the home, once its log has these events; asked to leave at the end of the block."""
    with (
        log_of(home).open("wb") as log,
        subprocess.Popen(line(home, name), stdout=log, stderr=log) as process,
    ):
        running = Running(home, process)
        try:
            deadline = time.monotonic() + SOON_S
            while not all(f'"{event}"' in running.log() for event in events):
                assert time.monotonic() < deadline, running.log()
                assert process.poll() is None, running.log()
                time.sleep(0.05)
            yield running
        finally:
            process.terminate()
            process.wait(SOON_S)


@pytest.fixture(autouse=True)
def workspace_in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker starts on another: what a user's own agent has below XDG_RUNTIME_DIR."""
    with tempfile.TemporaryDirectory(prefix="dcc-work-", dir="/dev/shm") as folder:
        monkeypatch.setenv("DC_COMPUTE_WORKSPACE_ROOT", folder)
        yield


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Running]:
    make_home(tmp_path / "home")
    with service(tmp_path / "home", "run", "api.started", "worker.started") as running:
        yield running


def order_for_now() -> Learnuplet:
    now = datetime.now(UTC).replace(microsecond=0)
    return learnuplet(not_before=now - timedelta(minutes=1), expires=now + timedelta(hours=1))


def test_an_agent_that_is_asked_to_leave_leaves_and_takes_both_processes_along(agent: Running) -> None:
    assert agent.command("orders").code == OK

    agent.process.terminate()

    assert agent.process.wait(SOON_S) == 0
    assert agent.children() == {}
    assert agent.command("orders").code == UNREACHABLE
    assert '"worker.stopped"' in agent.log()
    assert '"api.stopped"' in agent.log()


def test_an_order_travels_from_the_command_line_over_https_to_the_ledger(tmp_path: Path) -> None:
    home, key, order = tmp_path / "home", SigningKey.generate(), order_for_now()
    url = make_home(home)
    key.save(tmp_path / "o.pem")
    (tmp_path / "order.json").write_bytes(encode(order))
    submit = ("submit", tmp_path / "order.json", "--sign-with", tmp_path / "o.pem", "--json")
    (home / "policy.toml").write_text(policy_text(consortium().order(order, key=key)))

    with service(home, "serve", "api.started") as before:
        stranger = before.command(*submit, "--agent", url)
    before.command("peers", "add", "o", "--role", "orchestrator", "--public-key", key.public.base64, "--yes")
    with service(home, "serve", "api.started") as after:
        first = after.command(*submit, "--agent", url)
        by_name = after.command(*submit, "--agent", "me")
        by_socket = after.command(*submit)
        listed = after.command("orders", "--json")

    assert stranger.code == FAILED
    assert "unknown-key" in stranger.err
    assert first.code == OK, first.err
    assert first.json["id"] == by_name.json["id"] == by_socket.json["id"]
    assert [job["state"] for job in listed.json["jobs"]] == ["received"]


@pytest.mark.parametrize("victim", ["serve", "work"])
def test_when_one_process_dies_the_other_is_stopped_and_the_exit_code_says_so(
    agent: Running, victim: str
) -> None:
    children = agent.children()
    assert set(children) == {"serve", "work"}

    os.kill(children[victim], signal.SIGKILL)

    assert agent.process.wait(SOON_S) == signal.SIGKILL
    assert agent.children() == {}
    assert re.search(rf'"service.ended".*"service": "{victim}"', agent.log())


def test_one_that_is_asked_to_leave_while_it_starts_ends_well(tmp_path: Path) -> None:
    make_home(tmp_path / "home")
    with service(tmp_path / "home", "run") as starting:
        deadline = time.monotonic() + SOON_S
        while set(starting.children()) != {"serve", "work"}:
            assert time.monotonic() < deadline, starting.log()
            time.sleep(0.01)

        starting.process.terminate()

        assert starting.process.wait(SOON_S) == 0
        assert starting.children() == {}


def test_a_second_agent_of_the_same_home_does_not_start_and_harms_nothing(agent: Running) -> None:
    second = agent.command("serve")

    assert second.code == USAGE
    assert "cannot listen" in second.err
    assert agent.command("orders").code == OK


def test_two_workers_share_one_home(agent: Running) -> None:
    with subprocess.Popen(line(agent.home, "work"), stderr=subprocess.PIPE, text=True) as second:
        assert second.stderr is not None
        assert any("worker.started" in line for line in second.stderr)
        second.terminate()
        second.stderr.read()
        assert second.wait(SOON_S) == 0

    assert agent.process.poll() is None


def test_a_service_without_its_key_does_not_start_and_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        line(tmp_path / "nothing", "serve"), capture_output=True, text=True, timeout=SOON_S, check=False
    )

    assert done.returncode == USAGE
    assert "error [bad-settings]: the key file" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_at_its_own_address_is_for_who_shows_a_certificate_and_its_log_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, port, authority = tmp_path / "home", free_port(), trustme.CA()
    make_home(home)
    authority.cert_pem.write_to_path(home / "readers.crt")
    reader = authority.issue_cert("reader@here.test", common_name="reader-of-the-page")
    monkeypatch.setenv("DC_COMPUTE_LISTEN_STATUS_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("DC_COMPUTE_LISTEN_STATUS_CLIENT_CA", "readers.crt")
    ours = ssl.create_default_context(cafile=str(home / "data" / "tls.crt"))
    theirs = ssl.create_default_context(cafile=str(home / "data" / "tls.crt"))
    reader.configure_cert(theirs)

    with service(home, "serve", "api.started", "status.started") as running:
        with pytest.raises(httpx.TransportError), httpx.Client(verify=ours) as stranger:
            stranger.get(f"https://127.0.0.1:{port}/")
        with httpx.Client(verify=theirs) as known:
            page = known.get(f"https://127.0.0.1:{port}/")
            routes = [
                known.get(f"https://127.0.0.1:{port}{path}").status_code
                for path in ("/v1/orders", "/metrics")
            ]
            version = page.extensions["network_stream"].get_extra_info("ssl_object").version()

    assert page.status_code == 200
    assert "Ready, nothing to do" in page.text or "No order is accepted" in page.text
    assert routes == [404, 404]
    assert version == "TLSv1.3"
    assert re.search(r'"page.read".*"by": "reader-of-the-page"', running.log())
