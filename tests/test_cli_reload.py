"""Reload, for real: services as processes, SIGHUP, files that change below them, real HTTPS. No containers."""

import json
import os
import pty
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from agent.cli import run
from agent.cli.doctor_patient import Patient
from agent.cli.doctor_sections import look_at_services
from agent.cli.files import replace_file
from agent.config import load_settings
from agent.doctor.lines import Check, State
from agent.domain.ids import digest_of
from agent.pipeline.services import Reload, Service, running
from agent.trust.certificates import CertificateAuthority, TlsIdentity
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster, RosterEntry
from agent.wiring import open_agent, open_audit
from tests.test_cli import FAILED, OK, UNREACHABLE
from tests.test_cli_processes import SOON_S, line, log_of, make_home, service


@pytest.fixture(autouse=True)
def workspace_in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker starts on another: what a user's own agent has below XDG_RUNTIME_DIR."""
    with tempfile.TemporaryDirectory(prefix="dcc-work-", dir="/dev/shm") as folder:
        monkeypatch.setenv("DC_COMPUTE_WORKSPACE_ROOT", folder)
        monkeypatch.setenv("DC_COMPUTE_RUNTIME_ENGINE", "podman")  # asked only when a container is
        yield


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def url(home: Path) -> str:
    return make_home(home)


def services(home: Path) -> tuple[Service, ...]:
    return running(home / "data/services")


def seen(home: Path, name: str) -> Service:
    return next(one for one in services(home) if one.service == name)


