"""runc's parts without a container: the bundle's config, cgroups, ids, what is remembered of runs, words and logs."""

import fcntl
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.ids import digest_of
from agent.errors import BadImage, BadSettings, CageNotApplied, CageNotMade, RuntimeUnavailable
from agent.ports import alone, cage, cage_check
from agent.ports.runtime_runc_cgroups import Cgroups, find_cgroups
from agent.ports.runtime_runc_config import oci_config
from agent.ports.runtime_runc_images import RuncImages
from agent.ports.runtime_runc_output import ConmonLog
from agent.ports.runtime_runc_programs import Programs, refusal_of
from agent.ports.runtime_runc_runs import Known, Runs
from agent.ports.user_namespace import IdRange, UserNamespace, subordinate_ids
from tests.ports.test_image_tree import image_of
from tests.ports.test_podman_body import CEILINGS, IMAGE, ON_V1, ON_V2, SPEC

SECCOMP: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}
ROOT = digest_of(b"an image")
ON_V1_GIVEN = replace(ON_V1, controllers=frozenset({"cpu", "memory", "pids"}), cgroup_version=1)


def config(facts: cage.EngineFacts = ON_V2, number: int = 2) -> dict[str, Any]:
    return oci_config(
        SPEC,
        IMAGE,
        number,
        SECCOMP,
        facts,
        root="/mnt/x/root",
        sources=["/mnt/x/m0", "/mnt/x/m1"],
        cgroup="/given/x",
    )


# ------------------------------------------------------------------ the bundle


@pytest.mark.parametrize("facts", [ON_V1, ON_V1_GIVEN, ON_V2])
def test_the_bundle_says_the_cage_that_will_be_looked_for(facts: cage.EngineFacts) -> None:
    asked = cage.asked_for(SPEC, IMAGE, 2, SECCOMP, facts)
    binds = tuple(replace(bind, source=f"/mnt/x/m{n}") for n, bind in enumerate(asked.binds))

    assert cage_check.config_differences(config(facts), replace(asked, binds=binds)) == []


def test_ceilings_go_to_the_cgroup_where_one_was_given() -> None:
    resources = config(ON_V2)["linux"]["resources"]

    assert resources["memory"] == {"limit": CEILINGS.memory_bytes, "swap": CEILINGS.memory_bytes}
    assert resources["cpu"] == {"period": 100_000, "quota": 150_000}
    assert resources["pids"] == {"limit": CEILINGS.pids}
    assert resources["unified"] == {"memory.oom.group": "1"}
    assert config(ON_V1)["linux"]["resources"] == {"devices": [{"allow": False, "access": "rwm"}]}
    assert "unified" not in config(ON_V1_GIVEN)["linux"]["resources"]


def test_what_a_cgroup_must_say_is_asked_of_the_files_of_its_version() -> None:
    on_v1, on_v2 = (cage.cgroup_files(CEILINGS, facts) for facts in (ON_V1_GIVEN, ON_V2))

    assert on_v1 == {
        "memory/memory.limit_in_bytes": str(1 << 30),
        "memory/memory.memsw.limit_in_bytes": str(1 << 30),
        "cpu/cpu.cfs_quota_us": "150000",
        "cpu/cpu.cfs_period_us": "100000",
        "pids/pids.max": "64",
    }
    assert on_v2 == {
        "memory.max": str(1 << 30),
        "memory.swap.max": "0",
        "cpu.max": "150000 100000",
        "pids.max": "64",
    }


# ------------------------------------------------------------------ cgroups


def test_a_cgroup_that_root_gave_is_used_for_the_controllers_it_has(tmp_path: Path) -> None:
    for controller in ("cpu", "memory"):
        (tmp_path / controller / "given").mkdir(parents=True)
    (tmp_path / "pids").mkdir()

    found = find_cgroups("/given", {}, tmp_path)

    assert found == Cgroups(version=1, controllers=frozenset({"cpu", "memory"}), parent="/given")
    assert found.path_of("dc-1") == "/given/dc-1"


