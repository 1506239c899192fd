"""The watcher: what it counts as a container's memory, and what it does when a run goes over."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.ids import digest_of
from agent.errors import RuntimeUnavailable
from agent.ports import run_watch
from agent.ports.cage import applied
from agent.ports.run_kept import Kept
from agent.ports.run_watch import RunWatch, lying_before, memory_of
from agent.ports.user_namespace import Failed
from tests.ports.test_podman_body import CEILINGS, ON_V1, ON_V2, SPEC

MIB = 1 << 20
STRANGER = digest_of(b"a seccomp profile")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_watch, "FIRST_LOOK_S", 0.001)
    monkeypatch.setattr(run_watch, "EVERY_S", 0.001)


def process(proc: Path, pid: int, *, resident_mib: int, pss_mib: int, children: str = "") -> None:
    own = proc / str(pid)
    (own / f"task/{pid}").mkdir(parents=True)
    (own / f"task/{pid}/children").write_text(children)
    (own / "statm").write_text(f"1 {resident_mib * 256} 0 0 0 0 0\n")
    (own / "smaps_rollup").write_text(f"00400000-7fff [rollup]\nRss: 1 kB\nPss:    {pss_mib * 1024} kB\n")


def test_memory_is_that_of_the_first_process_and_all_below_it(tmp_path: Path) -> None:
    process(tmp_path, 1, resident_mib=10, pss_mib=5, children="2 3 ")
    process(tmp_path, 2, resident_mib=20, pss_mib=15, children="4 ")
    process(tmp_path, 4, resident_mib=30, pss_mib=20)
    process(tmp_path, 9, resident_mib=99, pss_mib=99)

    assert memory_of(1, 100 * MIB, tmp_path) == 60 * MIB  # 3 ended meanwhile


def test_pages_that_processes_share_count_once_when_it_matters(tmp_path: Path) -> None:
    process(tmp_path, 1, resident_mib=60, pss_mib=35, children="2")
    process(tmp_path, 2, resident_mib=60, pss_mib=35)

    assert memory_of(1, 100 * MIB, tmp_path) == 70 * MIB


def test_who_forks_on_and_on_is_not_followed_for_ever(tmp_path: Path) -> None:
    process(tmp_path, 1, resident_mib=1, pss_mib=1, children="1 ")

    assert memory_of(1, 1 << 62, tmp_path) == run_watch.MOST_PROCESSES * MIB


class Inside:
    """A user namespace that tells these measures one after the other, the last one again and again."""

    def __init__(self, *told: Any) -> None:
        self.told = list(told)

    def ask(self, _act: str, _folders: list[str], _most: int, _pid: int) -> dict[str, Any]:
        answer = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(answer, Exception):
            raise answer
        return {"bytes": answer[0], "entries": answer[1], "is_deep": len(answer) > 2}


def watched(inside: Inside, facts: Any = ON_V2, ceilings: Any = CEILINGS) -> tuple[RunWatch, threading.Event]:
    killed = threading.Event()
    spec = replace(SPEC, ceilings=ceilings)
    kept = Kept.of(spec, applied("podman", spec, facts, STRANGER), lying_before(spec, inside))  # type: ignore[arg-type]
    return RunWatch(spec, kept, 1, inside, killed.set), killed  # type: ignore[arg-type]


@pytest.mark.parametrize("over", [(CEILINGS.output_bytes + 1, 1), (1, CEILINGS.output_files + 1)])
def test_a_run_that_leaves_too_much_is_killed(over: tuple[int, int]) -> None:
    watch, killed = watched(Inside((0, 0), (1, 1), over))

    watch.start()

    assert killed.wait(30)
    watch.stop()
    assert watch.cause == "disk"


def test_a_run_that_hides_folders_too_deep_to_be_measured_is_killed() -> None:
    watch, killed = watched(Inside((0, 0), (1, 1, "deep")))

    watch.start()

    assert killed.wait(30)
    watch.stop()
    assert watch.cause == "output"


def test_what_lay_there_before_does_not_count() -> None:
    seen_often = threading.Event()
    inside = Inside((CEILINGS.output_bytes, 5), (CEILINGS.output_bytes + 1, 6))
    honest = inside.ask

    def ask(*words: Any) -> dict[str, Any]:
        if len(inside.told) == 1:
            seen_often.set()
        return honest(*words)

    inside.ask = ask  # type: ignore[method-assign, assignment]
    watch, killed = watched(inside)

    watch.start()

    assert seen_often.wait(30)
    watch.stop()
    assert (watch.cause, killed.is_set()) == (None, False)


def test_a_look_that_fails_is_followed_by_another() -> None:
    gone = RuntimeUnavailable("away")
    watch, killed = watched(Inside((0, 0), gone, Failed("x", 2), (CEILINGS.output_bytes + 1, 1)))

    watch.start()

    assert killed.wait(30)
    watch.stop()


def test_a_run_that_nobody_can_look_after_is_killed_and_blamed_for_nothing() -> None:
    watch, killed = watched(Inside((0, 0), RuntimeUnavailable("away for good")))

    watch.start()

    assert killed.wait(30)
    watch.stop()
    assert watch.cause == "unknown"


def test_folders_that_cannot_be_looked_into_begin_no_run() -> None:
    with pytest.raises(RuntimeUnavailable, match="looked into"):
        watched(Inside(Failed("Permission denied", 13)))


def test_memory_is_watched_only_where_no_cgroup_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_watch, "memory_of", lambda _pid, enough: enough + 1)
    on_v1, killed = watched(Inside((0, 0)), ON_V1)
    on_v2, _ = watched(Inside((0, 0)), ON_V2)

    on_v1.start()
    on_v2.start()

    assert killed.wait(30)
    on_v1.stop()
    on_v2.stop()
    assert (on_v1.cause, on_v2.cause) == ("oom", None)


def test_a_run_without_anything_to_watch_has_no_thread() -> None:
    spec = replace(SPEC, mounts=())
    kept = Kept.of(spec, applied("podman", spec, ON_V2, STRANGER), lying_before(spec, SimpleNamespace()))  # type: ignore[arg-type]
    watch = RunWatch(spec, kept, 1, SimpleNamespace(), lambda: None)  # type: ignore[arg-type]

    watch.start()

    assert not watch._thread.is_alive()
    watch.stop()
