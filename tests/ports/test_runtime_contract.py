"""What every runtime promises, run on the fake, on rootless Podman and on runc, with real containers."""

import shutil
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest, digest_of
from agent.errors import BadImage, BadOutput, CageNotApplied, ContainerLost, RuntimeUnavailable
from agent.pipeline.outputs import file_digest
from agent.ports.runtime import Mount, RunKind, RunOutcome, RunSpec, Runtime
from agent.ports.runtime_podman import PodmanRuntime
from agent.ports.runtime_runc import RuncRuntime
from agent.ports.runtime_runc_cgroups import Cgroups
from agent.selftest import images
from agent.selftest.images import build_image, program_layer
from tests.fakes.runtime import Guest, MemoryRuntime, WorkerDied
from tests.host.podman import CEILINGS, SECCOMP, Desk, open_desk, open_engine, open_runc, probe_archive
from tests.host.worker import die_at, worker

PROBE = Path(__file__).parents[2] / "agent/devkit/demo_images/probe.py"
STRANGER = digest_of(b"an image that nobody loaded")


@dataclass(frozen=True)
class Stage:
    """A runtime, an archive that it can run, a fresh folder for mounts, and the same runtime with its engine gone."""

    runtime: Runtime
    archive: Path
    image: Digest
    root: Path
    down: Runtime

    def spec(
        self, *args: str, mounts: tuple[Mount, ...] = (), ceilings: Ceilings = CEILINGS, name: str = "a-0"
    ) -> RunSpec:
        return RunSpec(
            name=name,
            labels={"job": "a.0", "attempt": "1"},
            image=self.image,
            kind=RunKind.TRAIN,
            args=args,
            mounts=mounts,
            ceilings=ceilings,
            accept_missing=frozenset({"cpu_millis", "memory_bytes"}),
        )

    def outcome(
        self, *args: str, mounts: tuple[Mount, ...] = (), ceilings: Ceilings = CEILINGS
    ) -> RunOutcome:
        with self.runtime.run(self.spec(*args, mounts=mounts, ceilings=ceilings)) as run:
            return run.wait()

    def mount(self, name: str, target: str, *, is_writable: bool = False) -> Mount:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777 if is_writable else 0o755)
        return Mount(folder, target, is_writable)

    def abandon(self, spec: RunSpec) -> None:
        """Leave a container whose worker died once its program had begun."""
        if isinstance(self.runtime, MemoryRuntime):
            self.runtime.leave_running(spec)
        else:
            die_at(self.runtime, spec)

    def abandon_unbegun(self, spec: RunSpec) -> None:
        """Leave a container whose worker died before it let the program begin."""
        if isinstance(self.runtime, MemoryRuntime):
            self.runtime.leave_unbegun(spec)
        else:
            die_at(self.runtime, spec, "checked")

    def adopted(self, spec: RunSpec) -> RunOutcome:
        with self.runtime.adopt(spec) as run:
            return run.wait()

    def await_end(self) -> None:
        """Until no container of ours runs."""
        while any(found.is_running for found in self.runtime.leftovers()):
            time.sleep(0.02)


def probe(guest: Guest) -> int | None:
    """`demo_images/probe.py` for the fake: the words that this suite says."""
    acts: list[list[str]] = [[]]
    for word in guest.args:
        if word == "+":
            acts.append([])
        else:
            acts[-1].append(word)
    return next((code for code in (_act(guest, *act) for act in acts) if code), 0)


def _act(guest: Guest, word: str, *rest: str) -> int:
    match word:
        case "exit":
            return int(rest[0])
        case "segfault":
            return 128 + 11
        case "sleep":
            guest.say("asleep")
            guest.sleep(float(rest[0]))
        case "flood":
            guest.say("HEAD")
            for _ in range(int(rest[0]) * 1024):
                guest.say("x" * 1023)
            guest.say("TAIL")
        case "progress":
            for line in ("progress: 0.25 reading", "progress: 7", "progress: 0.4", "progress: 0.3 back"):
                guest.say(line)
            guest.say_error("progress: 0.9 on stderr")
        case "write":
            guest.write(rest[0], rest[1])
        case "copy":
            guest.write(rest[1], guest.read(rest[0]).decode())
        case "set-id":
            guest.write(rest[0], "#!/bin/sh\n")
            guest.path(rest[0]).chmod(0o4755)
        case "hostile-output":
            _leave_hostile_output(guest.path(rest[0]))
    return 0


