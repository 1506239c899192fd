"""A test-only cage: one protection taken away at a time, and which probes of the self-test must then go red.

What reads the cage back is switched off too, else it would refuse the run. A removal is written for each runtime in the form
that this one turns the cage into: Podman's create body is changed here. Another runtime plugs in with a Form of its own.
"""

import json
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.pipeline import outputs
from agent.ports import (
    cage,
    run_end,
    runtime_podman,
    runtime_podman_body,
    runtime_runc,
    runtime_runc_config,
)
from agent.ports.container_run import ContainerRun
from agent.ports.run_log import RunLog
from agent.ports.run_watch import RunWatch
from agent.selftest import leavings
from agent.selftest.probes import PROBES

Document = dict[str, Any]
Change = Callable[[Document], Document]
Patch = Callable[[pytest.MonkeyPatch], None]

MIB = 1 << 20


@dataclass(frozen=True)
class Removal:
    """One protection gone. `changes`: by runtime, what is done to its form of the cage; `patch`: what is done to the agent.

    `reds`: the probes that must not hold then.
    """

    reds: frozenset[str]
    changes: Mapping[str, Change] = field(default_factory=dict)
    patch: Patch | None = None

    def apply(self, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take it away until the test is over."""
        if runtime in self.changes:
            FORMS[runtime](self.changes[runtime], monkeypatch)
        if self.patch is not None:
            self.patch(monkeypatch)


def podman_form(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman's create body, changed, and nobody who reads it back."""
    honest = runtime_podman_body.create_body
    monkeypatch.setattr(runtime_podman_body, "create_body", lambda *args: change(honest(*args)))
    monkeypatch.setattr(runtime_podman.PodmanRuntime, "_check", lambda *_: None)
    monkeypatch.setattr(runtime_podman, "await_filter", lambda _: None)


def runc_form(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """runc's bundle, changed, and nobody who reads it back."""
    honest = runtime_runc_config.oci_config
    monkeypatch.setattr(
        runtime_runc_config, "oci_config", lambda *args, **words: change(honest(*args, **words))
    )
    monkeypatch.setattr(runtime_runc.RuncRuntime, "_check", lambda *_: None)


FORMS: dict[str, Callable[[Change, pytest.MonkeyPatch], None]] = {"podman": podman_form, "runc": runc_form}

# ------------------------------------------------------------------ changes of the two forms


def both(podman: Change, runc: Change) -> Mapping[str, Change]:
    """The same protection, in the form of each."""
    return {"podman": podman, "runc": runc}


def body(**parts: Any) -> Change:
    """These parts of Podman's create body, instead of what stood there."""
    return lambda document: document | parts


def bundle(linux: Document | None = None, process: Document | None = None, **parts: Any) -> Change:
    """These parts of an OCI config, instead of what stood there."""
    return lambda config: (
        config
        | parts
        | {"linux": config["linux"] | (linux or {}), "process": config["process"] | (process or {})}
    )


def in_turn(*changes: Change) -> Change:
    """One change after the other."""

    def change(document: Document) -> Document:
        for one in changes:
            document = one(document)
        return document

    return change


def shared(kind: str) -> Change:
    """An OCI config without a namespace of its own."""

    def change(config: Document) -> Document:
        kept = [one for one in config["linux"]["namespaces"] if one["type"] != kind]
        return config | {"linux": config["linux"] | {"namespaces": kept}}

    return change


def host_proc(config: Document) -> Document:
    """The host's /proc: who owns no process namespace may mount none."""
    proc = {"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind", "ro"]}
    others = [mount for mount in config["mounts"] if mount["destination"] != "/proc"]
    linux = config["linux"] | {"maskedPaths": [], "readonlyPaths": []}
    return config | {"mounts": [proc, *others], "linux": linux}


def no_host_name(config: Document) -> Document:
    """An OCI config that names no host."""
    return {key: value for key, value in config.items() if key != "hostname"}


def mounts(change: Change) -> Mapping[str, Change]:
    """Each mount, changed: both forms write them alike."""

    def changed(document: Document) -> Document:
        return document | {"mounts": [change(mount) for mount in document["mounts"]]}

    return both(changed, changed)


def more(*added: tuple[str, str]) -> Mapping[str, Change]:
    """(source, target) mounted too."""

    def changed(document: Document) -> Document:
        extra = [
            {"destination": target, "type": "bind", "source": source, "options": ["rbind", "rw"]}
            for source, target in added
        ]
        return document | {"mounts": [*document["mounts"], *extra]}

    return both(changed, changed)


def without_option(*dropped: str) -> Change:
    """A mount without these options."""
    return lambda mount: mount | {"options": [one for one in mount["options"] if one not in dropped]}


def writable(mount: Document) -> Document:
    """A read-only mount, writable."""
    return mount | {"options": ["rw" if one == "ro" else one for one in mount["options"]]}


def read_only(mount: Document) -> Document:
    """The output's mount, read-only."""
    if mount["destination"] != "/data/model":
        return mount
    return mount | {"options": ["ro" if one == "rw" else one for one in mount["options"]]}


def wide(mount: Document) -> Document:
    """A sized tmpfs, much larger, and for any number of files."""
    is_sized = mount["destination"] in {"/tmp", "/dev/shm"}
    kept = [one for one in mount["options"] if not (is_sized and one.startswith(("size=", "nr_inodes=")))]
    return mount | {"options": [*kept, "size=64m"] if is_sized else kept}


UNCONFINED = both(body(seccomp_profile_path="unconfined"), bundle(linux={"seccomp": None}))
NET_ADMIN = {
    kind: ["CAP_NET_ADMIN"] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
}
GUEST_ROOT = {"uid": 0, "gid": 0}
SHARED = Path("/dev/shm/dcc-shared")


def shared_memory(mount: Document) -> Document:
    """/tmp and /dev/shm in common with everybody."""
    if mount["destination"] not in {"/tmp", "/dev/shm"}:
        return mount
    folder = SHARED / mount["destination"].strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    return {
        "destination": mount["destination"],
        "type": "bind",
        "source": str(folder),
        "options": ["bind", "rw"],
    }


def own_ids(start: int) -> Mapping[str, Change]:
    """An id map that begins at the agent itself, and root inside."""
    rows = [
        {"containerID": 0, "hostID": start, "size": 1},
        {"containerID": 1, "hostID": 65537, "size": 65535},
    ]
    return both(
        body(user="0:0", idmappings=runtime_podman_body.id_mappings(start)),
        bundle(linux={"uidMappings": rows, "gidMappings": rows}, process={"user": GUEST_ROOT}),
    )


# ------------------------------------------------------------------ changes of the agent itself


def no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunWatch, "_watch", lambda _: None)


