"""The operator's door: a Unix socket whose file mode is the permission, so nobody signs anything here.

What stands in front of a handler is only what keeps the process well: limits on the body, its media type. The socket's
folder is made here, with the mode that goes with the socket's.
"""

import asyncio
import grp
import os
import socket
from collections.abc import Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from agent.api.ask import Ask, Unsigned
from agent.api.bodies import BODY_S
from agent.api.callers import NoteRefusal
from agent.api.problems import problem
from agent.api.serving import listen_unix
from agent.api.signed_requests import JSON_TYPE, Endpoint
from agent.errors import AgentError, BadSettings, DigestMismatch, NotYours, TooLarge, WrongMediaType
from agent.log import get_logger

log = get_logger(__name__)

OWN_NAMES = frozenset(
    {"operator", "localhost", "127.0.0.1", "[::1]"}
)  # by which the socket, or a port forwarded to it, is called
MAX_SOCKET_PATH = 107  # bytes: what the kernel's sockaddr_un holds


def operated(
    handler: Callable[[Ask], Response], note_refusal: NoteRefusal, *, limit_bytes: int = 0
) -> Endpoint:
    """An endpoint for the operator, with a body of at most `limit_bytes`; 0: a body is refused."""

    async def endpoint(request: Request) -> Response:
        try:
            refuse_browser(request)
            body = await _read(request, limit_bytes)
            return await run_in_threadpool(handler, Ask.of(Unsigned.OPERATOR, request, body))
        except AgentError as error:
            path = request.scope["path"]
            log.warning("request.refused", by="operator", path=path, code=error.code, detail=error.detail)
            await run_in_threadpool(note_refusal, error, request.method, path, None)
            return problem(error)

    return endpoint


def listen_for_operator(path: Path, group: str | None = None) -> socket.socket:
    """The operator's socket: 0600 in a folder 0700; for a group 0660 in a folder 0750. Raises: BadSettings."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise BadSettings(f"[listen] operator_socket: {path} is longer than {MAX_SOCKET_PATH} bytes")
    folder_mode, mode = (0o700, 0o600) if group is None else (0o750, 0o660)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(path.parent, folder_mode)
        if group is None:
            return listen_unix(path, mode)
        number = grp.getgrnam(group).gr_gid
        os.chown(path.parent, -1, number)
        path.parent.chmod(folder_mode)
        listener = listen_unix(path, 0o600)
        os.chown(path, -1, number)
        path.chmod(mode)
        return listener
    except KeyError as cause:
        raise BadSettings(f"[listen] operator_group: there is no group {group!r}") from cause
    except OSError as cause:
        raise BadSettings(f"cannot make {path}: {cause.strerror}") from cause


def _check_folder(folder: Path, mode: int) -> None:
    about = folder.stat()
    if about.st_uid not in {0, os.geteuid()}:
        raise BadSettings(f"{folder}, where the operator's socket is to lie, belongs to another user")
    if about.st_mode & 0o777 & ~mode:
        raise BadSettings(f"{folder} is open to others: chmod {mode:o} {folder}")


def refuse_browser(request: Request) -> None:
    """Let a browser read under the host's own names and do nothing else. Raises: NotYours.

    An operator who forwards the socket to a port of a desk shows it to every site that a browser there visits: a site may send
    what needs no answer, or let its own name point at that port. A browser says that it is one, and by which name it came.
    """
    name = request.headers.get("host", "").rpartition("@")[2].lower()
    bare = name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
    if bare not in OWN_NAMES:
        raise NotYours(f"the operator's socket is no {name[:80]!r}: forward it to localhost")
    is_browser = any(request.headers.get(field) is not None for field in ("origin", "sec-fetch-site"))
    if is_browser and request.method not in {"GET", "HEAD"}:
        raise NotYours("a browser only reads here: use the command line")
    # A link is followed in a window of its own, and its site sees nothing of the answer. A frame is nobody's wish: streams in
    # some of them would take all of the connections that a browser gives the page itself.
    is_link = (
        request.headers.get("sec-fetch-mode") == "navigate"
        and request.headers.get("sec-fetch-dest") == "document"
    )
    if request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not is_link:
        raise NotYours("another site may not read here")


async def _read(request: Request, limit_bytes: int) -> bytes:
    """The body. Raises: TooLarge, before it is read where its length was announced; WrongMediaType."""
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > limit_bytes:
        raise TooLarge(f"the body has {announced} bytes, the limit is {limit_bytes}")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > limit_bytes:
                    raise TooLarge(f"the body has more than {limit_bytes} bytes")
    except TimeoutError as cause:
        raise DigestMismatch(f"the body did not arrive within {BODY_S:.0f} s") from cause
    told = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if body and told != JSON_TYPE:
        raise WrongMediaType(f"the body is {told[:80] or 'of no type'}, not {JSON_TYPE}")
    return bytes(body)
