"""Every part of the cage is compared: one change to what was applied, one sentence that names it."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.ports import cage_seen
from agent.ports.cage_check import (
    ENGINE_MOUNTS,
    Asked,
    Bind,
    canonical_seccomp,
    config_differences,
    process_differences,
)
from agent.ports.cage_seen import MASKED, READ_ONLY, Mounted, Process, read_process

AGENT_UID = 995
MAP_START, HOST_START, SIZE = 65537, 1065536, 65536

PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 97,
            "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_NE"}],
        },
    ],
}

ASKED = Asked(
    args=("/usr/bin/python3", "-V", "/data"),
    env={"PATH": "/usr/bin", "HOME": "/tmp"},
    work_dir="/data",
    binds=(Bind("/ws/train", "/data/train", False), Bind("/ws/model", "/data/model", True)),
    tmpfs={"/dev/shm": 5000, "/tmp": 1 << 20},
    hostname="job",
    umask=0o077,
    rlimits={"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 1024},
    cgroup={"memory.max": "4096"},
    seccomp=PROFILE,
    map_start=MAP_START,
    map_size=SIZE,
)

LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max core file size        0                    0                    bytes
Max open files            1024                 1024                 files
"""


def config() -> dict[str, Any]:
    """The OCI config of a cage that holds, in Podman's shape."""
    ids = [{"containerID": 0, "hostID": MAP_START, "size": SIZE}]
    safe = ["nosuid", "nodev", "noexec", "rprivate"]
    mounts = [
        {
            "destination": "/data/train",
            "type": "bind",
            "source": "/ws/train",
            "options": ["bind", "ro", *safe],
        },
        {
            "destination": "/data/model",
            "type": "bind",
            "source": "/ws/model",
            "options": ["bind", "rw", *safe],
        },
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["rw"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["rw"]},
        *({"destination": point, "type": "any", "source": "any", "options": []} for point in ENGINE_MOUNTS),
    ]
    return {
        "process": {
            "user": {"uid": 1000, "gid": 1000, "umask": 63, "additionalGids": [1000]},
            "args": list(ASKED.args),
            "env": ["PATH=/usr/bin", "HOME=/tmp"],
            "cwd": "/data",
            "capabilities": {},
            "rlimits": [
                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
                {"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024},
            ],
            "noNewPrivileges": True,
        },
        "hostname": "job",
        "root": {"path": "/merged", "readonly": True},
        "mounts": mounts,
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user", "cgroup")
            ],
            "maskedPaths": sorted(MASKED),
            "readonlyPaths": sorted(READ_ONLY),
            "seccomp": copy.deepcopy({**PROFILE, "syscalls": PROFILE["syscalls"][::-1]}),
        },
    }


SAFE = ("nosuid", "nodev", "noexec")


def seen(*options: str, kind: str = "tmpfs", **more: Any) -> Mounted:
    """A mount as the kernel shows it."""
    honest = Mounted(
        options=frozenset(options), root="/", device="0:50", kind=kind, is_passed_on=False, of_all=frozenset()
    )
    return replace(honest, **more)


TMP = seen("rw", *SAFE, of_all=frozenset({"rw", "size=1024k"}))
SHM = seen("rw", *SAFE, of_all=frozenset({"size=8k"}))  # whole pages

