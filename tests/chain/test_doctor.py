"""The doctor beside a real consortium: real Podman, real servers over TLS, and then one thing after the other goes wrong."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from agent.devkit.consortium import Party, on_podman, running
from tests.chain.conftest import GAPS, Town, make_town
from tests.host.podman import PLANTED, Engine

pytestmark = [pytest.mark.chain, pytest.mark.host, pytest.mark.xdist_group("chain")]


@pytest.fixture(scope="module")
def town(engine: Engine) -> Iterator[Town]:
    for made in make_town(on_podman(engine.socket), ("A", "B"), ("noop",)):
        with running(made.consortium):
            yield made


@dataclass(frozen=True)
class Told:
    """What the doctor of hospital A said."""

    code: int
    out: str

    @property
    def checks(self) -> dict[tuple[str, str], Any]:
        return {(check["group"], check["name"]): check for check in json.loads(self.out)["checks"]}

    @property
    def failing(self) -> set[tuple[str, str]]:
        return {name for name, check in self.checks.items() if check["state"] == "fail"}


def ask(town: Town, *flags: str) -> Told:
    home = town.consortium.hospital("A").agent.folder
    done = subprocess.run(
        [sys.executable, "-m", "agent", "--home", str(home), "doctor", "--quick", *flags],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return Told(done.returncode, done.stdout)


@pytest.fixture(scope="module")
def of_the_host(town: Town) -> set[tuple[str, str]]:
    """What fails on this host whatever the consortium does: swap that is not encrypted, say."""
    return ask(town, "--json").failing


def away(town: Town, party: Party) -> Told:
    """What is said while this party does not run."""
    town.consortium.stop(party)
    try:
        return ask(town, "--json")
    finally:
        town.consortium.start(party)
        town.consortium.wait_until_ready([party])


def test_nothing_of_a_consortium_that_runs_fails(of_the_host: set[tuple[str, str]]) -> None:
    assert {group for group, _ in of_the_host} <= {"versions", "user ids", "memory", "disk", "units"}


def test_hostile_code_is_run_in_the_cage_of_every_engine(town: Town) -> None:
    checks = ask(town, "--json").checks

    told = {name: check["seen"] for (group, name), check in checks.items() if group == "selftest"}
    assert "attempts of hostile code, none succeeded" in told["podman"]
    assert set(told) <= {"podman", "runc"}


def test_it_says_the_same_to_people(town: Town, of_the_host: set[tuple[str, str]]) -> None:
    told = ask(town)

    assert told.code == (1 if of_the_host else 0)
    assert "\n  ok    storage driver  overlay\n" in told.out
    assert told.out.splitlines()[-1].startswith(f"{len(of_the_host)} failed, ")


def test_everybody_is_asked_and_their_clocks_compared(town: Town) -> None:
    checks = ask(town, "--json").checks

    names = {"storage storage-A", "orchestrator orchestrator-1", "orchestrator orchestrator-2", "agent B"}
    assert {name for group, name in checks if group == "reach"} == names | {"own address"}
    assert {name for group, name in checks if group == "clock"} == {f"against {one}" for one in names} | {
        "synchronised"
    }


@pytest.mark.parametrize("who", ["storage", "orchestrator", "peer"])
def test_who_does_not_answer_fails_with_name_and_address(
    town: Town, who: str, of_the_host: set[tuple[str, str]]
) -> None:
    consortium = town.consortium
    party, name = {
        "storage": (consortium.hospital("A").storage, "storage storage-A"),
        "orchestrator": (consortium.orchestrators[1], "orchestrator orchestrator-2"),
        "peer": (consortium.hospital("B").agent, "agent B"),
    }[who]

    told = away(town, party)

    assert told.code == 1
    assert told.failing - of_the_host == {("reach", name)}
    assert party.url in told.checks["reach", name]["seen"]


def test_a_ceiling_that_nothing_holds_fails_unless_the_policy_names_it(
    town: Town, of_the_host: set[tuple[str, str]]
) -> None:
    lines = ask(town, "--json").checks
    absent = {
        name for name, check in lines.items() if name[0] == "ceilings" and check["seen"].startswith("absent")
    }
    if not absent:
        pytest.skip("this host holds every ceiling: none is absent")
    town.consortium.admit([town.image("noop")], accept_missing=[])

    try:
        told = ask(town, "--json")
    finally:
        town.consortium.admit([town.image("noop")], accept_missing=GAPS)

    assert all(lines[name]["state"] == "warn" for name in absent)
    assert told.failing - of_the_host == absent
    assert told.code == 1


def test_a_variable_of_podmans_service_is_named_and_its_value_is_not(town: Town) -> None:
    told = ask(town, "--json")

    found = told.checks["podman", "environment"]
    assert found["state"] == "warn"
    assert PLANTED in found["seen"]
    assert "swordfish" not in told.out


def test_a_certificate_for_another_host_fails(town: Town) -> None:
    folder = town.consortium.hospital("A").agent.folder
    path = folder / "roster.toml"
    before = path.read_text()
    own = town.consortium.hospital("A").agent.url
    path.write_text(before.replace(own, own.replace("127.0.0.1", "localhost")))

    try:
        told = ask(town, "--json")
    finally:
        path.write_text(before)

    assert ("trust", "certificate names") in told.failing
