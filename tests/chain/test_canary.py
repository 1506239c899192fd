"""A canary in the data, and the key that opens it: everything is killed in the middle of a task, and neither is on any disk.

Searched is every file that was changed since the test began, on every file system that is not in memory, as far as the agent's
user and the ids of its guests reach; and the environment and arguments of every process.
"""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.devkit.consortium import Hospital, on_podman, on_runc, running
from agent.devkit.podman_service import checkout_folders, podman_service, why_not
from agent.devkit.publishing import publish_dataset
from agent.devkit.server import now
from agent.devkit.waiting import wait_for
from agent.domain.orders import DatasetRef, SignedOrder
from agent.domain.reports import ReportState
from agent.pipeline.workspace import parse_folder_name
from agent.trust.dataset_header import parse_header
from agent.trust.seal import make_seal, read_preamble
from agent.trust.shares import new_share, unwrap_data_key
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town
from tests.host.podman import ROOT, Engine, image_cache

pytestmark = [
    pytest.mark.chain,
    pytest.mark.host,
    pytest.mark.xdist_group("chain"),
    pytest.mark.timeout(400),
]


# ------------------------------------------------------------------ what is looked for


def forms(secret: bytes) -> list[bytes]:
    """The bytes as they are, in hex, and in base64 wherever they begin in what is encoded."""
    told = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            whole = encode(bytes(offset) + secret)
            first = -(-offset * 8 // 6)  # the first digit that nothing before the secret decides
            told.append(whole[first : (offset + len(secret)) * 8 // 6])
    return list(dict.fromkeys(told))


@dataclass
class Secrets:
    """What must not lie about, by name."""

    by_name: dict[str, bytes] = field(default_factory=dict)

    def needles(self) -> dict[str, list[str]]:
        return {name: [form.hex() for form in forms(secret)] for name, secret in self.by_name.items()}


def test_a_secret_is_found_in_each_of_its_forms_wherever_it_begins() -> None:
    secret = secrets.token_bytes(32)

    for before in (b"", b"a", b"ab", b"abc"):
        whole = before + secret + b"behind"
        for text in (whole, whole.hex().encode(), base64.b64encode(whole), base64.urlsafe_b64encode(whole)):
            assert any(form in text for form in forms(secret)), before


# ------------------------------------------------------------------ the stage


class Inside:
    """`tests/chain/inside.py`, at work."""

    def __init__(self, process: "subprocess.Popen[str]", since_s: float) -> None:
        self._process, self._since_s = process, since_s

    def ask(self, **told: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if told:
            self._process.stdin.write(json.dumps(told | {"since": self._since_s}) + "\n")
            self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def inside(socket: Path, since_s: float) -> Iterator[Inside]:
    service = pids_with(str(socket))[-1]  # Podman starts itself anew in its user namespace
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chain.inside", str(service)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        helper = Inside(process, since_s)
        assert helper.ask() == "ready"
        yield helper
        process.kill()


@dataclass
class Stage:
    """A town whose Podman service is this test's own, so that it can be killed."""

    town: Town
    socket: Path
    inside: Inside
    secrets: Secrets
    services: ExitStack

    @property
    def hospital(self) -> Hospital:
        return self.town.consortium.hospital("A")

    @property
    def workspaces(self) -> Path:
        settings = tomllib.loads((self.hospital.agent.folder / "agent.toml").read_text())
        return Path(self.hospital.agent.folder, settings["workspace"]["root"])

    def dataset(self, what: str) -> DatasetRef:
        """A sealed dataset with a fresh canary, whose key and shares are among the secrets; none is written here."""
        consortium = self.town.consortium
        canary = secrets.token_hex(24)
        ref = DatasetRef(str(uuid4()), "1")
        plain, sealed = f"{what}\n{canary}\n".encode(), BytesIO()
        shares = make_seal(
            BytesIO(plain),
            sealed,
            size=len(plain),
            dataset=ref.id,
            version=ref.version,
            orchestrators=[party.key.keyid for party in consortium.orchestrators],
            nodes=[self.hospital.agent.key.keyid],
            uses=["train"],
            owner=consortium.owner,
            share_of=lambda _: new_share(),
        )
        file = consortium.folder / f"{ref.id}.sealed"
        file.write_bytes(sealed.getvalue())
        for index, (_, share) in enumerate(shares):
            consortium.book(index).keep_share(ref, share)
            self.secrets.by_name[f"share {index} {what}"] = share
        publish_dataset(consortium.client(), file, ref, [self.hospital.storage.key.keyid])
        header = parse_header(read_preamble(BytesIO(sealed.getvalue())), consortium.roster, at=now())
        self.secrets.by_name[f"key {what}"] = unwrap_data_key(header, dict(shares))
        self.secrets.by_name[f"canary {what}"] = canary.encode()
        return ref

    def found_on_disks(self) -> list[tuple[str, str]]:
        """(file, secret) for everything found. An orchestrator keeps its own share, and nothing else."""
        told = self.inside.ask(search="/", needles=self.secrets.needles())
        desks = tuple(f"{party.folder}/" for party in self.town.consortium.orchestrators)
        assert told["files"] > 10, "the search looked at nothing"
        return [
            (path, name)
            for path, name in told["found"]
            if not (name.startswith("share") and path.startswith(desks))
        ]

    def found_in_workspaces(self) -> set[str]:
        """The names of what lies in the attempts' folders."""
        told = self.inside.ask(search=str(self.workspaces), needles=self.secrets.needles(), anywhere=True)
        return {name for _, name in told["found"]}

    def found_on_processes(self) -> list[tuple[int, str]]:
        """(process, secret) in the environment and the arguments of every process that lets us look."""
        needles = self.secrets.needles()
        found = []
        for pid in all_pids():
            for name in ("environ", "cmdline"):
                with suppress(OSError):
                    text = Path(f"/proc/{pid}/{name}").read_bytes()
                    found += [
                        (pid, secret)
                        for secret, told in needles.items()
                        if any(bytes.fromhex(form) in text for form in told)
                    ]
        return found

    def kill_everything(self, order: SignedOrder) -> None:
        """SIGKILL for the API, the worker, Podman's service, conmon, and whatever runs in the container."""
        agent = self.hospital.agent
        process = self.town.consortium.processes.pop(agent.name)
        conmons = [
            pid
            for word in (order.order.id, *runc_containers(order))
            for pid in pids_with(word)
            if "conmon" in Path(f"/proc/{pid}/comm").read_text()
        ]
        guests = [pid for conmon in conmons for pid in descendants(conmon)]
        assert conmons
        assert guests
        own = [*pids_with(str(agent.folder)), *pids_with(str(self.socket))]
        for pid in (*own, *conmons, *guests):  # the guests' user namespaces lie below one of this user's
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        self.services.close()
        wait_for(lambda: not any(is_alive(pid) for pid in (*own, *conmons, *guests)), "the end", timeout_s=30)

    def serve_containers(self) -> None:
        """Start Podman's service, again after a kill."""
        runtime_dir, root = checkout_folders()
        name = self.socket.name.removesuffix(".sock")
        self.services.enter_context(podman_service(runtime_dir, root, name=name))

    def printed(self, order: SignedOrder) -> str:
        """What the operator is shown of this order's containers."""
        home = str(self.hospital.agent.folder)
        command = [sys.executable, "-m", "agent", "--home", home, "log", order.order.id]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(params=["podman", "runc"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Podman's service runs either way: the search looks from within its user namespace."""
    if lacking := why_not():
        pytest.skip(f"real containers need {lacking}")
    since_s = time.time() - 1
    runtime_dir, root = checkout_folders()
    name = f"canary-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
    with ExitStack() as services, ExitStack() as rest:
        socket = services.enter_context(podman_service(runtime_dir, root, name=name))
        helper = rest.enter_context(inside(socket, since_s))
        engine = Engine(socket, image_cache())
        runtime = on_podman(engine.socket) if request.param == "podman" else on_runc()
        for town in make_town(runtime, ("A",), ("canary",)):
            with running(town.consortium):
                town.bring("canary")
                yield Stage(town, socket, helper, Secrets(), services)


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def pids_with(word: str) -> list[int]:
    """The processes among whose arguments this stands, as a part of one."""
    found = []
    for pid in all_pids():
        with suppress(OSError):
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != os.getpid():
                found.append(pid)
    return sorted(found)


def runc_containers(order: SignedOrder) -> list[str]:
    """The names of this order's containers under runc, where conmon is not told the order."""
    notes = Path(on_runc()["run_dir"]).glob("runs/*/run.json")
    return [note.parent.name for note in notes if order.order.id in note.read_text()]


def descendants(pid: int) -> list[int]:
    found = []
    for child in all_pids():
        with suppress(OSError):
            if f"\nPPid:\t{pid}\n" in Path(f"/proc/{child}/status").read_text():
                found += [child, *descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# ------------------------------------------------------------------ the stories


def test_neither_data_nor_keys_are_on_a_disk_when_everything_is_killed_in_the_middle_of_a_task(
    stage: Stage,
) -> None:
    town, ref = stage.town, stage.dataset("stay")
    signed = town.issue("canary", [ref], attempts=1)
    wait_for(
        lambda: stage.found_in_workspaces() == {"canary stay"}, "the guest's work", timeout_s=ORDER_TIMEOUT_S
    )

    while_it_runs = (stage.found_on_disks(), stage.found_on_processes())
    stage.kill_everything(signed)
    after_the_kill = stage.found_on_disks()
    in_workspaces = stage.found_in_workspaces()
    stage.serve_containers()
    town.consortium.start(stage.hospital.agent)
    town.consortium.wait_until_ready([stage.hospital.agent])
    wait_for(
        lambda: not any(parse_folder_name(one.name) for one in stage.workspaces.iterdir()),
        "the sweep",
        timeout_s=ORDER_TIMEOUT_S,
    )

    assert while_it_runs == ([], [])
    assert after_the_kill == []
    assert in_workspaces == {"canary stay"}, "no key, and the data in the workspace only"
    assert stage.found_in_workspaces() == set()
    assert stage.found_on_disks() == []
    assert stage.found_on_processes() == []


def test_what_a_job_prints_or_calls_its_files_lies_on_no_disk_and_the_operator_reads_it(stage: Stage) -> None:
    town = stage.town
    orders = {what: town.issue("canary", [stage.dataset(what)], attempts=1) for what in ("end", "name")}
    for what, end in (("end", ReportState.DONE), ("name", ReportState.FAILED)):
        wait_for(lambda what=what, end=end: has(town, orders[what], end), what, timeout_s=ORDER_TIMEOUT_S)  # type: ignore[misc]

    assert stage.found_on_disks() == []
    assert stage.found_on_processes() == []
    assert stage.found_in_workspaces() == set()
    for what, order in orders.items():
        assert stage.secrets.by_name[f"canary {what}"].decode() in stage.printed(order)
    assert "refused output" in stage.printed(orders["name"])


def has(town: Town, order: SignedOrder, state: ReportState) -> bool:
    return any(report.state is state for report in town.reports(order))


def test_the_search_finds_what_lies_on_a_disk(stage: Stage) -> None:
    """Without this a search that is blind would prove everything."""
    stage.dataset("stay")
    canary = stage.secrets.by_name["canary stay"]
    planted = stage.town.consortium.folder / "planted"
    planted.write_bytes(bytes(9 << 20) + base64.b64encode(b"x" + canary))

    assert stage.found_on_disks() == [(str(planted), "canary stay")]
