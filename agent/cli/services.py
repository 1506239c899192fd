"""`serve`, `work`, `run`: the processes of an agent."""

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import typer

from agent import __version__
from agent.cli.here import Here, here_of
from agent.config import Settings
from agent.errors import AgentError
from agent.log import get_logger
from agent.pipeline.audit import note_start
from agent.pipeline.host import Host
from agent.sd_notify import Look, Systemd, forget, handed_sockets

log = get_logger(__name__)

SERVICES = ("serve", "work")
STOP_S = 90.0  # for a child to leave by itself: its own grace is shorter


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(serve)
    app.command()(work)
    app.command()(run)


def serve(context: typer.Context) -> None:
    """Serve the API: HTTPS for orchestrators and agents, a Unix socket for the operator."""
    from agent.api.serving import wait_for_signal
    from agent.wiring import open_host

    os.umask(0o077)  # whatever a service makes is its user's alone unless it says otherwise
    here = here_of(context)
    here.start_log()
    systemd, handed = told_by_systemd()
    with open_host(here.settings) as host, serving_host(here.settings, host, systemd, handed):
        note_start("api", __version__, host)
        reason = wait_for_signal()
        log.info("api.stopping", signal=reason.name)
        systemd.stopping()


def told_by_systemd() -> tuple[Systemd, tuple[socket.socket, ...]]:
    """What systemd told and handed to this process at its start; no program that it starts is told again.

    When the watchdog ends the process, its log shows where each thread stood. Raises: BadSettings.
    """
    faulthandler.enable()
    systemd, handed = Systemd.of(os.environ), handed_sockets(os.environ)
    forget(os.environ)
    return systemd, handed


@contextmanager
def serving_host(
    settings: Settings, host: Host, systemd: Systemd | None = None, handed: Sequence[socket.socket] = ()
) -> Iterator[str]:
    """Both doors of this agent, open while the block runs; gives the URL of the network's one.

    systemd is told when both answer, and its watchdog while they do. `handed`: sockets that it listens on for us.
    Raises: BadSettings.
    """
    from agent.api.doors import knock, open_doors
    from agent.api.routes import network_app, open_desk, operator_app
    from agent.api.serving import server_tls, serving
    from agent.wiring import authorities

    told, desk = settings.listen, open_desk(host)
    names = authorities(settings, host.roster, host.me)
    if not names:
        log.warning(
            "api.nameless", advice="The roster gives this agent no agent_url: signed requests are refused."
        )
    with ExitStack() as doors:
        at = open_doors(told.host, told.port, told.operator_socket, told.operator_group, handed)
        if not at.stay:
            doors.callback(told.operator_socket.unlink, missing_ok=True)
        doors.enter_context(desk.refusals.telling())
        tls = server_tls(told.tls_cert, told.tls_key)
        url = doors.enter_context(serving(network_app(desk, names), at.network, tls=tls, stays=at.stay))
        doors.enter_context(serving(operator_app(desk), at.operator, tls=None, stays=at.stay))
        looks: dict[str, Look] = {
            "network": lambda: knock(at.network, tls=True),
            "operator": lambda: knock(at.operator, tls=False),
            "ledger": lambda: read_ledger(host),
        }
        if systemd is not None and systemd.address is not None:
            looks["network"]()
            looks["operator"]()
            doors.enter_context(systemd.watched(looks))
            systemd.ready(f"serves {url}, and the operator at {told.operator_socket}")
        log.info(
            "api.started", agent=host.me, url=url, names=sorted(names), operator=str(told.operator_socket)
        )
        yield url
    log.info("api.stopped", agent=host.me)


def read_ledger(host: Host) -> None:
    """Return when the ledger answered, be it that it cannot be read: `/ready` tells that, a new process mends nothing."""
    with suppress(AgentError):
        host.ports.ledger.control()


def work(context: typer.Context) -> None:
    """Take jobs from the queues and run them. Several on one host share its ledger and queues."""
    from agent import worker
    from agent.wiring import open_worker, prover

    os.umask(0o077)
    here = here_of(context)
    here.start_log()
    systemd, _ = told_by_systemd()
    stop = worker.Stop()
    with stop.on_signals(), open_worker(here.settings) as (host, make_consumer):
        note_start("worker", __version__, host)
        prove = prover(here.settings, host.ports.runtime)
        grace_s = here.settings.workers.grace_s
        is_clean = worker.work(host, make_consumer, prove, grace_s=grace_s, stop=stop, systemd=systemd)
        if not is_clean:  # a task is under way: its lease runs out, and another worker takes it over
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def run(context: typer.Context) -> None:
    """Both in one command, for small hosts: two processes. When one ends, so does the other."""
    here = here_of(context)
    here.start_log()
    raise typer.Exit(run_services(here))


def run_services(here: Here) -> int:
    """Run `serve` and `work` until asked to stop, or until one of them ends; 0 only in the first case."""
    is_asked = threading.Event()
    has_ended = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        is_asked.set()
        has_ended.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        children = {name: _start(name, here.home, has_ended) for name in SERVICES}
        has_ended.wait()
        code = 0 if is_asked.is_set() else _tell_who_ended(children)
        for child in children.values():
            child.terminate()
        return max([code, *(abs(_wait(child)) for child in children.values())])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(name: str, home: Path, has_ended: threading.Event) -> subprocess.Popen[bytes]:
    command: Sequence[str] = (sys.executable, "-m", "agent", "--home", str(home), name)
    child = subprocess.Popen(command, start_new_session=True)  # signals come from us alone

    def watch() -> None:
        child.wait()
        has_ended.set()

    threading.Thread(target=watch, name=f"watching {name}", daemon=True).start()
    return child


def _tell_who_ended(children: dict[str, subprocess.Popen[bytes]]) -> int:
    """Log who ended unasked. The exit code: that process's own, and never 0."""
    for name, child in children.items():
        code = child.poll()
        if code is not None:
            log.error("service.ended", service=name, exit_code=code, advice="Its own log says why.")
            return abs(code) or 1
    return 1


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
