"""Which images leave the container engine, and that no open job ever loses the one it needs."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.ids import Digest, digest_of
from agent.domain.jobs import JobState
from agent.pipeline import collect
from agent.pipeline.collect import FRESH, Reason, choose, collect_images
from agent.pipeline.host import Rules
from agent.ports.runtime import ImageInfo
from tests.builders import NOW
from tests.pipeline.test_resume import container_of, running_at_a
from tests.pipeline.world import ALGO, PROBLEM, Tapped, World, once

DAY = timedelta(days=1)
OLD, OTHER = digest_of(b"an image of last year"), digest_of(b"another")


def image(name: str, *, days: float, size_bytes: int = 1) -> ImageInfo:
    return ImageInfo(digest_of(name.encode()), size_bytes, ("/a",), NOW - days * DAY)


def chosen(
    world: World, *images: ImageInfo, free_bytes: int = 1 << 60, **rules: Any
) -> list[tuple[Digest, Reason]]:
    world.a.rules(**rules)
    return [(one.image.digest, one.reason) for one in choose(images, world.a.host.rules, NOW, free_bytes)]


# ------------------------------------------------------------------ which


def test_what_was_unused_for_longer_than_the_host_keeps_images_goes(world: World) -> None:
    old, young = image("old", days=30.1), image("young", days=29.9)

    assert chosen(world, young, old, image_age=30 * DAY) == [(old.digest, Reason.AGE)]


def test_when_images_take_too_much_the_longest_unused_go_until_they_do_not(world: World) -> None:
    one, two, three = (image(name, days=days, size_bytes=40) for name, days in (("1", 1), ("2", 2), ("3", 3)))

    assert chosen(world, one, two, three, images_bytes=120) == []
    assert chosen(world, one, two, three, images_bytes=119) == [(three.digest, Reason.SPACE)]
    assert chosen(world, one, two, three, images_bytes=79) == [
        (three.digest, Reason.SPACE),
        (two.digest, Reason.SPACE),
    ]


def test_under_the_disk_s_low_mark_the_longest_unused_go_first(world: World) -> None:
    one, two = image("1", days=1, size_bytes=40), image("2", days=2, size_bytes=40)

    assert chosen(world, one, two, free_bytes=90, low_disk_bytes=100) == [(two.digest, Reason.SPACE)]
    assert chosen(world, one, two, free_bytes=100, low_disk_bytes=100) == []


def test_what_was_used_a_moment_ago_stays_whatever_the_disk(world: World) -> None:
    assert chosen(world, image("fresh", days=0), free_bytes=0, low_disk_bytes=1) == []


def test_an_image_that_was_used_in_the_future_is_not_kept_until_then(world: World) -> None:
    """The clock was ahead while it was used, and was set back: nobody knows when that was, and the disk is full."""
    future, soon = image("future", days=-400, size_bytes=40), image("soon", days=-0.001, size_bytes=40)

    assert chosen(world, future, soon, free_bytes=0, low_disk_bytes=1) == [(future.digest, Reason.SPACE)]
    assert chosen(world, future, soon, free_bytes=1, low_disk_bytes=1) == []


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 100)), max_size=8), st.integers(0, 400))
def test_nothing_younger_goes_while_something_older_stays(told: list[tuple[int, int]], limit: int) -> None:
    images = [image(str(n), days=days, size_bytes=size) for n, (days, size) in enumerate(told)]
    rules = Rules(
        skew=DAY,
        lease=DAY,
        queue_limit=1,
        workspace_root=None,  # type: ignore[arg-type]
        spool=None,  # type: ignore[arg-type]
        low_disk_bytes=0,
        max_model_bytes=1,
        max_image_bytes=1,
        images_bytes=limit,
    )

    gone = {one.image.digest for one in choose(images, rules, NOW, 1)}

    stay = [one for one in images if one.digest not in gone]
    left = [one for one in stay if NOW - one.used_at >= FRESH]
    went = [one for one in images if one.digest in gone]
    assert all(one.used_at <= other.used_at for one in went for other in left)
    assert all(NOW - one.used_at <= rules.image_age for one in left)
    assert not left or sum(one.size_bytes for one in stay) <= limit


# ------------------------------------------------------------------ in the sweep


def test_the_sweep_discards_what_is_old_and_says_so(world: World) -> None:
    world.a.runtime.add(OLD, "algo")
    world.clock.moment += 31 * DAY

    world.a.sweep()

    assert world.a.runtime.images() == ()
    told = {
        event.values["image"]: event for event in world.a.ledger.events() if event.name == "image.discarded"
    }
    assert told.keys() == {ALGO, PROBLEM, OLD}
    assert told[OLD].values == {"image": OLD, "reason": "age", "size_bytes": 1, "unused_s": 31 * 86400}


@pytest.mark.parametrize("state", [JobState.RECEIVED, JobState.QUEUED, JobState.RUNNING])
def test_an_image_that_an_open_job_names_stays_whatever_its_age_and_the_disk(
    world: World, state: JobState
) -> None:
    world.a.runtime.add(OLD, "algo")
    if state is JobState.RUNNING:
        running_at_a(world)
        world.a.runtime.remove(world.a.runtime.leftovers()[0].name)
    else:
        world.post(world.order(train=("a1",), test=("a2",)), world.a)
        if state is JobState.QUEUED:
            world.a.work(world.a.broker.rings[0].queue)
    world.clock.moment += 31 * DAY
    world.a.rules(low_disk_bytes=1 << 60)

    collect_images(world.a.host, is_everything=True)

    assert {one.digest for one in world.a.runtime.images()} == {ALGO, PROBLEM}


def test_an_order_that_comes_while_images_are_chosen_keeps_its_image(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.clock.moment += 2 * FRESH
    world.a.rules(images_bytes=0)
    really = collect.choose

    def choose_while_an_order_comes(*told: Any) -> Any:
        world.post(world.order(train=("a1",), test=("a2",)), world.a)
        return really(*told)

    monkeypatch.setattr(collect, "choose", choose_while_an_order_comes)
    collect_images(world.a.host)

    assert {one.digest for one in world.a.runtime.images()} == {ALGO, PROBLEM}


def test_an_order_that_is_done_keeps_no_image(world: World) -> None:
    order = world.order(train=("a1",), test=("a2",))
    world.post(order, world.a)
    world.work()
    assert world.a.job(order, 1).state is JobState.DONE

    world.clock.moment += 31 * DAY
    collect_images(world.a.host)

    assert world.a.runtime.images() == ()


def test_an_image_whose_container_is_there_stays_and_goes_later(world: World) -> None:
    order = world.order(train=("a1",), test=("a2",))
    job = world.post(order, world.a).job
    world.work()
    world.a.runtime.leave_behind(container_of(job))

    assert ALGO not in {one.image.digest for one in collect_images(world.a.host, is_everything=True)}

    world.a.runtime.remove(container_of(job).name)
    assert [one.image.digest for one in collect_images(world.a.host, is_everything=True)] == [ALGO]


def test_a_rehearsal_discards_nothing(world: World) -> None:
    world.a.runtime.add(OTHER, "algo")

    told = collect_images(world.a.host, is_everything=True, is_rehearsal=True)

    assert {(one.image.digest, one.reason) for one in told} == {
        (digest, Reason.ASKED) for digest in (ALGO, PROBLEM, OTHER)
    }
    assert len(world.a.runtime.images()) == 3
    assert world.a.ledger.events() == ()


# ------------------------------------------------------------------ while a task is at it


def test_an_image_that_leaves_between_the_look_and_the_run_costs_an_attempt_and_no_order(
    world: World,
) -> None:
    """By our own sweep's last look, or by the operator's `podman image rm` while the dataset is fetched for an hour."""
    real = world.a.runtime
    world.a.ports(runtime=Tapped(real, before=once("framed", lambda: real.discard(ALGO))))
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)

    world.work()

    job = world.a.job(order, 0)
    assert (job.state, job.reason) == (JobState.QUEUED, "runtime-unavailable")
    assert world.a.runs() == []
