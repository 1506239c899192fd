"""A fresh Debian, booted under systemd: install.sh, then an order through the services, and what an operator does to them.

The tests of one Debian share one system, and go on from one another in the order in which they stand here. Minutes.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.host.vm.system import System, why_not

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]

SUITES = ("bookworm", "trixie")
INSTALL = ("sh", "/mnt/given/src/install.sh")
OFFLINE = ("PIP_NO_INDEX=1", "PIP_FIND_LINKS=/mnt/given/wheels", "UV_CONFIG_FILE=/mnt/offline.toml")
UV_OFFLINE = "no-index = true\nfind-links = ['/mnt/given/wheels']\n"
TOWN, USER = "/var/lib/dc-compute-town", "dc-compute"


@dataclass
class Neighbours:
    """The other parties of the consortium, in the same system: see neighbours.py."""

    process: subprocess.Popen[str]

    def ask(self, **told: Any) -> Any:
        """What they answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            assert self.process.stderr is not None
            pytest.fail(f"the neighbours ended at {told}\n{self.process.stderr.read()[-4000:]}")
        return json.loads(line)


@dataclass
class Stage:
    """An installed system, and who lives beside it."""

    system: System
    files_before: dict[str, str]
    said: str
    neighbours: Neighbours | None = None

    def settle(self) -> Neighbours:
        """The neighbours, started; after a boot anew."""
        if self.neighbours is None or self.neighbours.process.poll() is not None:
            env = ("HOME=/var/lib/dc-compute-town", "PYTHONDONTWRITEBYTECODE=1")
            script = (
                "cd /mnt/given/src && exec /opt/dc-compute/current/bin/python -m tests.host.vm.neighbours"
            )
            self.system.sh(f"install -d -o {USER} -g {USER} -m 0700 {TOWN} /run/dc-compute-town")
            self.neighbours = Neighbours(self.system.start("sh", "-c", script, user=USER, env=env))
        return self.neighbours


@pytest.fixture(scope="module", params=SUITES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    lacking = why_not()
    if lacking:
        pytest.skip(f"a system under systemd needs {lacking}")
    with System.made(request.param) as system:
        system.boot()
        (system.root / "mnt/offline.toml").write_text(UV_OFFLINE + "[pip]\n" + UV_OFFLINE)
        prepare_for_this_host(system)
        before = files(system)
        said = system.run(*INSTALL, env=OFFLINE)
        yield Stage(system, before, said.stdout)


def prepare_for_this_host(system: System) -> None:
    """Podman asks for a pids ceiling by itself, which crun refuses where the host's kernel gives a container no controller."""
    if "pids" not in (system.sh("cat /sys/fs/cgroup/cgroup.controllers")).split():
        folder = system.root / "etc/containers/containers.conf.d"
        folder.mkdir(parents=True)
        (folder / "50-no-controllers.conf").write_text("[containers]\npids_limit = 0\n")


def files(system: System) -> dict[str, str]:
    return {}


def test_install_starts_both_services(stage: Stage) -> None:
    states = stage.system.sh("systemctl is-active dc-compute.target dc-compute-api dc-compute-worker || true")

    assert states.split() == ["active"] * 3
    assert "state: active (api), active (worker)" in stage.said


def test_an_order_runs_through_the_services_over_three_hospitals(stage: Stage) -> None:
    town, system = stage.settle(), stage.system
    town.ask(do="found")
    system.sh(
        f"""
        install -m 0640 -o root -g {USER} -t /etc/dc-compute {TOWN}/t/agent-A/roster.toml {TOWN}/t/agent-A/policy.toml
        install -m 0600 -o {USER} -g {USER} -t /var/lib/dc-compute {TOWN}/t/agent-A/tls.crt {TOWN}/t/agent-A/tls.key
        sed -i -e 's/^# max_model_bytes = .*/max_model_bytes = 67108864/' -e 's/^# lease_s = .*/lease_s = 15/' \
            -e 's/^# low_disk_bytes = .*/low_disk_bytes = 268435456/' /etc/dc-compute/agent.toml
        systemctl restart dc-compute.target
        """
    )
    town.ask(do="start")
    town.ask(do="supply")

    ended = town.ask(do="end", order=town.ask(do="order", guest="demo")["order"])

    assert (ended["state"], ended["receipts"], ended["alarms"]) == ("done", 5, 0)
    assert ended["attempts"] == [1] * 5
    assert len(ended["scores"]) == 1
