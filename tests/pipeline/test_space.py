"""Room in the workspace: what a task needs is worked out, reserved by one at a time, and judged against memory too."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.domain.ceilings import DEFAULT_CEILINGS
from agent.domain.chain import TaskKind
from agent.domain.ids import JobId
from agent.errors import NoSpace, WorkspaceOnDisk
from agent.pipeline import space
from agent.pipeline.space import (
    RESERVED,
    file_system_of,
    free_bytes,
    lower_reservation,
    memory_available,
    require_memory,
    reserve,
    reserved_bytes,
    unused_bytes,
    used_bytes,
)
from agent.pipeline.workspace import bytes_needed, folder_name, remove_folder, workspace
from tests.fakes.runtime import MemoryRuntime
from tests.pipeline.test_workspace import JOB

MIB = 1 << 20
GIB = 1 << 30
CEILINGS = replace(DEFAULT_CEILINGS, output_bytes=GIB, output_files=100)


@pytest.fixture
def root() -> Iterator[Path]:
    """A workspace root in memory, as a real one."""
    with tempfile.TemporaryDirectory(prefix="dcc-space-", dir="/dev/shm") as folder:
        yield Path(folder)


def attempt(root: Path, number: int) -> Path:
    return root / folder_name(JobId(JOB.id), number)


def free(root: Path) -> int:
    """What can be reserved here now at most: the file system's room, or less memory."""
    told = free_bytes(root)
    assert told is not None
    return min(told, *(available for _, available in memory_available()))


# ------------------------------------------------------------------ one at a time


