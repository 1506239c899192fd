"""Memory: plaintext lies in a tmpfs with room for the task, and no swap carries it to a disk."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.doctor.lines import Check, State, Unknown
from agent.doctor.look_memory import _device_keeps_in, look_at_memory, mount_of
from agent.doctor.memory import Memory, Swap, Workspace, judge
from agent.domain.ceilings import DEFAULT_CEILINGS

GIB = 1 << 30
WORKSPACE = Workspace(
    root="/run/dc-compute/work",
    exists=True,
    mount_point="/run/dc-compute/work",
    file_system="tmpfs",
    options=("rw", "nosuid", "nodev"),
    size_bytes=32 * GIB,
    free_bytes=32 * GIB,
)
FACTS = Memory(uid=990, gid=991, total_bytes=64 * GIB, swaps=(), workspace=WORKSPACE)
MODEL = 4 * GIB


def lines(facts: Memory) -> list[Check]:
    return judge(facts, DEFAULT_CEILINGS, MODEL)


def line(facts: Memory, name: str) -> Check:
    (found,) = [check for check in lines(facts) if check.name == name]
    return found


def with_workspace(**changes: Any) -> Memory:
    return replace(FACTS, workspace=replace(WORKSPACE, **changes))


def test_a_folder_of_runs_on_a_disk_fails_with_its_mend() -> None:
    on_disk = replace(WORKSPACE, root="/var/runs", mount_point="/", file_system="ext4")

    (line,) = [one for one in judge(replace(FACTS, runs=on_disk), None, 1) if one.name == "folder of runs"]

    assert line.state is State.FAIL
    assert "what jobs print is written to a disk" in line.seen
    assert line.mend is not None
    assert line.mend.startswith("mount -t tmpfs")
    assert not any(one.name == "folder of runs" for one in judge(FACTS, None, 1))


def test_a_tmpfs_of_its_own_without_swap_has_nothing_to_mend() -> None:
    assert {check.state for check in lines(FACTS)} == {State.OK}


@pytest.mark.parametrize(
    ("keeps_in", "state"),
    [("disk", State.FAIL), ("encrypted", State.OK), ("memory", State.OK), (Unknown("gone"), State.NOTE)],
)
def test_swap_is_encrypted_or_in_memory(keeps_in: str | Unknown, state: State) -> None:
    found = line(replace(FACTS, swaps=(Swap("/dev/sda2", keeps_in),)), "swap /dev/sda2")

    assert found.state is state
    if state is State.FAIL:
        assert (found.mend or "").startswith("swapoff /dev/sda2")


def test_one_bad_swap_beside_a_good_one_fails() -> None:
    facts = replace(FACTS, swaps=(Swap("/dev/zram0", "memory"), Swap("/swapfile", "disk")))

    assert [check.state for check in lines(facts)[:2]] == [State.OK, State.FAIL]


@pytest.mark.parametrize(
    ("file_system", "state"),
    [("tmpfs", State.OK), ("ramfs", State.OK), ("ext4", State.FAIL), ("overlay", State.FAIL)],
)
def test_the_workspace_lies_in_memory(file_system: str, state: State) -> None:
    assert line(with_workspace(file_system=file_system), "workspace").state is state


def test_the_mend_of_a_workspace_on_a_disk_mounts_a_memory_for_the_agent() -> None:
    mend = line(with_workspace(file_system="ext4", exists=False), "workspace").mend or ""

    assert mend.startswith(
        "mkdir -p /run/dc-compute/work && mount -t tmpfs -o nosuid,nodev,mode=0700,uid=990,gid=991"
    )


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"size_bytes": 5 * GIB}, State.OK),
        ({"size_bytes": 5 * GIB - 1}, State.FAIL),
        ({"size_bytes": 60 * GIB}, State.WARN),
    ],
)
def test_the_workspace_has_room_for_the_largest_task_and_not_all_memory(
    change: dict[str, Any], state: State
) -> None:
    assert line(with_workspace(**change), "workspace size").state is state


def test_the_room_follows_the_policys_ceilings() -> None:
    ceilings = replace(DEFAULT_CEILINGS, output_bytes=40 * GIB)

    (found,) = [check for check in judge(FACTS, ceilings, MODEL) if check.name == "workspace size"]

    assert found.state is State.FAIL


def test_a_workspace_that_shares_its_mount_is_told() -> None:
    assert line(with_workspace(mount_point="/run"), "workspace mount").state is State.NOTE


@pytest.mark.parametrize(
    ("options", "swaps", "state"),
    [
        (("rw", "noswap"), (Swap("/dev/dm-1", "encrypted"),), State.OK),
        (("rw",), (Swap("/dev/dm-1", "encrypted"),), State.NOTE),
        (("rw",), (), State.OK),
    ],
)
def test_noswap_is_told_where_there_is_swap(
    options: tuple[str, ...], swaps: tuple[Swap, ...], state: State
) -> None:
    facts = replace(with_workspace(options=options), swaps=swaps)

    assert line(facts, "workspace noswap").state is state


@pytest.mark.parametrize(
    ("total", "state"),
    [(2 * GIB, State.WARN), (35 * GIB, State.NOTE), (64 * GIB, State.OK), (Unknown("no"), State.NOTE)],
)
def test_the_host_has_memory_for_one_task(total: int | Unknown, state: State) -> None:
    assert line(replace(FACTS, total_bytes=total), "memory of the host").state is state


def test_what_cannot_be_read_is_not_judged() -> None:
    facts = replace(FACTS, swaps=Unknown("no /proc"), workspace=Unknown("no folder"))

    assert {check.state for check in lines(facts)} == {State.NOTE}


# ------------------------------------------------------------------ what lies below a swap


def device(block: Path, name: str, *, uuid: str | None = None, slaves: tuple[Path, ...] = ()) -> Path:
    """A block device's folder as /sys has it."""
    folder = block / name
    (folder / "slaves").mkdir(parents=True)
    if uuid is not None:
        (folder / "dm").mkdir()
        (folder / "dm" / "uuid").write_text(uuid + "\n")
    for slave in slaves:
        (folder / "slaves" / slave.name).symlink_to(slave)
    return folder


