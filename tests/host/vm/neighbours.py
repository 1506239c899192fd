"""The rest of a consortium, run beside an installed agent in its machine: storages, orchestrators, two more hospitals, orders.

As the agent's user, by the installed program's interpreter, in a checkout: `python -m tests.host.vm.neighbours`. It is told
by lines of JSON and answers by lines of JSON:

    {"do": "found"}                        a consortium whose hospital A is the installed agent     -> {}
    {"do": "start"}                        everybody but the installed agent, answering             -> {}
    {"do": "supply"}                       images and sealed data to the storages                   -> {}
    {"do": "order", "guest": "demo"}       the demo's order over three hospitals                    -> {"order": id}
    {"do": "order", "guest": "long", "seconds": s}    one training at A that takes as long          -> {"order": id}
    {"do": "end", "order": id}             waits for its end    -> {"state": …, "attempts": […], "receipts": n, "scores": {…}}

When its input ends, so do those that it started. What it made lies in TOWN, and is found again after a reboot.
"""

import json
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from agent.devkit.consortium import Consortium, Hospital, Party, found, in_an_hour, on_podman
from agent.devkit.demo.data import SPLITS
from agent.devkit.issuing import issue
from agent.devkit.server import now
from agent.devkit.waiting import NeverSeen, wait_for
from agent.domain.ids import Digest, OrderId, wire_time
from agent.domain.orders import DatasetRef, ImageRef, Learnuplet
from agent.domain.reports import ReportState, parse_report, parse_result
from agent.domain.standings import OrderState
from agent.log import LogLevel, configure
from agent.trust.certificates import CertificateAuthority
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster

TOWN = Path("/var/lib/dc-compute-town")
MEMORY = Path("/run/dc-compute-town")
GIVEN = Path("/mnt/given")
INSTALLED, PORT = Path("/var/lib/dc-compute"), 8443
PODMAN = Path("/run/dc-compute/podman/podman.sock")
NAMES = ("A", "B", "C")
PROBLEM = "5d0c1c2e-9d0b-4f6e-8a53-2f0f3f0c7a11"
GAPS = (
    "memory_bytes",
    "cpu_millis",
    "pids",
)  # a container of systemd-nspawn may have no controller to hold them
ORDER_TIMEOUT_S = 240.0


def images() -> dict[str, Digest]:
    """The images that were given, by name."""
    told: dict[str, str] = json.loads((GIVEN / "images/digests.json").read_text())
    return {name: Digest(digest) for name, digest in told.items()}


def make() -> Consortium:
    """A new consortium. Hospital A's agent is the installed one: its key, and its port."""
    key = SigningKey.load(INSTALLED / "identity.pem")
    made = found(TOWN / "t", NAMES, runtime=on_podman(PODMAN), memory=MEMORY, installed={"A": (key, PORT)})
    made.owner.save(TOWN / "t/owner.pem")
    made.admit(list(images().values()), accept_missing=GAPS, wall_s=900)
    return made


def opened() -> Consortium:
    """The consortium that lies in TOWN."""
    folder = TOWN / "t"
    MEMORY.mkdir(mode=0o700, exist_ok=True)

    def party(name: str, key: Path, command: tuple[str, ...]) -> Party:
        home = folder / name
        server, agent = home / "server.toml", home / "agent.toml"
        told = tomllib.loads((server if server.exists() else agent).read_text())
        port = told["port"] if server.exists() else told["listen"]["port"]
        return Party(name, SigningKey.load(key), home, port, command)

    def devkit(name: str, kind: str) -> Party:
        home = folder / name
        words = (sys.executable, "-m", "agent.devkit", kind, "--config", str(home / "server.toml"))
        return party(name, home / "identity.pem", words)

    def hospital(name: str) -> Hospital:
        home = folder / f"agent-{name}"
        key = INSTALLED / "identity.pem" if name == "A" else home / "identity.pem"
        command = (sys.executable, "-m", "agent", "--home", str(home), "run")
        return Hospital(name, party(home.name, key, command), devkit(f"storage-{name}", "storage"))

    return Consortium(
        folder,
        CertificateAuthority("makes no certificate any more", now=now()),
        tuple(hospital(name) for name in NAMES),
        tuple(devkit(f"orchestrator-{n + 1}", "orchestrator") for n in range(2)),
        SigningKey.load(folder / "owner.pem"),
        Roster.from_toml((folder / "storage-A/roster.toml").read_text()),
    )


def supply(town: Consortium) -> None:
    """Every image and the demo's data to the storages."""
    for name in images():
        town.publish_image(GIVEN / f"images/{name}.oci.tar")
    for split in SPLITS:
        town.seal(GIVEN / f"data/{split.name}.csv", split.ref, town.hospital(split.hospital), [split.use])