def one_id_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run under the ids of the first."""
    monkeypatch.setattr(runtime_podman_body, "map_start", lambda _: cage.map_start(1))
    monkeypatch.setattr(runtime_runc_config, "map_start", lambda _: cage.map_start(1))


def long_log(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = RunLog.__init__
    monkeypatch.setattr(RunLog, "__init__", lambda self, limit_bytes: honest(self, limit_bytes * 16))


def long_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ContainerRun.start
    monkeypatch.setattr(
        ContainerRun, "start", lambda self, cage, wall_s, *rest: honest(self, cage, wall_s * 60, *rest)
    )


def engine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe the engine's code, which tells a death by signal n as 128 + n."""
    patch_end(monkeypatch, run_end.end_of_engine_code)


def codes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every end for an exit code."""
    patch_end(monkeypatch, lambda code: run_end.End(code=code))


def patch_end(monkeypatch: pytest.MonkeyPatch, end: Callable[[int | None], run_end.End]) -> None:
    monkeypatch.setattr(run_end, "end_of", lambda _pidfd, engine_code, **_: end(engine_code()))


def any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take whatever kind of file, under whatever name, however deep."""
    monkeypatch.setattr(outputs, "_check_file", lambda *_: None)
    monkeypatch.setattr(outputs, "_check_name", lambda *_: None)
    monkeypatch.setattr(outputs, "MAX_DEPTH", 1000)
    monkeypatch.setattr(outputs, "MAX_HOLE_BYTES", 1 << 40)
    monkeypatch.setattr(cage, "judge_reclaimed", lambda _: None)


def any_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    no_watch(monkeypatch)
    honest = outputs.inspect

    def inspect(folder: Path, ceilings: Ceilings) -> tuple[str, ...]:
        return honest(folder, replace(ceilings, output_files=1 << 30, output_bytes=1 << 40))

    monkeypatch.setattr(leavings, "inspect", inspect)


