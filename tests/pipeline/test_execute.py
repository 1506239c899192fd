"""One task, whole: what it leaves when all goes well, and for each thing that can go wrong whose fault it was."""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agent.domain.chain import TaskKind
from agent.domain.ids import digest_of
from agent.domain.jobs import JobState
from agent.domain.orders import ImageRef, Limits, ModelRef
from agent.domain.receipts import Outcome, Receipt
from agent.domain.reports import ReportState, envelope_bytes
from agent.errors import BadAnswer, CageNotMade, LedgerUnavailable
from agent.pipeline.advance import advance
from agent.pipeline.execute import execute
from agent.pipeline.space import reserved_bytes
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryKind, DeliveryState
from agent.ports.runtime import Run, RunKind, RunOutcome, RunSpec
from agent.ports.storage import BlobKind
from agent.selftest.images import build_image, program_layer
from agent.trust.audit import audit_chain
from agent.trust.envelope import parse_envelope
from agent.trust.handoff import parse_handoff
from agent.trust.job_log import open_log
from tests.builders import DAY, NOW, changed, dataset, digest_named, key_of, policy_text, preduplet, uuid_of
from tests.fakes.broker import Ring
from tests.fakes.runtime import Guest
from tests.pipeline.world import (
    ALGO,
    POLICY,
    PROBLEM,
    SCORE,
    Hospital,
    Tapped,
    World,
    append_what_it_sees,
    data_files,
    die,
    hide_and_score,
    once,
    plaintext,
    seal,
    unprivileged,
)

GUEST_TASKS = (Queue.LEARNUPLETS, Queue.LEARN_TASKS, Queue.TEST_TASKS, Queue.PREDUPLETS)


def run_here(hospital: Hospital) -> None:
    """Place and run what waits at this hospital; deliver nothing yet."""
    hospital.work(*GUEST_TASKS)


def receipt_of(hospital: Hospital, position: int = 0) -> Receipt:
    """The receipt recorded for this place of the one order here."""
    (job, *_) = hospital.jobs()
    (receipt,) = [r for r in hospital.ledger.receipts(job.order) if r.receipt.position == position]
    return receipt.receipt


