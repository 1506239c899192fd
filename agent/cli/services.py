"""`serve`, `work`, `run`: the processes of an agent.

They live for weeks, so nothing here needs the libraries of the command line: see `lean.py`. Their options stand in
`service_commands.py`.
"""

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from agent import __version__
from agent.cli.hangups import Hangups
from agent.cli.home import Here, set_log
from agent.config import Settings
from agent.config_sections import Listen
from agent.errors import AgentError
from agent.log import get_logger
from agent.pipeline.audit import note_start
from agent.pipeline.host import Host
from agent.process import give_memory_back
from agent.repeating import repeating
from agent.sd_notify import Look, Systemd, forget, handed_sockets

if TYPE_CHECKING:
    from agent.api.doors import Doors
    from agent.api.serving import ServedTls

log = get_logger(__name__)

SERVICES = ("serve", "work")
MEMORY_EVERY_S = 600.0
STOP_S = 90.0  # for a child to leave by itself: its own grace is shorter


def serve(here: Here) -> None:
    """Serve the API: HTTPS for orchestrators and agents, a Unix socket for the operator."""
    from agent.api.serving import wait_for_signal
    from agent.wiring import open_api

    os.umask(0o077)  # whatever a service makes is its user's alone unless it says otherwise
    hangups = Hangups()
    with hangups.heard():
        here.start_log()
        systemd, handed = told_by_systemd()
        with open_api(here.settings) as host:
            tls = doors_tls(here.settings.listen)
            with serving_host(here.settings, host, tls, handed) as doors:
                note_start("api", __version__, host)
                with (
                    watched(doors, host, systemd),
                    reloading("api", here, host, hangups, tls, systemd),
                    repeating("memory", give_memory_back, lambda: MEMORY_EVERY_S, is_at_once=True),
                ):
                    reason = wait_for_signal()
                    systemd.stopping()
                log.info("api.stopping", signal=reason.name)


def told_by_systemd() -> tuple[Systemd, tuple[socket.socket, ...]]:
    """What systemd told and handed to this process at its start; no program that it starts is told again.

    When the watchdog ends the process, its log shows where each thread stood. Raises: BadSettings.
    """
    faulthandler.enable()
    systemd, handed = Systemd.of(os.environ), handed_sockets(os.environ)
    forget(os.environ)
    return systemd, handed


@contextmanager
def reloading(
    service: str, here: Here, host: Host, hangups: Hangups, tls: "Sequence[ServedTls]", systemd: Systemd
) -> Iterator[None]:
    """Tell what this service runs with, and reload at each SIGHUP, while the block runs; `systemctl reload` waits for it."""
    from agent.wiring_reload import Reloader, board_of

    board = board_of(service, host, here.read_settings(), here.settings)
    reloader = Reloader(host, board, here.settings, here.read_settings, set_log, tls)

    def reload() -> None:
        with systemd.reloading():
            reloader.reload()

    with board.shown(), hangups.answered(reload):
        yield


def doors_tls(listen: Listen) -> "tuple[ServedTls, ...]":
    """What the network's door serves, and the status page's where there is one. Raises: BadSettings."""
    from agent.api.serving import ServedTls, mutual_tls, server_tls

    network = ServedTls(lambda: server_tls(listen.tls_cert, listen.tls_key))
    readers_ca = listen.status_client_ca
    if readers_ca is None:
        return (network,)
    return (network, ServedTls(lambda: mutual_tls(listen.tls_cert, listen.tls_key, readers_ca)))


@contextmanager
def serving_host(
    settings: Settings, host: Host, tls: "Sequence[ServedTls]", handed: Sequence[socket.socket] = ()
) -> "Iterator[Doors]":
    """The doors of this agent, open while the block runs. `tls`: `doors_tls`; `handed`: sockets that systemd opened for us.

    Raises: BadSettings.
    """
    from agent.api.doors import open_doors
    from agent.api.expiring import Expiring
    from agent.api.page.site import PageFiles
    from agent.api.routes import network_app, open_desk, operator_app, status_app
    from agent.api.serving import listen, serving

    told, paths = settings.listen, settings.paths
    desk = open_desk(host, PageFiles(certificate=told.tls_cert, ledger=paths.ledger, queues=paths.queues))
    names = names_of(host)
    if not names():
        log.warning(
            "api.nameless", advice="The roster gives this agent no agent_url: signed requests are refused."
        )
    with ExitStack() as doors:
        at = open_doors(told.host, told.port, told.operator_socket, told.operator_group, handed)
        if not at.stay:
            doors.callback(told.operator_socket.unlink, missing_ok=True)
        doors.enter_context(desk.refusals.telling())
        expiring = Expiring(lambda: desk.host, told.tls_cert)
        desk.metrics.also(expiring)
        doors.enter_context(expiring.warning())
        url = doors.enter_context(
            serving(network_app(desk, names), at.network, tls=tls[0].context, stays=at.stay)
        )
        doors.enter_context(serving(operator_app(desk), at.operator, tls=None, stays=at.stay))
        if told.status_address is not None:
            name, _, port = told.status_address.rpartition(":")
            shown = doors.enter_context(
                serving(status_app(desk), listen(name.strip("[]"), int(port)), tls=tls[1].context)
            )
            log.info("status.started", url=shown)
        doors.callback(desk.feed.close)  # before the doors close: a stream would hold up the stop
        log.info(
            "api.started", agent=host.me, url=url, names=sorted(names()), operator=str(told.operator_socket)
        )
        yield at
    log.info("api.stopped", agent=host.me)


