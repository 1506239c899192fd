"""The devkit as a user runs it: processes with a settings file each, and the desk work beside a running orchestrator."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.api.serving import listen
from agent.devkit.certificates import write_identity
from agent.devkit.client import Client
from agent.devkit.publishing import publish_dataset
from agent.devkit.settings import RosterFile, read_settings
from agent.domain.ids import digest_of
from agent.domain.strict_json import encode
from agent.errors import BadSettings, PeerRefused, PeerUnavailable
from agent.trust.certificates import CertificateAuthority
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster, RosterEntry
from tests.builders import key_of, learnuplet
from tests.devkit.sealed import seal

ROOT = Path(__file__).resolve().parents[2]


class Site:
    """A folder with everything that two servers need, and the roster in which they stand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = datetime.now(UTC)
        self.authority = CertificateAuthority("site", now=self.now)
        self.roster: list[RosterEntry] = []

    def settings(self, name: str, role: Role, **urls: str) -> Path:
        """The settings file of a server of that name, which then stands in the roster."""
        with listen("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        key_of(name).save(self.folder / f"{name}.pem")
        write_identity(self.folder, name, self.authority, ["127.0.0.1"], now=self.now)
        self.enter(name, role, **{f"{role}_url": f"https://127.0.0.1:{port}"}, **urls)
        path = self.folder / f"{name}.toml"
        path.write_text(
            f'key = "{name}.pem"\nroster = "roster.toml"\nfolder = "{name}"\nport = {port}\n'
            f'certificate = "{name}.crt"\nprivate_key = "{name}.key"\nauthorities = ["127.0.0.1:{port}"]\n'
        )
        return path

    def enter(self, name: str, role: Role, **urls: str) -> RosterEntry:
        """Put somebody into the roster's file."""
        ca = self.authority.certificate.decode("ascii")
        dates = {"valid_from": self.now - timedelta(days=1), "valid_until": self.now + timedelta(days=9)}
        self.roster.append(RosterEntry.of(key_of(name).public, role, name, tls_ca=ca, **dates, **urls))
        (self.folder / "roster.toml").write_text(Roster(tuple(self.roster)).to_toml())
        return self.roster[-1]

    def client(self, name: str) -> Client:
        return Client(key_of(name), RosterFile(self.folder / "roster.toml"), lambda: datetime.now(UTC))


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "agent.devkit", *map(str, words)]


def run(*words: str | Path) -> Any:
    """What a command prints. Raises: CalledProcessError."""
    told = subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(told.stdout) if told.stdout else None