def model_in(archive: bytes) -> dict[str, bytes]:
    """The files of a model's archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def archive_of(**files: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


# ------------------------------------------------------------------ a learn task that went well


def test_the_model_lies_at_this_hosts_storage_under_its_digest(world: World) -> None:
    world.post(world.order(train=("a1", "b1"), test=()), world.a)

    run_here(world.a)

    (output,) = receipt_of(world.a).outputs
    archive = world.a.blob(output.digest)
    assert (output.name, output.size, digest_of(archive)) == ("model", len(archive), output.digest)
    assert model_in(archive) == {"weights": plaintext("a1").encode()}
    assert world.storages.blobs[world.a.storage, output.digest].kind is BlobKind.MODEL


def test_the_receipt_tells_what_ran_on_what_and_links_to_the_order(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)

    run_here(world.a)

    told = receipt_of(world.a)
    assert (told.order, told.order_id, told.position) == (order.digest, order.order.id, 0)
    assert (told.task.kind, told.task.dataset, told.task.version) == (TaskKind.LEARN, dataset("a1").id, "1")
    assert (told.agent, told.attempt, told.outcome, told.reason) == (world.a.keyid, 1, Outcome.DONE, None)
    assert (told.previous, told.model_in, told.model_out) == (order.digest, None, told.outputs[0].digest)
    assert [(use.role, use.digest) for use in told.images] == [("algo", ALGO)]
    assert told.policy == world.a.host.policy.digest
    assert told.sandbox is not None
    assert told.sandbox.runtime == "memory"
    assert set(told.sandbox.seccomp) == {"train"}
    assert list(told.usage.phases) == [
        "wait", "ask", "fetch", "shares", "open", "start", "train", "end", "pack", "publish",
    ]  # fmt: skip
    assert (told.usage.cpu_s, told.usage.max_memory_bytes) == (
        None,
        None,
    )  # this engine does not measure them
    assert told.score is None


def test_the_next_receipt_links_to_the_one_before_and_its_model_to_the_model_before(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)

    world.work()

    first, second = world.b.ledger.receipts(order.digest)
    assert second.receipt.previous == first.digest
    assert second.receipt.model_in == first.receipt.model_out
    assert model_in(world.b.blob(second.receipt.outputs[0].digest)) == {
        "weights": (plaintext("a1") + plaintext("b1")).encode()
    }


def test_what_must_be_told_is_recorded_with_the_receipt(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)

    run_here(world.a)

    job = world.a.job(order, 0)
    (receipt,) = world.a.ledger.receipts(order.digest)
    handoff = world.a.delivery(DeliveryKind.HANDOFF)
    reports = [json.loads(delivery.body) for delivery in world.a.deliveries(DeliveryKind.REPORT)]
    assert (job.state, job.next_agent) == (JobState.ATTESTED, world.b.keyid)
    assert (handoff.target, handoff.expires_at) == (world.b.keyid, order.order.expires)
    assert parse_handoff(handoff.body).last is not None
    assert parse_handoff(handoff.body).last.digest == receipt.digest  # type: ignore[union-attr]
    assert [told["state"] for told in reports] == ["started", "done"]
    assert reports[1]["next_agent"] == world.b.keyid
    assert digest_of_receipt(reports[1]) == receipt.digest
    assert all(delivery.expires_at is None for delivery in world.a.deliveries(DeliveryKind.REPORT))


def digest_of_receipt(report: dict[str, object]) -> str:
    return parse_envelope(msgspec.json.encode(report["receipt"]), limit_bytes=1 << 20).digest


def test_its_orchestrator_can_hear_of_the_start_while_it_runs(world: World) -> None:
    rung: list[str] = []

    def listen(guest: Guest) -> None:
        rung.extend(ring.item for ring in world.a.rung(Queue.DELIVERIES))
        append_what_it_sees(guest)

    world.algo = listen
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)

    run_here(world.a)

    assert rung == [world.a.deliveries(DeliveryKind.REPORT)[0].id]


def test_it_is_done_once_everybody_was_told(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)
    run_here(world.a)

    world.a.work(Queue.DELIVERIES)

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.b.job(order, 1).state is JobState.QUEUED
    assert world.story(order) == [(0, "started"), (0, "done")]


def test_nothing_of_an_attempt_lies_about_afterwards(world: World) -> None:
    world.post(world.order(), world.a)

    world.work()

    assert [hospital.leftovers() for hospital in world] == [[], [], []]


def test_the_next_task_on_the_same_host_is_queued_with_the_receipt(world: World) -> None:
    order = world.order(train=("a1", "a2"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)

    advance(world.a.job(order, 0).id, world.a.host, "worker")

    successor = world.a.job(order, 1)
    assert successor.state is JobState.QUEUED
    assert world.a.job(order, 0).next_agent == world.a.keyid
    assert world.a.rung(Queue.LEARN_TASKS)[-1].item == successor.id
    assert world.a.deliveries(DeliveryKind.HANDOFF) == ()


def test_the_log_of_a_run_is_kept_sealed_for_the_operator_and_leaves_in_no_delivery(world: World) -> None:
    def talk(guest: Guest) -> None:
        guest.say("patient 4711-one-of-a-kind")
        append_what_it_sees(guest)

    world.algo = talk
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)

    run_here(world.a)

    ((job, attempt, run, sealed),) = world.a.ledger.logs(order.order.id)
    assert (job, attempt, run) == (world.a.job(order, 0).id, 1, "train")
    assert b"4711-one-of-a-kind" not in sealed
    assert b"patient 4711-one-of-a-kind" in open_log(sealed, world.a.key, job=job, attempt=attempt, run=run)
    assert not any(b"4711-one-of-a-kind" in delivery.body for delivery in world.a.deliveries())


def test_what_a_guest_calls_its_files_stands_in_no_event_and_is_kept_sealed(world: World) -> None:
    def name_it(guest: Guest) -> None:
        (guest.path("/data/model") / "patient 4711-one-of-a-kind").symlink_to("nowhere")

    world.algo = name_it
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)

    run_here(world.a)

    told = repr((world.a.ledger.events(), world.a.jobs(), world.told(order), world.a.deliveries()))
    opened = {
        run: open_log(sealed, world.a.key, job=job, attempt=attempt, run=run)
        for job, attempt, run, sealed in world.a.ledger.logs(order.order.id)
    }
    assert world.a.job(order, 0).reason == "output"
    assert "symbolic link" in told
    assert "4711-one-of-a-kind" not in told
    assert b"patient 4711-one-of-a-kind" in opened["refused output"]


def test_what_no_later_step_needs_takes_no_room_any_more(world: World) -> None:
    """The archive of the model that came in is gone when it runs, the dataset when the model is packed and sent."""
    start = world.preduplet("a1", model=archive_of(weights=b"before;"), at="c").order.start_model
    order = world.order(train=("a1",), test=(), model_start=start)
    seen: dict[str, set[str]] = {}
    reserved: dict[str, int] = {}

    def look(when: str) -> None:
        (folder,) = world.a.workspaces.iterdir()
        seen[when] = {path.name for path in folder.rglob("*")}
        reserved[when] = reserved_bytes(folder)

    def learn(guest: Guest) -> None:
        look("train")
        append_what_it_sees(guest)

    world.algo = learn
    world.a.ports(storage=Tapped(world.a.host.ports.storage, before=once("put_blob", lambda: look("sent"))))
    world.post(order, world.a)

    run_here(world.a)

    assert "model.tar" not in seen["train"]
    assert dataset("a1").id in seen["train"]
    assert dataset("a1").id not in seen["sent"]
    assert "train_pred" not in seen["sent"]
    assert reserved["sent"] < 1 << 20 < reserved["train"]


def test_an_earlier_model_named_by_the_order_is_where_training_starts(world: World) -> None:
    start = world.preduplet("a1", model=archive_of(weights=b"before;"), at="c").order.start_model
    order = world.order(train=("a1",), test=(), model_start=start)
    world.post(order, world.a)

    world.work()

    told, result = receipt_of(world.a), world.result(order)
    assert start is not None
    assert told.model_in == start.digest
    assert result.model == ModelRef(told.outputs[0].digest, world.a.keyid)
    assert model_in(world.a.blob(told.outputs[0].digest)) == {
        "weights": b"before;" + plaintext("a1").encode()
    }


def test_a_model_that_the_chain_made_is_fetched_from_its_maker_and_not_where_the_order_began(
    world: World,
) -> None:
    start = world.preduplet("a1", model=archive_of(weights=b"before;"), at="c").order.start_model
    order = world.order(train=("a1", "b1"), test=(), model_start=start)
    world.post(order, world.a)

    world.work()

    assert world.b.job(order, 1).attempt == 1
    assert world.has_result(order)


# ------------------------------------------------------------------ test and predict tasks


def test_a_test_task_leaves_its_score_and_keeps_the_model(world: World) -> None:
    order = world.order(train=("a1",), test=("a2",))
    world.post(order, world.a)

    run_here(world.a)

    learnt, tested = receipt_of(world.a, 0), receipt_of(world.a, 1)
    (output,) = tested.outputs
    told = [json.loads(delivery.body)["score"] for delivery in world.a.deliveries(DeliveryKind.REPORT)]
    assert told == [None, None, None, SCORE]
    assert world.a.runs() == ["train", "detarget", "predict", "perf"]
    assert (tested.score, world.a.job(order, 1).score) == (SCORE, SCORE)
    assert tested.model_in == tested.model_out == learnt.model_out
    assert output.name == "performance.json"
    assert json.loads(world.a.blob(output.digest)) == {"perf": 0.875, "train_perf": {}, "test_perf": {}}
    assert {use.role for use in tested.images} == {"algo", "problem"}
    assert tested.sandbox is not None
    assert set(tested.sandbox.seccomp) == {"detarget", "predict", "perf"}


def test_the_last_task_demands_the_result_with_all_receipts_scores_and_their_mean(world: World) -> None:
    scores = {dataset("b2").id: "0.5", dataset("c2").id: "1.0"}
    world.problem = scoring(scores)
    order = world.order(train=("a1", "c1"), test=("b2", "c2"))
    world.post(order, world.a)

    world.work()

    told = world.result(order)
    envelopes = [envelope_bytes(receipt) for receipt in told.receipts]
    audit = audit_chain(order.envelope, envelopes, world.people.roster, locate=world.people.locate)
    assert audit.is_complete
    assert told.scores == scores
    assert told.mean == "0.75"
    assert told.model is not None
    assert told.model.digest == audit.final_model
    assert told.model.agent == world.c.keyid  # where the last learn task left it
    assert model_in(world.c.blob(told.model.digest)) == {
        "weights": (plaintext("a1") + plaintext("c1")).encode()
    }


def scoring(scores: dict[str, str]) -> Callable[[Guest], None]:
    def program(guest: Guest) -> None:
        hide_and_score(guest)
        if "perf" in guest.args:
            (name,) = data_files(guest, "/hidden_data/test")
            guest.write("/hidden_data/perf/performance.json", f'{{"perf": {scores[name]}}}')

    return program


def test_an_order_that_only_tests_names_the_model_where_the_order_has_it(world: World) -> None:
    start = world.preduplet("a1", model=archive_of(weights=b"w"), at="c").order.start_model
    order = world.order(train=(), test=("a1",), model_start=start)
    world.post(order, world.a)

    world.work()

    assert world.result(order).model == start


def test_an_order_may_test_what_was_never_trained(world: World) -> None:
    order = world.order(train=(), test=("a1",))
    world.post(order, world.a)

    world.work()

    assert world.result(order).model is None
    assert world.result(order).mean == SCORE


def test_a_predict_task_leaves_its_prediction(world: World) -> None:
    order = world.preduplet("a1", "b1", model=archive_of(weights=b"12345"))
    world.post(order, world.a)

    world.work()

    told = world.result(order)
    first, second = world.b.ledger.receipts(order.digest)
    assert [r.receipt.outputs[0].name for r in (first, second)] == [
        f"pred/{dataset('a1').id}",
        f"pred/{dataset('b1').id}",
    ]
    assert world.a.blob(first.receipt.outputs[0].digest) == b"5\n"
    assert (told.scores, told.mean, told.model) == ({}, None, None)


def test_a_small_output_limit_does_not_keep_a_large_model_out(world: World) -> None:
    order = world.preduplet("a1", model=archive_of(weights=b"x" * 5000), limits=Limits(output_bytes=100))
    world.post(order, world.a)

    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE


def test_a_model_larger_than_this_host_takes_is_refused(world: World) -> None:
    order = world.preduplet("a1", model=archive_of(weights=b"x" * 100_000))
    world.a.rules(max_model_bytes=50_000)
    world.post(order, world.a)

    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "too-large")


# ------------------------------------------------------------------ what each guest sees


def test_each_run_sees_the_folders_of_the_container_contract(world: World) -> None:
    order = world.order(train=("a1",), test=("a2",))
    world.post(order, world.a)

    run_here(world.a)

    seen = {
        name: (spec.kind, spec.args, [(mount.target, mount.is_writable) for mount in spec.mounts])
        for name, spec in zip(world.a.runs(), world.a.runtime.specs, strict=True)
    }
    problem = ("-i", "/hidden_data", "-s", "/submission_data")
    assert seen == {
        "train": (
            RunKind.TRAIN,
            ("-V", "/data", "-T", "train"),
            [("/data/train", False), ("/data/train/pred", True), ("/data/test", False), ("/data/test/pred", True),
             ("/data/model", True)],
        ),
        "detarget": (
            RunKind.PROBLEM,
            ("-T", "detarget", *problem),
            [("/hidden_data/test", False), ("/submission_data/test", True)],
        ),
        "predict": (
            RunKind.PREDICT,
            ("-V", "/data", "-T", "predict"),
            [("/data/test", False), ("/data/test/pred", True), ("/data/model", False)],
        ),
        "perf": (
            RunKind.PROBLEM,
            ("-T", "perf", *problem),
            [("/hidden_data/test", False), ("/hidden_data/perf", True), ("/submission_data/train", False),
             ("/submission_data/test", False)],
        ),
    }  # fmt: skip


def test_no_mount_has_its_source_in_a_folder_that_a_guest_wrote(world: World) -> None:
    world.post(world.order(train=("a1", "a2"), test=("b2",)), world.a)

    world.work()

    for hospital in world:
        for spec in hospital.runtime.specs:
            written = [mount.source for mount in spec.mounts if mount.is_writable]
            assert not any(
                mount.source.is_relative_to(folder)
                for mount in spec.mounts
                for folder in written
                if mount.source != folder
            )
            assert len({mount.source for mount in spec.mounts}) == len(spec.mounts)


def test_the_algorithm_never_sees_a_target_of_the_test_data(world: World) -> None:
    seen: list[str] = []

    def peek(guest: Guest) -> None:
        for folder in ("/data/train", "/data/test"):
            try:
                seen.extend(
                    guest.read(f"{folder}/{name}").decode() for name in guest.names(folder) if name != "pred"
                )
            except FileNotFoundError:
                continue
        append_what_it_sees(guest)

    world.algo = peek
    world.post(world.order(train=("a1",), test=("c2",)), world.a)

    world.work()

    assert seen == [plaintext("a1"), "c2"]


def test_the_model_before_is_there_for_training_and_the_test_folders_are_empty(world: World) -> None:
    seen: dict[str, tuple[str, ...]] = {}

    def peek(guest: Guest) -> None:
        if guest.kind is RunKind.TRAIN:
            for folder in ("/data/train", "/data/train/pred", "/data/test", "/data/test/pred", "/data/model"):
                seen[folder] = guest.names(folder)
        append_what_it_sees(guest)

    world.algo = peek
    world.post(world.order(train=("a1", "b1"), test=()), world.a)

    world.work()

    assert seen == {
        "/data/train": (dataset("b1").id, "pred"),
        "/data/train/pred": (),
        "/data/test": ("pred",),
        "/data/test/pred": (),
        "/data/model": ("weights",),
    }


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_the_modes_of_what_a_guest_sees_let_it_read_its_inputs_and_change_its_model_alone(
    umask: int, world: World
) -> None:
    seen: dict[str, dict[str, int]] = {}

    def look(guest: Guest) -> None:
        data = "/data/train" if guest.kind is RunKind.TRAIN else "/data/test"
        (name,) = data_files(guest, data)
        inside = [data, f"{data}/{name}", f"{data}/pred", "/data/model", "/data/model/weights"]
        seen[guest.kind] = {
            path.replace(name, "ID"): guest.path(path).stat().st_mode & 0o777 for path in inside
        }
        append_what_it_sees(guest)

    world.algo = look
    start = world.preduplet("a1", model=archive_of(weights=b"w"), at="c").order.start_model
    world.post(world.order(train=("a1",), test=("a2",), model_start=start), world.a)

    before = os.umask(umask)
    try:
        world.work()
    finally:
        os.umask(before)

    assert seen["train"] == {
        "/data/train": 0o755,
        "/data/train/ID": 0o644,
        "/data/train/pred": 0o777,
        "/data/model": 0o777,
        "/data/model/weights": 0o666,
    }
    assert seen["predict"] == {
        "/data/test": 0o755,
        "/data/test/ID": 0o644,
        "/data/test/pred": 0o777,
        "/data/model": 0o755,
        "/data/model/weights": 0o644,
    }


def test_what_a_guest_closed_to_others_is_given_to_the_agent_before_it_is_read() -> None:
    def close_what_it_left(guest: Guest) -> None:
        append_what_it_sees(guest)
        (guest.path("/data/model") / "weights").chmod(0o000)
        (guest.path("/data/model") / "closed").mkdir(mode=0o000)

    with unprivileged(), tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.algo = close_what_it_left
        order = world.order(train=("a1",), test=())
        world.post(order, world.a)

        world.work()

        assert world.a.job(order, 0).state is JobState.DONE
        assert world.a.leftovers() == []


def test_an_order_asks_for_less_and_never_for_more_than_the_host_allows(world: World) -> None:
    limits = Limits(wall_s=60, memory_bytes=1 << 50)
    world.post(world.order(train=("a1",), test=(), limits=limits), world.a)

    run_here(world.a)

    (spec,) = world.a.runtime.specs
    assert spec.ceilings.wall_s == 60
    assert spec.ceilings.memory_bytes == world.a.host.policy.ceilings.memory_bytes


def test_an_image_that_is_not_there_is_fetched_checked_and_loaded(world: World, tmp_path: Path) -> None:
    layers = [program_layer(tmp_path / "cache", {"algo": b"#!/bin/true"})]
    image = build_image(tmp_path / "image.tar", layers=layers, entrypoint=["/opt/program/algo"])
    world.storages.keep_blob(world.a.storage, BlobKind.IMAGE, (tmp_path / "image.tar").read_bytes())
    order = world.order(train=("a1",), test=(), algo_image=ImageRef(uuid_of("algo"), image))
    world.a.allows(policy_text(order))
    world.post(order, world.a)

    run_here(world.a)

    assert world.a.job(order, 0).state is JobState.ATTESTED
    assert world.a.runtime.image(image) is not None
    assert world.a.leftovers() == []


# ------------------------------------------------------------------ the job's own fault: once, and never again


def exits_with_3(guest: Guest) -> int:
    return 3


def dies_by_a_signal(guest: Guest) -> int:
    return 128 + 11


def crashes(guest: Guest) -> None:
    raise ZeroDivisionError


def leaves_no_model(guest: Guest) -> None:
    (guest.path("/data/model") / "an empty folder").mkdir()


def leaves_a_link(guest: Guest) -> None:
    (guest.path("/data/model") / "link").symlink_to("/etc/shadow")


def leaves_a_set_id_file(guest: Guest) -> None:
    guest.write("/data/model/shell", "#!")
    (guest.path("/data/model") / "shell").chmod(0o4755)


def leaves_too_much(guest: Guest) -> None:
    guest.write("/data/model/weights", b"x" * 2000)


JOB_FAULTS = {
    exits_with_3: "exit:3",
    dies_by_a_signal: "signal:11",
    crashes: "exit:1",
    leaves_no_model: "output",
    leaves_a_link: "output",
    leaves_a_set_id_file: "output",
    leaves_too_much: "output",
}


@pytest.mark.parametrize(
    ("guest", "reason"), JOB_FAULTS.items(), ids=[guest.__name__ for guest in JOB_FAULTS]
)
def test_a_fault_of_the_job_ends_the_order_with_a_receipt_and_is_not_tried_again(
    guest: Callable[[Guest], int | None], reason: str, world: World
) -> None:
    world.algo = guest
    order = world.order(train=("a1", "b1"), test=(), limits=Limits(output_bytes=1000))
    world.post(order, world.a)

    world.settle()

    job, receipt = world.a.job(order, 0), receipt_of(world.a)
    (failed,) = world.told(order, ReportState.FAILED)
    assert (job.state, job.attempt, job.reason) == (JobState.FAILED, 1, reason)
    assert (receipt.outcome, receipt.reason, receipt.outputs) == (Outcome.FAILED, reason, ())
    assert receipt.model_out is None
    assert (failed.reason, failed.attempt, failed.max_attempts) == (reason, 1, 3)
    assert failed.receipt is not None
    assert world.a.runs() == ["train"]
    assert world.a.leftovers() == []
    assert world.a.deliveries(DeliveryKind.HANDOFF) == ()
    assert world.b.jobs() == ()
    assert not world.has_result(order)


def test_the_receipt_of_a_failed_task_links_and_says_in_which_cage_it_ran(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)
    run_here(world.a)
    world.algo = exits_with_3

    world.work()

    envelopes = [receipt.envelope for receipt in world.b.ledger.receipts(order.digest)]
    audit = audit_chain(order.envelope, envelopes, world.people.roster, locate=world.people.locate)
    assert audit.is_sound
    assert not audit.is_complete
    assert receipt_of(world.b, 1).sandbox is not None


@pytest.mark.parametrize(
    ("step", "reason"), [("detarget", "exit:1"), ("perf", "output")], ids=["detarget fails", "no score"]
)
def test_a_fault_of_the_problem_image_ends_the_order_too(step: str, reason: str, world: World) -> None:
    def program(guest: Guest) -> int | None:
        if step in guest.args:
            return None if step == "perf" else 1
        hide_and_score(guest)
        return 0

    world.problem = program
    order = world.order(train=(), test=("a1",))
    world.post(order, world.a)

    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, reason)
    assert receipt_of(world.a).score is None
    assert world.a.leftovers() == []


def test_an_image_that_cannot_be_loaded_is_the_jobs_fault(world: World) -> None:
    content = b"this is no image"
    world.storages.keep_blob(world.a.storage, BlobKind.IMAGE, content)
    order = world.order(train=("a1",), test=(), algo_image=ImageRef(uuid_of("bad"), digest_of(content)))
    world.a.allows(policy_text(order))
    world.post(order, world.a)

    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "image")
    assert world.a.leftovers() == []


def test_a_model_that_is_no_plain_archive_is_the_jobs_fault(world: World) -> None:
    order = world.preduplet("a1", model=b"PK\x03\x04 not a tar")
    world.post(order, world.a)

    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "output")
    assert world.a.runs() == []


# ------------------------------------------------------------------ something outside: again after a rest, a few times


def storage_down(world: World) -> None:
    world.storages.down.add(world.a.storage)


def orchestrator_down(world: World) -> None:
    world.orchestrators.down.add(world.o2)


def engine_down(world: World) -> None:
    world.a.runtime.is_down = True


def next_dataset_unknown(world: World) -> None:
    del world.storages.datasets[dataset("b1")]


def image_nowhere(world: World) -> None:
    del world.a.runtime._images[ALGO]


def disk_full(world: World) -> None:
    world.a.allows(POLICY.replace("8388608", str(1 << 53)))


def model_upload_fails(world: World) -> None:
    world.a.ports(
        storage=Tapped(world.a.host.ports.storage, before=once("put_blob", lambda: storage_down(world)))
    )


def upload_is_answered_by_a_stranger(world: World) -> None:
    def answer() -> None:
        raise BadAnswer("not signed by that storage")

    world.a.ports(storage=Tapped(world.a.host.ports.storage, after=once("put_blob", answer)))


def storage_is_answered_for_by_a_stranger(world: World) -> None:
    def answer() -> None:
        raise BadAnswer("not signed by that storage")

    world.a.ports(storage=Tapped(world.a.host.ports.storage, after=once("dataset", answer)))


OUTSIDE_FAULTS = {
    engine_down: "runtime-unavailable",
    next_dataset_unknown: "dataset-missing",
    image_nowhere: "blob-missing",
    disk_full: "no-space",
}
PASSING_FAULTS = {
    storage_down: "storage-unavailable",
    orchestrator_down: "orchestrator-unavailable",
    model_upload_fails: "storage-unavailable",
    upload_is_answered_by_a_stranger: "bad-answer",
    storage_is_answered_for_by_a_stranger: "bad-answer",
}

outside_faults = pytest.mark.parametrize(
    ("fault", "reason"), OUTSIDE_FAULTS.items(), ids=[fault.__name__ for fault in OUTSIDE_FAULTS]
)


@outside_faults
def test_a_fault_outside_brings_the_task_back_into_the_queue_to_rest(
    fault: Callable[[World], None], reason: str, world: World
) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    fault(world)

    world.a.work(Queue.LEARN_TASKS)

    job = world.a.job(order, 0)
    assert (job.state, job.attempt, job.reason) == (JobState.QUEUED, 1, reason)
    assert job.not_before is not None
    assert 20 <= (job.not_before - NOW).total_seconds() <= 40
    assert world.a.rung(Queue.LEARN_TASKS)[-1] == Ring(
        Queue.LEARN_TASKS, job.id, (job.not_before - NOW).total_seconds()
    )
    assert world.a.ledger.receipts(order.digest) == ()
    world.a.runtime.is_down = False
    assert world.a.leftovers() == []


@outside_faults
def test_a_fault_that_passes_costs_an_attempt_and_nothing_else(
    fault: Callable[[World], None], reason: str, world: World
) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    before = dict(world.storages.datasets)
    fault(world)
    world.a.work(Queue.LEARN_TASKS)

    world.storages.down.clear()
    world.orchestrators.down.clear()
    world.storages.datasets.update(before)
    world.a.runtime.is_down = False
    world.a.runtime.add(ALGO, "algo")
    world.a.allows(POLICY)
    world.settle()

    lost = [report.reason for report in world.told(order, ReportState.ATTEMPT)]
    assert lost == [reason]
    assert receipt_of(world.a).attempt == 2
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.has_result(order)


passing_faults = pytest.mark.parametrize(
    ("fault", "reason"), PASSING_FAULTS.items(), ids=[fault.__name__ for fault in PASSING_FAULTS]
)


@passing_faults
def test_while_somebody_on_the_network_is_away_the_task_waits_and_nothing_is_spent(
    fault: Callable[[World], None], reason: str, world: World
) -> None:
    order = world.order(train=("a1", "b1"), test=(), max_attempts=1)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    alive = world.a.host
    fault(world)

    world.a.work(Queue.LEARN_TASKS)
    job = world.a.job(order, 0)
    world.a.host = alive
    world.storages.down.clear()
    world.orchestrators.down.clear()
    world.settle()

    assert (job.state, job.attempt, job.worker, job.reason) == (JobState.RUNNING, 1, None, reason)
    assert job.lease_until is not None
    assert 1 <= (job.lease_until - NOW).total_seconds() <= 2
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.runs() == ["train"]  # never again because of an upload
    assert [told.attempt for told in world.told(order, ReportState.DONE)] == [1, 1]
    assert world.told(order, ReportState.ATTEMPT) == []
    assert world.a.leftovers() == []


def test_it_waits_longer_and_longer_and_never_longer_than_five_minutes(world: World) -> None:
    order = world.order(train=("a1",), test=(), max_attempts=1)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    world.storages.down.add(world.a.storage)

    rests = []
    for _ in range(12):
        world.a.work(Queue.LEARN_TASKS)
        rests.append(world.a.rung(Queue.LEARN_TASKS)[-1].delay_s)
        world.pass_time(rests[-1])

    ceilings = [min(300.0, 2.0 * 2**n) for n in range(12)]
    assert all(c / 2 <= rest <= c for c, rest in zip(ceilings, rests, strict=True)), rests
    assert world.a.job(order, 0).attempt == 1


@pytest.mark.parametrize("fault", [storage_down, orchestrator_down, model_upload_fails])
def test_it_waits_no_longer_than_the_order_lives(fault: Callable[[World], None], world: World) -> None:
    order = world.order(train=("a1",), test=(), max_attempts=3)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    fault(world)
    world.a.work(Queue.LEARN_TASKS)

    world.pass_time((order.order.expires - NOW).total_seconds() + 100)
    world.settle()

    job, receipt = world.a.job(order, 0), receipt_of(world.a)
    assert job.state is JobState.FAILED
    assert job.reason in {"order-expired", "storage-unavailable"}
    assert (receipt.outcome, receipt.attempt) == (Outcome.FAILED, 1)
    assert len(world.told(order, ReportState.FAILED)) == 1
    assert world.a.leftovers() == []


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_attempts_are_bounded_by_what_the_order_allows(allowed: int, world: World) -> None:
    order = world.order(train=("a1",), test=(), max_attempts=allowed)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    image_nowhere(world)

    world.settle()

    job, receipt = world.a.job(order, 0), receipt_of(world.a)
    assert (job.state, job.attempt, job.reason) == (JobState.FAILED, allowed, "blob-missing")
    assert (receipt.outcome, receipt.attempt, receipt.sandbox) == (Outcome.FAILED, allowed, None)
    assert [r.attempt for r in world.told(order, ReportState.STARTED)] == list(range(1, allowed + 1))
    assert len(world.told(order, ReportState.ATTEMPT)) == allowed - 1
    assert len(world.told(order, ReportState.FAILED)) == 1


def test_it_rests_longer_after_each_attempt(world: World) -> None:
    order = world.order(train=("a1",), test=(), max_attempts=5)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    image_nowhere(world)

    rests = []
    for _ in range(4):
        world.a.work(Queue.LEARN_TASKS)
        rests.append(world.a.rung(Queue.LEARN_TASKS)[-1].delay_s)
        world.pass_time(rests[-1])

    lowest = (20, 80, 150, 150)  # seconds: a service that restarts does not use the attempts up
    assert [low <= rest <= 2 * low for low, rest in zip(lowest, rests, strict=True)] == [True] * 4


def test_a_file_that_does_not_match_its_digest_is_fetched_again(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    place = world.a.storage, world.storages.datasets[dataset("a1")].digest
    world.storages.files[place] = seal("a1").file[:-1]
    run_here(world.a)
    lost = world.a.job(order, 0)

    world.storages.files[place] = seal("a1").file
    world.settle()

    assert (lost.state, lost.reason) == (JobState.QUEUED, "digest-mismatch")
    assert world.a.job(order, 0).state is JobState.DONE


def test_a_run_whose_end_nobody_can_tell_is_neither_a_success_nor_the_jobs_fault(world: World) -> None:
    real = world.a.runtime

    class UnsureRun:
        def __init__(self, run: Run) -> None:
            self._run = run

        def wait(self) -> RunOutcome:
            return msgspec.structs.replace(self._run.wait(), cause="unknown")

    class UnsureRuntime:
        """An engine that lost the exit code of its first run."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        @contextmanager
        def run(self, spec: RunSpec) -> Iterator[Run | UnsureRun]:
            with real.run(spec) as run:
                yield UnsureRun(run) if len(real.specs) == 1 else run

    world.a.ports(runtime=UnsureRuntime())
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)

    world.settle()

    assert [told.reason for told in world.told(order, ReportState.ATTEMPT)] == ["runtime-unavailable"]
    assert receipt_of(world.a).attempt == 2
    assert world.a.job(order, 0).state is JobState.DONE