def _leave_hostile_output(root: Path) -> None:
    closed = root / "closed" / "inner"
    closed.mkdir(parents=True)
    (closed / "file").write_text("kept")
    (root / "new\nline").write_text("kept")
    (root / "passwd").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../../..")
    for path in (closed / "file", closed, root / "closed"):
        path.chmod(0)


@pytest.fixture(scope="session")
def podman() -> Iterator[Desk]:
    for engine in open_engine():
        yield from open_desk(engine.runtime())


@pytest.fixture(scope="session")
def runc() -> Iterator[Desk]:
    with open_runc() as runtime:
        yield from open_desk(runtime)


def downed(name: str, folder: Path) -> Runtime:
    """A runtime whose engine does not answer: no socket, or no program."""
    if name == "podman":
        return PodmanRuntime(folder / "no.sock", SECCOMP, folder, instance="down")
    return RuncRuntime(folder, SECCOMP, folder, instance="down", cgroups=Cgroups(version=2), path=str(folder))


@pytest.fixture(params=["fake", *(pytest.param(name, marks=pytest.mark.host) for name in ("podman", "runc"))])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    if request.param == "fake":
        archive = tmp_path / "probe.tar"
        layer = program_layer(tmp_path / "cache", {"/opt/program/probe.py": b"pass\n"})
        image = build_image(archive, layers=[layer], entrypoint=["python3", "/opt/program/probe.py"])
        down = MemoryRuntime({})
        down.is_down = True
        fake = MemoryRuntime({"probe": probe}, absent=("cpu_millis", "memory_bytes"))
        fake.load(archive, image)
        yield Stage(fake, archive, image, tmp_path / "mounts", down)
    else:
        desk: Desk = request.getfixturevalue(request.param)
        archive, image = probe_archive()
        down_too = downed(request.param, tmp_path)
        root = desk.root / tmp_path.name
        yield Stage(desk.runtime, archive, image, root, down_too)
        if root.exists():
            desk.runtime.reclaim(root)
            shutil.rmtree(root)
    # Whatever a test did, nothing of it is left for the next one.


# ------------------------------------------------------------------ images


def test_a_loaded_image_is_found_by_the_digest_of_its_archive(stage: Stage) -> None:
    info = stage.runtime.load(stage.archive, stage.image)

    assert info.digest == stage.image
    assert info.entrypoint[-1] == "/opt/program/probe.py"
    assert stage.runtime.image(stage.image) == info
    assert info in stage.runtime.images()


def test_loading_twice_is_loading_once(stage: Stage) -> None:
    before = stage.runtime.images()

    assert stage.runtime.load(stage.archive, stage.image) == stage.runtime.load(stage.archive, stage.image)
    assert stage.runtime.images() == before


def test_what_is_no_image_archive_is_refused_and_not_remembered(stage: Stage, tmp_path: Path) -> None:
    junk = tmp_path / "junk.tar"
    junk.write_bytes(b"not an archive" * 1000)

    with pytest.raises(BadImage):
        stage.runtime.load(junk, STRANGER)

    assert stage.runtime.image(STRANGER) is None


def test_an_image_that_was_never_loaded_is_not_fetched_but_refused(stage: Stage) -> None:
    spec = replace(stage.spec("exit", "0"), image=STRANGER)

    with pytest.raises(BadImage), stage.runtime.run(spec):
        pass


# ------------------------------------------------------------------ images that go


