"""An order for an image that nobody admitted waits for the operator's word, and nothing of the image runs before it."""

import fcntl
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agent.domain.approvals import Ruling, Verdict
from agent.domain.ids import Digest
from agent.domain.jobs import JobEvent, JobState
from agent.domain.orders import ImageRef, SignedOrder
from agent.domain.receipts import Outcome
from agent.domain.reports import ReportState
from agent.errors import ImageDenied, LostRace, PolicyRefused
from agent.pipeline.hold import follow_ruling, look_again
from agent.pipeline.host import context_of
from agent.pipeline.space import SHELF
from agent.ports.ledger import JobQuery
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.ports.storage import BlobKind
from agent.trust.signed import open_receipt
from tests.builders import DAY, NOW, key_of, policy_text, uuid_of
from tests.pipeline.world import ALGO, POLICY, PROBLEM, SCORE, Hospital, Tapped, World, once
from tests.ports.ledger_stage import fresh_ledger
from tests.ports.test_image_archive import Image, tar

HOLDS = policy_text(orchestrators=[key_of("o1").keyid], images=[PROBLEM], rest="hold_unknown = true\n")


def archive(tmp_path: Path, name: str = "stranger") -> bytes:
    """An image that may be loaded, whose program is the world's algorithm."""
    image = Image(tar({"bin/algo": name.encode()}))
    image.config["config"]["Entrypoint"] = ["/bin/run", "algo"]
    return image.write(tmp_path / f"{name}.tar").read_bytes()


@pytest.fixture
def stranger(world: World, tmp_path: Path) -> Digest:
    """An image on every storage that no policy lists; every hospital holds such orders."""
    content = archive(tmp_path)
    for hospital in world:
        hospital.allows(HOLDS)
        digest = world.storages.keep_blob(hospital.storage, BlobKind.IMAGE, content)
    return digest


def order_for(world: World, image: Digest, **changes: Any) -> SignedOrder:
    told: dict[str, Any] = {"train": ("a1",), "test": ("a2",)} | changes
    return world.order(algo_image=ImageRef(uuid_of("stranger"), image), **told)


def rule(hospital: Hospital, image: Digest, verdict: Verdict, at: datetime | None = None) -> None:
    """What the operator's route does."""
    hospital.ledger.rule(Ruling(image=image, verdict=verdict, at=at or hospital.world.clock(), uid=0))
    follow_ruling(image, hospital.host)


# ------------------------------------------------------------------ held, approved, done


def test_an_order_for_an_unknown_image_is_held_read_and_told_and_runs_nothing(
    world: World, stranger: Digest
) -> None:
    order = order_for(world, stranger)

    admission = world.post(order, world.a)
    world.work()

    job = world.a.job(order, 0)
    assert (admission.is_repeat, job.state, job.reason, job.attempt) == (
        False,
        JobState.HELD,
        "image-unknown",
        0,
    )
    assert world.story(order) == [(0, "held")]
    found = world.a.ledger.description(stranger)
    assert found is not None
    assert found.about is not None
    assert found.about.entrypoint == ("/bin/run", "algo")
    assert [entry.path for entry in world.a.ledger.listing(stranger, 0)] == ["bin/algo"]
    assert world.a.runs() == []
    assert world.a.runtime.image(stranger) is None
    assert world.a.leftovers() == [f"{SHELF}.lock"]


