"""Where plaintext lies while a task runs: a folder in memory, which no swap carries to a disk.

Source: docs/operators.md, "Before you install".
"""

from collections.abc import Sequence

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown, gib
from agent.domain.ceilings import Ceilings
from agent.domain.file_systems import IN_MEMORY

GROUP = Group("memory")

NOSWAP_SINCE = "6.4"


class Swap(Struct, frozen=True):
    """A line of /proc/swaps. `keeps_in`: "memory" for zram without a disk behind it, "encrypted" for dm-crypt, else "disk"."""

    path: str
    keeps_in: str | Unknown


class Workspace(Struct, frozen=True, kw_only=True):
    """The file system of the workspaces' folder, or of the nearest folder above it that is there."""

    root: str
    exists: bool
    mount_point: str
    file_system: str
    options: Sequence[str]
    size_bytes: int
    free_bytes: int


class Memory(Struct, frozen=True, kw_only=True):
    """What is there. `total_bytes`: of the host; `uid`, `gid`: of the agent's user. `runs`: where the engine keeps what guests
    say while they run, None where it keeps that nowhere.
    """

    uid: int
    gid: int
    total_bytes: int | Unknown
    swaps: tuple[Swap, ...] | Unknown
    workspace: Workspace | Unknown
    runs: Workspace | Unknown | None = None


def judge(facts: Memory, ceilings: Ceilings | None, max_model_bytes: int) -> list[Check]:
    """`ceilings`: the most that the policy gives one task, None when there is no policy that can be read."""
    lines = [*_swaps(facts), *_runs(facts)]
    workspace = facts.workspace
    if isinstance(workspace, Unknown):
        return [*lines, GROUP.unknown("workspace", workspace)]
    lines.append(_workspace(workspace, facts))
    if workspace.file_system in IN_MEMORY:
        lines += [
            _room(workspace, facts, ceilings, max_model_bytes),
            *_shared(workspace),
            _noswap(workspace, facts),
        ]
    return [*lines, *_host(workspace, facts, ceilings)]


def _swaps(facts: Memory) -> list[Check]:
    if isinstance(facts.swaps, Unknown):
        return [GROUP.unknown("swap", facts.swaps)]
    if not facts.swaps:
        return [GROUP.ok("swap", "none")]
    return [_swap(swap) for swap in facts.swaps]


def _swap(swap: Swap) -> Check:
    name = f"swap {swap.path}"
    match swap.keeps_in:
        case Unknown() as why:
            return GROUP.unknown(name, why)
        case "memory":
            return GROUP.ok(name, "compressed, in memory")
        case "encrypted":
            return GROUP.ok(name, "encrypted")
        case _:
            seen = "not encrypted: plaintext of a running task can get to the disk and stay there"
            return GROUP.fail(name, seen, f"swapoff {swap.path}  # and take its line out of /etc/fstab")


def _runs(facts: Memory) -> list[Check]:
    name, runs = "folder of runs", facts.runs
    if runs is None:
        return []
    if isinstance(runs, Unknown):
        return [GROUP.unknown(name, runs)]
    where = f"{runs.root} on {runs.file_system}"
    if runs.file_system in IN_MEMORY:
        return [GROUP.ok(name, where)]
    return [
        GROUP.fail(
            name, f"{where}, not in memory: what jobs print is written to a disk", _mount(runs, facts, "64m")
        )
    ]


def _workspace(workspace: Workspace, facts: Memory) -> Check:
    name = "workspace"
    where = f"{workspace.root} on {workspace.file_system}"
    if workspace.file_system not in IN_MEMORY:
        seen = f"{where}, not in memory: plaintext of datasets is written to a disk"
        return GROUP.fail(name, seen, _mount(workspace, facts, "50%"))
    if not workspace.exists:
        return GROUP.ok(name, f"{where}; made at the first start")
    return GROUP.ok(name, where)


def _mount(workspace: Workspace, facts: Memory, size: str) -> str:
    """The command that gives the workspaces a memory of their own with this size."""
    if workspace.mount_point == workspace.root and workspace.file_system == "tmpfs":
        return f"mount -o remount,size={size} {workspace.root}"
    made = "" if workspace.exists else f"mkdir -p {workspace.root} && "
    options = f"nosuid,nodev,mode=0700,uid={facts.uid},gid={facts.gid},size={size}"
    return f"{made}mount -t tmpfs -o {options} tmpfs {workspace.root}  # and its line in /etc/fstab"


def _room(workspace: Workspace, facts: Memory, ceilings: Ceilings | None, max_model_bytes: int) -> Check:
    """Before any dataset: the model that a task begins with, and what it may leave."""
    name = "workspace size"
    size = gib(workspace.size_bytes)
    wanted = max_model_bytes + (0 if ceilings is None else ceilings.output_bytes)
    told = f"{size}, {gib(workspace.free_bytes)} free"
    if workspace.size_bytes < wanted:
        seen = f"{told}: the largest task that settings and policy allow needs {gib(wanted)} beside twice its dataset"
        return GROUP.fail(name, seen, _mount(workspace, facts, f"{-(-wanted * 2 >> 20)}m"))
    total = facts.total_bytes
    if isinstance(total, int) and workspace.size_bytes > total * 9 // 10:
        seen = f"{told}, of {gib(total)} memory of the host: full, it leaves nothing for anybody"
        return GROUP.warn(name, seen, _mount(workspace, facts, "50%"))
    return GROUP.ok(name, f"{told}; {gib(wanted)} and twice the dataset are asked for")


def _shared(workspace: Workspace) -> list[Check]:
    if workspace.mount_point not in {"/run", "/dev/shm", "/tmp"}:  # noqa: S108 - compared, not used
        return []
    seen = f"shares {workspace.mount_point} with other programs: a job that fills it takes their room too"
    return [GROUP.note("workspace mount", seen)]


def _noswap(workspace: Workspace, facts: Memory) -> Check:
    name = "workspace noswap"
    if "noswap" in workspace.options:
        return GROUP.ok(name, "never swapped")
    if facts.swaps == ():
        return GROUP.ok(name, "not set, and there is no swap")
    return GROUP.note(
        name, f"not set: what lies there may be swapped out (kernels since {NOSWAP_SINCE} know noswap)"
    )


def _host(workspace: Workspace, facts: Memory, ceilings: Ceilings | None) -> list[Check]:
    name, total = "memory of the host", facts.total_bytes
    if isinstance(total, Unknown):
        return [GROUP.unknown(name, total)]
    if ceilings is None:
        return [GROUP.note(name, gib(total))]
    in_memory = workspace.size_bytes if workspace.file_system in IN_MEMORY else 0
    if ceilings.memory_bytes > total:
        seen = f"{gib(total)}, and the policy gives one task {gib(ceilings.memory_bytes)}"
        return [GROUP.warn(name, seen, "${EDITOR:-vi} policy.toml  # [ceilings] memory_bytes")]
    if ceilings.memory_bytes + in_memory > total:
        seen = f"{gib(total)}: less than one task ({gib(ceilings.memory_bytes)}) and a full workspace ({gib(in_memory)})"
        return [GROUP.note(name, seen)]
    return [GROUP.ok(name, gib(total))]
