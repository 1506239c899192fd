"""How the doctor looks: a file's text, a program's words. Whatever fails becomes `Unknown` with the reason."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from agent.doctor.lines import Unknown

T = TypeVar("T")

PROGRAM_TIMEOUT_S = 10.0
MAX_TEXT_BYTES = 1 << 20
SEARCH_PATH = (
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # a user's own PATH often lacks sbin
)
ENVIRONMENT = {
    "PATH": SEARCH_PATH,
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}  # words are read, so in one language


def attempt(look: Callable[[], T]) -> T | Unknown:
    """What the look gives, or why it gave nothing."""
    try:
        return look()
    except OSError as cause:
        return Unknown(cause.strerror or str(cause) or type(cause).__name__)
    except (ValueError, LookupError) as cause:
        return Unknown(f"{type(cause).__name__}: {cause}"[:200])


def read_text(path: str | Path) -> str | Unknown:
    """The text of a file, without the white space around it."""

    def look() -> str:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MAX_TEXT_BYTES).strip()

    told = attempt(look)
    return Unknown(f"{path}: {told.reason}") if isinstance(told, Unknown) else told


def text_or(path: str | Path, default: str) -> str:
    """The same, with something for a file that cannot be read."""
    told = read_text(path)
    return default if isinstance(told, Unknown) else told


def ask_program(command: Sequence[str]) -> str | Unknown:
    """What a program prints, within a time, in a bare environment. It inherits no terminal."""
    try:
        done = subprocess.run(
            command,
            env=ENVIRONMENT | {"HOME": _home()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.SubprocessError) as cause:
        return Unknown(f"{command[0]} does not run: {type(cause).__name__}")
    words = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode != 0:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it says nothing"])[-1]
        return Unknown(f"{command[0]} ends with {done.returncode}: {last[:160]}")
    return words


def _home() -> str:
    """Of whom this process acts as: root's own HOME is closed to the agent's user."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"


def find_program(name: str) -> str | None:
    """Where a program lies, with no regard to the caller's own PATH."""
    return shutil.which(name, path=SEARCH_PATH)