def test_on_cgroup_v2_the_controllers_are_those_that_children_get(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "given").mkdir()
    (tmp_path / "given/cgroup.subtree_control").write_text("memory pids\n")

    assert find_cgroups("/given", {}, tmp_path).controllers == {"memory", "pids"}


@pytest.mark.parametrize("parent", ["given", "/given/../..", "/nowhere"])
def test_a_cgroup_that_cannot_be_used_is_a_wrong_setting(parent: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="cgroup_parent"):
        find_cgroups(parent, {}, tmp_path)


def test_without_a_gift_on_cgroup_v1_runs_have_none(tmp_path: Path) -> None:
    found = find_cgroups("", {"XDG_RUNTIME_DIR": str(tmp_path)}, tmp_path)

    assert (found, found.path_of("dc-1"), found.options) == (Cgroups(version=1), None, ())


def test_on_cgroup_v2_the_user_s_own_systemd_is_asked(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    own = tmp_path / f"user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text("cpu memory pids\n")
    session = tmp_path / "session"
    (session / "systemd").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(session / "bus"))

        found = find_cgroups("", {"XDG_RUNTIME_DIR": str(session)}, tmp_path)

    assert found.controllers == {"cpu", "memory", "pids"}
    assert found.path_of("dc-1") == "user.slice:dc-compute:dc-1"
    assert found.options == ("--systemd-cgroup",)
    assert found.environment["DBUS_SESSION_BUS_ADDRESS"] == f"unix:path={session / 'bus'}"


# ------------------------------------------------------------------ subordinate ids


