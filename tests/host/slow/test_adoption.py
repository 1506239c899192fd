"""A worker is gone, its container is not: what another worker finds, under both engines, with real deaths of real processes."""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.devkit.podman_service import checkout_folders, podman_service
from agent.domain.ids import digest_of
from agent.errors import ContainerLost, RuntimeUnavailable
from agent.ports import cage
from agent.ports.runtime import Mount, RunOutcome, RunSpec, Runtime
from agent.ports.runtime_podman import PodmanRuntime
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi
from agent.ports.runtime_podman_found import find
from agent.ports.runtime_runc import RuncRuntime
from agent.ports.user_namespace import UserNamespace
from tests.host.podman import CEILINGS, SECCOMP, Desk, Engine, open_desk, runc_runtime
from tests.host.worker import Worker, die_at, worker

pytestmark = pytest.mark.host

MIB = 1 << 20


def adopted(desk: Desk, spec: RunSpec) -> RunOutcome:
    with desk.runtime.adopt(spec) as run:
        return run.wait()


def pid_of(runtime: Runtime, name: str = "run") -> int:
    """The container's first process."""
    if isinstance(runtime, PodmanRuntime):
        found = find(runtime._api, runtime._container_name(name))
        assert found is not None
        return found.pid
    assert isinstance(runtime, RuncRuntime)
    known = runtime._runs.read(runtime._runs.folder_of(name))
    assert known is not None
    return known.pid


def conmon_of(runtime: Runtime, name: str = "run") -> int:
    if isinstance(runtime, PodmanRuntime):
        told = runtime._api.get(f"/containers/{runtime._container_name(name)}/json")
        return int(Path(told["ConmonPidFile"]).read_text())
    assert isinstance(runtime, RuncRuntime)
    known = runtime._runs.read(runtime._runs.folder_of(name))
    assert known is not None
    return known.monitor


def await_end(runtime: Runtime, name: str = "run") -> None:
    """Until the container's first process and its conmon are gone."""
    for pid in (pid_of(runtime, name), conmon_of(runtime, name)):
        while pid > 0 and _lives(pid):
            time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# ------------------------------------------------------------------ the same container goes on


def test_the_same_process_goes_on_and_may_say_as_much_as_it_likes(desk: Desk) -> None:
    spec = desk.spec("sleep", "1", "+", "flood", "8", "+", "sleep", "1", "+", "exit", "0")
    die_at(desk.runtime, spec)
    before = pid_of(desk.runtime)

    with desk.runtime.adopt(spec) as run:
        assert pid_of(desk.runtime) == before
        outcome = run.wait()

    assert outcome.cause is None
    assert b"TAIL" in outcome.log
    assert len(outcome.log) <= CEILINGS.log_bytes


def test_what_is_said_while_nobody_listens_holds_the_guest_up_nowhere(desk: Desk) -> None:
    spec = desk.spec("sleep", "0.5", "+", "flood", "8", "+", "exit", "0")
    die_at(desk.runtime, spec)

    await_end(desk.runtime)

    assert adopted(desk, spec).cause is None


def spoken(desk: Desk) -> RunSpec:
    """A run that has spoken when its worker dies, and speaks again later."""
    output = desk.output()
    spec = desk.spec(
        "flood", "0", "+", "write", "/data/model/x", "y", "+", "sleep", "2", "+", "progress", mounts=(output,)
    )
    die_at(desk.runtime, spec)
    while not (output.source / "x").exists():
        time.sleep(0.02)
    return spec


def test_runc_s_log_is_there_from_the_beginning(runc_desk: Desk) -> None:
    spec = spoken(runc_desk)

    with runc_desk.runtime.adopt(spec) as run:
        outcome = run.wait()

    assert outcome.log.startswith(b"HEAD\nTAIL\nasleep\nprogress: 0.25 reading\n")
    assert outcome.log.endswith(b"progress: 0.9 on stderr\n")
    assert run.progress() == 0.4


def test_runc_s_log_of_a_run_that_ended_is_there(runc_desk: Desk) -> None:
    spec = runc_desk.spec("sleep", "0", "+", "progress", "+", "exit", "3")
    die_at(runc_desk.runtime, spec)
    await_end(runc_desk.runtime)

    with runc_desk.runtime.adopt(spec) as run:
        assert run.progress() == 0.4
        assert run.wait().log.startswith(b"asleep\nprogress: 0.25 reading\n")


