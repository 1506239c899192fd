"""The folder of one attempt: the agent's alone while it is there, and gone afterwards, whatever the guest left in it."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.domain.chain import TaskKind
from agent.domain.ids import OrderId, job_id
from agent.domain.jobs import Job, JobState
from agent.errors import JobFailed, LedgerUnavailable, LostRace, NoSpace, StorageUnavailable, WorkerLost
from agent.pipeline.space import reserved_bytes
from agent.pipeline.workspace import (
    PutOff,
    folder_name,
    kept_workspace,
    parse_folder_name,
    remove_folder,
    set_modes,
    workspace,
)
from agent.ports.user_namespace_inner import reclaim
from tests.builders import NOW, digest_named, uuid_of
from tests.fakes.runtime import MemoryRuntime
from tests.pipeline.world import unprivileged

ORDER = OrderId(uuid_of("learnuplet"))
JOB = Job(
    id=job_id(ORDER, 3),
    order=digest_named("order"),
    order_id=ORDER,
    position=3,
    kind=TaskKind.LEARN,
    state=JobState.RUNNING,
    attempt=2,
    max_attempts=3,
    received_at=NOW,
    changed_at=NOW,
)


class ReclaimingRuntime(MemoryRuntime):
    """Reclaims with the program that the Podman adapter runs, without the user namespace around it."""

    def __init__(self) -> None:
        super().__init__({})
        self.reclaimed: list[Path] = []

    def reclaim(self, folder: Path) -> None:
        self.reclaimed.append(folder)
        reclaim(str(folder))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def runtime() -> ReclaimingRuntime:
    return ReclaimingRuntime()


@pytest.fixture
def nobodys_root() -> Iterator[Path]:
    """A folder that belongs to somebody whom modes keep out."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755 if os.geteuid() else 0o1777)
        with unprivileged():
            inner = Path(folder, "workspaces")
            inner.mkdir()
            yield inner


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------ while it is there


def test_nobody_but_the_agent_gets_into_the_folder(root: Path, runtime: MemoryRuntime) -> None:
    before = os.umask(0)
    try:
        with workspace(JOB, root, runtime, reserve_bytes=0) as space:
            assert mode_of(space.root) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_folders_for_the_guest_have_their_modes_whatever_the_umask(
    umask: int, root: Path, runtime: MemoryRuntime
) -> None:
    before = os.umask(umask)
    try:
        with workspace(JOB, root, runtime, reserve_bytes=0) as space:
            modes = [mode_of(space.readable("data")), mode_of(space.writable("model"))]
            private = space.private("model.tar")
    finally:
        os.umask(before)

    assert modes == [0o755, 0o777]
    assert private.parent == space.root / "private"


def test_private_paths_lie_where_no_guest_looks(root: Path, runtime: MemoryRuntime) -> None:
    with workspace(JOB, root, runtime, reserve_bytes=0) as space:
        one, two = space.private("one"), space.private("two")

        assert one.parent == two.parent
        assert mode_of(one.parent) == 0o700
        assert not one.exists()


def test_a_folder_that_a_worker_before_made_is_the_same_one(root: Path, runtime: MemoryRuntime) -> None:
    with workspace(JOB, root, runtime, reserve_bytes=0) as space:
        (space.writable("model") / "weights").write_text("w")

        assert (space.writable("model") / "weights").read_text() == "w"


def test_an_attempts_folder_is_kept_when_it_is_put_off_and_found_again(
    root: Path, runtime: MemoryRuntime
) -> None:
    def put_off() -> None:
        with workspace(JOB, root, runtime, reserve_bytes=4096) as space:
            space.private("model_out.tar").write_text("packed")
            raise PutOff(StorageUnavailable("it does not answer"))

    with pytest.raises(PutOff):
        put_off()
    with kept_workspace(JOB, root, runtime, is_anothers=lambda: False) as space:
        kept = space.private("model_out.tar").read_text(), reserved_bytes(space.root)

    assert kept == ("packed", 4096)
    assert list(root.iterdir()) == []


def test_a_folder_that_is_gone_is_not_made_anew(root: Path, runtime: MemoryRuntime) -> None:
    with pytest.raises(WorkerLost), kept_workspace(JOB, root, runtime, is_anothers=lambda: False):
        pass


@pytest.mark.parametrize("error", [None, LostRace("another has it"), LedgerUnavailable("it is away")])
def test_what_is_anothers_by_now_is_left_to_it(
    error: BaseException | None, root: Path, runtime: MemoryRuntime
) -> None:
    with (
        suppress(LostRace, LedgerUnavailable),
        workspace(JOB, root, runtime, reserve_bytes=0, is_anothers=lambda: True) as space,
    ):
        (space.writable("model") / "weights").write_text("w")
        if error is not None:
            raise error

    assert (root / folder_name(JOB.id, JOB.attempt) / "model" / "weights").exists()


def test_who_wakes_up_in_a_folder_where_another_goes_on_has_lost_the_race(
    root: Path, runtime: MemoryRuntime
) -> None:
    with (
        pytest.raises(LostRace, match="another worker goes on"),
        workspace(JOB, root, runtime, reserve_bytes=0, is_anothers=lambda: True) as space,
    ):
        space.private("dataset.partial").chmod(0o644)  # the other one renamed it

    with (
        pytest.raises(FileNotFoundError),
        workspace(
            replace(JOB, attempt=JOB.attempt + 1), root, runtime, reserve_bytes=0, is_anothers=lambda: False
        ) as space,
    ):
        space.private("dataset.partial").chmod(0o644)


