"""The cage of the container contract, seen from inside by real containers, and what happens where it cannot be held."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.ids import digest_of
from agent.errors import BadImage, BadOutput, CageNotApplied
from agent.ports import cage, run_end, runtime_podman_body, runtime_runc_config
from agent.ports.runtime import Mount, RunKind, RunOutcome, RunSpec
from agent.ports.runtime_podman import PodmanRuntime
from agent.ports.runtime_podman_api import PodmanApi
from agent.ports.runtime_runc import RuncRuntime
from agent.ports.user_namespace import UserNamespace
from agent.selftest.images import PYTHON, build_image, program_layer, python_layer
from tests.host.podman import (
    CEILINGS,
    MIB,
    PLANTED,
    SECCOMP,
    Desk,
    Engine,
    image_cache,
    open_desk,
    runc_runtime,
)

pytestmark = pytest.mark.host

UNSHARE, IO_URING_SETUP, KEYCTL, PTRACE, MOUNT = 272, 425, 250, 101, 165
CLONE_NEWUSER, X32_WRITE = 0x10000000, 0x40000001
PRLIMIT64, RLIMIT_CORE = 302, "4"


def run(desk: Desk, spec: RunSpec) -> RunOutcome:
    with desk.runtime.run(spec) as running:
        return running.wait()


def said(outcome: RunOutcome) -> Any:
    assert outcome.cause is None, outcome.log.decode()
    return json.loads(outcome.log)


def acts(*words: tuple[str, ...]) -> tuple[str, ...]:
    """Several acts of the probe, one after the other."""
    return tuple(part for word in words for part in (*word, "+"))


@pytest.fixture
def facts(desk: Desk) -> Any:
    """What the kernel tells a guest with the mounts of a training run."""
    data = desk.folder("train", mode=0o755)
    (data / "pred").mkdir()
    mounts = (
        Mount(data, "/data/train"),
        Mount(desk.folder("train_pred"), "/data/train/pred", is_writable=True),
        desk.output(),
    )
    spec = desk.spec("facts", mounts=mounts, ceilings=replace(CEILINGS, log_bytes=MIB))
    return said(run(desk, spec))


# ------------------------------------------------------------------ seen from inside


def test_the_kernel_shows_a_guest_its_cage(facts: Any) -> None:
    status = facts["status"]

    assert {name: int(status[name], 16) for name in status if name.startswith("Cap")} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapBnd": 0,
        "CapAmb": 0,
    }
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert facts["ids"] == [1000, 1000]
    assert status["Groups"] in {"", "1000"}


def test_a_guest_is_mapped_to_nobody_of_the_host(facts: Any) -> None:
    # As the guest sees it: relative to Podman's user namespace, where 0 is the agent and all others are subordinate ids.
    inside, outside, count = (int(text) for text in facts["uid_map"])

    assert (inside, count) == (0, 65536)
    assert outside >= 1


def test_a_guest_sees_no_network_but_loopback(facts: Any) -> None:
    assert facts["interfaces"] == ["lo"]


def test_a_guest_sees_no_process_but_its_own(facts: Any) -> None:
    assert facts["processes"] == [1]


def test_a_guest_can_write_nothing_but_its_output_and_memory(facts: Any) -> None:
    assert facts["writable"] == ["/tmp", "/dev/shm"]
    writable = {
        point
        for point, options in facts["mounts"].items()
        if "rw" in options and not point.startswith(("/proc", "/dev", "/sys"))
    }
    assert writable == {"/tmp", "/data/train/pred", "/data/model"}


def test_a_guest_sees_only_the_folders_it_was_given(facts: Any) -> None:
    foreign = {
        point
        for point in facts["mounts"]
        if not point.startswith(("/proc", "/dev", "/sys", "/etc/", "/run/.containerenv"))
    }

    assert foreign == {"/", "/tmp", "/data/train", "/data/train/pred", "/data/model"}
    # crun links core to /proc/kcore, which is masked.
    assert [name for name in facts["devices"] if name != "core"] == [
        "full",
        "null",
        "ptmx",
        "random",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    ]


def test_a_guest_has_the_image_s_environment_and_ours(facts: Any) -> None:
    env = facts["env"]

    assert PLANTED not in env
    assert (env.pop("HOME"), env.pop("TMPDIR"), env.pop("HOSTNAME")) == ("/tmp", "/tmp", "job")
    assert set(env) == {"LANG", "OPENBLAS_NUM_THREADS", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH"}


def test_an_image_that_asks_for_every_variable_gets_none(podman_desk: Desk, tmp_path: Path) -> None:
    # Loaded by hand, past the check that refuses it, and remembered as if that check had not been there.
    archive = tmp_path / "star.tar"
    program = b"import json, os\nprint(json.dumps(dict(os.environ)))\n"
    layers = [python_layer(image_cache()), program_layer(tmp_path, {"/opt/star.py": program})]
    digest = build_image(archive, layers=layers, entrypoint=[PYTHON, "/opt/star.py"], raw_env=["*"])
    with pytest.raises(BadImage, match="KEY=VALUE"):
        podman_desk.runtime.load(archive, digest)
    loaded = load_by_hand(podman_desk.podman, archive)
    stored = cage.StoredImage(id=loaded, size_bytes=1, entrypoint=(PYTHON, "/opt/star.py"), env={})
    podman_desk.podman._images.remember(digest, stored)

    env = said(run(podman_desk, podman_desk.spec(image=digest)))

    # LC_CTYPE is Python's own doing where no locale is set.
    assert set(env) - {"LC_CTYPE"} == {"HOME", "TMPDIR", "HOSTNAME"}


def load_by_hand(runtime: PodmanRuntime, archive: Path) -> str:
    """The id of an image that Podman loads without anybody looking at it first."""
    with archive.open("rb") as file:
        (name,) = PodmanApi(runtime._api.path).upload("/images/load", file)["Names"]
    return str(name).removeprefix("sha256:")


# ------------------------------------------------------------------ system calls


@pytest.mark.parametrize("number", [UNSHARE, IO_URING_SETUP, KEYCTL, PTRACE, MOUNT])
@pytest.mark.parametrize("kind", list(RunKind))
def test_a_dangerous_call_ends_the_guest(desk: Desk, number: int, kind: RunKind) -> None:
    outcome = run(desk, desk.spec("call", str(number), str(CLONE_NEWUSER), "0", "0", "0", kind=kind))

    assert (outcome.cause, outcome.log) == ("seccomp", b"")


def test_an_x32_call_ends_the_guest(desk: Desk) -> None:
    assert run(desk, desk.spec("call", str(X32_WRITE), "1", "0", "0")).cause == "seccomp"


@pytest.mark.parametrize("kind", list(RunKind))
def test_a_guest_does_not_lower_the_limit_that_keeps_its_memory_from_a_handler_of_cores(
    desk: Desk, kind: RunKind
) -> None:
    """RLIMIT_CORE 1 is refused by the kernel also where core_pattern pipes; 0, which anybody may ask for, is not."""
    an_address, of_itself = "1", "0"

    looked = run(desk, desk.spec("call", str(PRLIMIT64), of_itself, RLIMIT_CORE, "0", "0", kind=kind))
    set_it = run(desk, desk.spec("call", str(PRLIMIT64), of_itself, RLIMIT_CORE, an_address, "0", kind=kind))

    assert said(looked)["result"] == "done"
    assert said(set_it)["result"] == "ENOSYS"  # EFAULT, had the kernel looked at what is to be set


@pytest.mark.parametrize("kind", list(RunKind))
def test_no_kind_of_run_opens_an_internet_socket(desk: Desk, kind: RunKind) -> None:
    log = run(desk, desk.spec("inet", kind=kind)).log

    assert [json.loads(line)["result"] for line in log.splitlines()] == ["EAFNOSUPPORT"] * 3


@pytest.mark.parametrize(
    ("kind", "child", "socketpair"),
    [
        (RunKind.TRAIN, True, True),
        (RunKind.PROBLEM, True, "EAFNOSUPPORT"),
        (RunKind.PREDICT, "ENOSYS", "EAFNOSUPPORT"),
    ],
)
def test_processes_and_sockets_by_kind_of_run(
    desk: Desk, kind: RunKind, child: object, socketpair: object
) -> None:
    assert said(run(desk, desk.spec("fork", kind=kind))) == {"child": child, "socketpair": socketpair}


def test_a_guest_sees_nothing_of_the_cgroups_of_others(desk: Desk) -> None:
    probe = ("tree", "/sys/fs/cgroup")
    ceilings = replace(CEILINGS, log_bytes=MIB)

    seen = said(run(desk, desk.spec(*probe, ceilings=ceilings)))

    others = [path for path in seen if Path(path).name == "cgroup.procs" and len(Path(path).parts) > 2]
    assert others == []


# ------------------------------------------------------------------ ceilings


def test_a_fork_bomb_stops_at_the_ceiling(desk: Desk) -> None:
    outcome = run(desk, desk.spec("fork-bomb", ceilings=replace(CEILINGS, pids=20)))

    assert 0 < said(outcome)["children"] < 20  # what ended just before may count for a moment yet


def test_memory_stops_at_the_ceiling(desk: Desk) -> None:
    outcome = run(desk, desk.spec("allocate", "4096"))

    is_held = "memory_bytes" not in outcome.cage.absent
    assert outcome.cause == ("oom" if is_held else "exit:12")  # by cgroup, or by RLIMIT_DATA


def test_memory_of_all_processes_together_stops_at_the_ceiling(desk: Desk) -> None:
    ceilings = replace(CEILINGS, memory_bytes=300 * MIB)

    outcome = run(desk, desk.spec("allocate-apart", "4", "200", ceilings=ceilings))

    assert outcome.cause == "oom"  # by cgroup, or by the watcher


def test_what_a_run_leaves_stops_at_the_ceiling_while_it_runs(desk: Desk) -> None:
    ceilings = replace(CEILINGS, output_bytes=4 * MIB)
    acts_ = acts(*(("fill", f"/data/model/{n}", "1") for n in range(8)), ("sleep", "50"))

    outcome = run(desk, desk.spec(*acts_, mounts=(desk.output(),), ceilings=ceilings))

    assert (outcome.cause, outcome.wall_s < 30) == ("disk", True)


def test_files_without_a_name_count_while_they_are_open(desk: Desk) -> None:
    ceilings = replace(CEILINGS, output_bytes=4 * MIB)
    acts_ = acts(("hide", "/data/model/f", "8"), ("sleep", "50"))

    outcome = run(desk, desk.spec(*acts_, mounts=(desk.output(),), ceilings=ceilings))

    assert (outcome.cause, outcome.wall_s < 30) == ("disk", True)


def test_the_number_of_files_stops_at_the_ceiling_while_it_runs(desk: Desk) -> None:
    ceilings = replace(CEILINGS, output_files=20)
    acts_ = acts(*(("write", f"/data/model/{n}", "") for n in range(30)), ("sleep", "50"))

    outcome = run(desk, desk.spec(*acts_, mounts=(desk.output(),), ceilings=ceilings))

    assert (outcome.cause, outcome.wall_s < 30) == ("disk", True)


def test_an_earlier_model_does_not_count_as_what_a_run_leaves(desk: Desk) -> None:
    output = desk.output()
    (output.source / "weights").write_bytes(b"w" * (8 * MIB))
    ceilings = replace(CEILINGS, output_bytes=4 * MIB)

    assert run(desk, desk.spec("sleep", "1.5", mounts=(output,), ceilings=ceilings)).cause is None


def test_an_exit_code_is_told_from_the_signal_that_it_could_mean(desk: Desk) -> None:
    if not run_end.tells_exact_ends():
        pytest.skip("a kernel that tells how a process ended (Linux 6.15)")

    causes = [run(desk, desk.spec("exit", str(code))).cause for code in (137, 139, 159)]

    assert causes == ["exit:137", "exit:139", "exit:159"]
    assert run(desk, desk.spec("segfault")).cause == "signal:11"


def test_a_file_stops_at_the_output_ceiling(desk: Desk) -> None:
    outcome = run(desk, desk.spec("fill", "/data/model/f", "65", mounts=(desk.output(),)))

    assert outcome.cause == "exit:1"
    assert b"File too large" in outcome.log
    assert (desk.root / "model/f").stat().st_size <= CEILINGS.output_bytes


def test_tmp_stops_at_its_size(desk: Desk) -> None:
    outcome = run(desk, desk.spec("fill", "/tmp/f", "33"))

    assert outcome.cause == "exit:1"
    assert b"No space left on device" in outcome.log


def test_a_flood_of_output_costs_no_memory_and_keeps_both_ends(desk: Desk) -> None:
    before = peak_memory_bytes()

    outcome = run(desk, desk.spec("flood", "200"))

    assert outcome.cause is None
    assert outcome.log.startswith(b"HEAD\n")
    assert b"TAIL\n" in outcome.log
    assert len(outcome.log) <= CEILINGS.log_bytes
    assert peak_memory_bytes() - before < 32 * MIB


def peak_memory_bytes() -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) << 10


def test_low_ceilings_still_run(desk: Desk) -> None:
    ceilings = replace(CEILINGS, pids=16, open_files=32, memory_bytes=64 * MIB, tmp_bytes=MIB, log_bytes=1)

    outcome = run(desk, desk.spec("exit", "0", ceilings=ceilings))

    assert outcome.cause is None


def test_ceilings_are_told_as_applied(desk: Desk) -> None:
    told = run(desk, desk.spec("exit", "0")).cage

    assert told.ceilings["open_files"] == "1024 by rlimit"
    assert told.ceilings["wall_s"] == "60 by agent"
    assert told.version.startswith(f"{desk.runtime.name} ")
    assert told.seccomp == digest_of(Path("seccomp/train.json").read_bytes())


# ------------------------------------------------------------------ what cannot be held is refused


def test_a_warning_of_the_engine_is_a_refusal(podman_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    if not run(podman_desk, podman_desk.spec("exit", "0")).cage.absent:
        pytest.skip("a host without memory limits (this one has them, so Podman warns of nothing)")
    honest = runtime_podman_body.create_body

    def asking_too_much(*args: Any) -> dict[str, Any]:
        return honest(*args) | {"resource_limits": {"memory": {"limit": 64 * MIB}}}

    monkeypatch.setattr(runtime_podman_body, "create_body", asking_too_much)

    with (
        pytest.raises(CageNotApplied, match="warned"),
        podman_desk.runtime.run(podman_desk.spec("exit", "0")),
    ):
        pass
    assert podman_desk.runtime.leftovers() == ()


# One part of the create body at a time as if the engine had dropped it, and a word of the refusal. `ipcns` is missing: the
# engine itself refuses it on a host without /dev/mqueue; tests/ports/test_cage_check.py holds it.
TAKEN_AWAY: dict[str, tuple[dict[str, Any], str]] = {
    "network": ({"netns": {"nsmode": "host"}}, "namespaces"),
    "uts": ({"utsns": {"nsmode": "host"}, "hostname": ""}, "namespaces"),
    "cgroup": ({"cgroupns": {"nsmode": "host"}}, "namespaces"),
    "pid": ({"pidns": {"nsmode": "host"}}, "namespaces"),
    "agent's own ids": ({"idmappings": runtime_podman_body.id_mappings(0)}, "uidMappings"),
    "user": ({"user": "0:0"}, "user inside is 0:0"),
    "no_new_privileges": (
        {"no_new_privileges": False, "seccomp_profile_path": "unconfined"},
        "no_new_privileges",
    ),
    "seccomp": ({"seccomp_profile_path": "unconfined"}, "no seccomp profile"),
    "our seccomp": ({"seccomp_profile_path": str(SECCOMP / "problem.json")}, "seccomp profile is another"),
    "capabilities": ({"cap_drop": [], "cap_add": ["CAP_NET_ADMIN"]}, "capabilities"),
    "read-only root": ({"read_only_filesystem": False}, "root file system"),
    "clean environment": ({"unsetenvall": False}, "environment"),
    "rlimits": ({"r_limits": []}, "RLIMIT_NOFILE"),
    "masks": ({"mask": []}, "maskedPaths"),
    "working directory": ({"work_dir": "/"}, "working directory"),
    "arguments": ({"command": ["exit", "1"]}, "arguments"),
    "hosts": ({"use_image_hosts": False}, "/etc/hosts"),
}


def without(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Changes what stands at a.b of a config; drops it when the value is None."""

    def change(config: dict[str, Any]) -> None:
        *above, last = path.split(".")
        place = config
        for name in above:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


