"""The output of a container under conmon, from conmon's socket: each packet is a mark of the stream and a block.

conmon keeps a capped log in the run's folder too, which is there when the agent was not.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from agent.errors import RuntimeUnavailable

STDOUT = 2  # conmon's mark; 3 is stderr
BLOCK_BYTES = 1 << 16


class ConmonOutput:
    """Implements `Output`."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the bundle. Raises: RuntimeUnavailable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(
                f"/proc/self/fd/{fd}/attach"
            )  # the folder's own path may be too long for a socket's
        except OSError as cause:
            self._socket.close()
            raise RuntimeUnavailable(f"conmon gives no output of a container: {cause}") from cause
        finally:
            os.close(fd)

    def read(self, take: Callable[[bytes, bool], None]) -> None:
        """As the protocol says."""
        with contextlib.suppress(OSError):
            while block := self._socket.recv(BLOCK_BYTES):
                take(block[1:], block[0] == STDOUT)

    def close(self) -> None:
        """As the protocol says."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