def test_podman_keeps_no_log_and_the_log_says_so(podman_desk: Desk) -> None:
    spec = spoken(podman_desk)

    with podman_desk.runtime.adopt(spec) as run:
        log = run.wait().log

    assert log.startswith(b"[what was said before")
    assert b"HEAD" not in log
    assert b"progress: 0.4\n" in log
    assert run.progress() == 0.4


def test_of_what_ended_under_podman_there_is_no_log_and_the_log_says_so(podman_desk: Desk) -> None:
    spec = podman_desk.spec("progress")
    die_at(podman_desk.runtime, spec)
    await_end(podman_desk.runtime)

    log = adopted(podman_desk, spec).log

    assert log == b"[what was said before another worker went on with this run is not kept]\n"


def test_a_worker_that_is_told_to_stop_leaves_its_container_running(desk: Desk) -> None:
    spec = desk.spec("sleep", "2", "+", "exit", "7")
    with worker(desk.runtime, spec) as one:
        one.says("started")
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(10) == 0

    assert [found.is_running for found in desk.runtime.leftovers()] == [True]
    assert adopted(desk, spec).cause == "exit:7"


# ------------------------------------------------------------------ ends that are hard to tell


def test_a_run_whose_conmon_was_killed_ends_unknown(desk: Desk) -> None:
    spec = desk.spec("sleep", "1", "+", "exit", "0")
    die_at(desk.runtime, spec)
    os.kill(conmon_of(desk.runtime), signal.SIGKILL)

    await_end(desk.runtime)

    assert adopted(desk, spec).cause == "unknown"


def test_a_run_whose_conmon_was_killed_is_not_blamed_when_it_is_adopted_alive(desk: Desk) -> None:
    spec = desk.spec("sleep", "2", "+", "exit", "3")
    die_at(desk.runtime, spec)
    os.kill(conmon_of(desk.runtime), signal.SIGKILL)

    assert adopted(desk, spec).cause == "unknown"


def test_who_was_killed_while_nobody_watched_did_not_succeed(desk: Desk) -> None:
    spec = desk.spec("sleep", "60")
    die_at(desk.runtime, spec)
    os.kill(pid_of(desk.runtime), signal.SIGKILL)

    await_end(desk.runtime)

    assert adopted(desk, spec).cause == "signal:9"


