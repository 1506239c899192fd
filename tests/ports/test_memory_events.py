"""What a container's accounts tell, read from made-up cgroup folders. Real ones: tests/host/test_cgroup_v2.py."""

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.ports.memory_events import MemoryEvents, ends_within

SCOPE = "user.slice/user-995.slice/user@995.service/user.slice/libpod-1.scope"
V2_FILES = {
    "memory.max": "67108864\n",
    "memory.events": "low 0\nhigh 0\nmax 9\noom 0\noom_kill 0\noom_group_kill 0\n",
    "memory.peak": "4096\n",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
}
V1_FILES = {
    "memory/a/job/memory.limit_in_bytes": "67108864\n",
    "memory/a/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    "memory/a/job/memory.max_usage_in_bytes": "8192\n",
    "cpuacct/a/job/cpuacct.usage": "2500000000\n",
}
V1_MEMBERSHIP = "5:memory:/a/job\n4:cpuacct:/a/job\n2:pids:/a/job\n0::/\n"


class Host:
    """/proc and /sys/fs/cgroup of one container, process 7, and of this process."""

    def __init__(self, root: Path, membership: str, own: str) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.cgroups.mkdir(parents=True)
        for name, text in (("7", membership), ("self", own)):
            (self.proc / name).mkdir(parents=True)
            (self.proc / name / "cgroup").write_text(text)

    def write(self, files: dict[str, str], below: str = "") -> None:
        for name, text in files.items():
            path = self.cgroups / below / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def open(self) -> MemoryEvents:
        return MemoryEvents(7, proc=self.proc, cgroups=self.cgroups)


@pytest.fixture
def v2(tmp_path: Path) -> Host:
    """crun's way: the process one level below the cgroup that has the limit."""
    host = Host(tmp_path, f"0::/{SCOPE}/container\n", "0::/system.slice/dc-compute-worker.service\n")
    host.write(V2_FILES, SCOPE)
    host.write(V2_FILES | {"memory.max": "max\n", "memory.peak": "1\n"}, f"{SCOPE}/container")
    return host


@pytest.fixture
def v1(tmp_path: Path) -> Host:
    host = Host(tmp_path, V1_MEMBERSHIP, "5:memory:/\n4:cpuacct:/\n0::/\n")
    host.write(V1_FILES)
    return host


def test_the_accounts_are_those_of_the_cgroup_that_has_the_limit(v2: Host) -> None:
    memory = v2.open()

    assert (memory.was_out_of_memory(), memory.peak_bytes, memory.cpu_s) == (False, 4096, 1.5)
    assert memory.descriptor is not None
    memory.close()


def test_a_kill_for_memory_is_told_after_the_next_reading(v2: Host) -> None:
    memory = v2.open()

    v2.write({"memory.events": "oom 1\noom_kill 1\n", "memory.peak": "67108864\n"}, SCOPE)
    memory.update()

    assert (memory.was_out_of_memory(), memory.peak_bytes) == (True, 67108864)
    memory.close()


@pytest.mark.parametrize("line", ["oom 3", "max 3", "oom_group_kill 3"])
def test_reaching_the_ceiling_alone_is_no_kill(v2: Host, line: str) -> None:
    v2.write({"memory.events": f"{line}\noom_kill 0\n"}, SCOPE)
    memory = v2.open()

    assert not memory.was_out_of_memory()
    memory.close()


def test_what_was_read_stays_when_the_files_are_closed(v2: Host) -> None:
    v2.write({"memory.events": "oom_kill 2\n"}, SCOPE)
    memory = v2.open()

    memory.close()
    memory.close()
    memory.update()

    assert (memory.was_out_of_memory(), memory.peak_bytes, memory.cpu_s) == (True, 4096, 1.5)
    assert memory.descriptor is None


def test_a_kernel_without_a_peak_tells_the_rest(v2: Host) -> None:
    (v2.cgroups / SCOPE / "memory.peak").unlink()
    memory = v2.open()

    assert (memory.peak_bytes, memory.cpu_s) == (None, 1.5)
    memory.close()


def test_cgroup_v1_tells_the_same_from_its_own_files(v1: Host) -> None:
    memory = v1.open()
    assert (memory.was_out_of_memory(), memory.peak_bytes, memory.cpu_s) == (False, 8192, 2.5)

    v1.write({"memory/a/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"})
    memory.update()

    assert memory.was_out_of_memory()
    memory.close()