def test_an_approved_order_runs_and_its_receipt_says_by_whose_word(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()
    world.pass_time(5)

    rule(world.a, stranger, Verdict.APPROVED)
    world.settle()

    assert world.result(order).mean == SCORE
    receipts = [
        open_receipt(r.envelope, world.people.roster).receipt for r in world.a.ledger.receipts(order.digest)
    ]
    assert [{use.role: use.approved for use in receipt.images} for receipt in receipts] == [
        {"algo": datetime(2026, 3, 1, 12, 0, 5, tzinfo=NOW.tzinfo)},
        {"problem": None, "algo": datetime(2026, 3, 1, 12, 0, 5, tzinfo=NOW.tzinfo)},
    ]
    assert {receipt.policy for receipt in receipts} == {world.a.host.policy.digest}


def test_a_later_order_for_an_approved_image_is_not_held(world: World, stranger: Digest) -> None:
    rule(world.a, stranger, Verdict.APPROVED)
    order = order_for(world, stranger)

    world.post(order, world.a)
    world.settle()

    assert "held" not in dict(world.story(order)).values()
    assert world.has_result(order)


def test_a_hand_off_is_held_too_and_goes_on_after_the_word(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger, train=("a1", "b1"), test=())
    for hospital in (world.a, world.c):
        rule(hospital, stranger, Verdict.APPROVED)

    world.post(order, world.a)
    world.work()

    assert world.b.job(order, 1).state is JobState.HELD
    assert (1, "held") in world.story(order)
    rule(world.b, stranger, Verdict.APPROVED)
    world.settle()
    assert world.has_result(order)


def test_a_repeated_hand_off_is_answered_with_the_held_job(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger, train=("a1", "b1"), test=())
    world.hand_over(order, 1, to=world.b)
    world.work()

    again = world.hand_over(order, 1, to=world.b)

    assert again.is_repeat
    assert again.job.state is JobState.HELD


# ------------------------------------------------------------------ held for nothing else


@pytest.mark.parametrize(
    "lacking",
    [
        policy_text(orchestrators=[], images=[PROBLEM], rest="hold_unknown = true\n"),
        policy_text(
            orchestrators=[key_of("o1").keyid], images=[], kinds=["test"], rest="hold_unknown = true\n"
        ),
        policy_text(orchestrators=[key_of("o1").keyid], images=[], datasets=[], rest="hold_unknown = true\n"),
        policy_text(orchestrators=[key_of("o1").keyid], images=[PROBLEM]),
        POLICY,
        "hold_unknown = true\n",
    ],
    ids=["orchestrator", "kind", "dataset", "not held here", "default", "nothing else"],
)
def test_an_order_that_lacks_anything_else_is_refused_as_ever(
    world: World, stranger: Digest, lacking: str
) -> None:
    world.a.allows(lacking)

    with pytest.raises(PolicyRefused):
        world.post(order_for(world, stranger), world.a)

    assert world.a.jobs() == ()


def test_a_hand_off_is_judged_whole_before_it_is_held(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger, train=("a1", "b1"), test=())

    with pytest.raises(Exception, match="storage does not name this node"):
        world.hand_over(order, 1, to=world.c)

    assert world.c.jobs() == ()


def test_approval_widens_nothing_else(world: World, stranger: Digest) -> None:
    rule(world.a, stranger, Verdict.APPROVED)
    world.a.allows(policy_text(orchestrators=[], images=[PROBLEM], rest="hold_unknown = true\n"))

    with pytest.raises(PolicyRefused, match="orchestrators"):
        world.post(order_for(world, stranger), world.a)


# ------------------------------------------------------------------ denied


def test_a_denied_order_fails_and_later_ones_are_refused(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()

    rule(world.a, stranger, Verdict.DENIED)
    world.settle()

    (told,) = world.told(order, ReportState.FAILED)
    assert (world.a.job(order, 0).state, told.reason, told.attempt) == (JobState.FAILED, "image-denied", 0)
    assert world.a.runs() == []
    with pytest.raises(ImageDenied):
        world.post(order_for(world, stranger, rank=1, id=uuid_of("later")), world.a)


def test_a_denied_hand_off_fails_with_a_signed_receipt(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger, train=("a1", "b1"), test=())
    world.hand_over(order, 1, to=world.b)
    world.work()

    rule(world.b, stranger, Verdict.DENIED)
    world.settle()

    (told,) = world.told(order, ReportState.FAILED)
    receipt = open_receipt(world.b.ledger.receipts(order.digest)[1].envelope, world.people.roster).receipt
    assert (told.position, told.reason, told.receipt is not None) == (1, "image-denied", True)
    assert (receipt.outcome, receipt.reason, receipt.sandbox) == (Outcome.FAILED, "image-denied", None)


def test_an_agent_that_may_not_hold_the_dataset_signs_no_receipt_of_a_denial(
    world: World, stranger: Digest
) -> None:
    """Nobody asked storage yet where the first dataset lies; a receipt by another than its holder would be refused."""
    order = order_for(world, stranger, train=("b1",), test=())
    world.post(order, world.a)
    world.work()

    rule(world.a, stranger, Verdict.DENIED)
    world.settle()

    assert [(told.reason, told.receipt) for told in world.told(order, ReportState.FAILED)] == [
        ("image-denied", None)
    ]
    assert world.a.ledger.receipts(order.digest) == ()


def test_a_denied_digest_is_refused_though_the_file_lists_it_until_it_is_approved(world: World) -> None:
    rule(world.a, ALGO, Verdict.DENIED)
    with pytest.raises(ImageDenied):
        world.post(world.order(train=("a1",), test=()), world.a)

    rule(world.a, ALGO, Verdict.APPROVED)
    world.post(world.order(train=("a1",), test=()), world.a)


@pytest.mark.parametrize("state", [JobState.RECEIVED, JobState.QUEUED])
def test_a_denial_ends_what_did_not_begin_yet(world: World, state: JobState) -> None:
    order = world.order(train=("a1",), test=())
    job = world.post(order, world.a).job
    if state is JobState.QUEUED:
        world.a.ledger.move(job, JobEvent.ENQUEUE, NOW)

    rule(world.a, ALGO, Verdict.DENIED)

    assert world.a.job(order, 0).state is JobState.FAILED
    world.settle()
    assert world.a.runs() == []
    assert [told.reason for told in world.told(order, ReportState.FAILED)] == ["image-denied"]


def test_the_policy_asks_for_the_rulings_before_each_attempt(world: World, stranger: Digest) -> None:
    """A denial that moved nothing, for its process died: the attempt refuses."""
    order = world.order(train=("a1",), test=())
    world.a.ledger.move(world.post(order, world.a).job, JobEvent.ENQUEUE, NOW)
    world.a.ledger.rule(Ruling(image=ALGO, verdict=Verdict.DENIED, at=NOW))

    world.a.allows(POLICY)
    world.sweep()
    world.settle()

    assert world.a.job(order, 0).reason == "image-denied"
    assert world.a.runs() == []


def test_an_approval_that_is_all_there_is_admits_an_attempt_and_its_loss_does_not(
    world: World, stranger: Digest
) -> None:
    rule(world.a, stranger, Verdict.APPROVED)
    order = order_for(world, stranger, test=())
    world.a.ledger.move(world.post(order, world.a).job, JobEvent.ENQUEUE, NOW)
    world.a.host.ports.ledger.rule(Ruling(image=stranger, verdict=Verdict.DENIED, at=NOW))

    world.sweep()
    world.settle()

    assert world.a.job(order, 0).state is JobState.FAILED
    assert world.a.runs() == []


# ------------------------------------------------------------------ time, races, crashes


@pytest.mark.parametrize("call", ["open_dataset", "fetch_blob"])
def test_a_denial_while_the_inputs_are_fetched_starts_no_container(
    world: World, stranger: Digest, call: str
) -> None:
    """Fetching may take hours: what did not start is not what runs already."""
    rule(world.a, stranger, Verdict.APPROVED)
    real = world.a.host.ports.storage
    deny = once(call, lambda: rule(world.a, stranger, Verdict.DENIED))
    world.a.ports(storage=Tapped(real, before=deny))
    order = order_for(world, stranger)
    world.post(order, world.a)

    world.work()

    job = world.a.job(order, 0)
    assert (job.state, job.reason, world.a.runs()) == (JobState.FAILED, "image-denied", [])


def test_a_denial_between_two_runs_of_a_task_starts_no_further_one(world: World) -> None:
    order = world.order(train=("b1",), test=("a2",))
    real = world.a.runtime
    deny = once("run", lambda: rule(world.a, ALGO, Verdict.DENIED))
    world.a.ports(runtime=Tapped(real, after=deny))
    world.post(order, world.b)

    world.work()

    assert world.a.runs() == ["detarget"]
    assert world.a.job(order, 1).reason == "image-denied"


def test_an_order_that_expires_while_it_is_held_is_told(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()

    world.pass_time((order.order.expires - NOW + DAY).total_seconds())
    world.sweep()
    world.settle()

    assert world.a.job(order, 0).state is JobState.EXPIRED
    assert [told.reason for told in world.told(order, ReportState.FAILED)] == ["order-expired"]


def test_an_approval_whose_process_died_is_followed_by_the_sweep(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()
    world.a.ledger.rule(Ruling(image=stranger, verdict=Verdict.APPROVED, at=world.clock()))

    world.settle()

    assert world.has_result(order)


def test_an_approved_job_whose_bell_is_lost_is_rung_again(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()

    rule(world.a, stranger, Verdict.APPROVED)
    world.a.forget_bells()
    world.settle()

    assert world.has_result(order)


@pytest.mark.parametrize("first", [JobEvent.EXPIRE, JobEvent.APPROVE, JobEvent.FAIL])
def test_of_two_that_move_a_held_job_one_wins(world: World, stranger: Digest, first: JobEvent) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()
    held = world.a.job(order, 0)
    context = context_of(held, world.a.host)
    moved = world.a.ledger.move(held, first, world.clock())
    world.a.ledger.rule(Ruling(image=stranger, verdict=Verdict.APPROVED, at=world.clock()))

    with pytest.raises(LostRace):
        look_again(context, world.a.host)

    assert world.a.job(order, 0) == moved
    follow_ruling(stranger, world.a.host)
    assert world.a.job(order, 0) == moved


def test_approving_twice_changes_nothing(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()
    rule(world.a, stranger, Verdict.APPROVED)
    world.pass_time(1)

    rule(world.a, stranger, Verdict.APPROVED)
    world.settle()

    assert len(world.a.ledger.rulings()) == 1
    assert len(world.told(order, ReportState.DONE)) == 2


def test_a_policy_that_lists_the_image_by_now_lets_it_go(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()

    world.a.allows(policy_text(orchestrators=[world.o1], images=[PROBLEM, stranger]))
    world.settle()

    assert world.has_result(order)


def test_a_policy_that_holds_no_more_refuses_what_it_held(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()

    world.a.allows(policy_text(orchestrators=[world.o1], images=[PROBLEM]))
    world.sweep()
    world.settle()

    assert [told.reason for told in world.told(order, ReportState.FAILED)] == ["policy-refused"]


def test_held_orders_survive_a_restart(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", lambda folder: fresh_ledger(folder / "ledger"))
    for hospital in world:
        hospital.allows(HOLDS)
    image = world.storages.keep_blob(world.a.storage, BlobKind.IMAGE, archive(tmp_path))
    order = order_for(world, image)
    world.post(order, world.a)
    world.work()
    world.a.ledger.close()

    world.a.ports(ledger=open_ledger(tmp_path / "world" / "a" / "ledger" / "ledger.db"))
    world.a.ledger = world.a.host.ports.ledger
    rule(world.a, image, Verdict.APPROVED)
    world.settle()

    assert world.has_result(order)


# ------------------------------------------------------------------ reading archives


def test_what_may_not_be_loaded_is_shown_as_such_and_still_held(world: World) -> None:
    world.a.allows(HOLDS)
    image = world.storages.keep_blob(world.a.storage, BlobKind.IMAGE, b"no archive at all")
    order = order_for(world, image)

    world.post(order, world.a)
    world.work()

    found = world.a.ledger.description(image)
    assert found is not None
    assert found.about is None
    assert "no readable archive" in str(found.problem)
    assert world.a.job(order, 0).state is JobState.HELD


def test_an_archive_over_the_limit_is_not_read(world: World, stranger: Digest) -> None:
    world.a.rules(max_image_bytes=10)

    world.post(order_for(world, stranger), world.a)
    world.work()

    found = world.a.ledger.description(stranger)
    assert found is not None
    assert "the limit is 10" in str(found.problem)


def test_an_archive_that_cannot_be_had_yet_is_read_later(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    content = {key: world.storages.files.pop(key) for key in list(world.storages.files) if key[1] == stranger}
    world.post(order, world.a)
    world.work()
    assert world.a.job(order, 0).state is JobState.HELD
    assert world.a.ledger.description(stranger) is None

    world.storages.files.update(content)
    world.pass_time(61)
    world.sweep()
    world.work()

    assert world.a.ledger.description(stranger) is not None


def test_other_bytes_than_the_order_names_are_never_described(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    for key in [key for key in world.storages.files if key[1] == stranger]:
        world.storages.files[key] = b"another archive"

    world.post(order, world.a)
    world.work()

    assert world.a.ledger.description(stranger) is None
    assert world.a.job(order, 0).state is JobState.HELD


def test_one_archive_is_read_at_a_time(world: World, stranger: Digest) -> None:
    with (world.a.spool / f"{SHELF}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # what even a reader who would share has to wait for
        world.post(order_for(world, stranger), world.a)
        world.work()
        assert world.a.ledger.description(stranger) is None

    world.pass_time(61)
    world.sweep()
    world.work()

    assert world.a.ledger.description(stranger) is not None


def test_an_archive_that_a_killed_reader_left_is_removed(world: World, stranger: Digest) -> None:
    (world.a.spool / SHELF).mkdir()
    (world.a.spool / SHELF / "image").write_bytes(b"half an archive")

    world.sweep()

    assert not (world.a.spool / SHELF).exists()


def test_what_was_read_is_forgotten_when_nothing_waits_for_it(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()
    world.sweep()
    assert world.a.ledger.description(stranger) is not None
    assert world.a.ledger.needed_images(is_held=True) == {PROBLEM, stranger}

    rule(world.a, stranger, Verdict.DENIED)
    world.sweep()

    assert world.a.ledger.description(stranger) is None


def test_a_bell_for_a_held_job_doubles_nothing(world: World, stranger: Digest) -> None:
    order = order_for(world, stranger)
    world.post(order, world.a)
    world.work()
    before = world.a.ledger.events()

    for _ in range(3):
        world.sweep()
        world.work()

    assert world.a.ledger.events() == before
    assert world.story(order) == [(0, "held")]
    assert world.a.ledger.jobs(JobQuery(states=frozenset({JobState.HELD}))) == world.a.jobs()
