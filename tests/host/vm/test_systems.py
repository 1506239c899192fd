"""A fresh Debian, booted under systemd: install.sh, then an order through the services, and what an operator does to them.

The tests of one Debian share one system, and go on from one another in the order in which they stand here. Minutes.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docs_blocks import blocks, script
from tests.host.vm.system import System, why_not

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parent.parent.parent.parent
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
    files_before: set[str]
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

    def leave(self) -> None:
        """The neighbours end, in good order; they are not systemd's, who would wait for them at a shutdown."""
        if self.neighbours is not None:
            self.neighbours.process.communicate()
            self.neighbours = None


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


# Where packages, their logs and their databases are, and what every boot makes anew.
NOT_COMPARED = (
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "mnt",
    "var/log",
    "var/cache",
    "var/lib/dpkg",
    "var/lib/apt",
)
# Copies that useradd keeps of the databases of users, and what belongs to packages without being in their lists.
OF_DATABASES = {
    f"/etc/{name}{end}"
    for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
    for end in ("", "-")
}
OF_PACKAGES = re.compile(
    r"/etc/(alternatives|ssl/certs|cni|python3|inputrc|containers|\.pwd\.lock|ld\.so\.cache)(/.*)?"
    r"|/etc/systemd/(system|user)/[a-z-]+\.(target|service)\.wants(/(?!dc-compute).*)?"
    r"|/usr/(lib|share|local/lib)/python3.*|/usr/s?bin/[^/]+|/usr/share/man/.*"
    r"|/var/lib/(containers|cni|python|polkit-1|private|dbus)(/.*)?"
    r"|/var/lib/systemd/(deb-systemd|catalog|linger$|timers|random-seed).*"
)


def files(system: System) -> set[str]:
    """Every path of the system, but where nothing is compared."""
    found = set()
    for folder, folders, names in os.walk(system.root):
        here = os.path.relpath(folder, system.root)
        folders[:] = [
            name
            for name in folders
            if os.path.normpath(f"{here}/{name}") not in NOT_COMPARED
            and not name.startswith("systemd-private-")
        ]
        found |= {os.path.normpath(f"/{here}/{name}") for name in (*folders, *names)}
    return found


