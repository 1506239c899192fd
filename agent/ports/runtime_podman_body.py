"""One run as Podman's create body. Pure: no engine is asked here.

Only what Podman 4.3 and later understand is sent. What was measured, call by call, is in ARCHITECTURE.md, "The cage".
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from agent.domain.ceilings import Ceilings
from agent.ports.cage import (
    CPU_PERIOD_US,
    HOSTNAME,
    LONGEST_TIMEOUT_S,
    MAP_SIZE,
    ORPHAN_GRACE_S,
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
from agent.ports.cage_check import GUEST_ID
from agent.ports.cage_seen import MASKED
from agent.ports.runtime import RunSpec

CGROUPS = "/sys/fs/cgroup"  # those of the whole host, where a container has none of its own


class Names(Struct, frozen=True):
    """How a run is named to Podman."""

    container: str
    labels: Mapping[str, str]


def create_body(
    spec: RunSpec, image: StoredImage, names: Names, number: int, seccomp_path: str, facts: EngineFacts
) -> dict[str, Any]:
    """The body of POST /containers/create. `number` is that of the id map."""
    body = {
        "name": names.container,
        "labels": dict(names.labels),
        "image": image.id,
        "entrypoint": list(image.entrypoint),
        "command": list(spec.args),
        "env": environment(image),
        "unsetenvall": True,  # the image's Env is sent by name; "*" in it would bring the service's own
        "env_host": False,
        "httpproxy": False,
        "work_dir": WORK_DIR,
        "create_working_dir": True,
        "hostname": HOSTNAME,
        "user": f"{GUEST_ID}:{GUEST_ID}",
        "umask": f"{UMASK:04o}",
        "netns": {"nsmode": "none"},
        "ipcns": {"nsmode": "none"},  # of its own, and /dev/shm is ours below
        "pidns": {"nsmode": "private"},
        "utsns": {"nsmode": "private"},
        "cgroupns": {"nsmode": "private"},
        "userns": {"nsmode": "private"},
        "idmappings": id_mappings(map_start(number)),
        "privileged": False,
        "cap_drop": ["all"],
        "no_new_privileges": True,
        "seccomp_profile_path": seccomp_path,
        "mask": sorted(MASKED if facts.controllers else MASKED | {CGROUPS}),
        "read_only_filesystem": True,
        "read_write_tmpfs": False,
        "image_volume_mode": "ignore",
        "use_image_hosts": True,  # else /etc/hosts would carry the host's names
        "use_image_resolve_conf": True,
        "mounts": _mounts(spec),
        "r_limits": _r_limits(spec.ceilings, facts),
        "systemd": "false",
        "no_healthcheck": True,
        "sdnotifyMode": "ignore",
        "restart_policy": "no",
        "stdin": False,
        "terminal": False,
        "remove": False,
        "timeout": min(spec.ceilings.wall_s + ORPHAN_GRACE_S, LONGEST_TIMEOUT_S),
        "log_configuration": {"driver": "none"},  # a log file would put what the guest says on a disk
    }
    limits = _resource_limits(spec.ceilings, facts)
    return body | {"resource_limits": limits} if limits else body


def id_mappings(start: int) -> dict[str, Any]:
    """One map from `start` on for users and groups, as the API wants it."""
    rows = [{"container_id": 0, "host_id": start, "size": MAP_SIZE}]
    return {"HostUIDMapping": False, "HostGIDMapping": False, "UIDMap": rows, "GIDMap": rows}


def _mounts(spec: RunSpec) -> list[dict[str, Any]]:
    return [
        _tmpfs("/tmp", spec.ceilings.tmp_bytes),  # noqa: S108
        _tmpfs("/dev/shm", shm_bytes(spec.ceilings)),  # noqa: S108
        *(_bind(str(mount.source), mount.target, mount.is_writable) for mount in spec.mounts),
    ]


def _tmpfs(target: str, size_bytes: int) -> dict[str, Any]:
    options = ["rw", "nosuid", "nodev", "noexec", "mode=1777", "notmpcopyup", f"size={size_bytes}"]
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}


def _bind(source: str, target: str, is_writable: bool) -> dict[str, Any]:
    options = ["bind", "rw" if is_writable else "ro", "nosuid", "nodev", "noexec", "rprivate"]
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _r_limits(ceilings: Ceilings, facts: EngineFacts) -> list[dict[str, Any]]:
    """As the API wants them: it puts RLIMIT_ before the name itself."""
    limits = rlimits(ceilings, facts)
    return [
        {"type": name.removeprefix("RLIMIT_"), "soft": value, "hard": value} for name, value in limits.items()
    ]


def _resource_limits(ceilings: Ceilings, facts: EngineFacts) -> dict[str, Any]:
    """Ceilings by cgroup, only those this host can apply: Podman drops the others with a warning."""
    limits: dict[str, Any] = {}
    if "memory" in facts.controllers:
        # `swap` counts both together: none is left for swap.
        limits["memory"] = {"limit": ceilings.memory_bytes, "swap": ceilings.memory_bytes}
        limits["unified"] = {
            "memory.oom.group": "1"
        }  # out of memory ends the whole job, not one process of it
    if "cpu" in facts.controllers:
        limits["cpu"] = {"period": CPU_PERIOD_US, "quota": cpu_quota_us(ceilings)}
    if "pids" in facts.controllers:
        limits["pids"] = {"limit": ceilings.pids}
    return limits
