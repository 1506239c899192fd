"""The cage as one description, which each adapter turns into its own form. Pure: no engine is asked here.

`asked_for` gives what must be seen once a container is made, and `cage_check.py` holds that against what is. What depends
on the host is in `EngineFacts`: which ceilings a cgroup can hold here, and what stands in where none can.
Source: docs/contracts/container.md, "The cage".
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest, digest_of
from agent.errors import BadOutput, CageNotApplied
from agent.ports.cage_check import PAGE_BYTES, Asked, Bind
from agent.ports.runtime import Cage, Enforcement, RunKind, RunSpec, runs_outputs

MAP_SIZE = 65536  # ids of one container; images may own files as any of them
WORK_DIR = "/data"
HOSTNAME = "job"
UMASK = 0o077
OWN_ENV = {"HOME": "/tmp", "TMPDIR": "/tmp"}  # noqa: S108 - the container's own /tmp
SHM_BYTES = 64 << 20
TMP_INODES = 16_384  # each takes the kernel about a kilobyte, which is no page of the tmpfs
CPU_PERIOD_US = 100_000
LEAST_DATA_BYTES, LEAST_PIDS, LEAST_FILES = 256 << 20, 16, 64
BESIDE_PIDS = 4096  # under crun the rlimit counts Podman's threads and every other container along
LONGEST_TIMEOUT_S = 4_000_000  # conmon counts milliseconds in 32 bits
ORPHAN_GRACE_S = 60  # an agent kills at the wall clock ceiling; without one the engine does, this much later


class EngineFacts(Struct, frozen=True, kw_only=True):
    """What the engine and its host can do, as Podman tells it."""

    version: str  # of Podman and of the OCI runtime under it
    controllers: frozenset[str]  # of cgroups, that containers get; empty where the agent was given none
    id_count: int  # ids beside its own that the engine's user has
    hard_limits: Mapping[str, int]  # RLIMIT_* -> the highest value a container can get; absent: no bound
    cgroup_version: int = 2
    tmp_inodes: int = 0  # how many files /tmp and /dev/shm may have each; 0: the engine sets no number


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


def every_map(facts: EngineFacts) -> int:
    """How many id maps this user's ids make, as a limit for `map_pool`."""
    return facts.id_count // MAP_SIZE


def map_start(number: int) -> int:
    """The id in the engine's user namespace that is 0 in a container of this map. 0 there is the agent itself."""
    return 1 + number * MAP_SIZE


def absent_ceilings(facts: EngineFacts) -> tuple[str, ...]:
    """Ceilings that nothing enforces here, by field name. A process count has a stand-in that holds, memory has not:
    RLIMIT_DATA counts each process alone."""
    lacking = {"memory_bytes": "memory", "cpu_millis": "cpu"}
    return tuple(sorted(name for name, controller in lacking.items() if controller not in facts.controllers))


def refuse_missing(facts: EngineFacts, accepted: frozenset[str]) -> None:
    """Raises: CageNotApplied when nothing enforces a ceiling here whose absence the policy does not accept."""
    missing = set(absent_ceilings(facts)) - accepted
    if missing:
        raise CageNotApplied(f"this host cannot enforce: {', '.join(sorted(missing))}")


def enforcement(facts: EngineFacts, ceilings: Ceilings) -> Enforcement:
    """What would hold these ceilings."""
    applied = applied_ceilings(ceilings, facts)
    means = {name: told.partition(" by ")[2] for name, told in applied.items()}
    return Enforcement(version=facts.version, means=means, absent=absent_ceilings(facts))


def rlimits(ceilings: Ceilings, facts: EngineFacts) -> dict[str, int]:
    """Soft and hard value by name; where the host's own hard limit is lower, that one.

    They bind the OCI runtime's own first process too: under the least values runc (by threads) or crun (by open files) could
    not make the cage. crun sets them before it enters the container's user namespace, so the number of processes is then
    counted together with all else that Podman runs: where a cgroup holds this container's own number, the rlimit is wide.
    """
    pids = max(ceilings.pids, LEAST_PIDS)
    wanted = {
        "RLIMIT_CORE": 1,  # 0 keeps no core from a handler that core_pattern pipes to; 1 does, and is too small for a file
        "RLIMIT_FSIZE": ceilings.output_bytes,
        "RLIMIT_NOFILE": max(ceilings.open_files, LEAST_FILES),
        "RLIMIT_NPROC": pids + BESIDE_PIDS if "pids" in facts.controllers else pids,
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
        "output_bytes": f"{limits['RLIMIT_FSIZE']} by rlimit and watcher",  # a file by the one, the sum by the other
        "output_files": f"{ceilings.output_files} by watcher",
        "log_bytes": f"{ceilings.log_bytes} by agent",
        "tmp_bytes": f"{ceilings.tmp_bytes} by tmpfs"
        + (f" of {facts.tmp_inodes} inodes" if facts.tmp_inodes else ""),
        "pids": f"{limits['RLIMIT_NPROC']} by rlimit",
    }
    if "RLIMIT_DATA" in limits:
        # each process by the one, all of them by the other, and neither for certain
        applied["memory_bytes"] = f"{limits['RLIMIT_DATA']} by rlimit and watcher"
    by_cgroup = {
        "memory": ("memory_bytes", ceilings.memory_bytes),
        "cpu": ("cpu_millis", ceilings.cpu_millis),
        "pids": ("pids", ceilings.pids),
    }
    for controller in facts.controllers & set(by_cgroup):
        name, value = by_cgroup[controller]
        applied[name] = f"{value} by cgroup"
    return applied