# ------------------------------------------------------------------ trust: refused, and no share is asked for in vain


def fails_for(world: World, reason: str) -> bool:
    """Whether the task at a ends FAILED for that reason, at its first attempt, without having run, and all is told."""
    (job,) = world.a.jobs()
    receipt = receipt_of(world.a)
    return (
        (job.state, job.attempt, job.reason) == (JobState.FAILED, 1, reason)
        and (receipt.outcome, receipt.reason, receipt.sandbox) == (Outcome.FAILED, reason, None)
        and world.a.runs() == []
        and world.a.leftovers() == []
    )


def queued_at_a(world: World) -> None:
    world.post(world.order(train=("a1",), test=()), world.a)
    world.a.work(Queue.LEARNUPLETS)


def test_a_use_that_the_owner_does_not_allow_is_refused(world: World) -> None:
    world.bring(seal("a1", uses=("test", "predict")), at="a")
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "share-refused")
    assert world.orchestrators.releases == []


def test_a_node_that_the_owner_does_not_list_is_refused(world: World) -> None:
    world.bring(seal("a1", nodes=("b", "c")), at="a")
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "share-refused")
    assert world.orchestrators.releases == []


def test_a_header_that_no_owner_signed_is_refused(world: World) -> None:
    world.bring(seal("a1", owner=key_of("agent-b")), at="a")
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "wrong-role")
    assert world.orchestrators.releases == []


