"""Small files that others read while they are written anew: a reader sees the old content or the new one, never a part."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """This content in place of the file's, or a new file. `mode`: less what the umask takes.

    It is not made to outlast a power cut: what is told so is told again. Two processes at once leave the content of one of
    them, two threads of one process must take turns. Raises: OSError, and the file stays as it was.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)  # of one that was killed here, under the same number
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