def order(town: Consortium, guest: str, seconds: float) -> str:
    """An order, signed and sent by the first orchestrator; its id."""
    known = images()
    if guest == "demo":
        problem, algo = known["problem"], known["algo"]
        train = [split.ref for split in SPLITS if split.use == "train"]
        test = [split.ref for split in SPLITS if split.use == "test"]
    else:
        problem = algo = known["long"]
        train, test = [DatasetRef(str(uuid4()), "1")], []
        plain = TOWN / "t/seconds"
        plain.write_text(str(seconds))
        town.seal(plain, train[0], town.hospital("A"), ["train"])
    desk = town.orchestrators[0]
    told = Learnuplet(
        id=OrderId(str(uuid4())),
        orchestrator=desk.key.keyid,
        problem=PROBLEM,
        problem_image=ImageRef(str(uuid4()), problem),
        algo_image=ImageRef(str(uuid4()), algo),
        model_start=None,
        model_end=str(uuid4()),
        rank=0,
        train_data=tuple(train),
        test_data=tuple(test),
        max_attempts=3,
        not_before=wire_time(now()),
        expires=in_an_hour(),
    )
    return issue(told, town.book(), town.client(desk)).order.id


def end(town: Consortium, order_id: str) -> dict[str, Any]:
    """How an order ended, when its orchestrator has every receipt of it, and its result if it was done."""
    book = town.book()

    def has_ended() -> bool:
        seen = book.order(order_id)
        if seen is None or seen.state is OrderState.OPEN:
            return False
        is_whole = book.result(order_id) is not None and len(book.receipts(order_id)) == seen.tasks
        is_told = sum(report.state is ReportState.DONE for report in reports()) == seen.tasks
        return seen.state is not OrderState.DONE or (is_whole and is_told)

    def reports() -> list[Any]:
        return [parse_report(body) for body in book.reports(order_id)]

    wait_for(has_ended, f"the end of order {order_id}", timeout_s=ORDER_TIMEOUT_S)
    seen, result = book.order(order_id), book.result(order_id)
    done = [report for report in reports() if report.state is ReportState.DONE]
    return {
        "state": None if seen is None else seen.state,
        "attempts": [report.attempt for report in sorted(done, key=lambda one: one.position)],
        "receipts": len(book.receipts(order_id)),
        "scores": {} if result is None else parse_result(result).scores,
        "alarms": len(book.alarms()),
    }


@contextmanager
def stopping(town: Consortium) -> Iterator[None]:
    """Stop at the end of the block whoever was started in it."""
    try:
        yield
    finally:
        for party in reversed(town.parties):
            if party.name in town.processes:
                town.stop(party)


def start(town: Consortium) -> None:
    """Everybody but the installed agent."""
    servers = [party for party in town.parties if not party.name.startswith("agent-")]
    for party in servers:
        town.start(party)
    town.wait_until_ready(servers)
    for hospital in town.hospitals[1:]:
        prove(town, hospital.agent)


def prove(town: Consortium, agent: Party) -> None:
    """Start this agent and wait until its cage is proved. One after the other: they share a user's ceiling of processes, and
    a machine that is busy with three of those proofs may refuse a fork."""
    for _ in range(3):
        begins = agent.log.stat().st_size if agent.log.exists() else 0
        town.start(agent)
        town.wait_until_ready([agent])

        def said(begins: int = begins) -> str:
            return agent.log.read_text(errors="replace")[begins:]

        wait_for(lambda: '"selftest.' in said(), f"the self-test of {agent.name}", timeout_s=ORDER_TIMEOUT_S)
        if '"selftest.held"' in said():
            return
        town.stop(agent)
    raise NeverSeen(f"the cage of {agent.name} was not proved: {said()[-1000:]}")


def main() -> None:
    """Answer until the input ends."""
    configure(LogLevel.ERROR)
    town: Consortium | None = opened() if (TOWN / "t/owner.pem").exists() else None
    with ExitStack() as started:
        if town is not None:
            started.enter_context(stopping(town))
        for line in sys.stdin:
            told, answer = json.loads(line), {}
            if told["do"] == "found":
                town = make()
                started.enter_context(stopping(town))
            assert town is not None, "no consortium was founded"
            match told["do"]:
                case "start":
                    start(town)
                case "supply":
                    supply(town)
                case "order":
                    answer = {"order": order(town, told["guest"], told.get("seconds", 0.0))}
                case "end":
                    answer = end(town, told["order"])
            sys.stdout.write(json.dumps(answer, default=str) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