@contextmanager
def watched(doors: "Doors", host: Host, systemd: Systemd) -> Iterator[None]:
    """Tell systemd that this agent serves, once both doors answered, and its watchdog while they do and the ledger does."""
    from agent.api.doors import knock
    from agent.api.serving import url_of

    looks: dict[str, Look] = {
        "network": lambda: knock(doors.network, tls=True),
        "operator": lambda: knock(doors.operator, tls=False),
        "ledger": lambda: read_ledger(host),
    }
    if systemd.address is None:
        yield
        return
    looks["network"]()
    looks["operator"]()
    with systemd.watched(looks):
        systemd.ready(
            f"serves {url_of(doors.network, tls=True)}, and the operator at {url_of(doors.operator, tls=False)}"
        )
        yield


def read_ledger(host: Host) -> None:
    """Return when the ledger answered, be it that it cannot be read: `/ready` tells that, a new process mends nothing."""
    with suppress(AgentError):
        host.ports.ledger.control()


def names_of(host: Host) -> Callable[[], Collection[str]]:
    """Every host[:port] under which this agent may be called now."""
    in_force = host.in_force
    return lambda: () if in_force is None else in_force.now().names


def work(here: Here) -> None:
    """Take jobs from the queues and run them. Several on one host share its ledger and queues."""
    from agent import worker
    from agent.wiring import open_worker, prover

    os.umask(0o077)
    hangups = Hangups()
    stop = worker.Stop()
    with hangups.heard():
        here.start_log()
        systemd, _ = told_by_systemd()
        with (
            stop.on_signals(),
            open_worker(here.settings) as (host, make_consumer),
            reloading("worker", here, host, hangups, (), systemd),
        ):
            note_start("worker", __version__, host)
            prove = prover(here.settings, host.ports.runtime)
            grace_s = here.settings.workers.grace_s
            is_clean = worker.work(host, make_consumer, prove, grace_s=grace_s, stop=stop, systemd=systemd)
            if not is_clean:  # a task is under way: its lease runs out, and another worker takes it over
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)


def run(here: Here) -> NoReturn:
    """Both in one command, for small hosts: two processes. When one ends, so does the other; SIGHUP goes to both."""
    here.start_log()
    sys.exit(run_services(here))


def run_services(here: Here) -> int:
    """Run `serve` and `work` until asked to stop, or until one of them ends; 0 only in the first case."""
    is_asked = threading.Event()
    has_ended = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        is_asked.set()
        has_ended.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    hangups = Hangups()
    # Ignored, not heard: a child inherits that, and no early signal ends it before it listens itself.
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        children = {name: _start(name, here, has_ended) for name in SERVICES}
        with hangups.heard(), hangups.answered(lambda: _pass_on(children)):
            has_ended.wait()
        code = 0 if is_asked.is_set() else _tell_who_ended(children)
        for child in children.values():
            child.terminate()
        return max([code, *(_wait(child) for child in children.values())])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for child in children.values():
        child.send_signal(signal.SIGHUP)


def _start(name: str, here: Here, has_ended: threading.Event) -> subprocess.Popen[bytes]:
    flags = [word for flag in here.flags for word in ("--set", flag)]
    command: Sequence[str] = (sys.executable, "-m", "agent", "--home", str(here.home), name, *flags)
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
    """The exit code of a child that was asked to leave; 0 for one that SIGTERM ended before it listened to signals."""
    try:
        code = child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        code = child.wait()
    return 0 if code == -signal.SIGTERM else abs(code)
