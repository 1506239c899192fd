"""Clock, disk, reach and units; and how the doctor looks at files and programs."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from agent.doctor import clock, disk, reach, units
from agent.doctor.clock import Answered
from agent.doctor.disk import Ledger, Space
from agent.doctor.lines import State, Unknown
from agent.doctor.look import ask_program, attempt, find_program, read_text
from agent.doctor.look_clock import look_at_clock
from agent.doctor.look_disk import look_at_ledger, look_at_space
from agent.doctor.look_units import look_at_units
from agent.doctor.reach import Call
from agent.doctor.units import Units
from tests.builders import NOW

GIB = 1 << 30

# ------------------------------------------------------------------ the clock


def answered(theirs_s: float, took_s: float = 0.1) -> Answered:
    """Somebody whose clock says NOW plus this, to the second below, when this host's says NOW."""
    theirs = (NOW + timedelta(seconds=theirs_s)).replace(microsecond=0)
    return Answered("o1", theirs, NOW, NOW + timedelta(seconds=took_s))


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (answered(0), State.OK),
        (answered(-1.5), State.OK),
        (answered(15), State.OK),
        (answered(20), State.WARN),
        (answered(31), State.FAIL),
        (answered(31, took_s=5), State.WARN),
        (answered(-32), State.WARN),
        (answered(-33), State.FAIL),
        (answered(-86_400), State.FAIL),
    ],
)
def test_a_clock_too_far_from_anothers_fails(answer: Answered, state: State) -> None:
    found = clock.judge(True, [answer], 30)

    assert found[1].state is state


@pytest.mark.parametrize(
    ("is_kept", "state"), [(True, State.OK), (False, State.WARN), (Unknown("no"), State.NOTE)]
)
def test_something_keeps_the_clock(is_kept: bool | Unknown, state: State) -> None:
    found = clock.judge(is_kept, [], 30)

    assert [check.state for check in found] == [state, State.NOTE]


def test_the_kernel_tells_of_its_clock() -> None:
    assert isinstance(look_at_clock(), bool | Unknown)


# ------------------------------------------------------------------ the disk


def space(free_bytes: int, inodes: int = 1_000_000, free_inodes: int = 500_000) -> Space:
    return Space("data", "/var/lib/dc-compute", free_bytes, inodes, free_inodes)


WHOLE = Ledger("/l", ())


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (space(10 * GIB), {"data": State.OK}),
        (space(2 * GIB - 1), {"data": State.WARN}),
        (space(GIB - 1), {"data": State.FAIL}),
        (space(10 * GIB, free_inodes=9_999), {"data": State.OK, "data inodes": State.WARN}),
        (space(10 * GIB, free_inodes=10), {"data": State.OK, "data inodes": State.FAIL}),
        (space(10 * GIB, inodes=0, free_inodes=0), {"data": State.OK}),
    ],
)
def test_there_is_room_on_the_disk(seen: Space, expected: dict[str, State]) -> None:
    found = disk.judge({"data": seen}, WHOLE, GIB)

    assert {check.name: check.state for check in found} == expected | {"ledger": State.OK}


@pytest.mark.parametrize(
    ("complaints", "state"),
    [((), State.OK), (("row 3 missing",), State.FAIL), (Unknown("locked"), State.NOTE), (None, State.NOTE)],
)
def test_the_ledger_is_whole(complaints: tuple[str, ...] | Unknown | None, state: State) -> None:
    assert disk.judge({}, Ledger("/l", complaints), GIB)[-1].state is state


def make_ledger(path: Path) -> None:
    ledger = sqlite3.connect(path)
    ledger.execute("CREATE TABLE t (a TEXT)")
    ledger.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 200)
    ledger.commit()
    ledger.close()


def test_a_ledger_on_the_disk_is_looked_through_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "led ger?.sqlite"
    make_ledger(path)
    before = path.read_bytes()

    assert look_at_ledger(path) == Ledger(str(path), ())
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_damaged_ledger_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    make_ledger(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)

    seen = look_at_ledger(path)

    assert isinstance(seen.complaints, tuple)
    assert seen.complaints