def shared(kind: str) -> Callable[[dict[str, Any]], None]:
    """Leaves out a namespace."""

    def change(config: dict[str, Any]) -> None:
        kept = [one for one in config["linux"]["namespaces"] if one["type"] != kind]
        config["linux"]["namespaces"] = kept
        if kind == "uts":
            del config["hostname"]
        if kind == "user":
            del config["linux"]["uidMappings"], config["linux"]["gidMappings"]

    return change


def mounted(target: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """Changes how one place is mounted."""
    return lambda config: change(next(one for one in config["mounts"] if one["destination"] == target))


def options(*, less: str = "", more: str = "") -> Callable[[dict[str, Any]], None]:
    """Drops the options that begin so, and adds one."""

    def change(mount: dict[str, Any]) -> None:
        kept = [one for one in mount["options"] if not less or not one.startswith(less)]
        mount["options"] = [*kept, *([more] if more else [])]

    return change


def mapped_to_the_agent() -> list[dict[str, int]]:
    return [
        {"containerID": 0, "hostID": 0, "size": 1},
        {"containerID": 1, "hostID": 65537, "size": 65535},
    ]


def allowing_all() -> dict[str, str]:
    return {"defaultAction": "SCMP_ACT_ALLOW"}


# The same for runc's bundle: what is taken away, and a word of the refusal. runc itself refuses some of it.
TAKEN_FROM_BUNDLE: dict[str, tuple[list[Callable[[dict[str, Any]], None]], str]] = {
    "network": ([shared("network")], "namespaces"),
    "uts": ([shared("uts")], "namespaces"),
    "ipc": ([shared("ipc")], "namespaces"),
    "cgroup": ([shared("cgroup")], "namespaces"),
    "pid": ([shared("pid")], "runc did not make the cage"),  # who owns no pid namespace mounts no /proc
    "agent's own ids": (
        [without(f"linux.{kind}Mappings", mapped_to_the_agent()) for kind in ("uid", "gid")],
        "uidMappings",
    ),
    "user": ([without("process.user", {"uid": 0, "gid": 0})], "user inside is 0:0"),
    "groups": ([without("process.user", {"uid": 1000, "gid": 1000, "additionalGids": [0]})], "more groups"),
    "no_new_privileges": (
        [without("process.noNewPrivileges", False), without("linux.seccomp", None)],
        "no_new_privileges",
    ),
    "seccomp": ([without("linux.seccomp", None)], "no seccomp profile"),
    "our seccomp": ([without("linux.seccomp", allowing_all())], "seccomp profile is another"),
    "capabilities": ([without("process.capabilities.bounding", ["CAP_NET_ADMIN"])], "capabilities"),
    "read-only root": ([without("root.readonly", False)], "root file system"),
    "clean environment": ([without("process.env", ["PATH=/usr/bin", "TOKEN=x"])], "environment"),
    "rlimits": ([without("process.rlimits", [])], "RLIMIT_NOFILE"),
    "masks": ([without("linux.maskedPaths", [])], "maskedPaths"),
    "read-only paths": ([without("linux.readonlyPaths", [])], "readonlyPaths"),
    "working directory": ([without("process.cwd", "/")], "working directory"),
    "arguments": ([without("process.args", ["/usr/bin/python3"])], "arguments"),
    "a device": (
        [without("linux.devices", [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}])],
        "devices are added",
    ),
    "size of /tmp": ([mounted("/tmp", options(less="size"))], "/tmp holds"),
    "size of /dev/shm": ([mounted("/dev/shm", options(less="size"))], "/dev/shm holds"),
    "/tmp of its own": (
        [mounted("/tmp", lambda one: one.update(type="bind", source="/usr", options=["bind", "rw"]))],
        "/tmp is no",
    ),
    "nothing runs in /tmp": ([mounted("/tmp", options(less="noexec"))], "/tmp lacks noexec"),
    "mounts of its own": ([mounted("/data/model", options(less="rprivate", more="rshared"))], "passed on"),
    "host's name": ([without("hostname", "storage-7")], "host is named"),
    "umask": ([without("process.user", {"uid": 1000, "gid": 1000, "umask": 0})], "umask"),
    "ceilings": ([without("linux.resources", {})], "is (None|9223372036854771712|-1|max)"),
}