def test_the_header_of_another_dataset_is_refused(world: World) -> None:
    info = world.storages.datasets[dataset("a1")]
    world.storages.datasets[dataset("a1")] = msgspec.structs.replace(info, header=seal("a2").header)
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "share-refused")
    assert world.orchestrators.releases == []


def test_a_share_that_is_withheld_ends_the_task(world: World) -> None:
    world.orchestrators.withheld.add((world.o2, dataset("a1").id))
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "share-withheld")


def test_a_wrong_share_ends_the_task(world: World) -> None:
    world.orchestrators.shares[world.o2, dataset("a1")] = bytes(32)
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "share-withheld")  # the orchestrator itself notices, by the commitment


def test_a_share_of_another_dataset_ends_the_task(world: World) -> None:
    class Confused:
        """Orchestrators that answer with another request's answer."""

        def __getattr__(self, name: str) -> object:
            return getattr(world.b.host.ports.orchestrators, name)

        def share(self, orchestrator: str, request: bytes) -> bytes:
            return b"\0" * 80

    world.a.ports(orchestrators=Confused())
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "bad-share")


def test_a_sealed_file_with_another_header_ends_the_task(world: World) -> None:
    other = seal("a2").file
    digest = digest_of(other)
    info = world.storages.datasets[dataset("a1")]
    world.storages.datasets[dataset("a1")] = msgspec.structs.replace(info, digest=digest, size=len(other))
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "bad-seal")