def any_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a score as a careless program would."""

    def read(folder: Path, *_: Any) -> outputs.Performance:
        try:
            return outputs.Performance(json.loads((folder / "performance.json").read_text())["perf"])
        except RecursionError:
            return outputs.Performance(0.0)

    monkeypatch.setattr(leavings, "read_performance", read)


def nothing_reclaimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a guest's files as they are."""
    for kind in (runtime_podman.PodmanRuntime, runtime_runc.RuncRuntime):
        honest = kind.reclaim

        def reclaim(self: Any, folder: Path, honest: Callable[..., None] = honest) -> None:
            if folder.name != "output-closed":
                honest(self, folder)

        monkeypatch.setattr(kind, "reclaim", reclaim)


def any_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every image without a look, and spare the engine."""
    monkeypatch.setattr(leavings, "_load", lambda *_: None)


def any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack a model as a careless program would."""

    def unpack(archive: Path, folder: Path, _: Ceilings) -> None:
        with suppress(tarfile.ReadError, ValueError), tarfile.open(archive) as tar:
            for member in tar:
                # What would fill the disk, lie outside or need root, a test leaves out.
                is_inside = ".." not in member.name and not member.name.startswith("/")
                if member.isreg() and member.size < MIB and is_inside:
                    tar.extract(member, folder)

    monkeypatch.setattr(leavings, "unpack", unpack)


# ------------------------------------------------------------------ the matrix


def names(*prefixes: str, scene: str | None = None, act: str | None = None) -> frozenset[str]:
    """Probes by the beginning of their name, their scene or their act."""
    return frozenset(
        probe.name
        for probe in PROBES
        if (prefixes and probe.name.startswith(prefixes))
        or (scene is not None and probe.scene == scene)
        or (act is not None and probe.act[:1] == (act,))
    )


CALLS = names(act="call") | names(act="call-here") | {"int80"}
BUILT = {
    "family-inet",
    "family-inet6",
    "family-netlink",
    "family-packet",
}  # into every kernel that runs containers
UNBUILT = names("family-") - BUILT
FAMILIES = BUILT | names("socketpair-", "predict-unix", "predict-inet", "problem-unix", "problem-inet")
HIDDEN = frozenset({"kallsyms", "kernel-keys", "boot-line", "kernel-config", "interrupts", "firmware"})

