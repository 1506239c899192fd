"""Guest program of the tests: does what its arguments say, well or badly, and says what it saw as JSON on stdout.

    probe.py WORD [ARGUMENT...] [+ WORD [ARGUMENT...]]...        one act after the other

The contract's own arguments are acts too, done the simplest way: a counter for a model, 0.5 for every score. So an image with
the entry point `probe.py sleep 60 +` is an algorithm that sleeps a minute first. It has the standard library only.
"""

import contextlib
import ctypes
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

FOLDERS = ("/", "/data", "/etc", "/opt", "/tmp", "/dev/shm")


def facts(path: str | None = None) -> None:
    """What the kernel says of this process, its world and its folders; into a file when one is named."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")
    mounts = [line.split()[4:6] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    interfaces = Path("/proc/net/dev").read_text().splitlines()[2:]
    seen = {
        "status": {name: status[name].strip() for name in wanted},
        "uid_map": Path("/proc/self/uid_map").read_text().split(),
        "ids": [os.getuid(), os.getgid()],
        "interfaces": [line.split(":")[0].strip() for line in interfaces],
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "mounts": {point: options.split(",") for point, options in mounts},
        "writable": [name for name in FOLDERS if _can_write(name)],
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "devices": sorted(name for name in os.listdir("/dev") if not os.path.isdir(f"/dev/{name}")),
    }
    if path is None:
        print(json.dumps(seen), flush=True)
    else:
        Path(path).write_text(json.dumps(seen))


def _can_write(folder: str) -> bool:
    path = os.path.join(folder, f".written-{os.getpid()}")
    try:
        with open(path, "w"):
            pass
        os.unlink(path)
    except OSError:
        return False
    return True


def tree(folder: str) -> None:
    """Names, modes and first bytes of what lies below a folder."""
    seen = {}
    for parent, folders, names in os.walk(folder):
        for name in folders + names:
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            text = Path(path).read_bytes()[:80].decode() if os.path.isfile(path) else None
            seen[os.path.relpath(path, folder)] = [oct(mode & 0o7777), text]
    print(json.dumps(seen), flush=True)


def write(path: str, text: str) -> None:
    """Write a file."""
    Path(path).write_text(text)


def copy(source: str, target: str) -> None:
    """Write what one file holds into another one."""
    Path(target).write_bytes(Path(source).read_bytes())


def fill(path: str, mebibytes: str) -> None:
    """Write so many MiB into one file."""
    with open(path, "wb") as file:
        for _ in range(int(mebibytes)):
            file.write(bytes(1 << 20))


def hide(path: str, mebibytes: str) -> None:
    """Hold files of a mebibyte each open that have no name any more."""
    for number in range(int(mebibytes)):
        kept = os.open(f"{path}{number}", os.O_CREAT | os.O_WRONLY)
        os.unlink(f"{path}{number}")
        os.write(kept, b"x" * (1 << 20))


def sleep(seconds: str) -> None:
    """Say so, then sleep."""
    print("asleep", flush=True)
    time.sleep(float(seconds))


def quit_with(code: str) -> None:
    """End with this exit code."""
    sys.exit(int(code))


def segfault() -> None:
    """Read address 0."""
    ctypes.string_at(0)


def call(number: str, *arguments: str) -> None:
    """Make a raw system call; say its errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(*(ctypes.c_long(int(text, 0)) for text in (number, *arguments)))
    name = errno.errorcode.get(ctypes.get_errno(), "?") if result == -1 else "done"
    print(json.dumps({"call": number, "result": name}), flush=True)


def inet() -> None:
    """Open an internet socket; say its errno."""
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
            result = "done"
        except OSError as error:
            result = errno.errorcode.get(error.errno or 0, "?")
        print(json.dumps({"socket": family.name, "result": result}), flush=True)


def fork() -> None:
    """Run a child process and a Unix socket pair; say what went."""
    seen = {}
    try:
        one, other = socket.socketpair()
        one.sendall(b"x")
        seen["socketpair"] = other.recv(1) == b"x"
    except OSError as error:
        seen["socketpair"] = errno.errorcode.get(error.errno or 0, "?")  # type: ignore[assignment]
    try:
        child = os.fork()
        if child == 0:
            os._exit(7)
        seen["child"] = os.waitpid(child, 0)[1] >> 8 == 7
    except OSError as error:
        seen["child"] = errno.errorcode.get(error.errno or 0, "?")  # type: ignore[assignment]
    print(json.dumps(seen), flush=True)


def fork_bomb() -> None:
    """Fork until it fails; say how many lived at once."""
    children = 0
    with contextlib.suppress(OSError):
        while True:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            children += 1
    print(json.dumps({"children": children}), flush=True)


def allocate(mebibytes: str) -> None:
    """Take memory and touch it."""
    kept = []
    try:
        for _ in range(int(mebibytes)):
            kept.append(bytearray(b"x") * (1 << 20))
    except MemoryError:
        print(json.dumps({"allocated": len(kept)}), flush=True)
        sys.exit(12)


