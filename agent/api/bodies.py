"""Bodies of signed requests, taken once their sender is known: held in memory or streamed to a file, judged by their digest."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import BinaryIO, ParamSpec

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from agent.api.serving import ARRIVED
from agent.errors import NoSpace, SlowBody, TooLarge
from agent.trust.http_signatures import ContentDigest, VerifiedRequest, check_body

P = ParamSpec("P")

BODY_S = 60.0  # for a body that is held in memory to arrive
PIECE_S = 60.0  # for the next piece of a body that is streamed to a file
WRITE_BYTES = 1 << 20  # handed to a thread at once
FLUSH_BYTES = 64 << 20  # so that the last flush of a big file is short, and its sender need not wait for it


async def arrived(request: Request) -> list[bytes] | None:
    """The body in its pieces, where all of it lies here already; None where it must be waited for."""
    has_arrived = request.scope.get("state", {}).get(ARRIVED)
    if has_arrived is None or not has_arrived():
        return None
    return [piece async for piece in request.stream()]


def judged_body(pieces: Sequence[bytes], caller: VerifiedRequest, limit_bytes: int) -> bytes:
    """The body. Raises: TooLarge, DigestMismatch."""
    body, seen = b"".join(pieces), ContentDigest()
    if len(body) > limit_bytes:
        raise TooLarge(f"the body has more than {limit_bytes} bytes")
    seen.update(body)
    check_body(caller, seen)
    return body


async def read(request: Request, caller: VerifiedRequest, limit_bytes: int) -> bytes:
    """The body, held in memory. Raises: TooLarge, SlowBody, DigestMismatch."""
    seen, pieces = ContentDigest(), []
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                seen.update(piece)
                pieces.append(piece)
                if seen.length > limit_bytes:
                    raise TooLarge(f"the body has more than {limit_bytes} bytes")
    except TimeoutError as cause:
        raise SlowBody(f"the body did not arrive within {BODY_S:.0f} s") from cause
    check_body(caller, seen)
    return b"".join(pieces)


async def spool(request: Request, caller: VerifiedRequest, file: Path, limit_bytes: int) -> ContentDigest:
    """Stream the body to a new file, durable when this returns. Raises: TooLarge, SlowBody, DigestMismatch, NoSpace.

    A piece is hashed and written while the next one comes, and the disk takes what was written meanwhile.
    """
    seen, received = ContentDigest(), 0
    try:
        with await run_in_threadpool(_new_file, file) as sink:
            async with Behind() as taking, Behind() as flushing:
                async for piece in _gathered(request):
                    before, received = received, received + len(piece)
                    if received > limit_bytes:
                        raise TooLarge(f"the body has more than {limit_bytes} bytes")
                    await taking.begin(_take, sink, seen, piece)
                    if received // FLUSH_BYTES > before // FLUSH_BYTES:
                        await flushing.begin(_flush, sink)
                await taking.settle()
                await flushing.settle()
            check_body(caller, seen)
            await run_in_threadpool(os.fsync, sink.fileno())
    except OSError as cause:
        raise NoSpace(f"cannot store the body: {cause.strerror}") from cause
    return seen


class Behind:
    """One call at a time in a thread, while its caller goes on. None is under way any more when the block ends."""

    def __init__(self) -> None:
        self._under_way: asyncio.Task[object] | None = None

    async def __aenter__(self) -> "Behind":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for the call under way, also when cancelled meanwhile: what it works on is closed next."""
        task, was_cancelled = self._under_way, False
        while task is not None and not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                was_cancelled = True
        if task is not None and not task.cancelled():
            task.exception()  # whoever ends the block raises something of its own
        if was_cancelled:
            raise asyncio.CancelledError

    async def begin(self, act: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make this call once the one before has ended. Raises: what that one raised."""
        await self.settle()
        self._under_way = asyncio.create_task(run_in_threadpool(act, *args, **kwargs))

    async def settle(self) -> None:
        """Wait for the call under way. Raises: what it raised."""
        if self._under_way is not None:
            await asyncio.wait((self._under_way,))  # which leaves it alone when this is cancelled
            task, self._under_way = self._under_way, None
            task.result()


async def _gathered(request: Request) -> AsyncIterator[bytearray]:
    """The body in pieces of about WRITE_BYTES. Raises: SlowBody when the next one does not come."""
    pieces = aiter(request.stream())
    gathered = bytearray()
    while True:
        try:
            async with asyncio.timeout(PIECE_S):
                piece = await anext(pieces, None)
        except TimeoutError as cause:
            raise SlowBody(f"the body stopped arriving for {PIECE_S:.0f} s") from cause
        if piece is None:
            break
        gathered += piece
        if len(gathered) >= WRITE_BYTES:
            yield gathered
            gathered = bytearray()  # the last one is still in a thread's hands
    if gathered:
        yield gathered


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0
    )


def _take(sink: BinaryIO, seen: ContentDigest, piece: bytearray) -> None:
    view = memoryview(piece)
    seen.update(view)
    while view:
        view = view[sink.write(view) :]


def _flush(sink: BinaryIO) -> None:
    os.fdatasync(sink.fileno())