@pytest.fixture
def spare(stage: Stage, tmp_path: Path) -> Digest:
    """An image that only this test loaded."""
    with tarfile.open(stage.archive) as whole:
        layers = [member for member in whole if member.size > 4096]
        bottom = tmp_path / "bottom.tar"
        content = whole.extractfile(max(layers, key=lambda one: one.size))
        assert content is not None
        bottom.write_bytes(content.read())
    info = stage.runtime.image(stage.image)
    assert info is not None
    source = PROBE.read_bytes()
    files = {"/opt/program/probe.py": source, "/opt/mark": uuid.uuid4().bytes}
    layer = images.Layer(bottom, file_digest(bottom), bottom.stat().st_size)
    top = program_layer(tmp_path / "spare", files)
    digest = build_image(
        tmp_path / "spare.tar", layers=[layer, top], entrypoint=info.entrypoint, env=images.ENV
    )
    stage.runtime.load(tmp_path / "spare.tar", digest)
    return digest


def test_a_discarded_image_is_gone_and_can_be_loaded_again(
    stage: Stage, spare: Digest, tmp_path: Path
) -> None:
    assert stage.runtime.discard(spare)

    assert stage.runtime.image(spare) is None
    assert spare not in {info.digest for info in stage.runtime.images()}
    with pytest.raises(BadImage), stage.runtime.run(replace(stage.spec("exit", "0"), image=spare)):
        pass
    stage.runtime.load(tmp_path / "spare.tar", spare)
    with stage.runtime.run(replace(stage.spec("exit", "0"), image=spare)) as run:
        assert run.wait().cause is None
    assert stage.runtime.discard(spare)


def test_an_image_in_use_is_not_discarded_and_its_container_goes_on(stage: Stage, spare: Digest) -> None:
    before = stage.runtime.image(spare)

    with stage.runtime.run(replace(stage.spec("sleep", "60"), image=spare)) as run:
        assert not stage.runtime.discard(spare)
        assert stage.runtime.leftovers()[0].is_running
        assert stage.runtime.image(spare) is not None
        run.kill()
        run.wait()

    after = stage.runtime.image(spare)
    assert before is not None and after is not None  # noqa: PT018
    assert after.used_at > before.used_at
    assert stage.runtime.discard(spare)


def test_discarding_what_is_not_there_is_fine(stage: Stage) -> None:
    assert stage.runtime.discard(STRANGER)


def test_an_image_is_used_when_it_is_loaded_and_when_it_runs(stage: Stage, spare: Digest) -> None:
    began_at = datetime.now(UTC) - timedelta(seconds=60)
    loaded = stage.runtime.image(spare)

    stage.runtime.load(stage.archive, stage.image)  # another one
    assert stage.runtime.image(spare) == loaded
    with stage.runtime.run(replace(stage.spec("exit", "0"), image=spare)) as run:
        run.wait()

    ran = stage.runtime.image(spare)
    assert loaded is not None and ran is not None  # noqa: PT018
    assert began_at < loaded.used_at < ran.used_at <= datetime.now(UTC)
    stage.runtime.discard(spare)


def test_nothing_is_left_to_clear_when_nothing_was_interrupted(stage: Stage) -> None:
    stage.runtime.clear_images()

    assert stage.runtime.clear_images() == 0
    assert stage.runtime.image(stage.image) is not None


# ------------------------------------------------------------------ how a run ends


def test_exit_code_0_has_no_cause(stage: Stage) -> None:
    outcome = stage.outcome("exit", "0")

    assert outcome.cause is None
    assert 0 < outcome.wall_s < 30


def test_another_exit_code_is_told(stage: Stage) -> None:
    assert stage.outcome("exit", "3").cause == "exit:3"


def test_a_death_by_signal_is_told(stage: Stage) -> None:
    assert stage.outcome("segfault").cause == "signal:11"


def test_a_run_is_killed_at_its_wall_clock_ceiling(stage: Stage) -> None:
    outcome = stage.outcome("sleep", "60", ceilings=replace(CEILINGS, wall_s=1))

    assert outcome.cause == "timeout"
    assert 1 <= outcome.wall_s < 20
    assert b"asleep" in outcome.log


def test_a_kill_from_another_thread_ends_the_wait(stage: Stage) -> None:
    with stage.runtime.run(stage.spec("sleep", "60")) as run:
        killer = threading.Timer(0.2, run.kill)
        killer.start()
        outcome = run.wait()
        killer.join()

    assert outcome.cause == "signal:9"