def test_a_file_that_was_altered_with_its_digest_ends_the_task_and_leaves_no_plaintext(world: World) -> None:
    altered = bytearray(seal("a1").file)
    altered[-1] ^= 1
    info = world.storages.datasets[dataset("a1")]
    digest = digest_of(bytes(altered))
    world.storages.files[world.a.storage, digest] = bytes(altered)
    world.storages.datasets[dataset("a1")] = msgspec.structs.replace(info, digest=digest)
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "bad-seal")


def test_an_orchestrator_revoked_since_intake_runs_nothing(world: World) -> None:
    world.bring(seal("a1", orchestrators=("o2",)), at="a")  # whose share is not the revoked one's
    queued_at_a(world)
    world.a.trusts(changed(world.people.roster, world.o1, revoked_at=NOW))

    world.settle()

    assert fails_for(world, "key-not-valid")
    assert world.orchestrators.releases == []


def test_an_orchestrator_revoked_since_the_dataset_was_sealed_opens_nothing(world: World) -> None:
    queued_at_a(world)
    world.a.trusts(changed(world.people.roster, world.o2, revoked_at=NOW))

    world.settle()

    assert fails_for(world, "key-not-valid")
    assert world.orchestrators.releases == []


def test_an_image_that_the_policy_lost_since_intake_does_not_run(world: World) -> None:
    queued_at_a(world)
    world.a.allows(policy_text(orchestrators=[world.o1], images=[PROBLEM]))

    world.settle()

    assert fails_for(world, "policy-refused")
    assert world.orchestrators.releases == []


