"""An answer's head and its short body go out in one piece: one TLS record, one call to the system, one packet.

The protocol writes them one after the other. Each write was encrypted and sent by itself, and for each the interpreter was let
go and taken back. Here short pieces wait until the loop comes round, which is before it looks at any other connection's next
request; long ones wait for nothing.
"""

import asyncio
from typing import Any, Final

SHORT_BYTES: Final = 16 << 10  # of what is gathered: one TLS record


class Gathered:
    """A transport whose short writes of one turn of the loop are one. Everything else is that of the transport below."""

    def __init__(self, below: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._below: Final = below
        self._loop: Final = loop
        self._pieces: list[bytes] = []
        self._length = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def write(self, data: bytes) -> None:
        """Send this after what was written before."""
        if not data:
            return
        if not self._pieces:
            if len(data) > SHORT_BYTES:
                self._below.write(data)
                return
            self._loop.call_soon(self.flush)
        self._pieces.append(data)
        self._length += len(data)
        if self._length > SHORT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand on what waits."""
        pieces, self._pieces, self._length = self._pieces, [], 0
        if not pieces or self._below.is_closing():
            return
        *short, last = pieces
        if len(last) > SHORT_BYTES:  # not copied to be joined
            self._below.write(b"".join(short))
            self._below.write(last)
        else:
            self._below.write(b"".join(pieces))

    def close(self) -> None:
        """Send what waits, then close."""
        self.flush()
        self._below.close()

    def abort(self) -> None:
        """Close at once: what waits goes out as far as the system takes it, as it would have when it was written."""
        self.flush()
        self._below.abort()
