"""A stranger's image at a real agent: held, looked into by the operator's command, approved, run, and told in the receipt."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from agent.devkit.consortium import on_podman, running
from agent.devkit.waiting import wait_for
from agent.domain.reports import ReportState, envelope_bytes
from agent.trust.signed import open_receipt
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town
from tests.host.podman import Engine


@pytest.fixture
def town(engine: Engine) -> Iterator[Town]:
    for made in make_town(on_podman(engine.socket), ("A",), ()):
        policy = made.consortium.hospital("A").agent.folder / "policy.toml"
        policy.write_text("hold_unknown = true\n" + policy.read_text())
        yield made


def operator(town: Town, *words: str) -> Any:
    """What the operator's command prints as JSON."""
    home = town.consortium.hospital("A").agent.folder
    command = [sys.executable, "-m", "agent", "--home", str(home), *words, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_a_real_agent_asks_its_operator_before_it_loads_a_stranger(town: Town) -> None:
    image = town.image("noop")
    with running(town.consortium):
        town.bring("noop")
        signed = town.issue("noop", [town.dataset(town.consortium.hospital("A"))])
        wait_for(lambda: _is_read(town), "the image to be read", timeout_s=ORDER_TIMEOUT_S)

        view = operator(town, "held", image, "--files")
        loaded = operator(town, "image", "list")
        operator(town, "approve", image, "--reason", "read it")
        town.wait_for_result(signed)

        reports = town.reports(signed)
    assert image not in {one["digest"] for one in loaded}  # the guest of the self-test may be
    assert view["image"]["asked_by"][0]["order"] == signed.order.id
    assert view["image"]["description"]["about"]["entrypoint"][0] == "/usr/bin/python3"
    assert "opt/program/noop.py" in [entry["path"] for entry in view["files"]]
    assert [report.state for report in reports] == [ReportState.HELD, ReportState.STARTED, ReportState.DONE]
    receipt = reports[-1].receipt
    assert receipt is not None
    (use,) = open_receipt(envelope_bytes(receipt), town.consortium.roster).receipt.images
    assert (use.digest, use.approved is not None) == (image, True)
    assert town.consortium.book().alarms() == ()


def _is_read(town: Town) -> bool:
    held = operator(town, "held")["held"]
    return bool(held) and all(image["is_read"] for image in held[0]["images"])