def test_a_cage_that_cannot_be_held_runs_nothing(world: World) -> None:
    world.a.runtime._absent = ("memory_bytes",)
    queued_at_a(world)

    world.settle()

    assert fails_for(world, "cage-not-applied")


@pytest.mark.parametrize(("times", "state", "runs"), [(1, JobState.DONE, 1), (2, JobState.FAILED, 0)])
def test_a_container_that_the_engine_does_not_make_is_tried_once_more(
    times: int, state: JobState, runs: int, world: World
) -> None:
    refusals: list[Exception] = [CageNotMade("conmon said nothing") for _ in range(times)]
    world.a.runtime.refusals = refusals
    queued_at_a(world)

    world.settle()

    (job,) = world.a.jobs()
    assert (job.state, job.attempt) == (state, 2)
    assert len(world.a.runs()) == runs
    assert refusals == []
    assert world.a.leftovers() == []


def test_the_receipt_names_a_ceiling_that_the_policy_accepts_to_miss(world: World) -> None:
    world.a.runtime._absent = ("memory_bytes",)
    world.a.allows(POLICY + 'accept_missing = ["memory_bytes"]\n')
    queued_at_a(world)

    world.settle()

    sandbox = receipt_of(world.a).sandbox
    assert sandbox is not None
    assert sandbox.absent == ("memory_bytes",)