def wait_for(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hang_up(home: Path, name: str = "api") -> Reload:
    """SIGHUP to this service; how its reload ended."""
    wait_for(lambda: any(one.service == name for one in services(home)))
    asked_ns = time.monotonic_ns()
    os.kill(seen(home, name).pid, signal.SIGHUP)
    wait_for(lambda: seen(home, name).asked_ns > asked_ns)
    last = seen(home, name).last
    assert last is not None
    return last


def roster_of(home: Path) -> Roster:
    return Roster.from_toml((home / "roster.toml").read_text())


def write_roster(home: Path, *entries: RosterEntry) -> None:
    """The agent's own entry, and these."""
    own = roster_of(home).entries[0]
    replace_file(home / "roster.toml", Roster((own, *entries)).to_toml().encode())


def orchestrator(key: SigningKey) -> RosterEntry:
    now = datetime.now(UTC)
    dates = {"valid_from": now - timedelta(hours=1), "valid_until": now + timedelta(days=100)}
    return RosterEntry.of(key.public, Role.ORCHESTRATOR, "o", **dates)


@contextmanager
def calling(home: Path, key: SigningKey) -> Iterator[Callable[[], str]]:
    """Signed calls by the holder of this key, over connections that are kept: "ok", or the code of the refusal."""
    settings, own = load_settings(home, os.environ), roster_of(home).entries[0]
    with open_agent(settings, own, key) as client:

        def ask() -> str:
            answer = client.get("/v1/orders")
            return "ok" if answer.is_success else str(json.loads(answer.body)["code"])

        yield ask


# ------------------------------------------------------------------ roster and policy


def test_a_new_peer_is_accepted_and_a_removed_one_refused_without_a_restart(home: Path, url: str) -> None:
    key = SigningKey.generate()
    with service(home, "serve", "api.started") as agent, calling(home, key) as ask:
        stranger = ask()
        write_roster(home, orchestrator(key))
        unread = ask()
        added, known = hang_up(home), ask()
        write_roster(home)
        removed, again_a_stranger = hang_up(home), ask()

        assert seen(home, "api").pid == agent.process.pid

    assert (stranger, unread, known, again_a_stranger) == ("unknown-key", "unknown-key", "ok", "unknown-key")
    assert added.changed == removed.changed == ("roster",)


STORM = 50  # reloads, and requests at the same time
BROKEN = {
    "roster.toml": ('entries = "nobody"\n', "the roster"),
    "./roster.toml": ("", "no entry of this agent's own key any more"),
    "policy.toml": ("kinds = 7\n", "the policy"),
    "agent.toml": ("[log]\nlevel = 'loud'\n", "line 2: [log] level"),
    "data/tls.crt": ("no certificate", "cannot serve TLS"),
}


def test_a_broken_file_leaves_everything_as_it_was_and_is_told(home: Path, url: str) -> None:
    key = SigningKey.generate()
    with service(home, "serve", "api.started") as agent, calling(home, key) as ask:
        wait_for(lambda: bool(services(home)))
        before = seen(home, "api")
        write_roster(home, orchestrator(key))
        for file, (text, words) in BROKEN.items():
            good = (home / file).read_text()
            (home / file).write_text(text)
            refused = hang_up(home)
            (home / file).write_text(good)

            assert not refused.is_taken, file
            assert refused.code == "bad-settings"
            assert words in (refused.detail or "")
        as_before, after = ask(), seen(home, "api")
        mended, known = hang_up(home), ask()

    assert as_before == "unknown-key"
    in_force = (before.roster, before.policy, before.certificate, before.settings)
    assert (after.roster, after.policy, after.certificate, after.settings) == in_force
    assert (after.taken, after.refused) == (0, len(BROKEN))
    assert agent.log().count('"service.not_reloaded"') == len(BROKEN)
    assert mended.is_taken
    assert known == "ok"


def test_a_policy_that_changed_stands_once_in_the_audit_log_with_what_was_before(
    home: Path, url: str
) -> None:
    text = 'kinds = ["learn"]\n'
    with service(home, "run", "api.started", "worker.started"):
        wait_for(lambda: len(services(home)) == 2)
        before = seen(home, "api").policy
        (home / "policy.toml").write_text(text)
        for name in ("api", "worker", "api"):
            hang_up(home, name)
        with open_audit(load_settings(home, os.environ).paths.ledger) as log:
            lines = [told.line for told in log.recorded(1, log.newest()) if told.line is not None]

    told = [json.loads(bytes(line.values)) for line in lines if line.name == "policy.changed"]
    reloads = [json.loads(bytes(line.values))["service"] for line in lines if line.name == "service.reloaded"]
    assert told == [{"was": before, "now": digest_of(text.encode()), "owner": os.getuid()}]
    assert reloads == ["api", "worker"]  # where nothing changed there is nothing to tell


# ------------------------------------------------------------------ the certificate


def served_certificate(url: str) -> bytes:
    """The certificate that a new connection is shown, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    where = urlsplit(url)
    with (
        socket.create_connection((where.hostname or "", where.port or 0), timeout=SOON_S) as plain,
        context.wrap_socket(plain) as connection,
    ):
        told = connection.getpeercert(binary_form=True)
    assert told is not None
    return told


def new_identity(days: int = 30) -> TlsIdentity:
    now = datetime.now(UTC) - timedelta(days=10)
    return CertificateAuthority("new", now=now, days=90).server(["127.0.0.1"], now=now, days=days)


def write_identity(home: Path, identity: TlsIdentity) -> None:
    replace_file(home / "data/tls.crt", identity.certificate)
    replace_file(home / "data/tls.key", identity.private_key)


def test_a_new_certificate_is_served_to_new_connections_while_an_old_one_goes_on(
    home: Path, url: str
) -> None:
    trusting = ssl.create_default_context(cafile=str(home / "data/tls.crt"))
    with service(home, "serve", "api.started"), httpx.Client(verify=trusting, base_url=url) as old:
        assert old.get("/health").status_code == 200
        before = served_certificate(url)
        write_identity(home, identity := new_identity())
        unread = served_certificate(url)
        done = hang_up(home)
        after, still = served_certificate(url), old.get("/health")
        with httpx.Client(verify=trusting, base_url=url) as fresh, pytest.raises(httpx.ConnectError):
            fresh.get("/health")

    assert done.changed == ("certificate",)
    assert before == unread
    assert after == ssl.PEM_cert_to_DER_cert(identity.certificate.decode())
    assert still.status_code == 200


def test_a_certificate_without_its_key_and_one_that_is_over_are_not_taken(home: Path, url: str) -> None:
    with service(home, "serve", "api.started"):
        before = served_certificate(url)
        key_of_old, identity = (home / "data/tls.key").read_bytes(), new_identity()
        write_identity(home, identity)
        replace_file(home / "data/tls.key", key_of_old)
        half = hang_up(home)
        write_identity(home, new_identity(days=5))
        over = hang_up(home)
        after = served_certificate(url)

    assert "KEY_VALUES_MISMATCH" in (half.detail or "")
    assert "not now" in (over.detail or "")
    assert after == before


# ------------------------------------------------------------------ settings


def test_the_log_s_level_changes_and_what_waits_for_a_restart_is_named(home: Path, url: str) -> None:
    with service(home, "serve", "api.started") as agent:
        text = (home / "agent.toml").read_text()
        (home / "agent.toml").write_text(
            text + '\n[log]\nlevel = "error"\n'
            if "[log]" not in text
            else text.replace("[log]", '[log]\nlevel = "error"')
        )
        quiet = hang_up(home)
        hang_up(home)
        said = agent.log().count('"service.reloaded"')
        (home / "agent.toml").write_text(text.replace("[limits]", "[limits]\nqueue_limit = 7"))
        loud = hang_up(home)
        log, runs_with = agent.log(), seen(home, "api").settings

    assert quiet.changed == loud.changed == ("log.level",)
    assert said == 0  # it spoke at the new level from then on
    assert log.count('"service.reloaded"') == 1
    assert loud.waits == ("limits.queue_limit",)
    assert '"settings.wait_for_restart"' in log
    assert runs_with["limits"]["queue_limit"].value == 1000
    assert runs_with["log"]["level"].value == "info"


# ------------------------------------------------------------------ signals


def test_no_request_fails_in_a_storm_of_signals(home: Path, url: str) -> None:
    key, answers, is_over = SigningKey.generate(), list[str](), threading.Event()
    write_roster(home, orchestrator(key))

    def load() -> None:
        with calling(home, key) as ask:
            while not is_over.is_set():
                answers.append(ask())

    with service(home, "serve", "api.started") as agent:
        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: bool(services(home)))
        while seen(home, "api").taken < STORM:
            write_roster(home, orchestrator(key), orchestrator(SigningKey.generate()))
            for _ in range(20):
                agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(answers) > STORM)
        is_over.set()
        for thread in threads:
            thread.join()
        last = hang_up(home)

        assert seen(home, "api").refused == 0

    assert set(answers) == {"ok"}
    assert last.is_taken


def test_run_passes_the_signal_on_to_both(home: Path, url: str) -> None:
    with service(home, "run", "api.started", "worker.started") as agent:
        wait_for(lambda: len(services(home)) == 2)
        asked_ns = time.monotonic_ns()
        agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: all(one.asked_ns > asked_ns for one in services(home)))

        assert {one.service for one in services(home)} == {"api", "worker"}
        assert agent.process.poll() is None
    assert services(home) == ()


def test_the_command_tells_whether_each_service_took_it(home: Path, url: str) -> None:
    with service(home, "run", "api.started", "worker.started") as agent:
        wait_for(lambda: len(services(home)) == 2)
        (home / "policy.toml").write_text('kinds = ["learn"]\n')
        unread = doctor_lines(home)
        took = agent.command("reload")
        text = (home / "agent.toml").read_text()
        (home / "agent.toml").write_text(text.replace("[limits]", "[limits]\nqueue_limit = 7"))
        shown = agent.command("config", "show", "--json").json["settings"]
        waits = agent.command("reload", "--json").json["services"]
        (home / "policy.toml").write_text("kinds = 7\n")
        refused, status = agent.command("reload"), agent.command("status")
        metrics = asked_of(url, "/metrics")
        seen_refused = doctor_lines(home)
    alone = run(["--home", str(home), "reload"])

    assert took.code == OK, took.err
    assert "api took it: policy" in took.out
    assert "worker took it: policy" in took.out
    assert [one["last"]["waits"] for one in waits] == [["limits.queue_limit"]] * 2
    (limit,) = [one for one in shown if one["key"] == "queue_limit"]
    assert limit["value"] == 7
    assert limit["differs"] == [f"{name}: 1000, needs a restart" for name in ("api", "worker")]
    assert refused.code == FAILED
    assert refused.out.count("refused, and goes on with what it had [bad-settings]: the policy") == 2
    assert status.out.count("not reloaded: ") == 2
    assert 'dc_compute_reloads_total{outcome="refused",service="worker"} 1.0' in metrics
    assert 'dc_compute_last_reload_successful{service="api"} 0.0' in metrics
    assert [(line.state, "another policy" in line.seen) for line in unread] == [(State.WARN, True)] * 2
    assert [line.state for line in seen_refused if "refused" in line.seen] == [State.WARN] * 2
    assert alone == UNREACHABLE


def doctor_lines(home: Path) -> list[Check]:
    """What the doctor says of the services."""
    patient = Patient(load_settings(home, os.environ), os.getuid(), os.getgid(), by_root=False)
    return list(look_at_services(patient))


def asked_of(url: str, path: str) -> str:
    """What anybody is answered there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return httpx.get(url + path, verify=context).text


def test_a_terminal_that_goes_away_ends_run(home: Path, url: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        with log_of(home).open("wb") as log:
            os.dup2(log.fileno(), 2)
        os.execv(sys.executable, line(home, "run"))  # noqa: S606 - no shell between this terminal and it
    try:
        wait_for(lambda: len(services(home)) == 2)
        children = [one.pid for one in services(home)]
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0, log_of(home).read_text()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_service_that_was_killed_is_not_taken_for_a_running_one(home: Path, url: str) -> None:
    with service(home, "serve", "api.started") as agent:
        wait_for(lambda: bool(services(home)))
        agent.process.kill()
        agent.process.wait()

        assert services(home) == ()
    with service(home, "serve", "api.started"):
        wait_for(lambda: bool(services(home)))

        assert len(list((home / "data/services").glob("*.json"))) == 1