def of_packages(system: System) -> set[str]:
    """Every path in the lists of installed packages; Debian's /lib is /usr/lib."""
    told = system.sh("cat /var/lib/dpkg/info/*.list").splitlines()
    return {*told, *(f"/usr{path}" for path in told if path.startswith(("/lib", "/bin", "/sbin")))}


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
        systemctl restart dc-compute-api dc-compute-worker
        """
    )
    town.ask(do="start")
    town.ask(do="supply")

    ended = town.ask(do="end", order=town.ask(do="order", guest="demo")["order"])

    assert (ended["state"], ended["receipts"], ended["alarms"]) == ("done", 5, 0)
    assert ended["attempts"] == [1] * 5
    assert len(ended["scores"]) == 1


# ------------------------------------------------------------------ what the services may and may not


def exposure(system: System, unit: str) -> tuple[float, list[str]]:
    """What `systemd-analyze security` says: the figure, and the names of the lines that add to it."""
    told = system.run("systemd-analyze", "security", "--no-pager", unit, is_checked=False).stdout
    (figure,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", told)
    return float(figure), re.findall(r"^✗ (\S+)", told, re.MULTILINE)


@pytest.mark.parametrize(("unit", "most"), [("dc-compute-api", 1.5), ("dc-compute-worker", 2.0)])
def test_the_exposure_is_held_and_each_line_that_adds_to_it_is_explained(
    stage: Stage, unit: str, most: float
) -> None:
    figure, lines = exposure(stage.system, f"{unit}.service")
    explained = (ROOT / "docs/operators.md").read_text().replace("\\|", "|")

    assert figure <= most, lines
    assert [line for line in lines if f"`{line}`" not in explained] == []


@pytest.mark.parametrize("unit", ["dc-compute-api", "dc-compute-worker"])
def test_a_service_has_its_key_as_a_credential_and_does_not_see_the_file(stage: Stage, unit: str) -> None:
    pid = main_pid(stage.system, unit)
    script = f"""
        cmp /run/credentials/{unit}.service/identity.key /var/lib/dc-compute/identity.pem && echo same
        wc -c </proc/{pid}/root/var/lib/dc-compute/identity.pem
    """

    assert stage.system.sh(script).split() == ["same", "0"]


def test_what_waits_for_systemd_255_is_said_in_a_drop_in_before_it(stage: Stage) -> None:
    version = int(re.findall(r"^systemd (\d+)", stage.system.sh("systemctl --version"))[0])
    kinds = stage.system.sh("systemctl show -P Type dc-compute-api dc-compute-worker").split()

    assert kinds == (["notify"] * 2 if version < 255 else ["notify-reload"] * 2)


def test_jobs_weigh_less_than_podman_and_services_more_than_either(stage: Stage) -> None:
    system = stage.system
    weights = system.sh("systemctl show -P CPUWeight dc.slice system.slice")
    jobs = system.sh(
        "XDG_RUNTIME_DIR=/run/user/$(id -u) systemctl --user show -P CPUWeight user.slice", user=USER
    )
    slices = system.sh("systemctl show -P Slice dc-compute-api dc-compute-worker")

    assert (weights.split()[0], jobs.strip()) == ("200", "20")
    assert slices.split() == ["dc-compute.slice"] * 2


# ------------------------------------------------------------------ restarts


def told_by(system: System, unit: str) -> str:
    """What this service logged since the boot, with every field of the journal."""
    return system.run("journalctl", "-b", "--no-pager", "-o", "json", "-u", unit).stdout


def main_pid(system: System, unit: str) -> int:
    return int(system.sh(f"systemctl show -P MainPID {unit}"))


def podman(system: System, *words: str) -> str:
    """What the Podman that runs the jobs answers."""
    command = ("podman", "--remote", "--url", "unix:///run/dc-compute/podman/podman.sock", *words)
    return system.run(
        *command, user=USER, env=("HOME=/var/lib/dc-compute",), is_checked=words[0] != "kill"
    ).stdout


def containers(system: System, order: str) -> list[str]:
    """The ids of the containers in which this order's tasks run now. A worker also has some to prove its cage."""
    podman = ("podman", "--remote", "--url", "unix:///run/dc-compute/podman/podman.sock", "ps", "--no-trunc")
    told = system.run(
        *podman, "--format", "{{.ID}} {{.Labels}}", user=USER, env=("HOME=/var/lib/dc-compute",)
    )
    return [line.split()[0] for line in told.stdout.splitlines() if order in line]


def begin(stage: Stage, seconds: float = 600) -> tuple[str, list[str]]:
    """An order whose training takes this long, unless it is told to end, and its container, which runs."""
    order = stage.settle().ask(do="order", guest="long", seconds=seconds)["order"]
    return order, running(stage.system, order)


def running(system: System, order: str) -> list[str]:
    """The container of this order, as soon as it runs."""
    deadline = time.monotonic() + 120
    while not (found := containers(system, order)):
        assert time.monotonic() < deadline, system.journal("dc-compute-worker")[-3000:]
        time.sleep(0.2)
    return found


def finish(stage: Stage, order: str) -> tuple[str, list[int]]:
    """Tell the training to end; how the order ended, and in which attempt."""
    (container,) = running(stage.system, order)
    while containers(stage.system, order):  # a guest that only begins does not listen yet
        podman(stage.system, "kill", "--signal", "USR1", container)
        time.sleep(0.5)
    return outcome(stage, order)


def outcome(stage: Stage, order: str) -> tuple[str, list[int]]:
    """How the order ended, and in which attempt."""
    told = stage.settle().ask(do="end", order=order)
    return told["state"], told["attempts"]


def test_nobody_is_refused_while_the_api_restarts(stage: Stage) -> None:
    system = stage.system
    caller = system.start("/opt/dc-compute/current/bin/python", "/mnt/given/src/tests/host/vm/hammer.py")
    assert caller.stdout is not None
    assert caller.stdout.readline() == "calling\n"

    pids = {main_pid(system, "dc-compute-api")}
    for _ in range(3):
        system.run("systemctl", "restart", "dc-compute-api")
        pids.add(main_pid(system, "dc-compute-api"))
    told = json.loads(caller.communicate()[0])

    assert len(pids) == 4
    for door in ("network", "operator"):
        assert told[door].get("refused", 0) == 0, told
        assert told[door]["answered"] > 20, told
        assert told[door].get("cut", 0) <= 2 * 3, (
            told
        )  # at most one of each of two callers at each of three stops


