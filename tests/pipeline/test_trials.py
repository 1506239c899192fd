"""Folders and containers of self-tests: spared while their process lives, swept when it is gone."""

import os
import subprocess
import sys
from pathlib import Path

from agent.domain.ids import digest_of
from agent.pipeline.resume import sweep
from agent.pipeline.trials import TRIAL_LABEL, abandoned, is_under_way, trial
from agent.ports.runtime import RunKind, RunSpec
from agent.selftest.stage import CEILINGS
from tests.fakes.runtime import MemoryRuntime
from tests.pipeline.world import World

IMAGE = digest_of(b"an image")

HOLDER = """
import sys, threading
from pathlib import Path
from agent.pipeline.trials import trial
from tests.fakes.runtime import MemoryRuntime
with trial(Path(sys.argv[1]), MemoryRuntime({})) as folder:
    print(folder.name, flush=True)
    threading.Event().wait(60)
"""


def test_a_trial_s_folder_is_the_agent_s_alone_and_gone_after_it(tmp_path: Path) -> None:
    with trial(tmp_path, MemoryRuntime({})) as folder:
        (folder / "left").mkdir()

        assert folder.stat().st_mode & 0o777 == 0o700
        assert is_under_way(folder.name, tmp_path)
        assert abandoned(tmp_path) == ()

    assert list(tmp_path.iterdir()) == []
    assert not is_under_way(folder.name, tmp_path)


def test_a_trial_of_another_process_is_under_way_until_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()) as holder:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        assert is_under_way(name, tmp_path)
        holder.kill()

    assert not is_under_way(name, tmp_path)
    assert abandoned(tmp_path) == (tmp_path / name,)


def test_a_name_that_is_none_of_ours_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "selftest-of-somebody").mkdir()
    (tmp_path / "selftest-0123456789ab").symlink_to(tmp_path)

    assert not is_under_way("../../etc", tmp_path)
    assert abandoned(tmp_path) == ()


def spec(name: str) -> RunSpec:
    return RunSpec(
        name=name,
        labels={TRIAL_LABEL: name},
        image=IMAGE,
        kind=RunKind.TRAIN,
        args=(),
        mounts=(),
        ceilings=CEILINGS,
    )


def test_the_sweep_spares_a_trial_under_way_and_takes_an_abandoned_one(world: World) -> None:
    hospital = world.a
    root, runtime = hospital.host.rules.workspace_root, hospital.runtime
    left = root / "selftest-0123456789ab"
    left.mkdir()
    runtime.leave_behind(spec(left.name))
    with trial(root, runtime) as folder:
        runtime.leave_behind(spec(folder.name))

        sweep(hospital.host)

        assert [leftover.name for leftover in runtime.leftovers()] == [folder.name]
        assert folder.exists()
        assert not left.exists()