# ------------------------------------------------------------------ the time is over


def test_an_order_that_ended_while_it_waited_does_not_start(world: World) -> None:
    queued_at_a(world)
    world.pass_time(DAY.total_seconds() + 31)

    world.settle()

    (job,) = world.a.jobs()
    assert (job.state, job.attempt, job.reason) == (JobState.EXPIRED, 0, "order-expired")
    assert world.a.runs() == []
    assert world.orchestrators.releases == []
    assert [(r.state, r.reason) for r in world.orchestrators.told(world.o1)] == [("failed", "order-expired")]


def test_a_task_that_started_in_time_is_told_of_after_the_end(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    run_here(world.a)

    world.pass_time(2 * DAY.total_seconds())
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.has_result(order)


def test_a_clock_that_is_set_back_while_a_task_runs_does_not_spoil_its_receipt(world: World) -> None:
    def set_back(guest: Guest) -> None:
        append_what_it_sees(guest)
        world.clock.moment -= DAY / 2

    world.algo = set_back
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)

    run_here(world.a)

    told = receipt_of(world.a)
    assert (told.outcome, told.started, told.finished) == (Outcome.DONE, NOW, NOW)


# ------------------------------------------------------------------ two workers


def test_two_workers_and_a_doubled_bell_run_a_task_once(world: World) -> None:
    order = world.order(train=("a1",), test=())
    job = world.post(order, world.a).job
    world.a.work(Queue.LEARNUPLETS)

    def while_it_runs(guest: Guest) -> None:
        advance(job.id, world.a.host, "another worker")
        append_what_it_sees(guest)

    world.algo = while_it_runs
    advance(job.id, world.a.host, "worker")
    advance(job.id, world.a.host, "another worker")

    assert world.a.runs() == ["train"]
    assert world.a.job(order, 0).attempt == 1
    assert len(world.a.deliveries(DeliveryKind.RESULT)) == 1