def test_a_reload_returns_when_the_files_were_read_and_restarts_nothing(stage: Stage) -> None:
    system, units = stage.system, ("dc-compute-api", "dc-compute-worker")
    before = [main_pid(system, unit) for unit in units]
    system.sh("sed -i 's/^\\[log\\]/&\\nlevel = \"debug\"/' /etc/dc-compute/agent.toml")

    system.run("systemctl", "reload", *units)
    deadline = time.monotonic() + 30  # before systemd 253 `systemctl reload` does not wait
    while not all('"service.reloaded"' in told_by(system, unit) for unit in units):
        assert time.monotonic() < deadline
        time.sleep(0.2)

    assert [main_pid(system, unit) for unit in units] == before
    assert system.sh("systemctl is-active dc-compute-api dc-compute-worker").split() == ["active"] * 2


@pytest.mark.parametrize("unit", ["dc-compute-api", "dc-compute-worker"])
def test_a_service_that_stands_still_is_killed_and_started_again(stage: Stage, unit: str) -> None:
    system = stage.system
    folder = f"/run/systemd/system/{unit}.service.d"
    system.sh(
        f"mkdir -p {folder}; printf '[Service]\nWatchdogSec=8s\n' >{folder}/quick.conf; systemctl daemon-reload"
    )
    system.run("systemctl", "restart", unit)
    before = main_pid(system, unit)

    system.sh(f"kill -STOP {before}")
    deadline = time.monotonic() + 60
    while main_pid(system, unit) in (0, before) and time.monotonic() < deadline:
        time.sleep(0.3)
    after = main_pid(system, unit)
    system.sh(f"rm -r {folder}; systemctl daemon-reload; systemctl restart {unit}")

    assert after not in (0, before)
    assert "watchdog" in system.journal(unit).lower()


def test_a_restart_of_the_worker_leaves_a_running_job_alone(stage: Stage) -> None:
    order, before = begin(stage)

    stage.system.run("systemctl", "restart", "dc-compute-worker")
    after = containers(stage.system, order)

    assert after == before
    assert finish(stage, order) == ("done", [1])


def test_an_upgrade_leaves_a_running_job_alone(stage: Stage) -> None:
    system = stage.system
    order, before = begin(stage)
    changed = system.given / "src/agent/__init__.py"
    changed.write_text(f"{changed.read_text()}# another version\n")

    system.run(*INSTALL, "--upgrade", "--offline", "/mnt/given/wheels")
    after, is_new = (
        containers(system, order),
        system.sh("tail -n 1 /opt/dc-compute/current/lib/python3*/site-packages/agent/__init__.py"),
    )

    assert "another version" in is_new
    assert after == before
    assert finish(stage, order) == ("done", [1])


def take_work_again(system: System) -> None:
    """Start the target, and return when its drain is over."""
    system.run("systemctl", "start", "dc-compute.target", "dc-compute-drain.service")

    assert json.loads(system.run("dc-compute", "status", "--json").stdout)["control"]["mode"] == "running"


def test_a_stop_of_the_target_drains(stage: Stage) -> None:
    system = stage.system
    order, _ = begin(stage, 8)

    system.run("systemctl", "stop", "dc-compute.target")
    left = containers(system, order)
    names = "dc-compute-api.socket dc-compute-api dc-compute-worker"
    deadline = time.monotonic() + 60  # what comes after the drain, systemctl does not wait for
    while (
        system.run("systemctl", "is-active", *names.split(), is_checked=False).stdout.split()
        != ["inactive"] * 3
    ):
        assert time.monotonic() < deadline, system.sh(f"systemctl status {names} || true")
        time.sleep(0.1)
    listening = system.sh(
        "ss -Hltn 'sport = :8443'; ss -Hlxn | grep -cw /run/dc-compute/operator.sock || true"
    ).split()
    take_work_again(system)

    assert left == []  # it ended within the deadline
    assert listening == ["0"]
    assert outcome(stage, order) == ("done", [1])


