"""A container that ended is removed while its run's caller goes on; whoever needs it gone waits."""

import threading

import pytest
from structlog.testing import capture_logs

from agent.errors import RuntimeUnavailable
from agent.ports.runtime_podman_removals import Removals


def test_a_removal_goes_on_by_itself_and_is_waited_for() -> None:
    may_end, removed = threading.Event(), list[str]()

    def remove(container: str) -> None:
        may_end.wait(30)
        removed.append(container)

    removals = Removals(remove)
    removals.begin("a", "1")
    removals.begin("b", "2")

    assert not removals.wait("c")
    assert removed == []
    may_end.set()
    assert removals.wait("a")
    assert "1" in removed
    removals.wait()
    assert sorted(removed) == ["1", "2"]
    assert not removals.wait()


def test_what_cannot_be_removed_is_told_and_stops_nobody() -> None:
    def remove(_: str) -> None:
        raise RuntimeUnavailable("Podman does not answer")

    removals = Removals(remove)
    with capture_logs() as logs:
        removals.begin("a", "1")
        removals.wait()

    assert not removals.wait()
    assert [(line["event"], line["container"]) for line in logs] == [("leftover.stays", "a")]


def test_where_no_thread_is_to_be_had_it_is_removed_at_once_and_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    removed = list[str]()
    removals = Removals(removed.append)
    monkeypatch.setattr(threading.Thread, "start", refuse)

    removals.begin("a", "1")

    assert removed == ["1"]
    assert not removals.wait()