def test_ids_are_given_by_name_or_number(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("ann:100000:65536\nbob:165536:65536\n1001:300000:131072\n# ann\nann:x:1\n")

    assert subordinate_ids(file, "ann", 1001) == (IdRange(100000, 65536), IdRange(300000, 131072))


def test_a_user_without_ids_can_hold_no_cage(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text("")

    with pytest.raises(CageNotApplied, match="usermod"):
        subordinate_ids(tmp_path / "subuid", "ann", 1001)
    with pytest.raises(CageNotApplied, match="cannot be read"):
        subordinate_ids(tmp_path / "none", "ann", 1001)


# ------------------------------------------------------------------ what is remembered of runs


def test_no_two_runs_of_any_agent_get_one_id_map(tmp_path: Path) -> None:
    ours, theirs = Runs(tmp_path, "ours"), Runs(tmp_path, "theirs")

    found = [runs.claim(name, {}, ROOT, range(1, 4), 2) for runs in (ours, theirs) for name in ("a", "b")]

    numbers = [known.number for known in found if known is not None]
    assert numbers == [3, 2, 1]
    assert found[-1] is None
    assert [known.name for known in theirs.own()] == ["a"]


def test_an_agent_has_no_more_runs_than_its_pool(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "ours")
    runs.claim("a", {}, ROOT, range(1, 9), 1)

    assert runs.claim("b", {}, ROOT, range(1, 9), 1) is None


def test_a_name_is_claimed_once(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "ours")
    runs.claim("a", {}, ROOT, range(1, 9), 4)

    with pytest.raises(RuntimeUnavailable, match="named a is still there"):
        runs.claim("a", {}, ROOT, range(1, 9), 4)


def test_another_process_with_the_id_of_one_that_ended_is_not_it() -> None:
    known = Known(instance="i", name="a", labels={}, number=1, image=ROOT, pid=os.getpid(), began=1)

    assert not known.is_alive()
    known.end()  # and is not killed


# ------------------------------------------------------------------ the store


def test_a_store_that_is_a_file_system_of_its_own_has_its_images_listed(tmp_path: Path) -> None:
    """ext4 makes lost+found; whoever looks after the host may leave a note."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "README").write_text("roots of dc-compute")

    assert RuncImages(tmp_path).images() == ()


def test_a_folder_that_another_worker_s_sweep_took_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between mkdir and flock nothing tells a folder in use from what was interrupted."""
    archive, _ = image_of(tmp_path / "image.tar", {"bin/a": b"#!"})
    digest = digest_of(archive.read_bytes())
    images, other, real = RuncImages(tmp_path / "s"), RuncImages(tmp_path / "s"), fcntl.flock
    took: list[int] = []

    def flock(lock: int, how: int) -> None:
        if not took:
            took.append(True)
            took.append(other.clear())
        real(lock, how)

    monkeypatch.setattr(fcntl, "flock", flock)

    images.load(archive, digest)

    assert took == [True, 1]
    assert images.image(digest) is not None


def test_a_folder_that_nobody_remembers_is_cleared_and_its_name_is_free(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "ours")
    (runs.folder_of("a") / "exit").mkdir(parents=True)  # killed before its note, or after

    runs.clear()

    assert list(tmp_path.iterdir()) == []
    assert runs.claim("a", {}, ROOT, range(1, 9), 4) is not None
    runs.clear()
    assert [known.name for known in runs.own()] == ["a"]


def test_what_a_run_is_known_by_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, "ours")
    runs.claim("a", {}, ROOT, range(1, 9), 4)
    folder = runs.folder_of("a")

    def full(_path: Path) -> None:
        raise PermissionError(13, "no")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", full)
        with pytest.raises(RuntimeUnavailable, match="stays"):
            runs.forget(folder)

    assert [known.name for known in runs.own()] == ["a"]
    runs.forget(folder)
    runs.forget(folder)
    assert not folder.exists()


def test_a_cgroup_that_runc_left_is_removed(tmp_path: Path) -> None:
    for controller in ("cpu", "memory"):
        (tmp_path / controller / "given/dc-1").mkdir(parents=True)
        (tmp_path / controller / "given/dc-2").mkdir(parents=True)

    Cgroups(version=1, parent="/given").remove("dc-1", tmp_path)
    Cgroups(version=2, parent="/memory/given").remove("dc-2", tmp_path)

    assert [path.name for path in sorted(tmp_path.glob("*/given/*"))] == ["dc-2"]


def test_the_helper_is_moved_where_a_folder_of_cgroup_v1_was_given_and_nowhere_else(tmp_path: Path) -> None:
    given = Cgroups(version=1, controllers=frozenset({"pids", "memory"}), parent="/dc")

    assert given.helpers(tmp_path) == f"{tmp_path}/pids/dc/helpers/cgroup.procs"
    for other in (
        replace(given, version=2),
        replace(given, parent=None),
        replace(given, controllers=frozenset({"memory"})),
    ):
        assert other.helpers(tmp_path) is None


def test_the_cgroups_that_runc_wrote_down_go_with_its_state(tmp_path: Path) -> None:
    programs = Programs(UserNamespace.made(), tmp_path / "runc", Cgroups(version=1), "/usr/bin")
    folders = {name: tmp_path / name / "given/dc-1" for name in ("cpu", "memory", "gone")}
    for name in ("cpu", "memory"):
        folders[name].mkdir(parents=True)
    state = tmp_path / "runc/dc-1"
    state.mkdir(parents=True)
    (state / "state.json").write_text(json.dumps({"cgroup_paths": {k: str(v) for k, v in folders.items()}}))

    programs.forget("dc-1")
    programs.forget("dc-1")

    assert not state.exists()
    assert sorted(tmp_path.glob("*/given/*")) == []


@pytest.mark.parametrize("told", [None, "{", "{}", '{"cgroup_paths": {"memory": "%s"}}'])
def test_what_cannot_be_taken_away_so_is_left_to_runc(
    tmp_path: Path, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use = tmp_path / "memory/dc-1/of-another"
    in_use.mkdir(parents=True)
    state = tmp_path / "runc/dc-1"
    state.mkdir(parents=True)
    if told is not None:
        (state / "state.json").write_text(told.replace("%s", str(in_use.parent)))
    programs = Programs(UserNamespace.made(), tmp_path / "runc", Cgroups(version=1), str(tmp_path))

    with pytest.raises(RuntimeUnavailable, match="runc is not installed"):
        programs.forget("dc-1")

    assert state.exists()


def test_a_run_that_somebody_else_took_away_is_not_written_down_again(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs", "one")
    folder = runs.folder_of("a")
    first = runs.claim("a", {}, ROOT, range(1, 9), 4)
    assert first is not None
    runs.forget(folder)

    with pytest.raises(RuntimeUnavailable, match="removed by somebody else"):
        runs.remember(folder, replace(first, pid=7))
    second = runs.claim("a", {}, ROOT, range(1, 9), 4)
    with pytest.raises(RuntimeUnavailable, match="removed by somebody else"):
        runs.remember(folder, replace(first, pid=7))

    assert runs.read(folder) == second


def test_the_code_of_a_later_run_of_the_same_name_is_not_that_of_the_earlier_one(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs", "one")
    folder = runs.folder_of("a")
    first = runs.claim("a", {}, ROOT, range(1, 9), 4)
    runs.forget(folder)
    second = runs.claim("a", {}, ROOT, range(1, 9), 4)
    assert first is not None and second is not None  # noqa: PT018
    (folder / "exit" / folder.name).write_text("0")

    assert runs.code_of(folder, first, None) is None
    assert runs.code_of(folder, second, None) == 0


def test_a_process_that_is_stopped_with_the_lock_keeps_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "LOCK_WAIT_S", 0.05)

    with (
        alone.alone(tmp_path),
        pytest.raises(RuntimeUnavailable, match="is it stopped"),
        alone.alone(tmp_path),
    ):
        pass


# ------------------------------------------------------------------ what runc says


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (
            "unable to start container process: fork/exec: resource temporarily unavailable",
            RuntimeUnavailable,
        ),
        ("nsexec: clone: Resource temporarily unavailable", RuntimeUnavailable),
        ('exec: "/no": stat /no: no such file or directory', BadImage),
        ("error mounting proc: operation not permitted", CageNotMade),
    ],
)
def test_what_runc_says_is_the_image_s_fault_the_host_s_or_passes(words: str, kind: type[Exception]) -> None:
    assert type(refusal_of(words, "runc did not make the cage")) is kind


# ------------------------------------------------------------------ conmon's log


def line(words: str, stream: str = "stdout", kind: str = "F") -> bytes:
    return f"2026-11-26T07:12:09.098560137+00:00 {stream} {kind} {words}\n".encode()


class Listener:
    """Takes what a log hands on."""

    def __init__(self) -> None:
        self.out = self.err = b""

    def take(self, block: bytes, is_stdout: bool) -> None:
        if is_stdout:
            self.out += block
        else:
            self.err += block


def test_conmon_s_log_gives_what_was_said_by_stream(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(
        line("one two") + line("no end", kind="P") + line("") + line("bad", "stderr") + b"2026 half a li"
    )
    heard = Listener()

    ConmonLog(tmp_path, None).read(heard.take)

    assert (heard.out, heard.err) == (b"one two\nno end\n", b"bad\n")


def test_no_log_is_nothing_said(tmp_path: Path) -> None:
    heard = Listener()

    ConmonLog(tmp_path, None).read(heard.take)

    assert heard.out == b""


def test_conmon_s_log_is_followed_to_conmon_s_end_also_when_it_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(line("first"))
    heard = Listener()
    with subprocess.Popen(["/bin/sleep", "60"]) as conmon:
        monitor = os.pidfd_open(conmon.pid)
        log = ConmonLog(tmp_path, monitor)
        reader = threading.Thread(target=log.read, args=[heard.take])
        reader.start()
        await_said(heard, b"first\n")

        (tmp_path / "new").write_bytes(line("second"))
        (tmp_path / "new").replace(tmp_path / "log")
        await_said(heard, b"first\nsecond\n")
        with (tmp_path / "log").open("ab") as file:
            file.write(line("third"))
        conmon.kill()
        reader.join(10)
        os.close(monitor)

    assert heard.out == b"first\nsecond\nthird\n"
    assert not reader.is_alive()


def await_said(heard: Listener, words: bytes) -> None:
    deadline_s = time.monotonic() + 10
    while heard.out != words:
        assert time.monotonic() < deadline_s, heard.out
        time.sleep(0.01)
