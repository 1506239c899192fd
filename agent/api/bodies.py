"""Bodies of signed requests, taken once their sender is known: held in memory or streamed to a file, judged by their digest."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from agent.api.serving import ARRIVED
from agent.errors import NoSpace, SlowBody, TooLarge
from agent.trust.http_signatures import ContentDigest, VerifiedRequest, check_body

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
    """Stream the body to a new file, durable when this returns. Raises: TooLarge, SlowBody, DigestMismatch, NoSpace."""
    seen = ContentDigest()
    try:
        with await run_in_threadpool(_new_file, file) as sink:
            async for piece in _gathered(request):
                if seen.length + len(piece) > limit_bytes:
                    raise TooLarge(f"the body has more than {limit_bytes} bytes")
                await run_in_threadpool(_take, sink, seen, piece)
            check_body(caller, seen)
            await run_in_threadpool(os.fsync, sink.fileno())
    except OSError as cause:
        raise NoSpace(f"cannot store the body: {cause.strerror}") from cause
    return seen


async def _gathered(request: Request) -> AsyncIterator[bytes]:
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
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0
    )


def _take(sink: BinaryIO, seen: ContentDigest, piece: bytes) -> None:
    begun = seen.length // FLUSH_BYTES
    seen.update(piece)
    view = memoryview(piece)
    while view:
        view = view[sink.write(view) :]
    if seen.length // FLUSH_BYTES > begun:
        os.fdatasync(sink.fileno())
