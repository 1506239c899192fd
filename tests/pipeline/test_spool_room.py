"""Room in the spool is promised once: to an image on its way, to an archive that is read for the operator; never all of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.domain.ids import Digest
from agent.domain.jobs import JobState
from agent.domain.orders import ImageRef
from agent.errors import NoSpace, RoomTaken
from agent.pipeline import space
from agent.pipeline.space import SHELF, reserve, reserved_in
from agent.pipeline.workspace import folder_name
from agent.ports.broker import Queue
from agent.ports.storage import BlobKind
from tests.builders import policy_text, uuid_of
from tests.pipeline.test_hold import archive, order_for, stranger
from tests.pipeline.test_workspace import JOB
from tests.pipeline.world import Tapped, World, once

__all__ = ["stranger"]  # a fixture

MIB = 1 << 20
Held = list[tuple[str, int]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every file system has 100 MiB free, and memory enough."""
    monkeypatch.setattr(space, "free_bytes", lambda _: 100 * MIB)
    monkeypatch.setattr(space, "memory_available", lambda: ())
    return iter(())


def another(root: Path, number: int = 2) -> Path:
    return root / folder_name(JOB.id, number)


def seen_while_it_comes(world: World) -> Held:
    """What is reserved in a's spool while a blob is fetched: (folder, bytes)."""
    seen: Held = []

    def see() -> None:
        seen.extend((folder.name, reserved) for folder, reserved, _ in reserved_in(world.a.spool))

    world.a.ports(storage=Tapped(world.a.host.ports.storage, before=once("fetch_blob", see)))
    return seen


def order_for_a_new_image(world: World, tmp_path: Path) -> tuple[Digest, int]:
    content = archive(tmp_path)
    image = world.storages.keep_blob(world.a.storage, BlobKind.IMAGE, content)
    order = world.order(train=("a1",), test=(), algo_image=ImageRef(uuid_of("algo"), image))
    world.a.allows(policy_text(order, rest="ceilings.output_bytes = 1048576\nceilings.output_files = 10\n"))
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    return image, len(content)


def test_an_image_on_its_way_has_its_size_reserved(world: World, tmp_path: Path) -> None:
    _, size = order_for_a_new_image(world, tmp_path)
    seen = seen_while_it_comes(world)

    world.a.work(Queue.LEARN_TASKS)

    (job,) = world.a.jobs()
    assert seen == [(folder_name(job.id, 1), size)]
    assert job.state is JobState.DONE or job.state is JobState.ATTESTED
    assert reserved_in(world.a.spool) == ()


def test_an_archive_that_is_read_for_the_operator_has_its_size_reserved(
    world: World, stranger: Digest, tmp_path: Path
) -> None:
    seen = seen_while_it_comes(world)
    world.post(order_for(world, stranger), world.a)

    world.work()

    assert seen == [(SHELF, len(archive(tmp_path)))]
    assert reserved_in(world.a.spool) == ()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("first", [SHELF, folder_name(JOB.id, 1)])
def test_what_is_promised_to_one_is_promised_to_nobody_else(first: str, tmp_path: Path) -> None:
    reserve(tmp_path / first, 60 * MIB)

    with pytest.raises(RoomTaken, match="59 MiB reserved"):
        reserve(another(tmp_path), 60 * MIB)

    reserve(another(tmp_path), 40 * MIB)


@pytest.mark.usefixtures("small")
def test_the_low_mark_stays_free(tmp_path: Path) -> None:
    reserve(another(tmp_path, 1), 30 * MIB, keep_free=20 * MIB)

    with pytest.raises(RoomTaken, match="low mark of 20 MiB"):
        reserve(another(tmp_path, 2), 60 * MIB, keep_free=20 * MIB)
    with pytest.raises(NoSpace, match="low mark of 90 MiB") as caught:
        reserve(another(tmp_path, 2), 60 * MIB, keep_free=90 * MIB)
    assert not isinstance(caught.value, RoomTaken)


def test_an_image_for_which_the_spool_has_no_room_costs_an_attempt(world: World, tmp_path: Path) -> None:
    order_for_a_new_image(world, tmp_path)
    world.a.rules(low_disk_bytes=1 << 60)

    world.a.work(Queue.LEARN_TASKS)

    (job,) = world.a.jobs()
    assert (job.state, job.attempt, job.reason) == (JobState.QUEUED, 1, "no-space")
    assert world.a.leftovers() == []


@pytest.mark.usefixtures("small")
def test_who_waits_for_room_that_others_hold_is_not_told_that_the_disk_is_full(tmp_path: Path) -> None:
    reserve(another(tmp_path, 1), 70 * MIB)

    with pytest.raises(RoomTaken) as waits:
        reserve(another(tmp_path, 2), 70 * MIB)
    with pytest.raises(NoSpace) as never:
        reserve(another(tmp_path, 2), 170 * MIB)

    assert (waits.value.code, waits.value.is_passing) == ("room-taken", True)
    assert (never.value.code, never.value.is_passing, never.value.most_retries) == ("no-space", False, 1)


@pytest.mark.usefixtures("small")
def test_to_wait_for_room_that_others_hold_spends_no_attempt(world: World, tmp_path: Path) -> None:
    order_for_a_new_image(world, tmp_path)
    reserve(another(world.a.workspaces), 99 * MIB)

    world.a.work(Queue.LEARN_TASKS)

    (job,) = world.a.jobs()
    assert (job.state, job.attempt, job.reason) == (JobState.RUNNING, 1, "room-taken")
    another(world.a.workspaces).joinpath(".reserved").unlink()
    world.settle()
    (job,) = world.a.jobs()
    assert (job.state, job.attempt) == (JobState.DONE, 1)