def test_waiting_again_tells_the_same(stage: Stage) -> None:
    with stage.runtime.run(stage.spec("exit", "3")) as run:
        first = run.wait()

        assert run.wait().cause == first.cause


# ------------------------------------------------------------------ what it says


def test_the_log_keeps_head_and_tail(stage: Stage) -> None:
    outcome = stage.outcome("flood", "2")

    assert len(outcome.log) <= CEILINGS.log_bytes
    assert outcome.log.startswith(b"HEAD\n")
    assert b"bytes left out" in outcome.log
    assert outcome.log.rstrip().endswith(
        (b"TAIL", b"x")
    )  # two streams: the last line may come before the last block


def test_progress_is_a_number_of_stdout_that_only_rises(stage: Stage) -> None:
    with stage.runtime.run(stage.spec("progress")) as run:
        run.wait()

        assert run.progress() == 0.4


def test_no_progress_is_none(stage: Stage) -> None:
    with stage.runtime.run(stage.spec("exit", "0")) as run:
        run.wait()

        assert run.progress() is None


# ------------------------------------------------------------------ folders


def test_what_a_guest_writes_into_a_writable_mount_is_there_afterwards(stage: Stage) -> None:
    output = stage.mount("model", "/data/model", is_writable=True)

    outcome = stage.outcome("write", "/data/model/weights", "0.5", mounts=(output,))
    stage.runtime.reclaim(output.source)

    assert outcome.cause is None
    assert (output.source / "weights").read_text() == "0.5"


def test_a_read_only_mount_cannot_be_written(stage: Stage) -> None:
    data = stage.mount("train", "/data/train")

    outcome = stage.outcome("write", "/data/train/x", "y", mounts=(data,))

    assert outcome.cause == "exit:1"
    assert b"Read-only file system" in outcome.log
    assert list(data.source.iterdir()) == []


def test_a_writable_folder_may_lie_in_a_read_only_one(stage: Stage) -> None:
    data = stage.mount("train", "/data/train")
    (data.source / "pred").mkdir()
    predictions = stage.mount("train_pred", "/data/train/pred", is_writable=True)

    outcome = stage.outcome("write", "/data/train/pred/x", "y", mounts=(data, predictions))
    stage.runtime.reclaim(predictions.source)

    assert outcome.cause is None
    assert (predictions.source / "x").read_text() == "y"
    assert list((data.source / "pred").iterdir()) == []


def test_whatever_a_guest_left_can_be_read_and_removed_after_reclaiming(stage: Stage) -> None:
    output = stage.mount("model", "/data/model", is_writable=True)
    passwd_before = Path("/etc/passwd").stat()

    stage.outcome("hostile-output", "/data/model", mounts=(output,))
    stage.runtime.reclaim(output.source)

    assert (output.source / "closed/inner/file").read_text() == "kept"
    assert (output.source / "new\nline").read_text() == "kept"
    assert (output.source / "passwd").is_symlink()
    assert Path("/etc/passwd").stat() == passwd_before
    shutil.rmtree(output.source)


def test_a_set_id_file_is_named_and_all_is_reclaimed_nonetheless(stage: Stage) -> None:
    output = stage.mount("model", "/data/model", is_writable=True)
    stage.outcome("set-id", "/data/model/rootkit", mounts=(output,))

    with pytest.raises(BadOutput, match="rootkit"):
        stage.runtime.reclaim(output.source)

    assert (output.source / "rootkit").read_text() == "#!/bin/sh\n"
    assert (output.source / "rootkit").stat().st_mode & 0o7000 == 0


# ------------------------------------------------------------------ containers


def test_a_running_container_is_found_with_its_labels(stage: Stage) -> None:
    with stage.runtime.run(stage.spec("sleep", "60")):
        (found,) = stage.runtime.leftovers()

        assert (found.name, found.is_running) == ("a-0", True)
        assert dict(found.labels) == {"job": "a.0", "attempt": "1"}


