"""One run as the OCI config of a bundle for runc. Pure: nothing is asked or written here.

It says the same cage as Podman's create body, from the same description (`cage.py`), and a little less of a world: no /sys, no
/dev/mqueue, no files that an engine would add.
Source: the OCI runtime specification, config.md and config-linux.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agent.ports.cage import (
    CPU_PERIOD_US,
    HOSTNAME,
    MAP_SIZE,
    UMASK,
    WORK_DIR,
    EngineFacts,
    StoredImage,
    cpu_quota_us,
    environment,
    map_start,
    rlimits,
    shm_bytes,
)
from agent.ports.cage_check import GUEST_ID, OCI_NAMESPACES
from agent.ports.cage_seen import MASKED, READ_ONLY
from agent.ports.runtime import RunSpec

OCI_VERSION = "1.0.2"
DEV_BYTES = 1 << 16


def oci_config(
    spec: RunSpec,
    image: StoredImage,
    number: int,
    seccomp: Mapping[str, Any],
    facts: EngineFacts,
    *,
    root: str,
    sources: Sequence[str],
    cgroup: str | None,
) -> dict[str, Any]:
    """The bundle's config.json. `number` is that of the id map; `root` the unpacked image; `sources` where the folders of
    `spec.mounts` lie, in their order; `cgroup` the cgroup to make, None where the agent was given none.
    """
    start = map_start(number)
    ids = [{"containerID": 0, "hostID": start, "size": MAP_SIZE}]
    linux: dict[str, Any] = {
        "uidMappings": ids,
        "gidMappings": ids,
        "namespaces": [{"type": kind} for kind in sorted(OCI_NAMESPACES)],
        "resources": _resources(spec, facts),
        "seccomp": dict(seccomp),
        "maskedPaths": sorted(MASKED),
        "readonlyPaths": sorted(READ_ONLY),
        "rootfsPropagation": "private",
    }
    if cgroup is not None:
        linux["cgroupsPath"] = cgroup
    return {
        "ociVersion": OCI_VERSION,
        "hostname": HOSTNAME,
        "root": {"path": root, "readonly": True},
        "process": _process(spec, image, facts),
        "mounts": _mounts(spec, facts, sources),
        "linux": linux,
    }


def _process(spec: RunSpec, image: StoredImage, facts: EngineFacts) -> dict[str, Any]:
    env = environment(image) | {"HOSTNAME": HOSTNAME}  # as Podman adds it: a guest sees one world under both
    none: list[str] = []
    return {
        "terminal": False,
        "user": {"uid": GUEST_ID, "gid": GUEST_ID, "umask": UMASK},
        "args": [*image.entrypoint, *spec.args],
        "env": [f"{key}={value}" for key, value in env.items()],
        "cwd": WORK_DIR,
        "capabilities": dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), none),
        "rlimits": [
            {"type": name, "soft": value, "hard": value}
            for name, value in rlimits(spec.ceilings, facts).items()
        ],
        "noNewPrivileges": True,
    }


def _mounts(spec: RunSpec, facts: EngineFacts, sources: Sequence[str]) -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec"]
    return [
        _mount("/proc", "proc", "proc", [*quiet, "nodev"]),
        _mount("/dev", "tmpfs", "tmpfs", [*quiet, "strictatime", "mode=755", f"size={DEV_BYTES}"]),
        _mount(
            "/dev/pts", "devpts", "devpts", [*quiet, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _tmpfs("/dev/shm", shm_bytes(spec.ceilings), facts),  # noqa: S108
        _tmpfs("/tmp", spec.ceilings.tmp_bytes, facts),  # noqa: S108
        *(
            _mount(
                mount.target,
                "bind",
                source,
                ["bind", "rw" if mount.is_writable else "ro", *quiet, "nodev", "rprivate"],
            )
            for mount, source in zip(spec.mounts, sources, strict=True)
        ),
    ]


def _tmpfs(target: str, size_bytes: int, facts: EngineFacts) -> dict[str, Any]:
    options = [
        "nosuid",
        "noexec",
        "nodev",
        "mode=1777",
        f"size={size_bytes}",
        f"nr_inodes={facts.tmp_inodes}",
    ]
    return _mount(target, "tmpfs", "tmpfs", options)


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def _resources(spec: RunSpec, facts: EngineFacts) -> dict[str, Any]:
    """Ceilings by cgroup, those this host can apply; whether they were is read back."""
    ceilings = spec.ceilings
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if "memory" in facts.controllers:
        # `swap` counts both together: none is left for swap.
        resources["memory"] = {"limit": ceilings.memory_bytes, "swap": ceilings.memory_bytes}
        if facts.cgroup_version == 2:
            resources["unified"] = {"memory.oom.group": "1"}
    if "cpu" in facts.controllers:
        resources["cpu"] = {"period": CPU_PERIOD_US, "quota": cpu_quota_us(ceilings)}
    if "pids" in facts.controllers:
        resources["pids"] = {"limit": ceilings.pids}
    return resources