PROCESS = Process(
    status={
        "Uid": "\t".join(["1066536"] * 4),
        "Gid": "\t".join(["1066536"] * 4),
        "Groups": "1066536",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0000000000000000"),
        "NoNewPrivs": "1",
        "Seccomp": "2",
    },
    uid_map=((0, HOST_START, SIZE),),
    gid_map=((0, HOST_START, SIZE),),
    mounts={
        "/": seen("ro", kind="overlay"),
        "/tmp": TMP,
        "/dev/shm": SHM,
        "/data/train": seen("ro", *SAFE, kind="ext4", root="/ws/train", device="8:1"),
        "/data/model": seen("rw", *SAFE, root="/ws/model", device="0:20"),
        "/proc": seen("rw", *SAFE, kind="proc"),
        "/proc/sys": seen("ro", kind="proc", root="/sys"),
        "/proc/kcore": seen("rw", kind="devtmpfs", root="/null", device="0:6"),
        "/sys": seen("ro", kind="sysfs"),
        "/dev": seen("rw"),
        "/dev/null": seen("rw", kind="devtmpfs", root="/null", device="0:6", is_passed_on=True),
        "/etc/passwd": seen("ro", kind="ext4", device="8:1"),
    },
    own_devices=frozenset({"8:1", "0:20", "0:6"}),
    to_hide=frozenset({"/proc/kcore", "/proc/sys"}),
    interfaces=frozenset({"lo"}),
    limits=LIMITS,
    shared_namespaces=frozenset(),
    cgroup={"memory.max": "4096"},
    has_swap=False,
    users=frozenset({0, 1000, AGENT_UID}),
    groups=frozenset({0, 1000}),
)


def test_a_cage_that_holds_has_no_differences() -> None:
    assert config_differences(config(), ASKED) == []
    assert process_differences(PROCESS, ASKED, AGENT_UID) == []


Change = Callable[[dict[str, Any]], Any]


def mount(whole: dict[str, Any], target: str) -> dict[str, Any]:
    return next(one for one in whole["mounts"] if one["destination"] == target)


CHANGES: list[tuple[str, Change]] = [
    ("user inside is 0:1000", lambda c: c["process"]["user"].update(uid=0)),
    ("user inside is 1000:0", lambda c: c["process"]["user"].update(gid=0)),
    ("more groups", lambda c: c["process"]["user"].update(additionalGids=[0])),
    ("uidMappings", lambda c: c["linux"].update(uidMappings=[{"containerID": 0, "hostID": 0, "size": SIZE}])),
    ("gidMappings", lambda c: c["linux"].update(gidMappings=[])),
    ("capabilities", lambda c: c["process"].update(capabilities={"bounding": ["CAP_KILL"]})),
    ("no_new_privileges", lambda c: c["process"].pop("noNewPrivileges")),
    ("arguments", lambda c: c["process"]["args"].append("x")),
    ("working directory", lambda c: c["process"].update(cwd="/")),
    ("terminal", lambda c: c["process"].update(terminal=True)),
    ("environment differs in SECRET", lambda c: c["process"]["env"].append("SECRET=x")),
    ("environment differs in HOME", lambda c: c["process"]["env"].remove("HOME=/tmp")),
    ("RLIMIT_NOFILE", lambda c: c["process"]["rlimits"][1].update(hard=4096)),
    ("RLIMIT_CORE is None", lambda c: c["process"]["rlimits"].pop(0)),
    ("root file system", lambda c: c["root"].update(readonly=False)),
    ("named 'storage-7'", lambda c: c.update(hostname="storage-7")),
    ("umask is 18", lambda c: c["process"]["user"].update(umask=0o022)),
    ("hooks", lambda c: c.update(hooks={"prestart": [{"path": "/bin/sh"}]})),
    ("'/host' is mounted", lambda c: c["mounts"].append({"destination": "/host", "options": []})),
    ("not the folder", lambda c: mount(c, "/data/train").update(source="/etc")),
    ("not the folder", lambda c: c["mounts"].remove(mount(c, "/data/model"))),
    ("/data/train is mounted", lambda c: mount(c, "/data/train")["options"].remove("ro")),
    ("/data/model is mounted", lambda c: mount(c, "/data/model")["options"].remove("nosuid")),
    ("maskedPaths lack /proc/kcore", lambda c: c["linux"]["maskedPaths"].remove("/proc/kcore")),
    ("readonlyPaths lack /proc/sys", lambda c: c["linux"]["readonlyPaths"].remove("/proc/sys")),
    *(
        ("namespaces", lambda c, kind=kind: c["linux"]["namespaces"].remove({"type": kind}))
        for kind in ("pid", "network", "ipc", "uts", "mount", "user", "cgroup")
    ),
    ("namespaces", lambda c: c["linux"]["namespaces"][1].update(path="/proc/1/ns/net")),
    ("devices", lambda c: c["linux"].update(devices=[{"path": "/dev/kmsg"}])),
    ("no seccomp profile", lambda c: c["linux"].pop("seccomp")),
    ("seccomp profile is another", lambda c: c["linux"]["seccomp"].update(defaultAction="SCMP_ACT_ALLOW")),
    ("seccomp profile is another", lambda c: c["linux"]["seccomp"]["architectures"].append("SCMP_ARCH_X86")),
    ("seccomp profile is another", lambda c: c["linux"]["seccomp"]["syscalls"].pop()),
    ("seccomp profile is another", lambda c: c["linux"]["seccomp"].update(flags=["SECCOMP_FILTER_FLAG_LOG"])),
]  # fmt: skip