@contextmanager
def running(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A server as a process, once it says that it has started; told to end at the end, in order."""
    process = subprocess.Popen(command(*words), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "devkit.started" in line:
                break
        else:
            raise AssertionError("".join(seen))
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode in {0, -signal.SIGKILL}


def test_a_storage_process_keeps_what_it_acknowledged_through_sigkill(tmp_path: Path) -> None:
    site, sealed = Site(tmp_path), seal("a1")
    config = site.settings("storage-a", Role.STORAGE)
    site.enter("owner", Role.OWNER)
    for orchestrator in ("o1", "o2"):
        site.enter(orchestrator, Role.ORCHESTRATOR)
    file = tmp_path / "a1.sealed"
    file.write_bytes(sealed.file)

    with running("storage", "--config", config) as process:
        publish_dataset(site.client("owner"), file, sealed.ref, [key_of("storage-a").keyid])
        os.kill(process.pid, signal.SIGKILL)
    with running("storage", "--config", config):
        target = f"/v1/datasets/{sealed.ref.id}"
        told = json.loads(site.client("owner").send(site.roster[0], "GET", target, is_answer_signed=True))

    assert told["digest"] == digest_of(sealed.file)


def test_a_roster_that_changes_under_a_running_server_is_seen(tmp_path: Path) -> None:
    site = Site(tmp_path)
    config = site.settings("storage-a", Role.STORAGE)

    with running("storage", "--config", config):
        client = Client(key_of("owner"), RosterFile(tmp_path / "roster.toml"), lambda: datetime.now(UTC))
        with pytest.raises(PeerRefused, match="unknown-key"):
            client.send(site.roster[0], "GET", "/v1/datasets/x", is_answer_signed=False)
        site.enter("owner", Role.OWNER)
        with pytest.raises(PeerRefused, match="not-found"):
            client.send(site.roster[0], "GET", "/v1/datasets/x", is_answer_signed=False)


def test_an_orchestrators_desk_work_is_done_beside_its_server(tmp_path: Path) -> None:
    site = Site(tmp_path)
    config = site.settings("o1", Role.ORCHESTRATOR)
    agent = site.enter("agent-a", Role.AGENT, agent_url="https://127.0.0.1:9")  # refuses connections
    now = datetime.now(UTC).replace(microsecond=0)
    order = tmp_path / "order.json"
    order.write_bytes(encode(learnuplet(not_before=now, expires=now + timedelta(hours=1))))
    share = tmp_path / "share"
    share.write_text(base64.b64encode(b"s" * 32).decode() + "\n")
    dataset = seal("a1").ref.id

    with running("orchestrator", "--config", config):
        with pytest.raises(subprocess.CalledProcessError) as failure:
            run("issue", "--config", config, order, "--to", agent.keyid)
        run("keep-share", "--config", config, dataset, "1", share)
        run("withhold", "--config", config, dataset, "the owner asked for it")
        run("release", "--config", config, dataset)
        (issued,) = run("orders", "--config", config)
        releases, alarms = run("releases", "--config", config), run("alarms", "--config", config)
        target = f"/v1/orders/{issued['id']}"
        told = json.loads(site.client("agent-a").send(site.roster[0], "GET", target, is_answer_signed=True))[
            "standing"
        ]

    assert failure.value.returncode == 1
    assert failure.value.stderr.splitlines()[-2].startswith("peer-unavailable: agent-a")
    assert (issued["state"], told["state"], told["digest"]) == ("open", "open", issued["digest"])
    assert (releases, alarms) == ([], [])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["orders", "--config", "{config}", "0"], "not-found: no order 0"),
        (["result", "--config", "{config}", "0"], "not-found: order 0 has no result"),
        (["issue", "--config", "{config}", "{folder}/absent.json"], "bad-settings: cannot read"),
        (["orders", "--config", "{folder}/absent.toml"], "bad-settings: cannot read"),
    ],
)
def test_a_mistake_is_told_in_two_lines(tmp_path: Path, words: Sequence[str], expected: str) -> None:
    config = Site(tmp_path).settings("o1", Role.ORCHESTRATOR)
    filled = [word.format(config=config, folder=tmp_path) for word in words]

    told = subprocess.run(command(*filled), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    assert told.returncode == 1
    assert told.stderr.startswith(expected)
    assert len(told.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "change",
    [("port = ", "prot = "), ("port = ", "port = 99"), ("key =", "key ="), ('folder = "', "folder = ")],
)
def test_settings_that_are_none_are_told(tmp_path: Path, change: tuple[str, str]) -> None:
    config = Site(tmp_path).settings("o1", Role.ORCHESTRATOR)
    config.write_text(re.sub(re.escape(change[0]), change[1], config.read_text()))

    if change[0] == change[1]:
        assert read_settings(config).key == tmp_path / "o1.pem"
        return
    with pytest.raises(BadSettings, match=re.escape(str(config))):
        read_settings(config)


def test_a_key_of_another_is_no_key_of_the_roster(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.settings("storage-a", Role.STORAGE)
    stranger = Client(SigningKey.generate(), RosterFile(tmp_path / "roster.toml"), lambda: datetime.now(UTC))

    with pytest.raises(PeerUnavailable):  # nobody runs
        stranger.send(site.roster[0], "GET", "/health", is_answer_signed=False)
