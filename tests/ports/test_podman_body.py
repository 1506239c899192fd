"""The create body, part by part: what is asked of Podman for a run, and what follows from what its host can do."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.domain.ids import digest_of
from agent.errors import CageNotApplied
from agent.ports import cage
from agent.ports import runtime_podman_body as body
from agent.ports.runtime import Mount, RunKind, RunSpec

ON_V1 = cage.EngineFacts(version="podman 4.3.1", controllers=frozenset(), id_count=524288, hard_limits={})
ON_V2 = replace(ON_V1, controllers=frozenset({"cpu", "memory", "pids"}))
IMAGE = cage.StoredImage(
    id="ab" * 32, size_bytes=1, entrypoint=("/run", "me"), env={"PATH": "/bin", "HOME": "/root"}
)
CEILINGS = Ceilings(
    wall_s=600,
    memory_bytes=1 << 30,
    cpu_millis=1500,
    pids=64,
    open_files=1024,
    output_bytes=1 << 28,
    output_files=10,
    log_bytes=1 << 20,
    tmp_bytes=1 << 26,
)
SPEC = RunSpec(
    name="a.0-1-train",
    labels={},
    image=digest_of(b"image"),
    kind=RunKind.TRAIN,
    args=("-V", "/data", "-T", "train"),
    mounts=(
        Mount(Path("/ws/train"), "/data/train"),
        Mount(Path("/ws/model"), "/data/model", is_writable=True),
    ),
    ceilings=CEILINGS,
)


def made(facts: cage.EngineFacts = ON_V1, spec: RunSpec = SPEC, number: int = 2) -> dict[str, Any]:
    names = body.Names("dc-x", {"a": "b"})
    return body.create_body(spec, IMAGE, names, number, "/seccomp/train.json", facts)


def test_the_image_and_the_contract_s_arguments_are_what_runs() -> None:
    asked = made()

    assert asked["image"] == IMAGE.id
    assert asked["entrypoint"] == ["/run", "me"]
    assert asked["command"] == ["-V", "/data", "-T", "train"]
    assert asked["work_dir"] == "/data"


def test_the_environment_is_the_image_s_by_name_and_ours_over_it() -> None:
    asked = made()

    assert asked["env"] == {"PATH": "/bin", "HOME": "/tmp", "TMPDIR": "/tmp"}
    assert (asked["unsetenvall"], asked["env_host"], asked["httpproxy"]) == (True, False, False)


CAGE = {
    "netns": {"nsmode": "none"},
    "ipcns": {"nsmode": "none"},
    "pidns": {"nsmode": "private"},
    "utsns": {"nsmode": "private"},
    "cgroupns": {"nsmode": "private"},
    "userns": {"nsmode": "private"},
    "user": "1000:1000",
    "privileged": False,
    "cap_drop": ["all"],
    "no_new_privileges": True,
    "seccomp_profile_path": "/seccomp/train.json",
    "read_only_filesystem": True,
    "read_write_tmpfs": False,
    "image_volume_mode": "ignore",
    "systemd": "false",
    "no_healthcheck": True,
    "restart_policy": "no",
    "stdin": False,
    "terminal": False,
    "log_configuration": {"driver": "none"},
}


@pytest.mark.parametrize("part", CAGE)
def test_the_cage_is_asked_for(part: str) -> None:
    assert made()[part] == CAGE[part]


def test_a_map_never_holds_the_agent_and_two_maps_share_nothing() -> None:
    one, two = (made(number=number)["idmappings"]["UIDMap"] for number in (1, 2))

    assert one == [{"container_id": 0, "host_id": 65537, "size": 65536}]
    assert two == [{"container_id": 0, "host_id": 131073, "size": 65536}]
    assert made()["idmappings"]["GIDMap"] == made()["idmappings"]["UIDMap"]


@given(count=st.integers(65536, 1 << 24), limit=st.integers(1, 64))
def test_every_map_of_the_pool_lies_in_the_ids_there_are(count: int, limit: int) -> None:
    pool = cage.map_pool(replace(ON_V1, id_count=count), limit)

    assert 1 <= len(pool) <= limit
    assert cage.map_start(pool[0]) >= 1
    assert cage.map_start(pool[-1]) + cage.MAP_SIZE - 1 <= count


def test_the_ids_that_own_the_unpacked_images_are_used_only_when_there_are_no_others() -> None:
    assert cage.map_pool(ON_V1, 4) == range(1, 5)
    assert cage.map_pool(replace(ON_V1, id_count=65536), 4) == range(1)


def test_too_few_ids_are_refused() -> None:
    with pytest.raises(CageNotApplied, match="65535"):
        cage.map_pool(replace(ON_V1, id_count=65535), 4)


def test_folders_are_mounted_as_the_run_asks_and_nothing_in_them_is_obeyed() -> None:
    mounts = {mount["destination"]: mount for mount in made()["mounts"]}

    assert set(mounts) == {"/tmp", "/dev/shm", "/data/train", "/data/model"}
    assert mounts["/data/train"]["options"] == ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"]
    assert mounts["/data/model"]["options"] == ["bind", "rw", "nosuid", "nodev", "noexec", "rprivate"]
    assert f"size={CEILINGS.tmp_bytes}" in mounts["/tmp"]["options"]


def test_ceilings_that_cannot_be_enforced_are_not_sent_but_named() -> None:
    assert "resource_limits" not in made(ON_V1)
    assert cage.absent_ceilings(ON_V1) == ("cpu_millis", "memory_bytes")
    assert cage.absent_ceilings(ON_V2) == ()
    assert cage.absent_ceilings(replace(ON_V1, controllers=frozenset({"memory"}))) == ("cpu_millis",)


def test_ceilings_by_cgroup_leave_no_swap() -> None:
    assert made(ON_V2)["resource_limits"] == {
        "memory": {"limit": 1 << 30, "swap": 1 << 30},
        "unified": {"memory.oom.group": "1"},
        "cpu": {"period": 100_000, "quota": 150_000},
        "pids": {"limit": 64},
    }


def test_what_enforces_a_ceiling_is_told() -> None:
    on_v1, on_v2 = (cage.applied_ceilings(CEILINGS, facts) for facts in (ON_V1, ON_V2))

    assert (on_v1["memory_bytes"], on_v1["pids"]) == (
        "1073741824 by rlimit and watcher",
        "64 by rlimit",
    )
    assert "cpu_millis" not in on_v1
    assert (on_v2["memory_bytes"], on_v2["cpu_millis"], on_v2["pids"]) == (
        "1073741824 by cgroup",
        "1500 by cgroup",
        "64 by cgroup",
    )


def test_a_lower_hard_limit_of_the_host_counts_and_is_told() -> None:
    facts = replace(ON_V1, hard_limits={"RLIMIT_NOFILE": 512})

    assert cage.applied_ceilings(CEILINGS, facts)["open_files"] == "512 by rlimit"
    assert {"type": "NOFILE", "soft": 512, "hard": 512} in made(facts)["r_limits"]


def test_a_stand_in_leaves_the_oci_runtime_room_to_make_the_cage_and_says_so() -> None:
    tiny = replace(CEILINGS, memory_bytes=1, pids=1, open_files=1)

    applied = cage.applied_ceilings(tiny, ON_V1)

    assert applied["memory_bytes"] == f"{256 << 20} by rlimit and watcher"
    assert applied["pids"] == "16 by rlimit"


def test_no_core_is_dumped() -> None:
    # 1, not 0: a handler that core_pattern pipes to gets the dump of a process whose limit is 0.
    assert {"type": "CORE", "soft": 1, "hard": 1} in made()["r_limits"]


def test_an_orphan_ends_soon_after_its_wall_clock_ceiling() -> None:
    assert made()["timeout"] == 660
    long = replace(SPEC, ceilings=replace(CEILINGS, wall_s=1 << 53))
    assert made(spec=long)["timeout"] < (1 << 32) // 1000


def test_what_must_be_seen_is_what_was_asked() -> None:
    seen = cage.asked_for(SPEC, IMAGE, 2, {}, ON_V2)

    assert seen.args == ("/run", "me", "-V", "/data", "-T", "train")
    assert seen.env == {"PATH": "/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "HOSTNAME": "job"}
    assert seen.map_start == made()["idmappings"]["UIDMap"][0]["host_id"]
    assert seen.cgroup == {
        "memory.max": "1073741824",
        "memory.swap.max": "0",
        "cpu.max": "150000 100000",
        "pids.max": "64",
    }