def test_leaving_the_context_leaves_nothing_behind(stage: Stage) -> None:
    with pytest.raises(ZeroDivisionError), stage.runtime.run(stage.spec("sleep", "60")):
        _ = 1 / 0

    assert stage.runtime.leftovers() == ()


def test_a_container_can_be_removed_by_name_from_elsewhere(stage: Stage) -> None:
    with stage.runtime.run(stage.spec("sleep", "60")) as run:
        stage.runtime.remove("a-0")
        outcome = run.wait()

        assert outcome.cause not in {None, "timeout"}
        assert stage.runtime.leftovers() == ()


def test_removing_what_is_gone_is_fine(stage: Stage) -> None:
    stage.runtime.remove("never-there")


def test_one_name_is_one_container(stage: Stage) -> None:
    with (
        stage.runtime.run(stage.spec("sleep", "60")),
        pytest.raises(RuntimeUnavailable, match="a-0"),
        stage.runtime.run(stage.spec("exit", "0")),
    ):
        pass


def test_two_containers_run_at_once(stage: Stage) -> None:
    with (
        stage.runtime.run(stage.spec("sleep", "60", name="one")),
        stage.runtime.run(stage.spec("exit", "0", name="two")) as run,
    ):
        assert run.wait().cause is None
        assert {found.name for found in stage.runtime.leftovers()} == {"one", "two"}


# ------------------------------------------------------------------ made ahead of its run


def test_a_run_takes_what_was_made_ahead_and_sees_what_came_meanwhile(stage: Stage) -> None:
    data, output = (
        stage.mount("data", "/data/train"),
        stage.mount("model", "/data/model", is_writable=True),
    )
    spec = stage.spec("copy", "/data/train/came", "/data/model/seen", mounts=(data, output))

    with stage.runtime.framed(spec):
        assert not any(found.is_running for found in stage.runtime.leftovers())
        (data.source / "came").write_text("late")
        (data.source / "came").chmod(0o644)
        with stage.runtime.run(spec) as run:
            assert run.wait().cause is None
        assert stage.runtime.leftovers() == ()
    stage.runtime.reclaim(output.source)

    assert (output.source / "seen").read_text() == "late"


def test_what_was_made_ahead_and_no_run_took_leaves_nothing_and_ran_nothing(stage: Stage) -> None:
    output = stage.mount("model", "/data/model", is_writable=True)
    spec = stage.spec("write", "/data/model/x", "y", mounts=(output,))

    with pytest.raises(ZeroDivisionError), stage.runtime.framed(spec):
        _ = 1 / 0

    assert stage.runtime.leftovers() == ()
    assert list(output.source.iterdir()) == []


def test_a_run_of_another_spec_does_not_take_what_was_made_ahead_under_its_name(stage: Stage) -> None:
    with (
        stage.runtime.framed(stage.spec("exit", "0")),
        stage.runtime.run(stage.spec("exit", "3")) as run,
    ):
        assert run.wait().cause == "exit:3"

    assert stage.runtime.leftovers() == ()


def test_what_was_made_ahead_and_removed_from_elsewhere_is_made_anew_by_its_run(stage: Stage) -> None:
    with stage.runtime.framed(stage.spec("exit", "0")):
        while not stage.runtime.leftovers() and stage.runtime.name != "podman":  # which makes none
            time.sleep(0.02)
        stage.runtime.remove("a-0")
        assert stage.runtime.leftovers() == ()
        with stage.runtime.run(stage.spec("exit", "0")) as run:
            assert run.wait().cause is None

    assert stage.runtime.leftovers() == ()


def test_an_image_that_is_not_there_is_made_ahead_nowhere(stage: Stage) -> None:
    spec = replace(stage.spec("exit", "0"), image=STRANGER)

    with suppress(BadImage), stage.runtime.framed(spec):
        assert stage.runtime.leftovers() == ()


# ------------------------------------------------------------------ a worker died, another one goes on


def outlast(began_s: float, seconds: float) -> None:
    """Until so much time has passed on the clock that ceilings count by."""
    threading.Event().wait(max(0.0, began_s + seconds - time.monotonic()))


