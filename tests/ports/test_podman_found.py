"""What Podman tells of a container, read; and its refusals, told apart by whose fault they are."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.domain.ids import digest_of
from agent.errors import BadImage, CageNotApplied, CageNotMade, RuntimeUnavailable
from agent.ports import runtime_podman_adoption
from agent.ports.cage import applied
from agent.ports.run_kept import Kept, Lying
from agent.ports.runtime_podman_adoption import Adoption
from agent.ports.runtime_podman_api import ApiRefusal
from agent.ports.runtime_podman_found import (
    exit_file_of,
    find,
    is_first_process,
    not_made,
    recorded_code,
    refusals,
)
from tests.ports.test_podman_body import ON_V2, SPEC

STATE = {"Status": "exited", "Pid": 0, "ExitCode": 3, "OOMKilled": False}
BEGAN, ENDED = "2026-11-26T07:12:25.031052264Z", "2026-11-26T08:12:26.072074813+01:00"


class Api:
    """A service that knows one container, or refuses."""

    def __init__(self, told: Any) -> None:
        self.told = told

    def get(self, _path: str) -> Any:
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


def container(**state: Any) -> Any:
    return {"Id": "abc", "Config": {"Labels": None}, "State": STATE | state}


def test_a_container_lasts_from_its_begin_to_its_end() -> None:
    found = find(Api(container(StartedAt=BEGAN, FinishedAt=ENDED)), "abc")  # type: ignore[arg-type]

    assert found is not None
    assert found.began_at == datetime(2026, 11, 26, 7, 12, 25, 31052, tzinfo=UTC)
    assert found.lasted_s() == pytest.approx(1.041, abs=0.001)
    assert found.kept is None


def test_a_time_that_never_came_is_none() -> None:
    never = "0001-01-01T00:00:00Z"
    found = find(Api(container(StartedAt=never, FinishedAt=never)), "abc")  # type: ignore[arg-type]

    assert found is not None
    assert (found.began_at, found.ended_at) == (None, None)


def test_a_container_that_is_not_there_is_none_and_another_refusal_is_told() -> None:
    assert find(Api(ApiRefusal(404, "no such container")), "abc") is None  # type: ignore[arg-type]
    with pytest.raises(RuntimeUnavailable):
        find(Api(ApiRefusal(500, "database is locked")), "abc")  # type: ignore[arg-type]


def test_a_run_that_one_place_calls_a_success_and_another_does_not_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = Kept.of(SPEC, applied("podman", SPEC, ON_V2, digest_of(b"")), Lying(0, 0))
    told = container(StartedAt=BEGAN, FinishedAt=ENDED, ExitCode=137)
    api: Any = Api(told)
    found = find(api, "abc")
    assert found is not None
    monkeypatch.setattr(runtime_podman_adoption, "recorded_code", lambda *_: 0)

    inside: Any = NothingThere()
    outcome = Adoption(SPEC, found, kept, api, inside).ended().wait()

    assert outcome.cause == "unknown"


# ------------------------------------------------------------------ the exit code


def conmon(exits: Path) -> "subprocess.Popen[bytes]":
    """A process that was told what conmon is told."""
    words = ["/bin/sh", "-c", "echo; read _", "conmon", "--exit-dir", str(exits)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # from then on its words are its own
    return process


def test_where_conmon_writes_its_code_down_is_read_of_its_own_words(tmp_path: Path) -> None:
    with conmon(tmp_path) as monitor:
        assert exit_file_of(container(ConmonPid=monitor.pid)) == tmp_path / "abc"
        monitor.communicate()
    assert exit_file_of(container(ConmonPid=monitor.pid)) is None
    assert exit_file_of(container(ConmonPid=os.getpid())) is None
    assert exit_file_of(container()) is None


@pytest.mark.parametrize("name", ["abc", "abc-old"])
def test_conmon_s_own_note_of_the_code_is_taken_and_podman_not_asked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("137")

    assert recorded_code(None, "abc", tmp_path / "abc") == 137  # type: ignore[arg-type]


def test_without_a_note_of_conmon_s_podman_is_asked(tmp_path: Path) -> None:
    class Answers:
        def post(self, path: str, **_: str) -> Any:
            return {"/containers/abc/wait": 3, "/containers/def/wait": None}[path]

    api: Any = Answers()
    (tmp_path / "def").write_text("")

    assert recorded_code(api, "abc") == 3
    assert recorded_code(api, "abc", tmp_path / "abc") == 3
    assert recorded_code(api, "def", tmp_path / "def") is None


class NothingThere:
    """A user namespace whose folders are empty."""

    def ask(self, *_: object) -> dict[str, Any]:
        return {"bytes": 0, "entries": 0, "is_deep": False}


def test_a_process_that_only_got_the_id_is_not_the_container_s() -> None:
    assert not is_first_process(os.getpid(), 1, os.getpid())
    assert not is_first_process(1 << 22, 1, os.getpid())


@pytest.mark.parametrize(
    ("words", "status", "kind"),
    [
        (
            "runc: fork/exec /proc/self/exe: resource temporarily unavailable: OCI runtime error",
            500,
            RuntimeUnavailable,
        ),
        ("crun: clone: Resource temporarily unavailable: OCI runtime error", 500, RuntimeUnavailable),
        ("no container with name or ID abc found: no such container", 404, RuntimeUnavailable),
        ("cannot init container abc: container state improper", 500, RuntimeUnavailable),
        ('runc: exec: "/no": stat /no: no such file or directory', 500, BadImage),
        ("runc: error mounting proc: operation not permitted", 500, CageNotMade),
    ],
)
def test_why_a_frame_was_not_made_says_whose_fault_it_is(
    words: str, status: int, kind: type[Exception]
) -> None:
    assert type(not_made(ApiRefusal(status, words))) is kind


def test_a_container_that_somebody_else_removed_is_no_fault_of_the_cage() -> None:
    with pytest.raises(RuntimeUnavailable), refusals(CageNotApplied):
        raise ApiRefusal(404, "no such container")
    with pytest.raises(CageNotApplied), refusals(CageNotApplied):
        raise ApiRefusal(500, "something else")