def test_what_is_no_ledger_is_found(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("no database at all, but long enough to be read as one" * 40)

    assert look_at_ledger(tmp_path / "ledger.sqlite").complaints == ("file is not a database",)


def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert look_at_ledger(tmp_path / "ledger.sqlite").complaints is None
    assert list(tmp_path.iterdir()) == []


def test_the_space_of_a_folder_that_is_not_there_is_that_of_the_one_above(tmp_path: Path) -> None:
    seen = look_at_space("data", tmp_path / "a" / "b")

    assert isinstance(seen, Space)
    assert seen.free_bytes > 0


# ------------------------------------------------------------------ reach

REFUSED = Unknown("o1 at https://o1.test:8460: no connection")


@pytest.mark.parametrize(
    ("call", "state"),
    [
        (Call(name="o1", url="https://o1.test:8460", told=answered(0)), State.OK),
        (Call(name="o1", url="https://o1.test:8460", told="no time"), State.OK),
        (Call(name="o1", url="https://o1.test:8460", told=REFUSED), State.FAIL),
        (Call(name="own address", url="https://a.test:8440", told=REFUSED, is_own=True), State.WARN),
        (Call(name="o1", url=None, told=REFUSED), State.NOTE),
    ],
)
def test_who_does_not_answer_is_named(call: Call, state: State) -> None:
    (found,) = reach.judge([call])

    assert (found.name, found.state) == (call.name, state)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://o1.test:8460/base", "o1.test:8460"),
        ("https://o1.test", "o1.test:443"),
        ("https://[::1]:9", "[::1]:9"),
    ],
)
def test_the_command_for_who_does_not_answer_calls_there(url: str, where: str) -> None:
    (found,) = reach.judge([Call(name="o1", url=url, told=REFUSED)])

    assert f"-connect {where} " in (found.mend or "")


def test_a_roster_without_anybody_is_told() -> None:
    assert [check.state for check in reach.judge([])] == [State.NOTE]


# ------------------------------------------------------------------ units

ACTIVE = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "NRestarts": "0",
    "NeedDaemonReload": "no",
}


def with_service(told: dict[str, str] | Unknown, lingers: bool | Unknown = True) -> Units:
    return Units(
        is_running=True, user="dc-compute", services={"dc-compute-api.service": told}, lingers=lingers
    )


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (ACTIVE, State.OK),
        (ACTIVE | {"UnitFileState": "disabled"}, State.WARN),
        (ACTIVE | {"NeedDaemonReload": "yes"}, State.WARN),
        (ACTIVE | {"ActiveState": "failed", "Result": "exit-code"}, State.FAIL),
        (ACTIVE | {"ActiveState": "activating", "Result": "exit-code"}, State.FAIL),
        (ACTIVE | {"ActiveState": "inactive"}, State.WARN),
        ({"LoadState": "not-found"}, State.NOTE),
        (Unknown("no bus"), State.NOTE),
    ],
)
def test_a_service(told: dict[str, str] | Unknown, state: State) -> None:
    assert units.judge(with_service(told))[0].state is state


@pytest.mark.parametrize(
    ("lingers", "state"), [(True, State.OK), (False, State.FAIL), (Unknown("no"), State.NOTE)]
)
def test_the_users_systemd_stays(lingers: bool | Unknown, state: State) -> None:
    assert units.judge(with_service(ACTIVE, lingers))[-1].state is state


def test_without_systemd_there_is_one_note() -> None:
    facts = Units(is_running=False, user="dc-compute", services={}, lingers=False)

    assert [check.state for check in units.judge(facts)] == [State.NOTE]


def test_the_units_of_this_host_can_be_looked_at() -> None:
    assert units.judge(look_at_units("nobody"))


# ------------------------------------------------------------------ looking


def test_a_file_that_cannot_be_read_is_unknown_with_its_reason(tmp_path: Path) -> None:
    assert read_text(tmp_path / "no") == Unknown(f"{tmp_path / 'no'}: No such file or directory")
    assert read_text(tmp_path) == Unknown(f"{tmp_path}: Is a directory")


def test_a_program_is_asked_in_a_bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "swordfish")

    words = ask_program(["env"])

    assert isinstance(words, str)
    assert "swordfish" not in words


@pytest.mark.parametrize("command", [["/no/such/program"], ["false"], ["sh", "-c", "echo why >&2; exit 3"]])
def test_a_program_that_fails_is_unknown_with_its_reason(command: list[str]) -> None:
    assert isinstance(ask_program(command), Unknown)


def test_a_strange_value_is_unknown() -> None:
    assert attempt(lambda: int("strange")) == Unknown(
        "ValueError: invalid literal for int() with base 10: 'strange'"
    )
    assert find_program("no-such-program-at-all") is None
