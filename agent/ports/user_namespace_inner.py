"""A program of its own: root of a user namespace in which the guests' ids are the agent's to command.

    python -I -S user_namespace_inner.py join PID      enter the user namespace of that process (Podman's)
    python -I -S user_namespace_inner.py above PID     enter the one above it: that process is a container's, made in there
    python -I -S user_namespace_inner.py make          make one, with a mount namespace; the caller writes the id maps

Then one request a line on stdin, one answer a line on stdout, both JSON; it ends with its stdin. Entering needs no set-id
program and works under no_new_privileges: the namespace belongs to the agent's user. It imports nothing of ours, so that it
starts in some 20 ms, and it does one thing at a time.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
NS_GET_PARENT = 0xB702  # of linux/nsfs.h
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 4096, 16384, 1 << 19
MNT_DETACH = 2
STAGES = ("/mnt", "/media", "/srv")  # one of them is on every host, and everybody may pass through it

MAX_DEPTH = 100  # folders deeper than this are lifted out: one descriptor is open per level
MOST_PROCESSES = 10_000  # who forks on and on is not followed for ever
SEALED_FD = 63  # the number by which conmon and runc find the copy of `Sealed`
MFD_EXEC = 0x10  # of linux/memfd.h, since Linux 6.3
EVERY_SEAL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
TOOL_S = 120.0  # runc waits ten seconds for its container's end; nobody else is answered meanwhile
SET_ID = stat.S_ISUID | stat.S_ISGID

Answer = dict[str, Any]
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raises: OSError."""
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    """As mount(2). Raises: OSError."""
    words = (None if word is None else os.fsencode(word) for word in (source, target, kind))
    check(libc.mount(*words, ctypes.c_ulong(flags), options and options.encode()), f"mounting {target}")


# ---------------------------------------------------------------- the namespace


def join(pid: int) -> None:
    """Enter the user namespace of this process. Raises: OSError."""
    enter(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC), pid)


def join_above(pid: int) -> None:
    """Enter the user namespace in which that of this process was made. Raises: OSError."""
    own = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    enter(fcntl.ioctl(own, NS_GET_PARENT), pid)
    os.close(own)


def enter(namespace: int, pid: int) -> None:
    """Enter this one, and close it. Raises: OSError."""
    check(libc.setns(namespace, CLONE_NEWUSER), f"entering the user namespace of process {pid}")
    os.close(namespace)