def test_what_is_reserved_and_not_used_yet_is_not_free_for_others(root: Path) -> None:
    reserve(attempt(root, 1), free(root) * 2 // 3)

    with pytest.raises(NoSpace):
        reserve(attempt(root, 2), free(root) * 2 // 3)

    assert not attempt(root, 2).exists()


def test_what_a_task_uses_of_its_own_reservation_is_not_counted_twice(root: Path) -> None:
    reserve(attempt(root, 1), 8 * MIB)
    (attempt(root, 1) / "data").mkdir()
    (attempt(root, 1) / "data/file").write_bytes(bytes(6 * MIB))

    left = unused_bytes(attempt(root, 1))

    assert 2 * MIB - 8192 <= left <= 2 * MIB


def test_a_reservation_ends_with_its_folder(root: Path) -> None:
    reserve(attempt(root, 1), free(root) * 2 // 3)
    remove_folder(attempt(root, 1), MemoryRuntime({}))

    reserve(attempt(root, 2), free(root) * 2 // 3)


def test_a_reservation_is_there_while_the_workspace_is_and_then_not(root: Path) -> None:
    with workspace(JOB, root, MemoryRuntime({}), reserve_bytes=5 * MIB) as made:
        assert reserved_bytes(made.root) == 5 * MIB
        assert {path.name for path in made.root.iterdir()} == {RESERVED}

    assert list(root.iterdir()) == []


def test_a_reservation_is_lowered_and_never_raised(root: Path) -> None:
    reserve(attempt(root, 1), 5 * MIB)

    lower_reservation(attempt(root, 1), 2 * MIB)
    lower_reservation(attempt(root, 1), 4 * MIB)

    assert reserved_bytes(attempt(root, 1)) == 2 * MIB


def test_what_lies_there_stays_reserved_when_the_rest_is_given_back(root: Path) -> None:
    with workspace(JOB, root, MemoryRuntime({}), reserve_bytes=GIB) as made:
        made.private("model").write_bytes(bytes(3 * MIB))
        made.keep_only(2 * MIB)

        assert 5 * MIB <= reserved_bytes(made.root) <= 5 * MIB + 8192


def test_what_no_later_run_needs_is_freed_at_once(root: Path) -> None:
    with workspace(JOB, root, MemoryRuntime({}), reserve_bytes=GIB) as made:
        folder, file = made.readable("data"), made.private("model.tar")
        (folder / "file").write_bytes(bytes(MIB))
        file.write_bytes(bytes(MIB))

        made.drop(folder, file)

        assert used_bytes(made.root) < MIB


def test_of_many_threads_as_many_get_room_as_there_is(root: Path) -> None:
    share = free(root) * 2 // 7  # three fit, however others use the memory meanwhile
    start, kept, refused = threading.Barrier(12), [], []

    def ask(number: int) -> None:
        start.wait()
        try:
            reserve(attempt(root, number), share)
            kept.append(number)
        except NoSpace:
            refused.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(kept), len(refused)) == (3, 9)


ASKING = """
import sys
from pathlib import Path
from agent.errors import NoSpace
from agent.pipeline.space import reserve
print("ready", flush=True)
sys.stdin.readline()
try:
    reserve(Path(sys.argv[1]), int(sys.argv[2]))
    print("reserved", flush=True)
except NoSpace:
    print("refused", flush=True)
sys.stdin.readline()
"""


def test_of_many_processes_as_many_get_room_as_there_is_and_the_death_of_one_frees_nothing(
    root: Path,
) -> None:
    share = free(root) * 2 // 5  # two fit
    with ExitStack() as stack:
        askers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ASKING, str(attempt(root, number)), str(share)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(5)
        ]
        assert {line(asker) for asker in askers} == {"ready"}
        for asker in askers:
            say(asker)

        said = [line(asker) for asker in askers]
        for asker in askers:
            asker.kill()

    assert sorted(said) == ["refused"] * 3 + ["reserved"] * 2
    with pytest.raises(NoSpace):
        reserve(attempt(root, 9), share)


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


# ------------------------------------------------------------------ what is seen of others


def test_a_link_of_a_guest_makes_nothing_look_used(root: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(4 * MIB))
    reserve(attempt(root, 1), 8 * MIB)
    (attempt(root, 1) / "model").mkdir()
    (attempt(root, 1) / "model/file").symlink_to(tmp_path / "large")
    (attempt(root, 1) / "model/folder").symlink_to(tmp_path, target_is_directory=True)

    assert unused_bytes(attempt(root, 1)) > 8 * MIB - 65536


def test_one_file_under_many_names_counts_once(root: Path) -> None:
    reserve(attempt(root, 1), 8 * MIB)
    (attempt(root, 1) / "one").write_bytes(bytes(MIB))
    for number in range(20):
        (attempt(root, 1) / str(number)).hardlink_to(attempt(root, 1) / "one")

    assert unused_bytes(attempt(root, 1)) > 6 * MIB


def test_holes_are_not_use(root: Path) -> None:
    reserve(attempt(root, 1), 8 * MIB)
    with (attempt(root, 1) / "hole").open("wb") as file:
        file.truncate(GIB)

    assert unused_bytes(attempt(root, 1)) > 7 * MIB


def test_a_folder_with_more_entries_than_are_looked_at_counts_as_emptier(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "MAX_ENTRIES", 3)
    reserve(attempt(root, 1), 8 * MIB)
    for number in range(10):
        (attempt(root, 1) / str(number)).write_bytes(bytes(100 * 4096))

    assert unused_bytes(attempt(root, 1)) >= 8 * MIB - 3 * 100 * 4096


def test_a_folder_of_which_only_the_beginning_was_made_reserves_nothing(root: Path) -> None:
    attempt(root, 1).mkdir()

    reserve(attempt(root, 2), free(root) // 2)


def test_other_folders_beside_are_none_of_ours(root: Path) -> None:
    (root / "precious").mkdir()
    (root / "precious" / RESERVED).write_text(str(1 << 50))

    reserve(attempt(root, 1), MIB)


# ------------------------------------------------------------------ what is refused says where and how much


def test_a_refusal_names_the_file_system_and_both_numbers(root: Path) -> None:
    reserve(attempt(root, 1), 64 * MIB)

    with pytest.raises(NoSpace) as caught:
        reserve(attempt(root, 2), 1 << 50)

    told = str(caught.value)
    assert f"{root} (tmpfs) has " in told
    assert "with 63 MiB reserved by other tasks" in told  # one page is the number's own
    assert f"this task needs {1 << 30} MiB" in told


def test_a_workspace_may_be_larger_than_the_memory_behind_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "memory_available", lambda: (("the host", 10 * MIB),))

    with pytest.raises(NoSpace, match="lies in memory, and the host has 10 MiB free"):
        reserve(attempt(root, 1), 11 * MIB)

    assert list(root.iterdir()) == []


def test_what_others_have_reserved_must_be_backed_by_memory_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "memory_available", lambda: (("the host", 10 * MIB),))
    reserve(attempt(root, 1), 6 * MIB)

    with pytest.raises(NoSpace):
        reserve(attempt(root, 2), 6 * MIB)


def test_the_spool_on_a_disk_needs_no_memory(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(space, "memory_available", lambda: (("the host", 0),))
    monkeypatch.setattr(space, "file_system_of", lambda _root: "ext4")

    reserve(attempt(root, 1), MIB)


def test_a_host_that_hides_its_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match="ProcSubset"):
        memory_available(tmp_path)


def proc_of(tmp_path: Path, cgroup: str) -> Path:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text(cgroup)
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemFree: 1 kB\nMemAvailable:    4096 kB\n")
    return tmp_path


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_the_limit_of_every_group_above_the_service_counts(tmp_path: Path) -> None:
    proc, cgroups = proc_of(tmp_path, "0::/system.slice/dc.service\n"), tmp_path / "cgroups"
    group(cgroups / "system.slice/dc.service", memory__max="max\n")
    group(
        cgroups / "system.slice",
        memory__max="1000000\n",
        memory__current="900000\n",
        memory__stat="anon 1\ninactive_file 300000\n",
    )

    assert memory_available(proc, cgroups) == (
        ("the host", 4096 * 1024),
        ("the group /system.slice", 400_000),
    )


def test_the_first_version_of_groups_counts_too(tmp_path: Path) -> None:
    proc, cgroups = proc_of(tmp_path, "5:cpu,memory:/dc\n1:name=systemd:/x\n"), tmp_path / "cgroups"
    group(
        cgroups / "memory/dc",
        memory__limit_in_bytes="5000",
        memory__usage_in_bytes="6000",
        memory__stat="total_inactive_file 100\n",
    )
    group(
        cgroups / "memory",
        memory__limit_in_bytes="9223372036854771712",
        memory__usage_in_bytes="1",
        memory__stat="",
    )

    assert memory_available(proc, cgroups)[1:] == (("the group /dc", 0),)


def test_this_very_host_tells_its_memory() -> None:
    (what, available), *_ = memory_available()

    assert what == "the host"
    assert available > 0


# ------------------------------------------------------------------ in memory, or not at all


def test_a_folder_in_memory_is_taken(root: Path) -> None:
    require_memory(root)


def test_a_folder_on_a_disk_is_refused_with_the_command_that_mends_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "file_system_of", lambda _root: "ext4")

    with pytest.raises(
        WorkspaceOnDisk, match=f"lies on ext4.*: mount -t tmpfs -o .*uid={os.geteuid()}.* {root}$"
    ):
        require_memory(root)