def test_a_swap_is_followed_down_to_what_it_lies_on(tmp_path: Path) -> None:
    disk = device(tmp_path, "sda2")
    crypt = device(tmp_path, "dm-0", uuid="CRYPT-LUKS2-abc-swap", slaves=(disk,))
    over_crypt = device(tmp_path, "dm-1", uuid="LVM-abc", slaves=(crypt,))
    over_both = device(tmp_path, "dm-2", uuid="LVM-def", slaves=(crypt, disk))

    seen = [_device_keeps_in(folder) for folder in (disk, crypt, over_crypt, over_both)]

    assert seen == ["disk", "encrypted", "encrypted", "disk"]


@pytest.mark.parametrize(
    ("behind", "expected"), [(None, "memory"), ("none", "memory"), ("/dev/sda3", "disk")]
)
def test_zram_that_writes_back_to_a_disk_is_no_memory(
    tmp_path: Path, behind: str | None, expected: str
) -> None:
    folder = device(tmp_path, "zram0")
    if behind is not None:
        (folder / "backing_dev").write_text(behind + "\n")

    assert _device_keeps_in(folder) == expected


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path: Path) -> None:
    seen = look_at_memory(tmp_path / "not" / "yet", 1, 1).workspace

    assert isinstance(seen, Workspace)
    assert not seen.exists
    assert (seen.mount_point, seen.file_system) == mount_of(tmp_path)[:2]


def test_the_mount_of_a_memory_is_seen() -> None:
    assert mount_of(Path("/dev/shm"))[:2] == ("/dev/shm", "tmpfs")
    assert mount_of(Path("/proc/self"))[:2] == ("/proc", "proc")