def allocate_apart(children: str, mebibytes: str) -> None:
    """So much memory in each of some child processes at once; then wait."""
    for _ in range(int(children)):
        if os.fork() == 0:
            kept = bytearray(b"x") * (int(mebibytes) << 20)
            time.sleep(50)
            os._exit(len(kept) & 1)
    time.sleep(50)


def allocate_in_child(mebibytes: str) -> None:
    """Let a child process take the memory; fail when it was killed."""
    child = os.fork()
    if child == 0:
        allocate(mebibytes)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(json.dumps({"child": os.waitstatus_to_exitcode(status)}), flush=True)
    sys.exit(0 if status == 0 else 1)


def burn(seconds: str) -> None:
    """Keep two CPUs busy; say how much CPU time both got, and how much time went by."""
    began = time.monotonic()
    is_child = os.fork() == 0
    while time.monotonic() - began < float(seconds):
        pass
    if is_child:
        os._exit(0)
    os.wait()
    spent = os.times()
    cpu_s = spent.user + spent.system + spent.children_user + spent.children_system
    print(json.dumps({"cpu_s": cpu_s, "wall_s": time.monotonic() - began}), flush=True)


def flood(mebibytes: str) -> None:
    """HEAD, so many MiB of lines, TAIL."""
    block = (b"x" * 1023 + b"\n") * 64
    os.write(1, b"HEAD\n")
    for _ in range(int(mebibytes) * 16):
        view = memoryview(block)
        while view:
            view = view[os.write(1, view) :]
    os.write(1, b"TAIL\n")


def progress() -> None:
    """Progress lines, good and bad."""
    for line in (
        "progress: 0.25 reading",
        "progress: 7",
        "progress: 0.4",
        "progress: 0.3 back",
        "progress: nan",
    ):
        print(line, flush=True)
    print("progress: 0.9 on stderr", file=sys.stderr, flush=True)


def hostile_output(folder: str) -> None:
    """Leave what a harvest must survive: closed modes, links out, odd names, a socket."""
    root = Path(folder)
    closed = root / "closed" / "inner"
    closed.mkdir(parents=True)
    (closed / "file").write_text("kept")
    (root / "new\nline").write_text("kept")
    (root / "passwd").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../../..")
    (root / "loop").symlink_to("loop")
    (root / "plain").write_text("kept")
    os.link(root / "plain", root / "hard")
    for path in (closed / "file", closed, root / "closed", root / "plain"):
        path.chmod(0)


def set_id(path: str) -> None:
    """Leave a file with set-user-id."""
    Path(path).write_text("#!/bin/sh\n")
    os.chmod(path, 0o4755)


def deep(folder: str, depth: str) -> None:
    """Leave folders in folders."""
    os.chdir(folder)
    for _ in range(int(depth)):
        os.mkdir("d")
        os.chdir("d")
    Path("bottom").write_text("kept")


def algo(volume: str, _: str, task: str) -> None:
    """`-V /data -T train|predict`: a model that counts its lessons, and 0.5 for every row."""
    data, model = Path(volume), Path(volume, "model", "lessons")
    if task == "train":
        model.write_text(str(int(model.read_text()) + 1 if model.exists() else 1))
        return
    for path in filter(Path.is_file, (data / "test").iterdir()):
        rows = len(path.read_text().splitlines()) - 1
        (data / "test/pred" / path.name).write_text("score\n" + "0.5\n" * rows)


def problem(task: str, _: str, hidden: str, __: str, submission: str) -> None:
    """`-T detarget|perf -i … -s …`: the last column goes; the performance is 0.5."""
    files = [path for path in Path(hidden, "test").iterdir() if path.is_file()]
    if task == "detarget":
        for path in files:
            lines = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
            Path(submission, "test", path.name).write_text("\n".join(lines) + "\n")
        return
    result = {"perf": 0.5, "train_perf": {}, "test_perf": {path.name: 0.5 for path in files}}
    Path(hidden, "perf/performance.json").write_text(json.dumps(result))


WORDS: dict[str, Callable[..., None]] = {
    "-T": problem,
    "-V": algo,
    "allocate": allocate,
    "allocate-apart": allocate_apart,
    "allocate-in-child": allocate_in_child,
    "burn": burn,
    "call": call,
    "copy": copy,
    "deep": deep,
    "exit": quit_with,
    "facts": facts,
    "fill": fill,
    "flood": flood,
    "fork": fork,
    "fork-bomb": fork_bomb,
    "hostile-output": hostile_output,
    "hide": hide,
    "inet": inet,
    "progress": progress,
    "segfault": segfault,
    "set-id": set_id,
    "sleep": sleep,
    "tree": tree,
    "write": write,
}


def main(arguments: list[str]) -> None:
    """Split at `+` and act."""
    acts: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "+":
            acts.append([])
        else:
            acts[-1].append(argument)
    for word, *rest in filter(None, acts):
        WORDS[word](*rest)


if __name__ == "__main__":
    main(sys.argv[1:])