def applied(runtime: str, spec: RunSpec, facts: EngineFacts, seccomp: Digest) -> Cage:
    """What a receipt tells of a run whose cage was read back and found right."""
    return Cage(
        runtime=runtime,
        version=facts.version,
        seccomp=seccomp,
        ceilings=applied_ceilings(spec.ceilings, facts),
        absent=absent_ceilings(facts),
    )


def asked_for(
    spec: RunSpec, image: StoredImage, number: int, seccomp: Mapping[str, Any], facts: EngineFacts
) -> Asked:
    """What must be seen once the container is made."""
    return Asked(
        args=image.entrypoint + spec.args,
        env=environment(image) | {"HOSTNAME": HOSTNAME},  # Podman adds that one
        work_dir=WORK_DIR,
        binds=tuple(Bind(str(mount.source), mount.target, mount.is_writable) for mount in spec.mounts),
        tmpfs={"/dev/shm": shm_bytes(spec.ceilings), "/tmp": spec.ceilings.tmp_bytes},  # noqa: S108
        hostname=HOSTNAME,
        umask=UMASK,
        rlimits=rlimits(spec.ceilings, facts),
        cgroup=cgroup_files(spec.ceilings, facts),
        seccomp=seccomp,
        map_start=map_start(number),
        map_size=MAP_SIZE,
        runs_outputs=runs_outputs(facts.version),
    )


def shm_bytes(ceilings: Ceilings) -> int:
    """The most bytes of /dev/shm."""
    return min(SHM_BYTES, ceilings.tmp_bytes)


def environment(image: StoredImage) -> dict[str, str]:
    """The image's own variables by name, and ours over them. Nothing of the host's."""
    return image.env | OWN_ENV


def cgroup_files(ceilings: Ceilings, facts: EngineFacts) -> dict[str, str]:
    """What the cgroup's files must say, by file; on cgroup v1 with the controller before it."""
    memory = str(ceilings.memory_bytes // PAGE_BYTES * PAGE_BYTES)  # the kernel rounds to pages
    quota, period = str(cpu_quota_us(ceilings)), str(CPU_PERIOD_US)
    on_v1 = {
        "memory": {"memory/memory.limit_in_bytes": memory, "memory/memory.memsw.limit_in_bytes": memory},
        "cpu": {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": period},
        "pids": {"pids/pids.max": str(ceilings.pids)},
    }
    on_v2 = {
        "memory": {"memory.max": memory, "memory.swap.max": "0"},
        "cpu": {"cpu.max": f"{quota} {period}"},
        "pids": {"pids.max": str(ceilings.pids)},
    }
    table = on_v1 if facts.cgroup_version == 1 else on_v2
    return {name: value for key in facts.controllers & set(table) for name, value in table[key].items()}


def cpu_quota_us(ceilings: Ceilings) -> int:
    """Microseconds of CPU in each period of CPU_PERIOD_US."""
    return max(1000, ceilings.cpu_millis * CPU_PERIOD_US // 1000)  # the kernel takes none under a millisecond


def read_seccomp(folder: Path, kind: RunKind) -> tuple[Mapping[str, Any], Digest]:
    """The shipped profile for a kind of run, and its digest. Raises: CageNotApplied."""
    path = folder / f"{kind}.json"
    try:
        content = path.read_bytes()
        return json.loads(content), digest_of(content)
    except (OSError, ValueError) as cause:
        raise CageNotApplied(f"the seccomp profile {path} cannot be read: {cause}") from cause


def judge_reclaimed(told: Mapping[str, Any]) -> None:
    """What `reclaim` found. Raises: BadOutput for a set-id file (its bits are cleared), or folders too deep (lifted out)."""
    if told["set_id"] is not None:
        raise BadOutput(f"{told['set_id']!r:.120} was left with a set-id bit")
    if told["is_deep"]:
        raise BadOutput("folders were left that lie too deep")


def hard_limits(pid: int) -> dict[str, int]:
    """The hard limits of a process as RLIMIT_* -> value; those without a bound are left out. Raises: OSError."""
    names = {"RLIMIT_NOFILE": "open files", "RLIMIT_NPROC": "processes", "RLIMIT_FSIZE": "file size"}
    names |= {"RLIMIT_DATA": "data size"}
    text = Path(f"/proc/{pid}/limits").read_text()
    found = {}
    for name, words in names.items():
        match = re.search(rf"^Max {words} +\S+ +([0-9]+)", text, flags=re.MULTILINE)
        if match:
            found[name] = int(match[1])
    return found