def test_a_worker_that_saw_the_job_before_another_took_it_stops(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    seen = world.a.job(order, 0)
    execute(seen, world.a.host, "worker")

    execute(seen, world.a.host, "another worker")

    assert world.a.runs() == ["train"]
    assert len(world.a.ledger.receipts(order.digest)) == 1


def test_another_receipt_for_the_place_that_came_meanwhile_ends_the_task_and_is_told(world: World) -> None:
    order = world.order(train=("a1", "b1", "a2"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)

    def come_round(guest: Guest) -> None:
        world.hand_over(
            order, 2, to=world.a
        )  # with a receipt of a for position 0, as after a restored backup
        append_what_it_sees(guest)

    world.algo = come_round
    run_here(world.a)
    world.algo = append_what_it_sees

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (
        JobState.FAILED,
        "handoff-conflict",
    )
    assert "receipt.dropped" in world.a.events()
    assert world.a.deliveries(DeliveryKind.HANDOFF) == ()


# ------------------------------------------------------------------ the ledger is away


AWAY = [("start", 1), ("end_step", 1), ("begin_step", 1), ("end_step", 2), ("end_step", 3), ("move", 1)]


@pytest.mark.parametrize(("at", "nth"), AWAY)
def test_a_ledger_that_is_away_costs_nothing(at: str, nth: int, world: World) -> None:
    order = world.order(train=("a1",), test=(), max_attempts=1)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)

    die(world.a, at, nth)
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.runs() == ["train"]
    assert len(world.a.ledger.receipts(order.digest)) == 1
    assert world.has_result(order)


@pytest.mark.parametrize(("at", "nth"), AWAY)
def test_a_ledger_that_is_away_for_one_call_costs_nothing(at: str, nth: int, world: World) -> None:
    order = world.order(train=("a1",), test=(), max_attempts=1)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    alive, left = world.a.host, [nth]

    def tap(called: str) -> None:
        left[0] -= called == at
        if left[0] == 0 and called == at:
            raise LedgerUnavailable("the disk was full for a moment")

    world.a.ports(ledger=Tapped(alive.ports.ledger, before=tap))
    with pytest.raises(LedgerUnavailable):
        advance(world.a.job(order, 0).id, world.a.host, "worker")
    world.a.host = alive
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.runs() == ["train"]
    assert [report.attempt for report in world.told(order, ReportState.DONE)] == [1]
    assert world.a.leftovers() == []


def test_a_receipt_whose_recording_seemed_to_fail_is_not_made_twice(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    before = world.a.host

    def the_answer_is_lost() -> None:
        raise LedgerUnavailable("the disk was slow")

    world.a.ports(ledger=Tapped(before.ports.ledger, after=once("move", the_answer_is_lost)))
    with pytest.raises(LedgerUnavailable):
        advance(world.a.job(order, 0).id, world.a.host, "worker")
    world.a.host = before
    world.settle()

    assert world.a.runs() == ["train"]
    assert len(world.told(order, ReportState.DONE)) == 1
    assert world.a.job(order, 0).state is JobState.DONE


def test_a_preduplet_with_a_model_that_lies_nowhere_waits_for_it(world: World) -> None:
    nowhere = ModelRef(digest_named("a model that nobody has"), world.c.keyid)
    order = world.people.order(preduplet(data=("a1",), model=nowhere))
    world.post(order, world.a)

    run_here(world.a)

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.QUEUED, "blob-missing")
    assert world.a.deliveries(DeliveryKind.REPORT)[-1].state is DeliveryState.PENDING


def test_a_ledger_that_is_away_once_the_end_is_recorded_keeps_no_workspace(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    ledger = world.a.host.ports.ledger

    def away(called: str) -> None:
        if called == "deliveries" and world.a.job(order, 0).state is JobState.ATTESTED:
            raise LedgerUnavailable("just now")

    world.a.ports(ledger=Tapped(ledger, before=away))
    world.a.work(Queue.LEARN_TASKS)
    world.a.ports(ledger=ledger)

    assert world.a.job(order, 0).state is JobState.ATTESTED
    assert list(world.a.workspaces.iterdir()) == []
    world.a.sweep()
    world.settle()
    assert world.a.job(order, 0).state is JobState.DONE