def test_a_drain_that_takes_too_long_lets_the_job_go_on_and_a_pause_of_somebody_s_stays(stage: Stage) -> None:
    system = stage.system
    drain = "drain --if-running --deadline 1 --reason 'systemd stops the services'"
    quick = f"[Service]\nExecStop=\nExecStop=-/opt/dc-compute/current/bin/dc-compute {drain}\n"
    folder = system.root / "etc/systemd/system/dc-compute-drain.service.d"
    (folder / "50-quick.conf").write_text(quick)
    system.run("systemctl", "daemon-reload")
    order, before = begin(stage)

    system.run("systemctl", "stop", "dc-compute.target")
    after = containers(system, order)
    take_work_again(system)
    system.run("dc-compute", "pause", "--reason", "the operator's own")
    system.run("systemctl", "restart", "dc-compute.target")
    mode = json.loads(system.run("dc-compute", "status", "--json").stdout)["control"]
    system.run("dc-compute", "resume")

    assert after == before
    assert (mode["mode"], mode["reason"]) == ("paused", "the operator's own")
    assert finish(stage, order) == ("done", [1])


# ------------------------------------------------------------------ reboots


def come_back(stage: Stage) -> None:
    """Boot again, with the neighbours."""
    stage.neighbours = None
    stage.system.boot()
    stage.settle().ask(do="start")


def test_an_order_interrupted_by_a_reboot_in_mid_training_ends_as_attempt_2(stage: Stage) -> None:
    order, _ = begin(stage)
    stage.leave()

    assert len(containers(stage.system, order)) == 1
    asked_at = time.monotonic()
    stage.system.run("systemctl", "reboot", is_checked=False)
    stage.system.wait_for_reboot()
    took_s = time.monotonic() - asked_at
    come_back(stage)

    assert finish(stage, order) == ("done", [2])
    assert took_s < 75  # the drain of a second, and no 90 of a job that ignores SIGTERM


def test_an_order_interrupted_by_a_power_cut_in_mid_training_ends_as_attempt_2(stage: Stage) -> None:
    order, _ = begin(stage)

    stage.system.cut_power()
    come_back(stage)

    assert finish(stage, order) == ("done", [2])
    states = stage.system.sh("systemctl is-active dc-compute.target dc-compute-api dc-compute-worker || true")
    assert states.split() == ["active"] * 3


# ------------------------------------------------------------------ what the documents say


def test_the_documents_commands_for_an_installed_host_run(stage: Stage) -> None:
    """As they stand there; a minimal Debian has no sudo, and the wheels lie where the test put them."""
    system = stage.system
    given = system.given / "src/build/wheelhouse"
    given.parent.mkdir(exist_ok=True)
    given.symlink_to("/mnt/given/wheels")

    said = system.sh(f'cd /mnt/given/src; sudo() {{ "$@"; }}\n{script("booted")}')
    shutil.rmtree(system.root / "etc/systemd/system/user@.service.d")
    system.run("systemctl", "daemon-reload")

    assert said.count("# docs/") == len(list(blocks("booted")))
    assert "cgroup2fs" in said


# ------------------------------------------------------------------ and away


def test_a_purge_leaves_the_files_that_were_there_but_for_packages_and_databases(stage: Stage) -> None:
    system = stage.system
    stage.leave()

    system.run(*INSTALL, "--uninstall", "--purge")
    shutil.rmtree(f"{system.root}{TOWN}", ignore_errors=True)
    left = files(system) - stage.files_before - of_packages(system) - OF_DATABASES
    left = {path for path in left if not OF_PACKAGES.fullmatch(path)}

    assert not left, "\n".join(sorted(left))
    assert stage.files_before - files(system) == set()
    assert system.run("id", USER, is_checked=False).returncode != 0
    assert USER not in system.sh("cat /etc/passwd /etc/subuid /etc/subgid; ls /var/lib/systemd/linger")
    assert system.sh("ps -eo comm").count("podman") == 0
