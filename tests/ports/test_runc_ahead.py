"""What is made ahead on runc, and how a run is taken away, without a container: whose it is, and who finds what is left."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from agent.domain.ids import digest_of
from agent.errors import BadImage, RuntimeUnavailable
from agent.ports.run_stack import RunStack
from agent.ports.runtime_runc import RuncRuntime
from agent.ports.runtime_runc_cgroups import Cgroups
from agent.ports.runtime_runc_frames import Frame, Frames
from agent.ports.runtime_runc_programs import Programs
from agent.ports.runtime_runc_removal import Removal
from agent.ports.runtime_runc_runs import Known, Runs
from agent.ports.user_namespace import UserNamespace
from tests.ports.test_podman_body import IMAGE, ON_V2, SPEC

ROOT = digest_of(b"an image")
WAIT_S = 20.0


def frame_of(known: Known) -> Frame:
    return Frame(
        spec=SPEC,
        image=IMAGE,
        facts=ON_V2,
        seccomp={},
        seccomp_digest=ROOT,
        config={},
        folder=Path("/nowhere"),
        known=known,
        made_s=0.0,
        helper=1,
    )


def known_as(name: str) -> Known:
    return Known(instance="i", name=name, labels={}, number=1, image=ROOT)


FIRST, SECOND = frame_of(known_as("first")), frame_of(known_as("second"))


@contextmanager
def held(frames: Frames, name: str, frame: Frame) -> Iterator[threading.Event]:
    """One that is being made until the event is set."""
    goes_on = threading.Event()

    def make() -> Frame:
        assert goes_on.wait(WAIT_S)
        return frame

    frames.begin(name, make)
    try:
        yield goes_on
    finally:
        goes_on.set()


# ------------------------------------------------------------------ whose it is


def test_who_takes_one_that_is_being_made_waits_for_it_and_nobody_gets_it_twice() -> None:
    frames = Frames()
    with held(frames, "a", FIRST) as goes_on:
        threading.Timer(0.05, goes_on.set).start()
        assert frames.take("a") is FIRST
    assert frames.take("a") is None


def test_a_second_one_of_a_name_is_not_begun_and_the_first_is_its_maker_s() -> None:
    frames = Frames()
    first = frames.begin("a", lambda: FIRST)

    second = frames.begin("a", lambda: SECOND)

    assert first is not None
    assert second is None
    assert frames.take("a", first) is FIRST


def test_who_leaves_late_takes_nothing_that_another_made_under_its_name() -> None:
    frames = Frames()
    late = frames.begin("a", lambda: FIRST)
    assert frames.take("a") is FIRST
    frames.begin("a", lambda: SECOND)

    assert late is not None
    assert frames.take("a", late) is None
    assert frames.take("a") is SECOND


def test_what_cannot_be_made_is_none() -> None:
    def make() -> Frame:
        raise BadImage("no such image")

    frames = Frames()
    frames.begin("a", make)

    assert frames.take("a") is None


def test_where_no_further_thread_is_to_be_had_nobody_waits_for_what_nobody_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    frames = Frames()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        frames.begin("a", lambda: FIRST)

    assert frames.take("a") is None


# ------------------------------------------------------------------ places


def test_one_that_is_made_gives_its_place_up_and_its_run_finds_none_once_it_is_gone() -> None:
    frames, gone = Frames(), list[Frame]()
    making = frames.begin("a", lambda: FIRST)
    assert making is not None
    making.frame.result(WAIT_S)

    def let_fall(frame: Frame) -> None:
        taking = threading.Thread(target=lambda: taken.append(frames.take("a")))
        taking.start()
        taking.join(0.05)
        assert taking.is_alive()  # its name is in use still
        gone.append(frame)
        takers.append(taking)

    taken, takers = list[Frame | None](), list[threading.Thread]()
    assert frames.give_up_one(let_fall)
    takers[0].join(WAIT_S)

    assert (gone, taken) == ([FIRST], [None])
    assert not frames.give_up_one(let_fall)


def test_what_is_being_made_or_could_not_be_gives_no_place_up() -> None:
    def make() -> Frame:
        raise BadImage("no such image")

    frames = Frames()
    none = frames.begin("b", make)
    assert none is not None
    assert none.frame.result(WAIT_S) is None
    with held(frames, "a", FIRST):
        assert not frames.give_up_one(lambda _frame: None)


def test_a_run_that_has_its_inputs_goes_before_one_that_still_waits_for_them(tmp_path: Path) -> None:
    runtime = runtime_in(tmp_path, pool_size=1)
    waits = claimed(runtime._runs)
    making = runtime._frames.begin("a", lambda: replace(frame_of(waits), folder=runtime._runs.folder_of("a")))
    assert making is not None
    making.frame.result(WAIT_S)

    with RunStack() as stack:
        with pytest.raises(RuntimeUnavailable, match="all places"):  # one that is made ahead itself
            runtime._claim(SPEC, ON_V2, stack, patience_s=0.0)
        _, known = runtime._claim(SPEC, ON_V2, stack, patience_s=WAIT_S)

        assert runtime._runs.own() == (known,)
        assert runtime._frames.take("a") is None


# ------------------------------------------------------------------ taken away


def test_what_is_being_made_is_whole_before_it_is_taken_away(tmp_path: Path) -> None:
    """Half of one would leave where it was set up, or a container that nobody knows."""
    runtime = runtime_in(tmp_path)
    known = claimed(runtime._runs)
    with held(runtime._frames, "a", frame_of(known)) as goes_on:
        removing = threading.Thread(target=runtime.remove, args=("a",))
        removing.start()
        removing.join(0.05)
        assert runtime._runs.own() == (known,)
        goes_on.set()
        removing.join(WAIT_S)

    assert runtime._runs.own() == ()
    assert runtime._frames.take("a") is None


class Inside:
    """The helper, of which only the folders where runs are set up are there."""

    stage = "/stage"

    def __init__(self, *staged: str) -> None:
        self.staged = set(staged)

    def do(self, act: str, folder: str) -> dict[str, Any]:
        assert act == "unstage_run"
        self.staged.discard(folder.removeprefix("/stage/"))
        return {}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs", "one")


def removal_of(runs: Runs, inside: Inside, folder: Path) -> Removal:
    for name in ("runc", "conmon"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    helper = cast(UserNamespace, inside)
    cgroups = Cgroups(version=2)
    return Removal(runs, Programs(helper, folder / "state", cgroups, str(folder)), cgroups, helper)


def runtime_in(folder: Path, pool_size: int = 4) -> RuncRuntime:
    """A runtime without a helper, that takes runs away."""
    runtime = RuncRuntime(
        folder, folder, folder, instance="one", cgroups=Cgroups(version=2), pool_size=pool_size, path=""
    )
    runtime._removal = removal_of(runtime._runs, Inside(), folder)
    return runtime


def claimed(runs: Runs) -> Known:
    known = runs.claim("a", {}, ROOT, range(1, 9), 4)
    assert known is not None
    return known


@contextmanager
def conmon_of(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is taken for conmon at work on the container of this name."""
    words = ["conmon", "-c", "read word", name]
    with subprocess.Popen(words, executable="/bin/sh", stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_was_made_of_a_run_after_somebody_took_it_away_goes_with_its_maker(
    runs: Runs, tmp_path: Path
) -> None:
    known, folder = claimed(runs), runs.folder_of("a")
    runs.forget(folder)  # as a cancellation in another process does, before anything else of it is there
    inside = Inside(folder.name)
    with conmon_of(folder.name) as conmon:
        reaping = threading.Thread(target=conmon.wait)
        reaping.start()
        removal_of(runs, inside, tmp_path).destroy(folder, known)
        reaping.join(WAIT_S)

        assert conmon.returncode == -9
    assert inside.staged == set()
    assert not folder.exists()


def test_another_run_of_the_name_is_let_alone(runs: Runs, tmp_path: Path) -> None:
    known, folder = claimed(runs), runs.folder_of("a")
    runs.forget(folder)
    another = claimed(runs)
    inside = Inside(folder.name)
    with conmon_of(folder.name) as conmon:
        removal_of(runs, inside, tmp_path).destroy(folder, known)

        assert conmon.poll() is None
    assert inside.staged == {folder.name}
    assert runs.read(folder) == another
