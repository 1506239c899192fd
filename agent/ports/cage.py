"""The cage as one description, which each adapter turns into its own form. Pure: no engine is asked here.

`asked_for` gives what must be seen once a container is made, and `cage_check.py` holds that against what is. What depends
on the host is in `EngineFacts`: which ceilings a cgroup can hold here, and what stands in where none can.
Source: docs/contracts/container.md, "The cage".
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from agent.domain.ceilings import Ceilings
from agent.errors import CageNotApplied
from agent.ports.cage_check import Asked, Bind
from agent.ports.runtime import RunSpec

MAP_SIZE = 65536  # ids of one container; images may own files as any of them
WORK_DIR = "/data"
HOSTNAME = "job"
OWN_ENV = {"HOME": "/tmp", "TMPDIR": "/tmp"}  # noqa: S108 - the container's own /tmp
SHM_BYTES = 64 << 20
CPU_PERIOD_US = 100_000
LEAST_DATA_BYTES, LEAST_PIDS, LEAST_FILES = 256 << 20, 16, 64
ORPHAN_GRACE_S = 60  # an agent kills at the wall clock ceiling; without one the engine does, this much later


class EngineFacts(Struct, frozen=True, kw_only=True):
    """What the engine and its host can do, as Podman tells it."""

    version: str  # of Podman and of the OCI runtime under it
    controllers: frozenset[str]  # cgroup v2 controllers that containers get; empty on cgroup v1
    id_count: int  # ids beside its own that the engine's user has
    hard_limits: Mapping[str, int]  # RLIMIT_* -> the highest value a container can get; absent: no bound


class StoredImage(Struct, frozen=True, kw_only=True):
    """What is remembered of a loaded image: `id` is Podman's, the digest of its config without "sha256:"."""

    id: str
    size_bytes: int
    entrypoint: tuple[str, ...]
    env: dict[str, str]


def map_pool(facts: EngineFacts, limit: int) -> range:
    """Numbers of the id maps that runs may have, at most `limit`; map n begins at `map_start(n)`.

    The lowest ids own the unpacked images' files in Podman's storage: they are used only when there are no others.
    Raises: CageNotApplied when there are too few ids for one map.
    """
    maps = facts.id_count // MAP_SIZE
    if maps == 0:
        raise CageNotApplied(
            f"the engine's user has {facts.id_count} subordinate ids, a container needs {MAP_SIZE}"
        )
    first = 1 if maps > 1 else 0
    return range(first, min(maps, first + limit))


def map_start(number: int) -> int:
    """The id in the engine's user namespace that is 0 in a container of this map. 0 there is the agent itself."""
    return 1 + number * MAP_SIZE


def absent_ceilings(facts: EngineFacts) -> tuple[str, ...]:
    """Ceilings that nothing enforces here, by field name. A process count has a stand-in that holds, memory has not:
    RLIMIT_DATA counts each process alone."""
    lacking = {"memory_bytes": "memory", "cpu_millis": "cpu"}
    return tuple(sorted(name for name, controller in lacking.items() if controller not in facts.controllers))


def rlimits(ceilings: Ceilings, facts: EngineFacts) -> dict[str, int]:
    """Soft and hard value by name; where the host's own hard limit is lower, that one.

    They bind the OCI runtime's own first process too: under the least values runc (by threads) or crun (by open files) could
    not make the cage.
    """
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": ceilings.output_bytes,
        "RLIMIT_NOFILE": max(ceilings.open_files, LEAST_FILES),
        "RLIMIT_NPROC": max(ceilings.pids, LEAST_PIDS),
    }
    if "memory" not in facts.controllers:
        wanted["RLIMIT_DATA"] = max(ceilings.memory_bytes, LEAST_DATA_BYTES)
    return {name: min(value, facts.hard_limits.get(name, value)) for name, value in wanted.items()}


def applied_ceilings(ceilings: Ceilings, facts: EngineFacts) -> dict[str, str]:
    """ "value by means" for each ceiling that is enforced, or has a stand-in, here. Units as in Ceilings."""
    limits = rlimits(ceilings, facts)
    applied = {
        "wall_s": f"{ceilings.wall_s} by agent",
        "open_files": f"{limits['RLIMIT_NOFILE']} by rlimit",
        "output_bytes": f"{limits['RLIMIT_FSIZE']} by rlimit",  # a file; the sum is judged at harvest
        "output_files": f"{ceilings.output_files} by agent",
        "log_bytes": f"{ceilings.log_bytes} by agent",
        "tmp_bytes": f"{ceilings.tmp_bytes} by tmpfs",
        "pids": f"{limits['RLIMIT_NPROC']} by rlimit",
    }
    if "RLIMIT_DATA" in limits:
        applied["memory_bytes"] = f"{limits['RLIMIT_DATA']} by rlimit"
    by_cgroup = {
        "memory": ("memory_bytes", ceilings.memory_bytes),
        "cpu": ("cpu_millis", ceilings.cpu_millis),
        "pids": ("pids", ceilings.pids),
    }
    for controller in facts.controllers & set(by_cgroup):
        name, value = by_cgroup[controller]
        applied[name] = f"{value} by cgroup"
    return applied


def asked_for(
    spec: RunSpec, image: StoredImage, number: int, seccomp: Mapping[str, Any], facts: EngineFacts
) -> Asked:
    """What must be seen once the container is made."""
    return Asked(
        args=image.entrypoint + spec.args,
        env=environment(image) | {"HOSTNAME": HOSTNAME},  # Podman adds that one
        work_dir=WORK_DIR,
        binds=tuple(Bind(str(mount.source), mount.target, mount.is_writable) for mount in spec.mounts),
        tmpfs=("/dev/shm", "/tmp"),  # noqa: S108
        rlimits=rlimits(spec.ceilings, facts),
        cgroup=cgroup_files(spec.ceilings, facts),
        seccomp=seccomp,
        map_start=map_start(number),
        map_size=MAP_SIZE,
    )


def environment(image: StoredImage) -> dict[str, str]:
    """The image's own variables by name, and ours over them. Nothing of the host's."""
    return image.env | OWN_ENV


def cgroup_files(ceilings: Ceilings, facts: EngineFacts) -> dict[str, str]:
    """What the cgroup's files must say, by file."""
    files: dict[str, str] = {}
    if "memory" in facts.controllers:
        files["memory.max"] = str(ceilings.memory_bytes // 4096 * 4096)  # the kernel rounds to pages
        files["memory.swap.max"] = "0"
    if "cpu" in facts.controllers:
        files["cpu.max"] = f"{cpu_quota_us(ceilings)} {CPU_PERIOD_US}"
    if "pids" in facts.controllers:
        files["pids.max"] = str(ceilings.pids)
    return files


def cpu_quota_us(ceilings: Ceilings) -> int:
    """Microseconds of CPU in each period of CPU_PERIOD_US."""
    return max(1000, ceilings.cpu_millis * CPU_PERIOD_US // 1000)  # the kernel takes none under a millisecond
