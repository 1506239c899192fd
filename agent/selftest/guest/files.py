"""Writing where nothing may be written, running what may not run, and leaving what no harvest should take."""

# ruff: noqa: S108 - a guest: what it does is the point

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from agent.selftest.guest.attempt import in_child, told

SET_ID_PROGRAM = "/opt/set-id/python3"
TELL_USER = "import os; os.write(1, b'%d' % os.geteuid())"

# ------------------------------------------------------------------ writing


def write(path: str, text: str = "x") -> str:
    """Write into this file, made if it is not there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
    return "done"


def remove(path: str) -> str:
    """Unlink this file."""
    os.unlink(path)
    return "done"


def chmod(path: str, mode: str) -> str:
    """Change this file's mode."""
    os.chmod(path, int(mode, 8))
    return "done"


def touch(path: str) -> str:
    """Give a file of one's own another time: everybody may."""
    write(path)
    os.utime(path, (1, 1))
    return "done" if os.stat(path).st_mtime == 1 else "not done"


# ------------------------------------------------------------------ running


def run_from(folder: str) -> str:
    """Run a program that was written into this folder."""
    script = Path(folder, "program")
    script.write_text("#!/usr/bin/python3\n")
    script.chmod(0o755)
    try:
        return _output_of(str(script), ["program"])
    finally:
        script.unlink()


def run_set_id() -> str:
    """Run a program of the image that belongs to root and has the set-user-id bit; the user it runs as."""
    user = _output_of(SET_ID_PROGRAM, ["python3", "-S", "-c", TELL_USER])
    return f"user {user}" if user.isdigit() else user


def _output_of(program: str, arguments: list[str]) -> str:
    """What it says on stdout, 4 KiB at most; the errno when it cannot be run."""
    reader, writer = os.pipe()

    def become() -> str:
        os.dup2(writer, 1)
        os.execve(program, arguments, {"PYTHONHOME": sys.base_prefix})  # noqa: S606

    seen = in_child(become)
    os.close(writer)
    with open(reader, "rb") as words:
        said = words.read(4096).decode()
    return seen if seen != "it ended without a word" else said or "done"


def core() -> str:
    """Leave a core: raise the limit, fall over in a folder that can be written."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return "the limit was raised"
    except (OSError, ValueError):
        pass
    child = os.fork()
    if child == 0:
        os.chdir("/tmp")
        os.kill(os.getpid(), signal.SIGSEGV)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if any(name.startswith("core") for name in os.listdir("/tmp")):
        return "a core lies in /tmp"
    if os.WCOREDUMP(status):
        return f"a core went to {Path('/proc/sys/kernel/core_pattern').read_text().strip()}"
    return "no core"


# ------------------------------------------------------------------ leaving


def leave(folder: str, what: str) -> str:
    """Leave this below the folder; `done`, or the errno that stopped it."""
    return told(lambda: _leave(Path(folder), what))


def _leave(root: Path, what: str) -> str:
    match what.split(":"):
        case ["symlink"]:
            (root / "model").symlink_to("/etc/passwd")
        case ["symlink-folder"]:
            (root / "model").symlink_to("../../..")
        case ["hard-link"]:
            (root / "model").write_text("x")
            os.link(root / "model", root / "again")
        case ["fifo"]:
            os.mkfifo(root / "model")
        case ["socket"]:
            socket.socket(socket.AF_UNIX).bind(str(root / "model"))
        case ["device"]:
            os.mknod(root / "model", 0o020666, os.makedev(1, 3))
        case ["set-id"]:
            (root / "model").write_text("x")
            (root / "model").chmod(0o4755)
        case ["sparse"]:
            with (root / "model").open("wb") as file:
                file.truncate(4 << 20)
        case ["deep", depth]:
            _nest(root, int(depth))
        case ["control-name"]:
            (root / "mo\x1bdel\n").write_text("x")
        case ["bytes-name"]:
            os.close(os.open(bytes(root) + b"/mo\xffdel", os.O_CREAT | os.O_WRONLY))
        case ["long-name"]:
            _nest(root, 8, "n" * 250)
        case ["files", count]:
            for number in range(int(count)):
                os.close(os.open(root / str(number), os.O_CREAT | os.O_WRONLY))
        case ["bytes", count, size]:
            for number in range(int(count)):
                (root / str(number)).write_bytes(bytes(int(size)))
        case ["closed"]:
            (root / "shut").mkdir()
            (root / "shut" / "model").write_text("x")
            (root / "shut" / "model").chmod(0)
            (root / "shut").chmod(0)
        case ["performance", kind]:
            (root / "performance.json").write_text(PERFORMANCES[kind])
        case _:
            raise ValueError(what)
    return "done"


def _nest(root: Path, depth: int, name: str = "d") -> None:
    here = os.getcwd()
    os.chdir(root)
    for _ in range(depth):
        os.mkdir(name)
        os.chdir(name)
    Path("model").write_text("x")
    os.chdir(here)


PERFORMANCES = {
    "nan": '{"perf": NaN}',
    "infinite": '{"perf": 1e999}',
    "words": '{"perf": "very good"}',
    "another": json.dumps({"perf": 1.0, "test_perf": {"another-dataset": 1.0}}),
    "twice": '{"perf": 0.1, "perf": 0.9}',
    "deep": '{"perf": ' + "[" * 5000 + "]" * 5000 + "}",
    "enormous": json.dumps({"perf": 1.0, "pad": "x" * (2 << 20)}),
}