def test_two_attempts_do_not_share_a_folder(root: Path, runtime: MemoryRuntime) -> None:
    later = Job(**{**{name: getattr(JOB, name) for name in JOB.__struct_fields__}, "attempt": 3})

    with (
        workspace(JOB, root, runtime, reserve_bytes=0) as one,
        workspace(later, root, runtime, reserve_bytes=0) as two,
    ):
        assert one.root != two.root


# ------------------------------------------------------------------ and gone afterwards


def test_it_is_gone_after_success(root: Path, runtime: MemoryRuntime) -> None:
    with workspace(JOB, root, runtime, reserve_bytes=0) as space:
        (space.private("dataset.partial")).write_text("plaintext")
        (space.writable("model") / "weights").write_text("w")

    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    "error", [JobFailed("it died", "oom"), KeyboardInterrupt(), OSError(errno.EIO, "broken")]
)
def test_it_is_gone_after_an_exception_which_passes(
    error: BaseException, root: Path, runtime: MemoryRuntime
) -> None:
    def fail() -> None:
        with workspace(JOB, root, runtime, reserve_bytes=0) as space:
            (space.writable("model") / "weights").write_text("w")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()

    assert caught.value is error
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_told_as_no_space(number: int, root: Path, runtime: MemoryRuntime) -> None:
    with pytest.raises(NoSpace), workspace(JOB, root, runtime, reserve_bytes=0):
        raise OSError(number, os.strerror(number))

    assert list(root.iterdir()) == []


def test_who_finds_the_folder_gone_has_lost_the_race(root: Path, runtime: MemoryRuntime) -> None:
    def read_on() -> None:
        with workspace(JOB, root, runtime, reserve_bytes=0) as space:
            remove_folder(space.root, runtime)  # what the sweep of another worker does
            (space.root / "model").read_bytes()

    with pytest.raises(LostRace):
        read_on()


def test_a_link_that_the_guest_left_is_removed_and_not_followed(root: Path, runtime: MemoryRuntime) -> None:
    precious = root / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")

    with workspace(JOB, root, runtime, reserve_bytes=0) as space:
        (space.writable("model") / "link").symlink_to(precious, target_is_directory=True)

    assert [path.name for path in root.iterdir()] == ["precious"]
    assert (precious / "file").read_text() == "x"


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o444, 0o555])
def test_folders_that_the_guest_closed_are_removed_all_the_same(mode: int, nobodys_root: Path) -> None:
    with workspace(JOB, nobodys_root, MemoryRuntime({}), reserve_bytes=0) as space:
        closed = space.writable("model") / "closed"
        (closed / "deeper").mkdir(parents=True)
        (closed / "deeper/file").write_text("x")
        (closed / "deeper").chmod(mode)
        closed.chmod(mode)

    assert list(nobodys_root.iterdir()) == []


def test_a_set_id_file_among_closed_folders_does_not_save_them(nobodys_root: Path) -> None:
    with workspace(JOB, nobodys_root, MemoryRuntime({}), reserve_bytes=0) as space:
        closed = space.writable("model") / "closed"
        closed.mkdir()
        (closed / "file").write_text("x")
        (closed / "file").chmod(0o4755)
        closed.chmod(0o500)

    assert list(nobodys_root.iterdir()) == []


def test_folders_nested_deeper_than_a_program_can_walk_are_removed(
    root: Path, runtime: ReclaimingRuntime
) -> None:
    with workspace(JOB, root, runtime, reserve_bytes=0) as space:
        nest(space.writable("model"), levels=1500)

    assert list(root.iterdir()) == []
    assert runtime.reclaimed


def test_removing_what_is_gone_is_fine(root: Path, runtime: ReclaimingRuntime) -> None:
    remove_folder(root / "never there", runtime)

    assert runtime.reclaimed == []


def nest(folder: Path, levels: int) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


# ------------------------------------------------------------------ space


def test_what_could_not_be_finished_is_not_begun(root: Path, runtime: MemoryRuntime) -> None:
    with pytest.raises(NoSpace, match="MiB free"), workspace(JOB, root, runtime, reserve_bytes=1 << 60):
        pytest.fail("it was begun")

    assert list(root.iterdir()) == []


# ------------------------------------------------------------------ names


def test_the_sweep_reads_job_and_attempt_back_from_the_name() -> None:
    assert parse_folder_name(folder_name(JOB.id, JOB.attempt)) == (JOB.id, 2)


@pytest.mark.parametrize(
    "name",
    ["python3.11", ".1", "a.1", f"{ORDER}.1", f"{ORDER}.3.", f"{ORDER}.3.x", f"{ORDER}.3.²", f"{ORDER}.3.1.1", f"x{ORDER}.3.1",
     f"{ORDER}.3.1\n", f"{ORDER.upper()}.3.1", "systemd-private.1", ""],
)  # fmt: skip
def test_no_other_name_is_taken_for_an_attempts(name: str) -> None:
    assert parse_folder_name(name) is None


# ------------------------------------------------------------------ modes


def test_modes_are_set_on_every_file_and_folder_and_on_no_link(root: Path) -> None:
    outside = root / "outside"
    outside.write_text("x")
    outside.chmod(0o600)
    tree = root / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_text("x")

    set_modes(tree, writable=True)
    writable = [mode_of(tree), mode_of(tree / "sub"), mode_of(tree / "sub/file")]
    set_modes(tree, writable=False)

    assert writable == [0o777, 0o777, 0o666]
    assert [mode_of(tree), mode_of(tree / "sub"), mode_of(tree / "sub/file")] == [0o755, 0o755, 0o644]
    assert mode_of(outside) == 0o600
