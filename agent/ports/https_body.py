"""The body of an answer on its way from httpx, or from below it, into buffers. What is not read here is not read at all."""

import httpx

from agent.ports.punctual import PunctualSocket

TAKEN_OVER_BYTES = 1 << 20  # of a body still to come: below it, a connection kept is worth more


class RawBody:
    """A body on its way into buffers. Most of a large one goes straight from TLS into them.

    httpx's parser copies each byte four times, 16 KiB at a time, which is dearer than TLS itself, and has nothing to say about
    the inside of a body of a told length: once it has given what it read with the head, the rest is taken from its connection.
    Such a connection is closed with the answer; one whose bodies were small goes back to be used again.
    """

    def __init__(self, response: httpx.Response, silence_s: float) -> None:
        self._pieces = response.iter_raw()
        self._silence_s = silence_s
        self._held = memoryview(b"")  # given by httpx, not taken yet
        self._left = _told_length(response)
        self._socket: PunctualSocket | None = None  # once the rest is taken from it
        line = response.extensions.get("network_stream")
        self._line = None if line is None else line.get_extra_info("socket")

    def read_into(self, view: memoryview) -> int:
        """Put the next bytes into a buffer; how many, 0 at the end of the body. Raises: httpx.HTTPError."""
        if self._socket is not None:
            return self._gather(self._socket, view)
        if not self._held:
            self._held = memoryview(next(self._pieces, b""))
            self._left -= len(self._held)
        count = min(len(view), len(self._held))
        view[:count], self._held = self._held[:count], self._held[count:]
        if not self._held and self._left >= TAKEN_OVER_BYTES and isinstance(self._line, PunctualSocket):
            self._socket = self._line
        return count

    def _gather(self, line: PunctualSocket, view: memoryview) -> int:
        if not self._left:
            return 0
        try:
            count = line.gather(view[: self._left], self._silence_s)
        except TimeoutError as cause:
            raise httpx.ReadTimeout(str(cause)) from cause
        except OSError as cause:
            raise httpx.ReadError(str(cause)) from cause
        if not count:
            raise httpx.RemoteProtocolError(f"the connection ended {self._left} bytes before the body")
        self._left -= count
        return count


def _told_length(response: httpx.Response) -> int:
    """How long the body is said to be; 0 where nothing, or nothing plain, is said."""
    told = response.headers.get("content-length", "")
    is_plain = told.isascii() and told.isdigit() and "transfer-encoding" not in response.headers
    return int(told) if is_plain else 0
