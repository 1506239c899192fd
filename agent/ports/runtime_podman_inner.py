"""A program of its own: does three small things inside Podman's user namespace, where the guests' ids are ours to command.

    python -I -S runtime_podman_inner.py PID read FILE        writes the file to stdout (Podman hides the effective config)
    python -I -S runtime_podman_inner.py PID reclaim FOLDER   gives everything below the folder to the agent; tells as JSON
    python -I -S runtime_podman_inner.py PID open FOLDER      makes it its owner's to write (the root of a build's step)

PID is a process of Podman in its user namespace. Entering needs no set-id program and works under no_new_privileges: that
namespace belongs to the agent's user. It imports nothing of ours, so that it starts in some 20 ms.
"""

import ctypes
import json
import os
import stat
import sys

CLONE_NEWUSER = 0x10000000
MAX_DEPTH = 100  # folders deeper than this are lifted out: one descriptor is open per level
SET_ID = stat.S_ISUID | stat.S_ISGID


def enter(pid: int) -> None:
    """Enter the user namespace of this process. Raises: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(namespace, CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), f"entering the user namespace of process {pid}")
    os.close(namespace)


class Reclaim:
    """One walk over a tree that nothing else touches; no link is followed."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.owner = os.getuid(), os.getgid()  # 0 and 0 as Podman's namespace calls the agent
        self.set_id: str | None = None
        self.lifted: list[str] = []

    def folder(self, fd: int, depth: int) -> None:
        """Give what lies in this open folder to us, files first, then each folder in turn."""
        os.fchown(fd, *self.owner)
        os.fchmod(fd, 0o700)
        with os.scandir(fd) as entries:
            names = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        for name, about in names:
            os.chown(name, *self.owner, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode):
                self.enter_folder(fd, name, depth)
            elif stat.S_ISREG(about.st_mode):
                if about.st_mode & SET_ID:
                    self.set_id = self.set_id or name
                os.chmod(name, stat.S_IMODE(about.st_mode) & 0o777 | 0o600, dir_fd=fd)

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


def reclaim(folder: str) -> dict[str, object]:
    """What was found: `set_id`, the name of a file with such a bit, and `is_deep`."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    walk = Reclaim(root)
    walk.whole()
    return {"set_id": walk.set_id, "is_deep": bool(walk.lifted)}


def main(pid: str, what: str, path: str) -> None:
    """Enter, then do what is asked."""
    enter(int(pid))
    if what == "read":
        with open(path, "rb") as file:
            sys.stdout.buffer.write(file.read())
    elif what == "open":
        os.chmod(path, 0o755)  # noqa: S103 - as the root of any image
    else:
        json.dump(reclaim(path), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
