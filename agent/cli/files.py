"""Files that the command writes: whole or not at all, and owned by whoever owns the folder they lie in."""

import os
import pwd
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.errors import BadSettings


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """The folder, with this mode when it is made now. Raises: BadSettings."""
    try:
        if not folder.exists():
            above = next(parent for parent in folder.absolute().parents if parent.exists())
            folder.mkdir(mode=mode, parents=True)
            _give_to_owner_of(above, folder)
    except OSError as cause:
        raise BadSettings(f"the folder {folder} cannot be made: {cause.strerror}") from cause


@contextmanager
def as_owner_of(path: Path) -> Iterator[None]:
    """Root acts as the user whose file this is, the service's user; anybody else as themselves.

    Programs that are started meanwhile are that user's for good: nothing of root is left to them.
    """
    about = path.stat() if os.geteuid() == 0 and path.exists() else None
    if about is None or about.st_uid == 0:
        yield
        return
    before = os.getgroups(), os.getresgid(), os.getresuid()
    os.setgroups(_groups_of(about.st_uid, about.st_gid))
    os.setresgid(about.st_gid, about.st_gid, 0)
    os.setresuid(about.st_uid, about.st_uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(*before[1])
        os.setgroups(before[0])
        os.setresuid(*before[2])


def _groups_of(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]


def write_new(path: Path, data: bytes, mode: int = 0o600) -> bool:
    """A new file; False when something stands there already, which is left as it is. Raises: BadSettings."""
    if path.exists() or path.is_symlink():
        return False
    beside = _write_beside(path, data, mode)
    try:
        os.link(beside, path)  # unlike rename, link fails when the name was taken meanwhile
    except FileExistsError:
        return False
    except OSError as cause:
        raise BadSettings(f"{path} cannot be written: {cause.strerror}") from cause
    finally:
        beside.unlink(missing_ok=True)
    return True


def replace_file(path: Path, data: bytes) -> None:
    """The file with new content and its old mode and owner (0600 when it is new). Raises: BadSettings."""
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    beside = _write_beside(path, data, 0o600 if before is None else before.st_mode & 0o777)
    try:
        if before is not None:
            with suppress(PermissionError):  # only root gives files away
                os.chown(beside, before.st_uid, before.st_gid)
        os.replace(beside, path)
    except OSError as cause:
        beside.unlink(missing_ok=True)
        raise BadSettings(f"{path} cannot be written: {cause.strerror}") from cause


def give_to_owner_of_folder(path: Path) -> None:
    """Root may make files for a service: what lies in the service's folder is to be the service's."""
    _give_to_owner_of(path.parent, path)


def _write_beside(path: Path, data: bytes, mode: int) -> Path:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        _give_to_owner_of(path.parent, beside)
    except OSError as cause:
        beside.unlink(missing_ok=True)
        raise BadSettings(f"{path} cannot be written: {cause.strerror}") from cause
    return beside


def _give_to_owner_of(folder: Path, path: Path) -> None:
    about = folder.stat()
    if os.geteuid() == 0 and (about.st_uid, about.st_gid) != (0, 0):
        os.chown(path, about.st_uid, about.st_gid, follow_symlinks=False)