@pytest.mark.parametrize(
    ("act", "cause"), [(("exit", "0"), None), (("exit", "7"), "exit:7"), (("segfault",), "signal:11")]
)
def test_a_run_goes_on_under_another_worker_to_its_true_end(
    stage: Stage, act: tuple[str, ...], cause: str | None
) -> None:
    spec = stage.spec("sleep", "1", "+", *act)
    stage.abandon(spec)

    outcome = stage.adopted(spec)

    assert outcome.cause == cause
    assert 1 <= outcome.wall_s < 30
    assert stage.runtime.leftovers() == ()


@pytest.mark.parametrize(
    ("act", "cause"), [(("exit", "0"), None), (("exit", "7"), "exit:7"), (("segfault",), "signal:11")]
)
def test_a_run_that_ended_while_nobody_watched_gives_its_true_end(
    stage: Stage, act: tuple[str, ...], cause: str | None
) -> None:
    spec = stage.spec("sleep", "0.5", "+", *act)
    stage.abandon(spec)
    stage.await_end()

    outcome = stage.adopted(spec)

    assert outcome.cause == cause
    assert 0.3 <= outcome.wall_s < 30
    assert stage.runtime.leftovers() == ()


def test_the_wall_clock_of_an_adopted_run_counts_from_its_begin(stage: Stage) -> None:
    spec = stage.spec("sleep", "60", ceilings=replace(CEILINGS, wall_s=4))
    stage.abandon(spec)
    began_s = time.monotonic()
    outlast(began_s, 2)

    adopted_s = time.monotonic()
    outcome = stage.adopted(spec)

    assert outcome.cause == "timeout"
    assert outcome.wall_s >= 4
    assert time.monotonic() - adopted_s < 3.5


def test_a_run_that_is_over_its_wall_clock_when_it_is_adopted_ends_at_once(stage: Stage) -> None:
    spec = stage.spec("sleep", "60", ceilings=replace(CEILINGS, wall_s=1))
    stage.abandon(spec)
    outlast(time.monotonic(), 1.5)

    outcome = stage.adopted(spec)

    assert outcome.cause == "timeout"
    assert 1.5 <= outcome.wall_s < 20


def test_an_adopted_run_keeps_the_ceilings_that_it_was_made_with(stage: Stage) -> None:
    spec = stage.spec("sleep", "1", "+", "exit", "3")
    stage.abandon(spec)

    outcome = stage.adopted(replace(spec, ceilings=replace(CEILINGS, wall_s=600)))

    assert outcome.cage.ceilings["wall_s"].startswith(f"{CEILINGS.wall_s} by ")


def test_an_adopted_run_can_be_killed_from_another_thread(stage: Stage) -> None:
    spec = stage.spec("sleep", "60")
    stage.abandon(spec)

    with stage.runtime.adopt(spec) as run:
        killer = threading.Timer(0.2, run.kill)
        killer.start()
        outcome = run.wait()
        killer.join()

    assert outcome.cause == "signal:9"


def test_killing_what_ended_long_ago_is_fine(stage: Stage) -> None:
    spec = stage.spec("exit", "3")
    stage.abandon(spec)
    stage.await_end()

    with stage.runtime.adopt(spec) as run:
        run.kill()

        assert run.wait().cause == "exit:3"
        assert run.wait().cause == "exit:3"


def test_an_adopted_run_tells_its_progress(stage: Stage) -> None:
    spec = stage.spec("sleep", "1", "+", "progress")
    stage.abandon(spec)

    with stage.runtime.adopt(spec) as run:
        run.wait()

        assert run.progress() == 0.4


def test_leaving_the_context_of_an_adopted_run_leaves_nothing_behind(stage: Stage) -> None:
    spec = stage.spec("sleep", "60")
    stage.abandon(spec)

    with pytest.raises(ZeroDivisionError), stage.runtime.adopt(spec):
        _ = 1 / 0

    assert stage.runtime.leftovers() == ()


