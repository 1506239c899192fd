"""`watch` and the streams it reads, with real processes over HTTPS: what dies and comes again costs no event, doubles none."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cli.here import Here
from agent.devkit.waiting import wait_for
from agent.errors import AgentUnreachable
from agent.ports.client import ApiAnswer, Client, ServerEvent
from agent.trust.keys import SigningKey
from agent.wiring import open_agent, read_roster
from tests.builders import consortium, policy_text
from tests.test_cli import FAILED, NOT_YET, OK
from tests.test_cli_processes import (
    SOON_S,
    Running,
    line,
    make_home,
    order_for_now,
    service,
    workspace_in_memory,
)

__all__ = ["workspace_in_memory"]


class Reader:
    """An orchestrator that reads a stream over HTTPS, and takes it up again behind the last event whenever it ends."""

    def __init__(self, client: Client, target: str) -> None:
        self.events: list[ServerEvent] = []
        self.opened = 0
        self._last: str | None = None
        self._client, self._target = client, target
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._is_over.is_set():
            try:
                self._read_once()
            except AgentUnreachable:
                pass
            except RuntimeError:  # its client was closed
                if not self._is_over.is_set():
                    raise
            time.sleep(0.1)

    def _read_once(self) -> None:
        with self._client.events(self._target, self._last) as events:
            if isinstance(events, ApiAnswer):
                assert events.status == 503, events  # the service stops
                return
            self.opened += 1
            for event in events:
                self._last = event.id or self._last
                if event.name != "progress":
                    self.events.append(event)
                if event.name == "order.ended":
                    self._is_over.set()
                    return

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def wait_for(self, name: str) -> None:
        wait_for(lambda: name in self.names(), name, timeout_s=SOON_S)

    def close(self) -> None:
        self._is_over.set()


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    key = SigningKey.generate()
    key.save(tmp_path / "o.pem")
    return key


@pytest.fixture
def home(tmp_path: Path, key: SigningKey) -> Path:
    """A home whose roster knows the orchestrator, and an order of its at `order.json`."""
    home, order = tmp_path / "home", order_for_now()
    make_home(home)
    signed = consortium().order(order, key=key)
    (tmp_path / "order.json").write_bytes(signed.envelope)
    (tmp_path / "id").write_text(order.id)
    (home / "policy.toml").write_text(policy_text(signed))
    add = ("peers", "add", "o", "--role", "orchestrator", "--public-key", key.public.base64, "--yes")
    done = subprocess.run(line(home, *add), capture_output=True, text=True, timeout=SOON_S, check=False)
    assert done.returncode == OK, done.stderr
    return home


@contextmanager
def reading(home: Path, key: SigningKey, order: str, count: int = 1) -> Iterator[list[Reader]]:
    """So many readers of the order's stream, as its orchestrator."""
    settings = Here(home).settings
    entry = read_roster(settings).agents()[0]
    with open_agent(settings, entry, key) as client:
        readers = [Reader(client, f"/v1/orders/{order}/events") for _ in range(count)]
        try:
            yield readers
        finally:
            for reader in readers:
                reader.close()


def told(running: Running) -> list[str]:
    """The lines of the audit log that an orchestrator may see of its order."""
    return [
        json.loads(text)["name"] for text in running.command("audit", "export", "-").out.splitlines()[:-1]
    ]


@pytest.mark.timeout(180)
def test_events_come_in_order_and_once_though_the_api_and_the_worker_are_killed(
    home: Path, key: SigningKey, tmp_path: Path
) -> None:
    order = (tmp_path / "id").read_text()
    with service(home, "serve", "api.started") as first:
        assert first.command("submit", tmp_path / "order.json").code == OK
        with reading(home, key, order, 2) as (one, other):
            one.wait_for("job.received")
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            with service(home, "serve", "api.started"):
                with service(home, "work", "worker.started") as worker:
                    worker.process.send_signal(signal.SIGKILL)
                    worker.process.wait()
                with service(home, "work", "worker.started") as again:
                    assert again.command("cancel", order).code == OK
                    one.wait_for("order.ended")
                    other.wait_for("order.ended")

    assert one.names() == other.names() == ["job.received", "job.cancelled", "order.ended"]
    assert [event.id for event in one.events] == [event.id for event in other.events]
    numbers = [int(event.id) for event in one.events[:-1]]
    assert numbers == sorted(set(numbers))
    assert one.opened >= 2


@pytest.mark.timeout(180)
def test_watch_survives_a_restart_of_the_agent_and_ends_as_ever(home: Path, tmp_path: Path) -> None:
    order = (tmp_path / "id").read_text()
    with service(home, "serve", "api.started") as first:
        assert first.command("submit", tmp_path / "order.json").code == OK
        with subprocess.Popen(
            line(home, "watch", order, "--json"), stdout=subprocess.PIPE, text=True
        ) as watch:
            assert watch.stdout is not None
            assert json.loads(watch.stdout.readline())["jobs"][0]["state"] == "received"
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            with service(home, "serve", "api.started") as second:
                assert second.command("cancel", order).code == OK
                states = [json.loads(text)["jobs"][0]["state"] for text in watch.stdout]
                code = watch.wait(SOON_S)

    assert (states[-1], code) == ("cancelled", FAILED)


@pytest.mark.timeout(180)
def test_an_orchestrator_watches_another_agent_with_its_key(home: Path, tmp_path: Path) -> None:
    order = (tmp_path / "id").read_text()
    with service(home, "serve", "api.started") as agent:
        assert agent.command("submit", tmp_path / "order.json").code == OK
        arguments = ("watch", order, "--agent", "me", "--sign-with", tmp_path / "o.pem", "--json")
        with subprocess.Popen(line(home, *arguments), stdout=subprocess.PIPE, text=True) as watch:
            assert watch.stdout is not None
            first = json.loads(watch.stdout.readline())
            assert agent.command("cancel", order).code == OK
            last = json.loads(watch.stdout.read().splitlines()[-1])

    assert (first["jobs"][0]["state"], last["jobs"][0]["state"], watch.returncode) == (
        "received",
        "cancelled",
        FAILED,
    )


@pytest.mark.timeout(180)
def test_a_service_that_is_stopped_ends_its_streams_and_is_gone_soon(
    home: Path, key: SigningKey, tmp_path: Path
) -> None:
    order = (tmp_path / "id").read_text()
    with service(home, "serve", "api.started") as agent:
        assert agent.command("submit", tmp_path / "order.json").code == OK
        with reading(home, key, order, 5) as readers:
            for reader in readers:
                reader.wait_for("job.received")
            assert agent.command("drain", "--deadline", "0").code in {OK, NOT_YET}
            began = time.monotonic()
            os.kill(agent.process.pid, signal.SIGTERM)
            code = agent.process.wait(SOON_S)
            took_s = time.monotonic() - began

    assert code == OK
    assert took_s < 8
    assert '"stream.ended"' in agent.log()
