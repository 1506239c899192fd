"""Attacks on the wait for the operator's word: what is shown is what runs, and waiting gives nobody anything."""

from pathlib import Path
from typing import Any

import pytest

from agent.domain.approvals import Verdict
from agent.domain.ids import Digest
from agent.domain.jobs import JobState
from agent.domain.orders import ImageRef
from agent.errors import PolicyRefused, QueueFull
from agent.ports.storage import BlobKind
from tests.builders import key_of, policy_text, uuid_of
from tests.pipeline.test_hold import HOLDS, archive, order_for, rule
from tests.pipeline.world import PROBLEM, World


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
    world.a.rules(queue_limit=3)
    for number in range(3):
        world.post(order_for(world, stranger, id=uuid_of(f"flood {number}")), world.a)
    world.work()

    with pytest.raises(QueueFull):
        world.post(order_for(world, stranger, id=uuid_of("one more")), world.a)

    assert len(world.a.jobs()) == 3


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