def make() -> str:
    """A namespace of users and one of mounts; in the latter an empty folder in memory, where runs are set up."""
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "making a user namespace")
    answer({"unshared": os.getpid()})
    if not sys.stdin.readline():
        sys.exit(0)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    mount("none", "/", None, MS_REC | MS_SLAVE, None)
    stage = next(folder for folder in STAGES if os.path.isdir(folder) and not os.path.islink(folder))
    mount("tmpfs", stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    return stage


# ---------------------------------------------------------------- files of the guests


class Reclaim:
    """One walk over a tree that nothing else touches; no link is followed."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.owner = os.getuid(), os.getgid()  # 0 and 0 as this namespace calls the agent
        self.set_id: str | None = None
        self.lifted: list[str] = []

    def folder(self, fd: int, depth: int) -> None:
        """Give what lies in this open folder to us, files first, then each folder in turn."""
        os.fchown(fd, *self.owner)
        os.fchmod(fd, 0o700)
        folders = []  # names only: a guest may leave a million files, and none of them is kept in mind
        with os.scandir(fd) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                os.chown(entry.name, *self.owner, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(mode):
                    folders.append(entry.name)
                elif stat.S_ISREG(mode):
                    if mode & SET_ID:
                        self.set_id = self.set_id or entry.name
                    os.chmod(entry.name, stat.S_IMODE(mode) & 0o777 | 0o600, dir_fd=fd)
        for name in folders:
            self.enter_folder(fd, name, depth)

    def enter_folder(self, fd: int, name: str, depth: int) -> None:
        if depth >= MAX_DEPTH:
            aside = f".lifted-{os.urandom(8).hex()}"
            os.rename(name, aside, src_dir_fd=fd, dst_dir_fd=self.root)
            self.lifted.append(aside)
            return
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        try:
            self.folder(below, depth + 1)
        finally:
            os.close(below)

    def whole(self) -> None:
        """The folder itself, and everything that was lifted out on the way."""
        self.folder(self.root, 0)
        done = 0
        while done < len(self.lifted):
            self.enter_folder(self.root, self.lifted[done], 0)
            done += 1


def reclaim(folder: str) -> Answer:
    """Give everything below `folder` to the agent. `set_id`: the name of a file with such a bit; `is_deep`."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        walk = Reclaim(root)
        walk.whole()
    finally:
        os.close(root)
    return {"set_id": walk.set_id, "is_deep": bool(walk.lifted)}


class Measure:
    """One look at folders in which a guest writes meanwhile: whatever it takes away under our eyes is passed over, and hides
    nothing else. No link is followed; one descriptor is open per level.
    """

    def __init__(self, most_entries: int) -> None:
        self.most_entries = most_entries
        self.bytes = self.entries = 0
        self.is_deep = False

    def folder(self, fd: int, depth: int) -> None:
        """Count what lies in this open folder and below, until there are too many entries."""
        for name in self.count(fd):
            if depth >= MAX_DEPTH:
                self.is_deep = True
                return
            try:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            except OSError:
                continue
            try:
                self.folder(below, depth + 1)
            finally:
                os.close(below)

    def count(self, fd: int) -> list[str]:
        """Count what lies right in this folder; the names of the folders among it."""
        folders = []
        try:
            with os.scandir(fd) as found:
                for entry in found:
                    self.entries += 1
                    if self.entries > self.most_entries:
                        return []
                    try:
                        about = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    self.bytes += about.st_blocks * 512
                    if stat.S_ISDIR(about.st_mode):
                        folders.append(entry.name)
        except OSError:
            pass  # the folder itself went
        return folders


def measure(folders: list[str], most_entries: int, pid: int = 0) -> Answer:
    """What lies in these folders while a guest writes there: bytes that are taken, and entries, counted up to a bound;
    `is_deep`: whether there are folders too deep to look into.

    `pid`: the guest's first process. What it and those below it hold open of these file systems without a name counts too.
    """
    walk = Measure(most_entries)
    devices = set()
    for folder in folders:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            devices.add(os.fstat(root).st_dev)
            walk.folder(root, 0)
        finally:
            os.close(root)
    nameless = {}
    for file in open_files(pid) if pid else ():
        if stat.S_ISREG(file.st_mode) and file.st_nlink == 0 and file.st_dev in devices:
            nameless[file.st_dev, file.st_ino] = file.st_blocks * 512
    return {"bytes": walk.bytes + sum(nameless.values()), "entries": walk.entries, "is_deep": walk.is_deep}


def open_files(first: int) -> Iterator[os.stat_result]:
    """What a process and all below it hold open; each of its threads may have descriptors of its own."""
    todo, seen = [first], 0
    while todo and seen < MOST_PROCESSES:
        seen += 1
        try:
            tasks = [task.path for task in os.scandir(f"/proc/{todo.pop()}/task")]
        except OSError:
            continue  # it ended
        for task in tasks:
            try:
                with open(f"{task}/children", encoding="ascii") as children:
                    todo += map(int, children.read().split())
                descriptors = [one.path for one in os.scandir(f"{task}/fd")]
            except OSError:
                continue
            for descriptor in descriptors:
                try:
                    yield os.stat(descriptor)
                except OSError:
                    continue


def open_root(pid: int) -> Answer:
    """Make a container's root its owner's to write: that of a build's step, which rootless Podman makes 0555."""
    os.chmod(f"/proc/{pid}/root", 0o755)  # noqa: S103 - as the root of any image
    return {}


def read(path: str) -> Answer:
    """A file's text (Podman hides the effective config from its own user)."""
    with open(path, encoding="utf-8") as file:
        return {"text": file.read()}


# ---------------------------------------------------------------- runs


def stage_run(folder: str, binds: list[tuple[str, str]]) -> Answer:
    """A folder for one run that its ids may pass through, with these folders of the host in it: [source, name].

    It is a mount of its own, so that all of it goes at once: for every call that takes mounts away the kernel waits.
    """
    os.mkdir(folder, 0o755)
    mount(folder, folder, None, MS_BIND, None)
    for source, name in binds:
        os.mkdir(f"{folder}/{name}", 0o755)
        mount(source, f"{folder}/{name}", None, MS_BIND, None)
    return {}


def unstage_run(folder: str) -> Answer:
    """Take the folder of a run away. Gone already is fine."""
    if not os.path.isdir(folder):
        return {}
    libc.umount2(
        os.fsencode(folder), MNT_DETACH
    )  # no mount yet, when setting up was interrupted: then it is empty
    for name in os.listdir(folder):
        os.rmdir(f"{folder}/{name}")
    os.rmdir(folder)
    return {}


class Sealed:
    """A program's bytes in memory that nobody can change any more, as runc would copy itself for each container.

    runc starts itself again inside of the container, where a guest could write to the program that is its process; so it runs
    there from a sealed copy, and makes one unless it runs from one. This one serves every run until the program is another.
    """

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, ...]] = {}

    def link(self, program: str, link: str) -> None:
        """Make `link` lead to the copy, for a process that has SEALED_FD; to the program itself where memory holds none."""
        about = os.stat(program)
        mark = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        if self.known.get(link) == mark:
            return
        try:
            self.copy(program)
            target = f"/proc/self/fd/{SEALED_FD}"
        except OSError:
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(nothing, SEALED_FD, inheritable=False)
            os.close(nothing)
            target = program
        os.symlink(target, f"{link}.new")
        os.rename(f"{link}.new", link)
        self.known[link] = mark

    @staticmethod
    def copy(program: str) -> None:
        """The program as SEALED_FD. Raises: OSError."""
        try:
            copy = os.memfd_create("runc", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | MFD_EXEC)
        except OSError:  # a kernel that knows no word for it: it lets programs run from any
            copy = os.memfd_create("runc", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(program, "rb") as source:
                left = os.fstat(source.fileno()).st_size
                while left > 0 and (sent := os.sendfile(copy, source.fileno(), None, left)):
                    left -= sent
            if left > 0:
                raise OSError(errno.EIO, f"{program} became shorter while it was copied")
            os.fchmod(copy, 0o555)
            fcntl.fcntl(copy, fcntl.F_ADD_SEALS, EVERY_SEAL)
            os.dup2(copy, SEALED_FD, inheritable=False)
        finally:
            os.close(copy)


SEALED = Sealed()


def move_into(procs: str) -> None:
    """Move this process into a cgroup, where that may be.

    Before any process comes into a cgroup the kernel waits once for all processors, 5 to 15 ms, and for those that follow at
    once not again. So runc's container, which follows, finds the wait behind it.
    """
    try:
        os.makedirs(os.path.dirname(procs), exist_ok=True)
        with open(procs, "w") as file:
            file.write("0")
    except OSError:
        return  # it stays where it is, and runc waits itself


def monitor(
    command: list[str], env: dict[str, str], program: str, link: str, procs: str | None = None
) -> Answer:
    """Start conmon, which goes into the background, and wait for what it says of the container: its process id.

    `link`: what `command` calls `program` by, which is runc; `procs`: of the cgroup that this process is to be in.
    """
    if procs is not None:  # meanwhile
        with contextlib.suppress(RuntimeError):  # no further thread is to be had: it stays where it is
            threading.Thread(target=move_into, args=(procs,), daemon=True).start()
    SEALED.link(program, link)
    reading, writing = os.pipe()
    env = {**env, "_OCI_SYNCPIPE": str(writing)}
    nothing = subprocess.DEVNULL  # no pipe: what goes into the background would hold it open
    with open(reading, "rb", buffering=0) as told:
        try:
            started = finished(
                command,
                env=env,
                pass_fds=[writing, SEALED_FD],
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
            )
        finally:
            os.close(writing)
        line = b""
        while not line.endswith(b"\n") and (block := read_within(told.fileno())):
            line += block
    return {"code": started.returncode, "told": line.decode(errors="replace").partition("\n")[0]}


def read_within(fd: int) -> bytes:
    """What comes next from a pipe. Raises: OSError when nothing comes in time."""
    if not select.select([fd], [], [], TOOL_S)[0]:
        raise OSError(errno.ETIMEDOUT, "conmon says nothing")
    return os.read(fd, 1 << 16)


def let_go(fifo: str, pid: int) -> Answer:
    """Let the program of a container begin, whose first process `pid` waits for a reader of this pipe: what `runc start` does.

    Raises: OSError; FileNotFoundError when there is no such pipe: it began, or was never made.
    """
    os.lstat(fifo)
    process = os.pidfd_open(
        pid
    )  # before the pipe: once that is open, a short program is over before anybody looks
    try:
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            select.select([reading, process], [], [], TOOL_S)
            if not _has_word(reading):
                raise OSError(errno.ESRCH, "the container ended before it was started")
        finally:
            os.close(reading)
    finally:
        os.close(process)
    os.unlink(fifo)
    return {}


def _has_word(reading: int) -> bool:
    """Whether the one byte came, also when its writer was over by the time that it was looked for."""
    try:
        return bool(os.read(reading, 1))
    except BlockingIOError:
        return False


def run(command: list[str], env: dict[str, str]) -> Answer:
    """Run a program to its end."""
    done = finished(command, env=env, stdin=subprocess.DEVNULL, capture_output=True)
    return {
        "code": done.returncode,
        "out": done.stdout.decode(errors="replace"),
        "errors": done.stderr.decode(errors="replace"),
    }


def finished(command: list[str], **words: Any) -> "subprocess.CompletedProcess[bytes]":
    """A program that ran to its end. Raises: OSError when it does not end in time; it is killed then."""
    try:
        return subprocess.run(command, cwd="/", check=False, timeout=TOOL_S, **words)
    except subprocess.TimeoutExpired as cause:
        raise OSError(errno.ETIMEDOUT, f"{command[0]} does not end") from cause


ACTS: dict[str, Callable[..., Answer]] = {
    act.__name__: act
    for act in (let_go, measure, monitor, open_root, read, reclaim, run, stage_run, unstage_run)
}


def answer(document: Answer) -> None:
    """One line for who asked."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main(how: str, *rest: str) -> None:
    """Enter or make the namespace, then answer until nobody asks any more."""
    caller = os.getppid()
    os.umask(
        0o022
    )  # guests pass through what is set up for them; all of it lies below a folder of the agent's alone
    stage = None
    if how == "join":
        join(int(rest[0]))
    elif how == "above":
        join_above(int(rest[0]))
    else:
        stage = make()
    answer({"stage": stage})
    for line in sys.stdin:
        if os.getppid() != caller:  # it died: whoever clears up after it must not find anything begun later
            return
        act, arguments = json.loads(line)
        try:
            answer({"done": ACTS[act](*arguments)})
        except OSError as error:
            answer({"failed": str(error), "errno": error.errno})


if __name__ == "__main__":
    main(*sys.argv[1:])