def test_the_kind_of_file_system_is_that_of_the_deepest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "23 22 0:20 / /run rw,nosuid shared:5 - tmpfs tmpfs rw\n"
        "24 23 0:21 / /run/user\\0401 rw - fuse x rw\n"
    )

    assert file_system_of(Path("/usr/nowhere"), mounts) == "ext4"
    assert file_system_of(Path("/run/dc-compute/work"), mounts) == "tmpfs"
    assert file_system_of(Path("/run/user 1/x"), mounts) == "fuse"
    assert file_system_of(Path("/"), tmp_path / "missing") == "unknown"


# ------------------------------------------------------------------ how much a task needs


def test_a_first_training_needs_room_for_the_data_and_the_model_or_for_the_model_twice() -> None:
    small = bytes_needed(TaskKind.LEARN, dataset_bytes=MIB, model_bytes=0, ceilings=CEILINGS)
    large = bytes_needed(TaskKind.LEARN, dataset_bytes=4 * GIB, model_bytes=0, ceilings=CEILINGS)

    assert 2 * GIB < small < 2 * GIB + 2 * MIB
    assert 5 * GIB < large < 5 * GIB + 2 * MIB


def test_an_enormous_model_that_comes_in_is_needed_twice_while_it_is_unpacked() -> None:
    needed = bytes_needed(TaskKind.PREDICT, dataset_bytes=MIB, model_bytes=9 * GIB, ceilings=CEILINGS)

    assert 18 * GIB < needed < 18 * GIB + 2 * MIB


def test_a_test_keeps_what_earlier_runs_left() -> None:
    needed = bytes_needed(TaskKind.TEST, dataset_bytes=GIB, model_bytes=GIB // 2, ceilings=CEILINGS)

    assert 4 * GIB < needed < 4 * GIB + 2 * MIB


@given(
    st.sampled_from(TaskKind),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(1, 1 << 40),
    st.integers(1, 1 << 20),
)
def test_more_of_anything_never_needs_less(
    kind: TaskKind, dataset_bytes: int, model_bytes: int, output_bytes: int, output_files: int
) -> None:
    ceilings = replace(DEFAULT_CEILINGS, output_bytes=output_bytes, output_files=output_files)
    more = replace(ceilings, output_bytes=output_bytes + 1, output_files=output_files + 1)
    needed = bytes_needed(kind, dataset_bytes=dataset_bytes, model_bytes=model_bytes, ceilings=ceilings)

    assert needed >= dataset_bytes + output_bytes
    assert needed <= bytes_needed(
        kind, dataset_bytes=dataset_bytes + 1, model_bytes=model_bytes + 1, ceilings=more
    )
