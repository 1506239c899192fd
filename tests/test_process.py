"""A process that holds keys leaves no core dump and lets nobody of its own user look in, and works all the same."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
PROTECTED = "from agent.process import keep_memory_private; keep_memory_private()\n"


def ran(lines: str, limit: tuple[int, int] | None = None) -> "subprocess.CompletedProcess[str]":
    """A process that keeps its memory private and then runs these lines; `limit`: of core dumps, before it starts."""
    if limit is not None:
        program = (
            f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_CORE, {limit});"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        before: Sequence[str] = ("-c", program)
    else:
        before = ()
    return subprocess.run(
        [sys.executable, *before, "-c", PROTECTED + lines], capture_output=True, text=True, check=False
    )


def test_the_limit_of_dumps_is_one_byte_which_a_handler_does_not_get_either() -> None:
    done = ran("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert done.stdout == f"{(0, 0) if hard == 0 else (1, 1)}\n"


def test_a_limit_that_cannot_be_raised_any_more_stays() -> None:
    done = ran("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))", limit=(0, 0))

    assert done.stdout == "(0, 0)\n"


def test_a_crash_leaves_no_core(tmp_path: Path) -> None:
    """Whatever the host's core_pattern is: the kernel itself sets the flag of a dump in the status."""
    lines = "import os; os.abort()"
    process = subprocess.Popen([sys.executable, "-c", PROTECTED + lines], cwd=tmp_path)

    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGABRT

    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    os.geteuid() == 0, reason="a user whom the kernel keeps out: root may look into everything"
)
def test_another_process_of_the_same_user_reads_neither_memory_nor_environment() -> None:
    lines = "import sys; print('ready', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", PROTECTED + lines], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        for name in ("mem", "environ", "fd/0"):
            with pytest.raises(PermissionError):
                Path(f"/proc/{process.pid}/{name}").read_bytes()
        process.kill()


def test_it_still_starts_programs_and_reads_about_itself() -> None:
    lines = (
        "import subprocess, sys, os\n"
        "from pathlib import Path\n"
        "print(len(Path('/proc/self/mountinfo').read_text()) > 0, len(os.listdir('/proc/self/fd')) > 0)\n"
        "print(subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True).stdout)\n"
    )

    assert ran(lines).stdout == "True True\n1\n\n"


@pytest.mark.parametrize("module", ["agent", "agent.devkit"])
def test_the_commands_that_hold_keys_do_so_first(module: str) -> None:
    """Seen from within: the program is stopped where it would read its arguments."""
    lines = (
        "import resource, runpy, sys, argparse\n"
        "from agent.cli import app\n"
        "def stop(*_, **__): print(resource.getrlimit(resource.RLIMIT_CORE)[0] <= 1); sys.exit()\n"
        "argparse.ArgumentParser.parse_args = stop\n"
        "app.app.__class__.__call__ = stop\n"
        f"sys.argv = ['{module}']\n"
        f"runpy.run_module('{module}', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)

    assert done.stdout == "True\n", done.stderr
