"""Tests in this folder run several real agents, storages and orchestrators, over HTTPS, with real containers."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.devkit.consortium import Consortium, Hospital, found, on_podman, on_runc
from agent.devkit.issuing import issue
from agent.devkit.podman_service import why_no_runc
from agent.devkit.trainings import fresh_dataset, training
from agent.devkit.waiting import wait_for
from agent.domain.ids import Digest
from agent.domain.orders import DatasetRef, SignedOrder
from agent.domain.reports import ReportBody, parse_report
from agent.selftest.images import build_image, program_layer, python_layer
from tests.host.podman import Engine, image_cache, open_engine

GUESTS = Path(__file__).parent / "guests"
GAPS = ("memory_bytes", "cpu_millis", "pids")
ORDER_TIMEOUT_S = 240.0


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The Podman service of this test process."""
    yield from open_engine()


@pytest.fixture(params=["podman", "runc"])
def runtime(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """What runs the jobs of a town's agents."""
    if request.param == "podman":
        engine: Engine = request.getfixturevalue("engine")
        return on_podman(engine.socket)
    if lacking := why_no_runc():
        pytest.skip(f"runc's containers need {lacking}")
    return on_runc()


@dataclass(frozen=True)
class Town:
    """A consortium with images at storage and datasets to order work on."""

    consortium: Consortium

    def image(self, guest: str) -> Digest:
        """The image of a guest program of this folder: its digest. `bring` takes it to storage."""
        return guest_image(guest)[1]

    def bring(self, guest: str) -> None:
        """Put the image of this guest program on storage."""
        self.consortium.publish_image(guest_image(guest)[0])

    def dataset(self, hospital: Hospital, content: bytes = b"a,target\n1,0\n") -> DatasetRef:
        """A fresh sealed dataset at this hospital, for training."""
        return fresh_dataset(self.consortium, hospital, content)

    def issue(self, guest: str, datasets: list[DatasetRef], *, attempts: int = 3) -> SignedOrder:
        """A learnuplet without a test, signed and sent by the first orchestrator."""
        orchestrator = self.consortium.orchestrators[0]
        order = training(orchestrator.key.keyid, self.image(guest), datasets, attempts=attempts)
        return issue(order, self.consortium.book(), self.consortium.client(orchestrator))

    def reports(self, signed: SignedOrder) -> list[ReportBody]:
        """What was told of this order so far."""
        return [parse_report(body) for body in self.consortium.book().reports(signed.order.id)]

    def wait_for_result(self, signed: SignedOrder) -> None:
        """Return when the order's result is with its orchestrator."""
        book = self.consortium.book()
        what = f"the result of {signed.order.id}"
        wait_for(lambda: book.result(signed.order.id) is not None, what, timeout_s=ORDER_TIMEOUT_S)


def make_town(runtime: Mapping[str, str], names: tuple[str, ...], guests: tuple[str, ...]) -> Iterator[Town]:
    """A consortium of these hospitals, not started, whose policies admit these guests; gone with the test."""
    folder = Path(tempfile.mkdtemp(prefix="dcc-town-", dir=image_cache().parent))
    memory = Path(tempfile.mkdtemp(prefix="dct-", dir=os.environ["XDG_RUNTIME_DIR"]))
    try:
        consortium = found(folder / "t", names, runtime=runtime, memory=memory)
        town = Town(consortium)
        consortium.admit([town.image(guest) for guest in guests], accept_missing=GAPS)
        yield town
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(memory, ignore_errors=True)


def guest_image(guest: str) -> tuple[Path, Digest]:
    cache = image_cache()
    archive = cache / f"chain-{guest}-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}.tar"
    inside = f"/opt/program/{guest}.py"
    layers = [python_layer(cache), program_layer(cache, {inside: (GUESTS / f"{guest}.py").read_bytes()})]
    return archive, build_image(archive, layers=layers, entrypoint=["/usr/bin/python3", "-u", inside])