@pytest.mark.parametrize(("words", "change"), CHANGES)
def test_a_difference_of_the_config_is_named(words: str, change: Change) -> None:
    applied = config()
    change(applied)

    assert any(words in told for told in config_differences(applied, ASKED))


def status(**values: str) -> dict[str, Any]:
    return {"status": {**PROCESS.status, **values}}


def mounts(**values: str) -> dict[str, Any]:
    added = {
        "/" + name.replace("__", "/").strip("/"): seen(options, *SAFE) for name, options in values.items()
    }
    return {"mounts": {**PROCESS.mounts, **added}}


def at(point: str, **changes: Any) -> dict[str, Any]:
    return {"mounts": {**PROCESS.mounts, point: replace(PROCESS.mounts[point], **changes)}}


KERNEL_CHANGES: list[tuple[str, dict[str, Any]]] = [
    *((name, status(**{name: "0000000000000400"})) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")),
    ("NoNewPrivs", status(NoNewPrivs="0")),
    ("Uid is", status(Uid="1065536\t1066536\t1066536\t1066536")),
    ("Gid is", status(Gid="0\t0\t0\t0")),
    ("has the groups", status(Groups="1066536 27")),
    ("uid_map", {"uid_map": ((0, HOST_START, SIZE), (SIZE, AGENT_UID, 1))}),
    ("agent's own user", {"uid_map": ((0, AGENT_UID, SIZE),)}),
    ("user 1065540 of this host is mapped", {"users": frozenset({0, HOST_START + 4})}),
    ("group 1131071 of this host is mapped", {"groups": frozenset({0, HOST_START + SIZE - 1})}),
    ("gid_map", {"gid_map": ((0, HOST_START, 1),)}),
    ("interfaces are eth0, lo", {"interfaces": frozenset({"lo", "eth0"})}),
    ("interfaces are ", {"interfaces": frozenset()}),
    ("shared with the host: net", {"shared_namespaces": frozenset({"net"})}),
    ("'/host' is mounted", mounts(host="ro")),
    ("/ is mounted writable", {"mounts": {**PROCESS.mounts, "/": seen("rw")}}),
    ("/data/train is mounted writable", mounts(data__train="rw")),
    ("/data/model is mounted read-only", mounts(data__model="ro")),
    ("/etc/passwd is mounted writable", mounts(etc__passwd="rw")),
    ("/sys is mounted writable", mounts(sys="rw")),
    ("'/dev/kmsg' is mounted", mounts(dev__kmsg="rw")),
    ("/proc/sys is writable", mounts(proc__sys="rw")),
    ("/proc/kcore is not hidden", {"mounts": {k: v for k, v in PROCESS.mounts.items() if k != "/proc/kcore"}}),
    ("/tmp holds None", at("/tmp", of_all=frozenset({"rw"}))),
    ("/tmp holds 2097152", at("/tmp", of_all=frozenset({"size=2m"}))),
    ("/dev/shm holds 12288", at("/dev/shm", of_all=frozenset({"size=12k"}))),
    ("/tmp is no tmpfs", at("/tmp", kind="ext4")),
    ("/tmp is no tmpfs", at("/tmp", root="/of/another")),
    ("/proc is no proc", at("/proc", device="0:20")),
    ("/dev is no tmpfs", at("/dev", kind="devtmpfs")),
    ("/tmp lacks noexec", at("/tmp", options=frozenset({"rw", "nosuid", "nodev"}))),
    ("/data/train lacks nodev", at("/data/train", options=frozenset({"ro", "nosuid", "noexec"}))),
    ("below /data/model is passed on", at("/data/model", is_passed_on=True)),
    ("/data/model is not mounted", {"mounts": {k: v for k, v in PROCESS.mounts.items() if k != "/data/model"}}),
    ("RLIMIT_NOFILE", {"limits": LIMITS.replace("1024", "20000")}),
    ("RLIMIT_CORE is unknown", {"limits": ""}),
    ("memory.max is max", {"cgroup": {"memory.max": "max"}}),
    ("memory.max is None", {"cgroup": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "change"), KERNEL_CHANGES)
def test_a_difference_that_the_kernel_shows_is_named(words: str, change: dict[str, Any]) -> None:
    told = process_differences(replace(PROCESS, **change), ASKED, AGENT_UID)

    assert any(words in sentence for sentence in told), told


def test_a_profile_is_the_same_however_its_rules_are_grouped() -> None:
    split = [{"names": [name], "action": "SCMP_ACT_ALLOW"} for name in ("write", "read")]

    assert canonical_seccomp({**PROFILE, "syscalls": [PROFILE["syscalls"][1], *split]}) == canonical_seccomp(
        PROFILE
    )


def test_this_very_process_is_no_cage() -> None:
    told = process_differences(read_process(os.getpid(), {}), ASKED, os.getuid())

    assert any(
        "namespaces shared with the host: cgroup, ipc, mnt, net, pid, user, uts" in one for one in told
    )
    assert any("/data/train is not mounted" in one for one in told)


def test_a_limit_is_found_on_the_way_up_where_crun_puts_it(tmp_path: Path) -> None:
    scope = tmp_path / "user.slice/libpod-1.scope"
    (scope / "container").mkdir(parents=True)
    for folder, limit in ((tmp_path / "user.slice", "9"), (scope, "7"), (scope / "container", "max")):
        (folder / "memory.max").write_text(limit + "\n")
    (scope / "cpu.max").write_text("50000 100000\n")
    (scope / "container/cpu.max").write_text("max 100000\n")
    files = {"memory.max": "", "cpu.max": "", "pids.max": ""}

    found = cage_seen._cgroup("1:name=systemd:/x\n0::/user.slice/libpod-1.scope/container\n", files, tmp_path)

    assert found == {"memory.max": "7", "cpu.max": "50000 100000"}


def test_on_cgroup_v1_a_limit_is_that_of_the_process_s_own_cgroup_of_the_controller(tmp_path: Path) -> None:
    for controller, file, limit in (
        ("memory", "memory.limit_in_bytes", "7"),
        ("cpu,cpuacct", "cpu.cfs_quota_us", "5"),
    ):
        folder = tmp_path / controller.partition(",")[0] / "given/dc-1"
        folder.mkdir(parents=True)
        (folder / file).write_text(limit + "\n")
        (folder.parent / file).write_text("9\n")
    (tmp_path / "pids/given").mkdir(parents=True)
    (tmp_path / "pids/given/pids.max").write_text("9\n")
    membership = "4:memory:/given/dc-1\n3:cpu,cpuacct:/given/dc-1\n2:pids:/given/dc-1\n0::/\n"
    files = {"memory/memory.limit_in_bytes": "", "cpu/cpu.cfs_quota_us": "", "pids/pids.max": ""}

    found = cage_seen._cgroup(membership, files, tmp_path)

    assert found == {"memory/memory.limit_in_bytes": "7", "cpu/cpu.cfs_quota_us": "5"}


def test_a_host_that_swaps_must_bound_it() -> None:
    asked = replace(ASKED, cgroup={"memory.swap.max": "0"})

    assert process_differences(replace(PROCESS, cgroup={}, has_swap=True), asked, AGENT_UID) == [
        "memory.swap.max is None"
    ]


def test_a_kernel_without_swap_needs_no_limit_of_it() -> None:
    asked = replace(ASKED, cgroup={"memory.swap.max": "0"})

    assert process_differences(replace(PROCESS, cgroup={}), asked, AGENT_UID) == []
    assert process_differences(replace(PROCESS, cgroup={"memory.swap.max": "max"}), asked, AGENT_UID) == [
        "memory.swap.max is max"
    ]


def test_mount_points_are_read_as_they_are_written_and_the_upper_one_counts(tmp_path: Path) -> None:
    own = tmp_path / "7"
    (own / "net").mkdir(parents=True)
    (own / "ns").mkdir()
    (tmp_path / "self/ns").mkdir(parents=True)
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
        (own / "ns" / name).symlink_to("x:[1]")
        (tmp_path / "self/ns" / name).symlink_to("x:[2]")
    (own / "status").write_text("Name:\tx\n")
    (own / "uid_map").write_text("0 5 6\n")
    (own / "gid_map").write_text("0 5 6\n")
    (own / "limits").write_text(LIMITS)
    (own / "cgroup").write_text("0::/nowhere\n")
    (own / "net/dev").write_text("Inter-|\n face |bytes\n    lo:  0\n  eth0: 0\n")
    line = "{} 1 0:1 / {} {},nosuid - tmpfs tmpfs rw\n"
    (own / "mountinfo").write_text(
        line.format(1, r"/data/with\040space", "ro") + line.format(2, "/a", "ro") + line.format(3, "/a", "rw")
    )

    (tmp_path / "self/mountinfo").write_text(
        "1 1 8:1 / / rw shared:1 - ext4 /dev/vda rw\n2 1 0:9 /in /b ro master:3 - tmpfs x rw,size=4k\n"
    )

    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n/dev/vdb partition 1 0 -2\n")

    process = read_process(7, {"memory.max": "1"}, tmp_path)
    ours = cage_seen._mounts((tmp_path / "self/mountinfo").read_text())

    assert {point: mount.options for point, mount in process.mounts.items()} == {
        "/data/with space": frozenset({"ro", "nosuid"}),
        "/a": frozenset({"rw", "nosuid"}),
    }
    assert process.own_devices == {"8:1", "0:9"}
    assert ours["/b"] == seen(
        "ro", root="/in", device="0:9", is_passed_on=True, of_all=frozenset({"rw", "size=4k"})
    )
    assert "/proc/sys" in process.to_hide
    assert process.has_swap
    assert 0 in process.users & process.groups
    assert process.interfaces == {"lo", "eth0"}
    assert process.uid_map == ((0, 5, 6),)
    assert process.shared_namespaces == frozenset()
    assert process.cgroup == {}


@pytest.mark.parametrize(("is_writable", "differences"), [(True, []), (False, ["/data/x lacks noexec"])])
def test_an_engine_that_leaves_noexec_out_of_writable_binds_is_excused_for_these_only(
    is_writable: bool, differences: list[str]
) -> None:
    bind = Bind("/ws/x", "/data/x", is_writable)
    options = frozenset({"rw" if is_writable else "ro", "nosuid", "nodev"})
    seen = replace(next(iter(PROCESS.mounts.values())), options=options, is_passed_on=False)
    process = replace(PROCESS, mounts={**PROCESS.mounts, "/data/x": seen})

    told = process_differences(
        process, replace(ASKED, binds=(*ASKED.binds, bind), runs_outputs=True), AGENT_UID
    )
    strict = process_differences(process, replace(ASKED, binds=(*ASKED.binds, bind)), AGENT_UID)

    assert told == differences
    assert strict == ["/data/x lacks noexec"]