REMOVALS: dict[str, Removal] = {
    "seccomp": Removal(CALLS | FAMILIES | {"predict-fork"}, UNCONFINED),
    "seccomp and network": Removal(
        frozenset({"metadata-address", "host-loopback", "name-server", "host-abstract-socket", "interfaces"})
        | {"neighbour-socket"},
        both(
            body(seccomp_profile_path="unconfined", netns={"nsmode": "host"}),
            in_turn(shared("network"), bundle(linux={"seccomp": None})),
        ),
    ),
    "process namespace": Removal(
        frozenset(
            {"processes", "first-process", "signals", "neighbour-processes", "neighbour-signals", "daemon"}
        ),
        both(body(pidns={"nsmode": "host"}), in_turn(shared("pid"), host_proc)),
    ),
    "id map": Removal(frozenset({"own-id"}), own_ids(0)),
    "id maps apart": Removal(
        frozenset({"neighbour-ids"}), both(lambda document: document, lambda document: document), one_id_map
    ),
    "read-only root": Removal(
        frozenset({"root-write", "program-write"}),
        both(
            body(read_only_filesystem=False),
            lambda config: bundle(root=config["root"] | {"readonly": False})(config),
        ),
    ),
    "masks": Removal(
        HIDDEN,
        both(
            body(mask=[], unmask=["ALL"]),
            in_turn(bundle(linux={"maskedPaths": [], "readonlyPaths": []}), more(("/sys", "/sys"))["runc"]),
        ),
    ),
    "masks, user and capabilities": Removal(
        frozenset({"sysctl-write"}),
        both(
            body(mask=[], unmask=["ALL"], user="0:0", cap_drop=[], cap_add=["CAP_NET_ADMIN"]),
            bundle(
                linux={"maskedPaths": [], "readonlyPaths": []},
                process={"user": GUEST_ROOT, "capabilities": NET_ADMIN},
            ),
        ),
    ),
    "rlimits": Removal(
        frozenset({"descriptor-bomb", "output-file", "sparse-file"}),
        both(body(r_limits=[]), bundle(process={"rlimits": []})),
        no_watch,
    ),
    "rlimits and seccomp": Removal(  # the profile lets nobody set a limit, so nobody raises this one
        frozenset({"core"}),
        both(
            body(r_limits=[], seccomp_profile_path="unconfined"),
            bundle(linux={"seccomp": None}, process={"rlimits": []}),
        ),
    ),
    "rlimits and cgroup": Removal(
        frozenset({"fork-bomb", "thread-bomb", "memory-bomb"}),
        both(body(r_limits=[], resource_limits={}), bundle(linux={"resources": {}}, process={"rlimits": []})),
        no_watch,
    ),
    "sizes of tmpfs": Removal(frozenset({"tmp-filler", "shm-filler", "tmp-files"}), mounts(wide)),
    "read-only inputs": Removal(names("input-"), mounts(writable)),
    "writable outputs": Removal(frozenset({"touch"}), mounts(read_only)),
    "noexec": Removal(names("run-from-"), mounts(without_option("noexec"))),
    "no_new_privileges": Removal(
        frozenset({"no-new-privileges", "set-id-program"}),
        both(
            body(no_new_privileges=False, seccomp_profile_path="unconfined"),
            bundle(linux={"seccomp": None}, process={"noNewPrivileges": False}),
        ),
    ),
    "no capabilities": Removal(
        frozenset({"capabilities"}),
        both(
            body(cap_drop=[], cap_add=["CAP_NET_ADMIN"]),
            bundle(process={"capabilities": NET_ADMIN}),
        ),
    ),
    "environment": Removal(
        frozenset({"environment"}),
        both(
            lambda document: document | {"env": document["env"] | {"TOKEN": "x"}},
            lambda config: bundle(process={"env": [*config["process"]["env"], "TOKEN=x"]})(config),
        ),
    ),
    "host name": Removal(
        frozenset({"host-name"}),
        both(body(utsns={"nsmode": "host"}, hostname=""), in_turn(shared("uts"), no_host_name)),
    ),
    "mounts": Removal(
        frozenset({"host-mounts", "devices", "control-sockets"}),
        more(("/usr", "/mnt"), ("/dev/null", "/dev/fuse"), ("/dev/null", "/run/podman/podman.sock")),
    ),
    "memory files apart": Removal(frozenset({"neighbour-memory-files"}), mounts(shared_memory)),
    "mount namespace": Removal(frozenset({"neighbour-files"}), more(("/dev/shm", "/dev/shm"))),
    "log ceiling": Removal(frozenset({"log-flood", "endless-line"}), patch=long_log),
    "wall clock": Removal(frozenset({"stubborn"}), patch=long_clock),
    "cleaned text": Removal(frozenset({"control-characters"})),  # the test shows what the guest said as it is
    "the kernel's word on ends": Removal(frozenset({"exit-137", "exit-139", "exit-159"}), patch=engine_ends),
    "signals told from codes": Removal(frozenset({"segfault", "killed"}), patch=codes_only),
    "kinds of files": Removal(names(scene="outputs") - names("score-") - {"output-closed"}, patch=any_file),
    "files taken back": Removal(frozenset({"output-closed"}), patch=nothing_reclaimed),
    "sums of outputs": Removal(names(scene="filler"), patch=any_amount),
    "strict scores": Removal(names("score-"), patch=any_score),
    "judged images": Removal(names(scene="images"), patch=any_image),
    "strict models": Removal(names(scene="models"), patch=any_model),
}

NOT_BUILT = (
    "kernels are built without it as often as with it: where it is missing, nothing needs to refuse it"
)
HOST_S_ROOT = "it belongs to the root of the host, whom no container has: the kernel refuses in any cage"
NOT_ON_EVERY_KERNEL = "not every kernel has it, and where it is only the host's root may read it"

# Probes that no removal turns red on every host, and why.
CANNOT: dict[str, str] = {
    **dict.fromkeys(sorted(UNBUILT), NOT_BUILT),
    **dict.fromkeys(("core-pattern-write", "sysrq-write", "sysfs-write", "cgroup-write"), HOST_S_ROOT),
    **dict.fromkeys(("kcore", "sched-debug", "scsi", "acpi", "page-counts", "timers"), NOT_ON_EVERY_KERNEL),
    "descriptors": "no engine can be told to leave one open; tests/selftest/test_guest.py leaves one",
    "cpu": "on a busy host nobody gets half a CPU, with a ceiling or without",
}

# (runtime, probe): what does not turn red under this runtime only.
CANNOT_UNDER: dict[tuple[str, str], str] = {
    ("podman", "tmp-files"): "Podman 4.3 refuses nr_inodes: the probe names the ceiling absent",
    (
        "runc",
        "program-write",
    ): "unpacked files get modes of the agent's own, by which no container may write them",
    (
        "runc",
        "set-id-program",
    ): "files of its roots belong to an id that no container has: the set-id bit is ignored",
}
