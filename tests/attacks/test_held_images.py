"""Attacks on the wait for the operator's word: what is shown is what runs, and waiting gives nobody anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.domain.approvals import Verdict
from agent.domain.ids import Digest
from agent.domain.jobs import JobState
from agent.domain.orders import ImageRef
from agent.errors import PolicyRefused, QueueFull, StorageUnavailable
from agent.ports.broker import Queue
from agent.ports.images import ImageLook, Images
from agent.ports.storage import BlobKind, Storage
from tests.builders import key_of, policy_text, uuid_of
from tests.pipeline.test_hold import HOLDS, archive, order_for, rule
from tests.pipeline.world import ALGO, PROBLEM, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "world").mkdir()
    made = World(tmp_path / "world")
    made.a.allows(HOLDS)
    return made


@pytest.fixture
def stranger(world: World, tmp_path: Path) -> Digest:
    return world.storages.keep_blob(world.a.storage, BlobKind.IMAGE, archive(tmp_path))


def test_an_archive_that_changes_after_the_approval_runs_nothing(
    world: World, stranger: Digest, tmp_path: Path
) -> None:
    """Storage showed one archive and sends another one under its name: the digest tells."""
    order = order_for(world, stranger, max_attempts=2)
    world.post(order, world.a)
    world.work()
    assert world.a.ledger.description(stranger) is not None
    rule(world.a, stranger, Verdict.APPROVED)

    world.storages.files[world.a.storage, stranger] = archive(tmp_path, "another")
    world.settle()

    job = world.a.job(order, 0)
    assert (job.state, job.reason) == (JobState.FAILED, "digest-mismatch")
    assert world.a.runs() == []
    assert world.a.runtime.image(stranger) is None


def test_one_approved_image_does_not_carry_another_along(
    world: World, stranger: Digest, tmp_path: Path
) -> None:
    second = world.storages.keep_blob(world.a.storage, BlobKind.IMAGE, archive(tmp_path, "second"))
    order = order_for(world, stranger, problem_image=ImageRef(uuid_of("second"), second))
    world.post(order, world.a)
    world.work()

    rule(world.a, stranger, Verdict.APPROVED)
    world.work()

    assert world.a.job(order, 0).state is JobState.HELD
    assert world.a.runs() == []
    rule(world.a, second, Verdict.DENIED)
    assert world.a.job(order, 0).reason == "image-denied"


def test_held_orders_fill_no_more_than_the_queue(world: World, stranger: Digest) -> None:
    world.a.rules(queue_limit=6)
    for number in range(3):
        world.post(order_for(world, stranger, id=uuid_of(f"flood {number}")), world.a)
    world.work()

    with pytest.raises(QueueFull):
        world.post(order_for(world, stranger, id=uuid_of("one more")), world.a)

    assert len(world.a.jobs()) == 3


def test_held_orders_leave_half_of_the_queue_to_what_may_run(world: World, stranger: Digest) -> None:
    """They wait for as long as they like: who may send orders must not keep everybody else's out by it."""
    world.a.rules(queue_limit=4)
    for number in range(2):
        world.post(order_for(world, stranger, id=uuid_of(f"flood {number}")), world.a)
    with pytest.raises(QueueFull, match="2 jobs wait"):
        world.post(order_for(world, stranger, id=uuid_of("one more")), world.a)
    world.work()

    admitted = order_for(world, ALGO, id=uuid_of("admitted"))
    world.a.allows(HOLDS.replace(PROBLEM, f'{PROBLEM}", "{ALGO}'))
    world.post(admitted, world.a)
    world.work()

    assert world.a.job(admitted, 0).state is JobState.DONE
    with pytest.raises(QueueFull, match="2 jobs wait"):
        world.post(order_for(world, stranger, id=uuid_of("still one more")), world.a)
    assert world.post(order_for(world, stranger, id=uuid_of("flood 0")), world.a).is_repeat


class Reading:
    """The reader of archives, and what happens while the first one is read."""

    def __init__(self, real: Images, meanwhile: Callable[[], object]) -> None:
        self._real, self._meanwhile = real, meanwhile
        self.read: list[Digest] = []

    def look(self, archive: Path, digest: Digest, *, within_s: float) -> ImageLook:
        self.read.append(digest)
        if len(self.read) == 1:
            self._meanwhile()
        return self._real.look(archive, digest, within_s=within_s)