def test_the_engine_s_own_kill_of_a_run_that_nobody_watches_is_a_timeout(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = desk.spec("sleep", "60", ceilings=replace(CEILINGS, wall_s=1))
    monkeypatch.setattr(cage, "ORPHAN_GRACE_S", 1)
    monkeypatch.setattr("agent.ports.runtime_podman_body.ORPHAN_GRACE_S", 1)
    run = desk.runtime.run(spec)
    run.__enter__()  # and nobody leaves or waits: its worker is as good as dead

    await_end(desk.runtime)

    assert adopted(desk, spec).cause == "timeout"


def test_out_of_memory_is_told_of_a_run_that_nobody_watched(runc_desk: Desk) -> None:
    spec = runc_desk.spec("sleep", "0.5", "+", "allocate", "2000")
    die_at(runc_desk.runtime, spec)
    await_end(runc_desk.runtime)

    outcome = adopted(runc_desk, spec)

    if "memory_bytes" in outcome.cage.absent:
        pytest.skip("a host with memory limits")
    assert outcome.cause == "oom"
    assert outcome.max_memory_bytes == CEILINGS.memory_bytes
    assert outcome.cpu_s is not None
    assert outcome.cpu_s > 0


def test_out_of_memory_is_told_of_a_run_that_was_adopted_before(runc_desk: Desk) -> None:
    spec = runc_desk.spec("sleep", "2", "+", "allocate", "2000")
    die_at(runc_desk.runtime, spec)

    outcome = adopted(runc_desk, spec)

    assert outcome.cause == ("oom" if "memory_bytes" not in outcome.cage.absent else "exit:12")


# ------------------------------------------------------------------ its folders


@pytest.fixture
def half_full(desk: Desk) -> Mount:
    """A model of 50 MiB that lay there before, where a run may leave 64."""
    output = desk.output()
    (output.source / "earlier").write_bytes(bytes(50 * MIB))
    (output.source / "earlier").chmod(0o666)
    return output


def test_what_lay_there_before_the_run_does_not_count_after_adoption(desk: Desk, half_full: Mount) -> None:
    spec = desk.spec(
        "sleep", "1", "+", "fill", "/data/model/x", "40", "+", "sleep", "1.5", mounts=(half_full,)
    )
    die_at(desk.runtime, spec)

    assert adopted(desk, spec).cause is None


def test_what_a_guest_leaves_after_adoption_is_bounded(desk: Desk, half_full: Mount) -> None:
    act = ("fill", "/data/model/x", "40", "+", "fill", "/data/model/y", "40")
    spec = desk.spec("sleep", "1", "+", *act, "+", "sleep", "50", mounts=(half_full,))
    die_at(desk.runtime, spec)

    assert adopted(desk, spec).cause == "disk"


def test_what_a_guest_hides_after_adoption_is_bounded(desk: Desk) -> None:
    spec = desk.spec(
        "sleep", "1", "+", "hide", "/data/model/x", "100", "+", "sleep", "50", mounts=(desk.output(),)
    )
    die_at(desk.runtime, spec)

    assert adopted(desk, spec).cause == "disk"


def test_who_was_killed_for_its_folders_by_a_worker_that_then_died_is_told_so(desk: Desk) -> None:
    act = ("fill", "/data/model/x", "40", "+", "fill", "/data/model/y", "40", "+", "sleep", "50")
    spec = desk.spec(*act, mounts=(desk.output(),))
    run = desk.runtime.run(spec)
    assert run.__enter__().wait().cause == "disk"  # and nobody leaves: its worker is as good as dead

    assert adopted(desk, spec).cause == "disk"


# ------------------------------------------------------------------ which cage, whose container


def upgraded(runtime: Runtime, folder: Path, instance: str | None = None) -> Runtime:
    """The runtime of an agent after an upgrade, whose seccomp files are others; or of another agent."""
    for kind in ("train", "predict", "problem"):
        (folder / f"{kind}.json").write_bytes((SECCOMP / f"{kind}.json").read_bytes() + b"\n")
    if isinstance(runtime, PodmanRuntime):
        api, images = runtime._api, runtime._images
        name = instance or runtime._instance
        return PodmanRuntime(api.path, folder, images._store, instance=name, pool_size=3)
    assert isinstance(runtime, RuncRuntime)
    made = runc_runtime(runtime._runs._folder.parent.parent, instance or runtime._runs._instance)
    made._seccomp_dir = folder
    return made


@pytest.mark.parametrize("is_over", [False, True])
def test_the_cage_that_is_told_is_the_one_that_was_applied(desk: Desk, tmp_path: Path, is_over: bool) -> None:
    spec = desk.spec("sleep", "1")
    die_at(desk.runtime, spec)
    if is_over:
        await_end(desk.runtime)

    with upgraded(desk.runtime, tmp_path).adopt(spec) as run:
        cage_told = run.wait().cage

    assert cage_told.seccomp == digest_of((SECCOMP / "train.json").read_bytes())
    with desk.runtime.run(spec) as run:
        assert cage_told == run.wait().cage


def test_another_agent_s_container_of_the_same_name_is_not_adopted(desk: Desk, tmp_path: Path) -> None:
    spec = desk.spec("sleep", "60")
    die_at(desk.runtime, spec)

    with pytest.raises(ContainerLost), upgraded(desk.runtime, tmp_path, "another").adopt(spec):
        pass

    assert [found.is_running for found in desk.runtime.leftovers()] == [True]


@pytest.mark.parametrize("moment", ["claimed", "made", "checked"])
def test_no_code_of_a_container_that_was_not_let_go_ever_runs(desk: Desk, moment: str) -> None:
    output = desk.output()
    spec = desk.spec("write", "/data/model/x", "y", mounts=(output,))
    die_at(desk.runtime, spec, moment)

    with pytest.raises(ContainerLost), desk.runtime.adopt(spec):
        pass

    assert desk.runtime.leftovers() == ()
    desk.runtime.reclaim(output.source)
    assert list(output.source.iterdir()) == []


def test_a_frame_that_died_before_it_was_let_go_did_not_succeed(desk: Desk) -> None:
    spec = desk.spec("exit", "0")
    die_at(desk.runtime, spec, "checked")
    os.kill(pid_of(desk.runtime), signal.SIGKILL)
    await_end(desk.runtime)

    with pytest.raises(ContainerLost), desk.runtime.adopt(spec):
        pass

    assert desk.runtime.leftovers() == ()


# ------------------------------------------------------------------ several workers


@pytest.mark.parametrize("end", ["0", "7"])
def test_two_that_adopt_at_once_tell_the_same_end_or_none(desk: Desk, end: str) -> None:
    spec = desk.spec("sleep", "3", "+", "exit", end)
    die_at(desk.runtime, spec)

    with worker(desk.runtime, spec, "adopt") as one, worker(desk.runtime, spec, "adopt") as other:
        for each in (one, other):
            each.says("started")
        told = [ending(each) for each in (one, other)]

    assert set(told) <= {None if end == "0" else "exit:7", "unknown", "runtime-unavailable"}
    assert told != ["unknown", "unknown"]
    assert desk.runtime.leftovers() == ()


def ending(one: Worker) -> str | None:
    """The cause or the code with which a worker's run ended, within a minute."""
    assert one.process.stdout is not None
    word, _, rest = one.process.stdout.readline().partition(" ")
    assert word in {"ended", "failed"}, word
    assert one.process.wait(60) == 0
    told = json.loads(rest)
    print(told)  # noqa: T201 - why, when a test fails
    return told["cause"] if word == "ended" else told["code"]  # type: ignore[no-any-return]


def test_who_adopts_what_another_one_removes_ends_cleanly(desk: Desk) -> None:
    spec = desk.spec("sleep", "60")
    for delay_s in (0.5, 0.6, 0.8):  # it takes about that long to begin
        die_at(desk.runtime, spec)
        with worker(desk.runtime, spec, "adopt", "never") as one:
            threading.Event().wait(delay_s)
            desk.runtime.remove("run")
            told = ending(one)

        assert told in {"signal:9", "unknown", "container-lost", "runtime-unavailable"}
        assert desk.runtime.leftovers() == ()


@pytest.mark.parametrize("moment", ["claimed", "made", "checked"])
def test_a_worker_that_wakes_up_after_its_run_was_taken_from_it_ends_cleanly(desk: Desk, moment: str) -> None:
    spec = desk.spec("sleep", "60")
    with worker(desk.runtime, spec, moment=moment) as one:
        one.says(moment)
        with pytest.raises(ContainerLost), desk.runtime.adopt(spec):
            pass

        with desk.runtime.run(spec):  # again under the same name, while the first one wakes up
            pid = pid_of(desk.runtime)
            one.go_on()
            told = ending(one)

            assert pid_of(desk.runtime) == pid
            assert _lives(pid)

    assert told == "runtime-unavailable"
    assert desk.runtime.leftovers() == ()


def test_a_worker_that_was_stopped_while_another_one_ended_its_run_ends_cleanly(desk: Desk) -> None:
    spec = desk.spec("sleep", "2", "+", "exit", "7")
    with worker(desk.runtime, spec) as one:
        one.says("started")
        one.process.send_signal(signal.SIGSTOP)

        assert adopted(desk, spec).cause == "exit:7"
        with desk.runtime.run(desk.spec("sleep", "60")):
            pid = pid_of(desk.runtime)
            one.go_on()
            told = ending(one)

            assert _lives(pid)

    assert told in {"exit:7", "unknown", "runtime-unavailable"}


# ------------------------------------------------------------------ Podman's service dies


@contextmanager
def service() -> Iterator[Path]:
    """One more service on the storage of the tests, under a socket of its own."""
    runtime_dir, root = checkout_folders()
    with podman_service(runtime_dir, root, name="test-killed") as socket:
        yield socket


def kill_service(socket: Path) -> None:
    group = os.getpgid(PodmanApi(socket).service_pid())
    os.killpg(group, signal.SIGKILL)
    while _group_lives(group):
        time.sleep(0.02)


def _group_lives(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


@pytest.fixture
def killable(engine: Engine) -> Iterator[Desk]:
    """A desk whose service may be killed; whoever removes what is left finds another one."""
    with service() as socket:
        instance = f"test-{uuid.uuid4()}"
        runtime = PodmanRuntime(socket, SECCOMP, engine.store, instance=instance, pool_size=3)
        last = PodmanRuntime(engine.socket, SECCOMP, engine.store, instance=instance, pool_size=3)
        for desk in open_desk(last):
            yield replace_runtime(desk, runtime)


def replace_runtime(desk: Desk, runtime: Runtime) -> Desk:
    return Desk(runtime, desk.image, desk.root)


def test_a_living_worker_survives_a_restart_of_the_service(killable: Desk) -> None:
    spec = killable.spec("sleep", "4", "+", "flood", "4", "+", "exit", "7")

    with ExitStack() as services, killable.runtime.run(spec) as run:
        kill_service(killable.podman._api.path)
        services.enter_context(service())

        assert run.wait().cause == "exit:7"


def test_a_run_goes_on_through_the_next_service(killable: Desk) -> None:
    spec = killable.spec("sleep", "4", "+", "flood", "4", "+", "exit", "7")
    die_at(killable.runtime, spec)
    kill_service(killable.podman._api.path)

    with service():
        assert adopted(killable, spec).cause == "exit:7"


def test_a_service_that_is_away_at_the_end_is_not_missed_and_the_next_one_tells_the_same(
    killable: Desk,
) -> None:
    spec = killable.spec("sleep", "2", "+", "exit", "7")
    with worker(killable.runtime, spec) as one:
        one.says("started")
        kill_service(killable.podman._api.path)

        assert ending(one) == "exit:7"  # the kernel and conmon say so; what is left of it is the sweep's

    with service():
        assert adopted(killable, spec).cause == "exit:7"


@pytest.fixture
def own_storage() -> Iterator[tuple[Path, Path, Path]]:
    """(runtime folder, storage, notes) of a Podman that may be booted: nobody else has containers there."""
    runtime_dir = Path(tempfile.mkdtemp(prefix="dcc-boot-", dir=os.environ["XDG_RUNTIME_DIR"]))
    root = Path(tempfile.mkdtemp(prefix="dcc-boot-", dir=Path.home()))
    try:
        yield runtime_dir, root / "storage", root / "notes"
    finally:
        clear(root, runtime_dir)


def clear(*folders: Path) -> None:
    """Remove them, whoever of the user's subordinate ids has files there."""
    inside = UserNamespace.made()
    for folder in folders:
        inside.do("reclaim", str(folder))
        shutil.rmtree(folder)
    inside.close()


@contextmanager
def booted(runtime_dir: Path, root: Path, socket: Path) -> Iterator[None]:
    """Podman after a boot of the host: nothing is left of what lay in memory."""
    kill_service(socket)
    clear(runtime_dir / "tmp", runtime_dir / "run")
    with podman_service(runtime_dir, root):
        yield


def test_after_a_boot_nobody_takes_a_run_for_done(own_storage: tuple[Path, Path, Path]) -> None:
    runtime_dir, root, notes = own_storage
    with podman_service(runtime_dir, root) as socket:
        runtime = PodmanRuntime(socket, SECCOMP, notes, instance="boot", pool_size=2)
        with ExitStack() as boots:
            for desk in open_desk(runtime):
                running, ended = desk.spec("sleep", "60"), desk.spec("exit", "0", name="ended")
                die_at(runtime, ended)
                await_end(runtime, "ended")
                die_at(runtime, running)
                for pid in (conmon_of(runtime), pid_of(runtime)):
                    os.kill(pid, signal.SIGKILL)
                boots.enter_context(booted(runtime_dir, root, socket))

                assert adopted(desk, ended).cause == "unknown"
                # Podman 4.3 answers 0 here, for a container that was killed.
                with pytest.raises(ContainerLost), runtime.adopt(running):
                    pass

                assert runtime.leftovers() == ()


# ------------------------------------------------------------------ what passes by itself


def test_a_cage_that_cannot_be_made_just_now_is_no_fault_of_the_cage(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of a guest are used up: RLIMIT_NPROC counts processes that were killed a moment ago under the same ids."""
    told = (
        "runc create failed: unable to start container process: fork/exec: resource temporarily unavailable"
    )
    if isinstance(desk.runtime, PodmanRuntime):
        honest_post = PodmanApi.post

        def post(self: PodmanApi, path: str, *words: Any, **more: str) -> Any:
            if path.endswith("/init"):
                raise ApiRefusal(500, f"{told}: OCI runtime error")
            return honest_post(self, path, *words, **more)

        monkeypatch.setattr(PodmanApi, "post", post)
    else:
        honest_ask = UserNamespace.ask

        def ask(self: UserNamespace, act: str, *words: object) -> dict[str, Any]:
            if act == "monitor":
                return {"code": 1, "told": json.dumps({"data": -1, "message": told})}
            return honest_ask(self, act, *words)

        monkeypatch.setattr(UserNamespace, "ask", ask)

    with pytest.raises(RuntimeUnavailable, match="temporarily"), desk.runtime.run(desk.spec("exit", "0")):
        pass

    assert desk.runtime.leftovers() == ()