# Rootless Podman on cgroup v1: the container lies in the cgroup of who called, and that one's accounts are of others too.
@pytest.mark.parametrize(
    ("membership", "own"),
    [
        ("5:memory:/a/job\n4:cpuacct:/a/job\n", "5:memory:/a/job\n4:cpuacct:/a/job\n"),
        ("5:memory:/a/job\n4:cpuacct:/a/job\n", "5:memory:/a/job/below\n4:cpuacct:/a/job/below\n"),
        ("5:memory:/\n4:cpuacct:/\n0::/\n", "5:memory:/\n4:cpuacct:/\n0::/\n"),
        ("5:memory:/../elsewhere\n4:cpuacct:/../elsewhere\n", "5:memory:/\n4:cpuacct:/\n"),
    ],
)
def test_a_cgroup_that_is_not_the_container_s_alone_tells_nothing(
    tmp_path: Path, membership: str, own: str
) -> None:
    host = Host(tmp_path, membership, own)
    host.write({name: text.replace("oom_kill 0", "oom_kill 5") for name, text in V1_FILES.items()})

    memory = host.open()

    assert (memory.was_out_of_memory(), memory.peak_bytes, memory.cpu_s) == (False, None, None)
    assert memory.descriptor is None
    memory.close()


def test_a_limit_further_up_is_not_the_container_s(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/user.slice/a/scope/container\n", "0::/system.slice/worker\n")
    host.write({"memory.max": "4096\n", "memory.events": "oom_kill 5\n"}, "user.slice")
    host.write(V2_FILES | {"memory.max": "max\n"}, "user.slice/a/scope/container")

    memory = host.open()

    assert (memory.was_out_of_memory(), memory.cpu_s) == (False, 1.5)
    memory.close()


def test_on_cgroup_v1_no_limit_is_none(v1: Host) -> None:
    v1.write({"memory/a/job/memory.limit_in_bytes": "9223372036854771712\n"})
    v1.write({"memory/a/job/memory.oom_control": "oom_kill 1\n"})

    memory = v1.open()

    assert not memory.was_out_of_memory()
    memory.close()


def test_a_process_that_is_gone_is_told(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/\n", "0::/\n")

    with pytest.raises(FileNotFoundError):
        MemoryEvents(8, proc=host.proc, cgroups=host.cgroups)


# ------------------------------------------------------------------ waiting


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_the_end_is_seen_and_the_accounts_read_after_it(v2: Host, sleeper: subprocess.Popen[bytes]) -> None:
    memory, pidfd = v2.open(), os.pidfd_open(sleeper.pid)
    v2.write({"memory.events": "oom_kill 1\n"}, SCOPE)

    sleeper.kill()

    assert ends_within(pidfd, memory, 30)
    assert memory.was_out_of_memory()
    os.close(pidfd)
    memory.close()


def test_a_process_that_lives_on_is_not_waited_for_longer(v2: Host, sleeper: subprocess.Popen[bytes]) -> None:
    memory, pidfd = v2.open(), os.pidfd_open(sleeper.pid)

    assert not ends_within(pidfd, memory, 0.05)
    os.close(pidfd)
    memory.close()


def test_a_rung_bell_is_silent_again_after_the_reading(v1: Host) -> None:
    memory = v1.open()
    assert memory.descriptor is not None
    os.eventfd_write(memory.descriptor, 1)  # as the kernel does

    memory.update()

    poll = select.poll()
    poll.register(memory.descriptor, memory.mask)
    assert poll.poll(0) == []
    memory.close()


# ------------------------------------------------------------------ the kernel's own


BOMB = "import sys; sys.stdin.read(1); kept = [bytearray(1 << 20) for _ in range(256)]"


@pytest.fixture
def real_v1() -> Iterator[Path]:
    root = Path("/sys/fs/cgroup/memory")
    if not os.access(root, os.W_OK):
        pytest.skip("a memory cgroup of v1 to write in needs root on a host with cgroup v1")
    folder = root / f"dc-compute-test-{os.getpid()}"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(64 << 20))
    yield folder
    folder.rmdir()


@pytest.mark.host
def test_the_kernel_s_kill_on_cgroup_v1_rings_and_is_told(real_v1: Path) -> None:
    with subprocess.Popen(["python3", "-c", BOMB], stdin=subprocess.PIPE) as process:
        (real_v1 / "cgroup.procs").write_text(str(process.pid))
        memory, pidfd = MemoryEvents(process.pid), os.pidfd_open(process.pid)
        assert memory.descriptor is not None
        bell = select.poll()
        bell.register(memory.descriptor, memory.mask)

        process.communicate(b"x")
        rang = bell.poll(0)

        assert ends_within(pidfd, memory, 30)
        assert (rang != [], memory.was_out_of_memory(), process.returncode) == (True, True, -9)
        assert (memory.peak_bytes or 0) > 60 << 20
        os.close(pidfd)
        memory.close()