def slow_archives(world: World, tmp_path: Path, count: int) -> None:
    """That many held orders, each with an image of its own that nobody has read yet."""
    for n in range(count):
        content = archive(tmp_path, f"slow {n}")
        image = world.storages.keep_blob(world.a.storage, BlobKind.IMAGE, content)
        world.post(order_for(world, image, id=uuid_of(f"slow {n}")), world.a)


def test_an_order_that_may_run_is_placed_before_the_next_archive_is_read(
    world: World, tmp_path: Path
) -> None:
    """Reading one may take two minutes: a hundred of them must not stand before what came meanwhile."""
    world.a.allows(HOLDS.replace(PROBLEM, f'{PROBLEM}", "{ALGO}'))
    admitted = order_for(world, ALGO, id=uuid_of("admitted"))
    reading = Reading(world.a.host.ports.images, lambda: world.post(admitted, world.a))
    world.a.ports(images=reading)
    slow_archives(world, tmp_path, 5)

    world.a.work(Queue.LEARNUPLETS)

    assert len(reading.read) == 1
    assert world.a.job(admitted, 0).state is JobState.QUEUED
    world.pass_time(120)
    world.sweep()
    world.work()
    assert len(reading.read) == 5


class DrippingStorage:
    """Sends every blob so slowly that it never ends; everything else is well."""

    def __init__(self, real: Storage) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def fetch_blob(
        self, digest: Digest, target: Path, *, limit_bytes: int, within_s: float | None = None
    ) -> int:
        assert within_s is not None, "this call would never come back"
        raise StorageUnavailable("too slowly")


def test_a_storage_that_drips_an_archive_does_not_hold_the_thread_that_places(
    world: World, stranger: Digest
) -> None:
    order = order_for(world, stranger)
    world.a.ports(storage=DrippingStorage(world.a.host.ports.storage))
    world.post(order, world.a)

    world.work()

    assert world.a.job(order, 0).state is JobState.HELD
    assert world.a.ledger.description(stranger) is None


def test_an_order_that_nobody_can_place_keeps_no_archive_from_being_read(
    world: World, tmp_path: Path
) -> None:
    world.a.allows(HOLDS.replace(PROBLEM, f'{PROBLEM}", "{ALGO}'))
    lost = order_for(world, ALGO, id=uuid_of("lost"), train=("a1",))
    datasets, world.storages.datasets = world.storages.datasets, {}
    world.post(lost, world.a)
    slow_archives(world, tmp_path, 2)
    reading = Reading(world.a.host.ports.images, lambda: None)
    world.a.ports(images=reading)
    world.work()

    world.pass_time(120)
    world.sweep()
    world.work()

    assert world.a.job(lost, 0).state is JobState.RECEIVED
    assert len(reading.read) == 2
    world.storages.datasets = datasets


def test_many_orders_for_one_image_have_it_read_once(world: World, stranger: Digest) -> None:
    fetched: list[Path] = []
    storage = world.a.host.ports.storage
    whole_fetch = storage.fetch_blob

    def counted(digest: Digest, target: Path, **limits: Any) -> int:
        fetched.append(target)
        return whole_fetch(digest, target, **limits)

    storage.fetch_blob = counted  # type: ignore[method-assign]

    for number in range(5):
        world.post(order_for(world, stranger, id=uuid_of(f"order {number}")), world.a)
    world.work()

    assert len(fetched) == 1


def test_waiting_outlives_no_withdrawal_of_trust(world: World, stranger: Digest) -> None:
    """The policy lost the orchestrator while its order waited: an approval cannot bring it back."""
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()
    world.a.allows(
        policy_text(orchestrators=[key_of("o2").keyid], images=[PROBLEM], rest="hold_unknown = true\n")
    )

    rule(world.a, stranger, Verdict.APPROVED)
    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "policy-refused")
    assert world.a.runs() == []


def test_an_order_signed_by_a_stranger_is_not_held(world: World, stranger: Digest) -> None:
    other = world.people.order(
        order_for(world, stranger, orchestrator=key_of("o2").keyid).order, key=key_of("o2")
    )

    with pytest.raises(PolicyRefused, match="orchestrators"):
        world.post(other, world.a)

    assert world.a.jobs() == ()
    assert list(world.a.spool.iterdir()) == []