def weaken(monkeypatch: pytest.MonkeyPatch, *changes: Callable[[dict[str, Any]], None]) -> None:
    """The next bundles are made by a runtime that lost these parts."""
    honest = runtime_runc_config.oci_config

    def weakened(*args: Any, **words: Any) -> dict[str, Any]:
        config = honest(*args, **words)
        for change in changes:
            change(config)
        return config

    monkeypatch.setattr(runtime_runc_config, "oci_config", weakened)


def refused(desk: Desk, word: str) -> None:
    """The run is refused by this word, and nothing of its image ran."""
    output = desk.output()

    with (
        pytest.raises(CageNotApplied, match=word),
        desk.runtime.run(desk.spec("write", "/data/model/ran", "", mounts=(output,))),
    ):
        pass

    assert list(output.source.iterdir()) == []
    assert desk.runtime.leftovers() == ()


@pytest.mark.parametrize("part", TAKEN_AWAY)
def test_a_cage_without_one_of_its_parts_is_refused(
    podman_desk: Desk, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_it, word = TAKEN_AWAY[part]
    honest = runtime_podman_body.create_body
    monkeypatch.setattr(runtime_podman_body, "create_body", lambda *args: honest(*args) | without_it)

    refused(podman_desk, word)


@pytest.mark.parametrize("part", TAKEN_FROM_BUNDLE)
def test_a_bundle_without_one_of_its_parts_is_refused(
    runc_desk: Desk, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, word = TAKEN_FROM_BUNDLE[part]
    if part == "ceilings" and runc_desk.runtime.enforcement().absent:
        pytest.skip("a cgroup of the user's own (install.sh, or .ci/rootless as root, gives one)")
    weaken(monkeypatch, *changes)

    refused(runc_desk, word)


def test_a_folder_that_was_not_asked_for_is_refused(
    podman_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = runtime_podman_body.create_body

    def with_one_more(*args: Any) -> dict[str, Any]:
        body = honest(*args)
        body["mounts"].append(
            {"destination": "/mnt", "type": "bind", "source": "/usr", "options": ["bind", "ro"]}
        )
        return body

    monkeypatch.setattr(runtime_podman_body, "create_body", with_one_more)

    refused(podman_desk, "'/mnt' is mounted")


def test_another_folder_than_the_one_that_was_asked_for_is_refused(
    runc_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UserNamespace, "ask", staging(UserNamespace.ask, "/usr"))

    refused(runc_desk, "/data/model is another folder")


def staging(honest: Callable[..., dict[str, Any]], instead: str) -> Callable[..., dict[str, Any]]:
    """A user namespace that sets another folder up in the place of every folder but the root."""

    def ask(self: UserNamespace, act: str, *arguments: Any) -> dict[str, Any]:
        if act == "stage_run":
            stage, binds = arguments
            arguments = (stage, [(source if name == "root" else instead, name) for source, name in binds])
        return honest(self, act, *arguments)

    return ask


# ------------------------------------------------------------------ images that cannot run


def test_an_entry_point_that_is_not_there_is_the_image_s_fault(desk: Desk, tmp_path: Path) -> None:
    archive = tmp_path / "none.tar"
    layers = [program_layer(tmp_path, {"/readme": b"nothing to run"})]
    digest = build_image(archive, layers=layers, entrypoint=["/no/such/program"])
    desk.runtime.load(archive, digest)

    with pytest.raises(BadImage, match="cannot start"), desk.runtime.run(desk.spec(image=digest)):
        pass
    assert desk.runtime.leftovers() == ()


def test_the_engine_keeps_a_loaded_image_when_it_sweeps_unnamed_ones(podman_desk: Desk) -> None:
    PodmanApi(podman_desk.podman._api.path).post("/images/prune")

    assert podman_desk.runtime.image(podman_desk.image) is not None


# ------------------------------------------------------------------ two at once, and one that was left


def test_two_runs_share_no_user_id(desk: Desk) -> None:
    with (
        desk.runtime.run(desk.spec("facts", name="one", ceilings=replace(CEILINGS, log_bytes=MIB))) as one,
        desk.runtime.run(desk.spec("facts", name="two", ceilings=replace(CEILINGS, log_bytes=MIB))) as two,
    ):
        maps = [[int(text) for text in said(running.wait())["uid_map"]] for running in (one, two)]

    (_, first, count), (_, second, _) = maps
    assert abs(first - second) >= count


def test_two_agents_on_one_engine_share_no_user_id_and_sweep_only_their_own(
    engine: Engine, podman_desk: Desk
) -> None:
    desk = podman_desk
    other = engine.runtime()
    long = replace(CEILINGS, log_bytes=MIB)
    with (
        desk.runtime.run(desk.spec("sleep", "60")),
        other.run(desk.spec("facts", ceilings=long)) as theirs,
    ):
        outside = int(said(theirs.wait())["uid_map"][1])
        ours = {
            entry["Labels"]["dc-compute.id-map"] for entry in desk.podman._containers("dc-compute.name=run")
        }

        assert str((outside - 1) // 65536) in ours
        assert len(ours) == 2
        assert len(desk.runtime.leftovers()) == len(other.leftovers()) == 1


AGENT = """
import sys
from pathlib import Path
from agent.ports.runtime_podman import PodmanRuntime
from tests.host.podman import SECCOMP, Desk, runc_runtime

name, place, store, instance, image, root = sys.argv[1:]
if name == "podman":
    runtime = PodmanRuntime(Path(place), SECCOMP, Path(store), instance=instance)
else:
    runtime = runc_runtime(Path(place), instance)
desk = Desk(runtime, image, Path(root))
with desk.runtime.run(desk.spec("sleep", "600", name="orphan")) as run:
    print("started", flush=True)
    run.wait()
"""


def test_a_container_outlives_its_agent_and_is_found_and_removed(desk: Desk) -> None:
    runtime = desk.runtime
    if isinstance(runtime, PodmanRuntime):
        place, store, instance = runtime._api.path, runtime._images._store, runtime._instance
    else:
        assert isinstance(runtime, RuncRuntime)
        place = store = runtime._runs._folder.parent.parent
        instance = runtime._runs._instance
    words = [runtime.name, place, store, instance, desk.image, desk.root]
    command = [sys.executable, "-c", AGENT, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=os.getcwd()) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"started\n"
        agent.send_signal(signal.SIGKILL)

    (found,) = runtime.leftovers()
    assert (found.name, dict(found.labels), found.is_running) == ("orphan", {"job": "a.0"}, True)
    runtime.remove("orphan")
    assert runtime.leftovers() == ()


@pytest.mark.parametrize("place", ["/dev/shm", "/var/tmp"])
def test_what_a_guest_says_is_written_down_only_in_memory(place: str) -> None:
    with tempfile.TemporaryDirectory(prefix="dcc-runc-", dir=place) as folder:
        for desk in open_desk(runc_runtime(Path(folder))):
            with desk.runtime.run(desk.spec("flood", "1")) as running:
                outcome = running.wait()
                logs = [path for path in Path(folder).rglob("log") if path.stat().st_size]

    assert outcome.log.startswith(b"HEAD")
    assert len(logs) == (1 if place == "/dev/shm" else 0)


# ------------------------------------------------------------------ what guests leave


def test_folders_too_deep_to_walk_are_lifted_out_and_refused(desk: Desk) -> None:
    output = desk.output()
    run(desk, desk.spec("deep", "/data/model", "3000", mounts=(output,)))

    with pytest.raises(BadOutput, match="too deep"):
        desk.runtime.reclaim(output.source)

    owners = {Path(parent).stat().st_uid for parent, _, _ in os.walk(output.source)}
    assert owners == {os.getuid()}


def test_a_link_out_of_the_output_folder_changes_nothing_there(desk: Desk) -> None:
    secret = desk.folder("secret", mode=0o700)
    (secret / "key").write_text("k")
    (secret / "key").chmod(0o400)
    output = desk.output()
    (output.source / "out").symlink_to(secret)
    (output.source / "key").symlink_to(secret / "key")

    desk.runtime.reclaim(output.source)

    assert (secret / "key").stat().st_mode & 0o777 == 0o400
    assert secret.stat().st_mode & 0o777 == 0o700
