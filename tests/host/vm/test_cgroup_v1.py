"""The cgroup that root gives to the agent's user on cgroup v1, as docs/operators.md has it typed."""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from tests.docs_blocks import blocks

ROOT_OF_CGROUPS = Path("/sys/fs/cgroup")
USER = "nobody"  # a host has the agent's; whose it is makes no difference to the kernel


@pytest.mark.host
def test_the_commands_of_the_docs_give_a_cgroup_to_the_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("root, who alone gives cgroups away")
    if not (ROOT_OF_CGROUPS / "memory").is_dir():
        pytest.skip("a machine with cgroup v1")
    name = f"dc-compute-docs-{os.getpid()}"
    (block,) = blocks("cgroup v1")
    typed = block.text.replace("memory/dc-compute", f"memory/{name}").replace(
        "chown dc-compute ", f"chown {USER} "
    )
    given = ROOT_OF_CGROUPS / "memory" / name

    try:
        subprocess.run(["sh", "-euc", typed], check=True)

        owners = {(given / file).stat().st_uid for file in (".", "cgroup.procs", "tasks")}
        assert owners == {pwd.getpwnam(USER).pw_uid}
    finally:
        if given.is_dir():
            given.rmdir()
