"""The folders that runs are mounted on, in the root of an image that all its runs share."""

import errno
import os
from pathlib import Path

from agent.errors import BadImage, RuntimeUnavailable


def add_mount_points(root: Path, targets: list[str]) -> None:
    """The folders that a run is mounted on, in the shared root. A link in the way is refused. Raises: BadImage."""
    for target in targets:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in target.strip("/").split("/"):
                is_new = _make_folder(name, fd)
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                if is_new:
                    os.fchmod(below, 0o755)
                os.close(fd)
                fd = below
        except OSError as cause:
            if cause.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise RuntimeUnavailable(f"no folder can be made at {target}: {cause.strerror}") from cause
            raise BadImage(f"the image has something else than a folder at {target}") from cause
        finally:
            os.close(fd)


def _make_folder(name: str, fd: int) -> bool:
    """Whether it was not there yet."""
    try:
        os.mkdir(name, 0o700, dir_fd=fd)
    except FileExistsError:
        return False
    return True