def test_an_adopted_run_can_be_abandoned_and_adopted_again(stage: Stage) -> None:
    output = stage.mount("model", "/data/model", is_writable=True)
    spec = stage.spec("sleep", "2", "+", "write", "/data/model/x", "y", mounts=(output,))
    stage.abandon(spec)
    if isinstance(stage.runtime, MemoryRuntime):
        with suppress(WorkerDied), stage.runtime.adopt(spec):
            raise WorkerDied
    else:
        with worker(stage.runtime, spec, "adopt") as one:
            one.says("started")
            one.kill()

    outcome = stage.adopted(spec)
    stage.runtime.reclaim(output.source)

    assert outcome.cause is None
    assert (output.source / "x").read_text() == "y"


def test_there_is_nothing_to_adopt_where_nothing_was_run(stage: Stage) -> None:
    with pytest.raises(ContainerLost, match="a-0"), stage.runtime.adopt(stage.spec("exit", "0")):
        pass


def test_a_container_whose_program_never_began_is_removed_and_lost(stage: Stage) -> None:
    output = stage.mount("model", "/data/model", is_writable=True)
    spec = stage.spec("write", "/data/model/x", "y", mounts=(output,))
    stage.abandon_unbegun(spec)
    assert [found.name for found in stage.runtime.leftovers()] == ["a-0"]

    with pytest.raises(ContainerLost, match="never began"), stage.runtime.adopt(spec):
        pass

    assert stage.runtime.leftovers() == ()
    stage.runtime.reclaim(output.source)
    assert list(output.source.iterdir()) == []
    output.source.chmod(0o777)
    with stage.runtime.run(spec) as run:  # its name is free
        assert run.wait().cause is None


def test_a_container_of_other_labels_is_not_adopted_nor_touched(stage: Stage) -> None:
    spec = stage.spec("sleep", "60")
    stage.abandon(spec)

    for labels in ({"job": "a.0", "attempt": "2"}, {"job": "a.0"}, {}):
        with pytest.raises(ContainerLost), stage.runtime.adopt(replace(spec, labels=labels)):
            pass

    assert [found.is_running for found in stage.runtime.leftovers()] == [True]
    stage.runtime.remove("a-0")


def test_a_container_that_runs_something_else_is_removed_and_lost(stage: Stage) -> None:
    stage.abandon(stage.spec("sleep", "60"))

    with pytest.raises(ContainerLost, match="a-0"), stage.runtime.adopt(stage.spec("exit", "0")):
        pass

    assert stage.runtime.leftovers() == ()


# ------------------------------------------------------------------ the cage, as told


def test_the_outcome_tells_what_was_applied(stage: Stage) -> None:
    cage = stage.outcome("exit", "0").cage

    assert cage.runtime == stage.runtime.name
    assert set(cage.ceilings) | set(cage.absent) == set(Ceilings.__struct_fields__)
    assert all(" by " in told for told in cage.ceilings.values())


def test_what_the_host_can_hold_is_what_a_run_gets(stage: Stage) -> None:
    told, cage = stage.runtime.enforcement(), stage.outcome("exit", "0").cage

    assert (told.version, told.absent) == (cage.version, cage.absent)
    assert dict(told.means) == {name: text.partition(" by ")[2] for name, text in cage.ceilings.items()}


def test_a_ceiling_that_the_host_lacks_is_refused_unless_accepted(stage: Stage) -> None:
    absent = stage.outcome("exit", "0").cage.absent
    if not absent:
        pytest.skip("a host that lacks a ceiling (this one enforces all)")
    spec = replace(stage.spec("exit", "0"), accept_missing=frozenset(absent[1:]))

    with pytest.raises(CageNotApplied, match=absent[0]), stage.runtime.run(spec):
        pass


def test_an_engine_that_is_gone_is_told(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable):
        stage.down.leftovers()
    with pytest.raises(RuntimeUnavailable), stage.down.adopt(stage.spec("exit", "0")):
        pass
    with pytest.raises(RuntimeUnavailable):
        stage.down.reclaim(tmp_path)
    with pytest.raises(RuntimeUnavailable):
        stage.down.remove("a-0")
