"""Errors as answers: RFC 9457 problem documents, the same for the agent's API and the devkit's servers.

    {"type": "urn:dc-compute:error:order-expired", "title": "order expired", "status": 422, "code": "order-expired",
     "detail": what was seen, "advice": what to do, "docs": "docs/errors.md#order-expired"}

Source: docs/contracts/http.md. An error that nobody foresaw is logged here, and answered 500 without its words.
"""

from collections.abc import Sequence

from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, ExceptionHandler, Lifespan, Message, Receive, Scope, Send

from agent.domain.strict_json import encode
from agent.errors import AgentError, BadQuery, MethodNotAllowed, NotFound
from agent.log import get_logger

log = get_logger(__name__)

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
MAX_DETAIL = 1000  # characters: a message may quote what the caller sent

_RESTING = {429, 503}  # answered with Retry-After


class Problem(Struct, frozen=True, kw_only=True):
    """A problem document. `code` is stable; `detail` is of this occurrence, `advice` of its code."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    advice: str
    docs: str

    @classmethod
    def of(cls, error: AgentError) -> "Problem":
        """The document that tells of this error."""
        return cls(
            type=f"urn:dc-compute:error:{error.code}",
            title=error.code.replace("-", " "),
            status=error.status,
            code=error.code,
            detail=error.detail[:MAX_DETAIL],
            advice=error.advice,
            docs=f"docs/errors.md#{error.code}",
        )


def problem(error: AgentError) -> Response:
    """The answer that tells of this error."""
    headers = {"Cache-Control": "no-store"}
    if error.status in _RESTING:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return Response(encode(Problem.of(error)), error.status, headers, PROBLEM_TYPE)


def json_answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as a JSON answer that no cache keeps."""
    return Response(
        encode(value), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json"
    )


def problem_app(routes: Sequence[BaseRoute], lifespan: Lifespan[Starlette] | None = None) -> Starlette:
    """An application of these routes in which every error becomes a problem document."""
    handlers: dict[type[Exception], ExceptionHandler] = {
        AgentError: _answer_error,
        HTTPException: _answer_routing,
    }
    return Starlette(
        routes=list(routes), lifespan=lifespan, middleware=[Middleware(LastDoor)], exception_handlers=handlers
    )


def _answer_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, AgentError):
        raise error
    log.warning(
        "request.refused", method=request.method, path=request.url.path, code=error.code, detail=error.detail
    )
    return problem(error)


def _answer_routing(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: a path or a method it has no route for, or a request it cannot read."""
    if not isinstance(error, HTTPException):
        raise error
    match error.status_code:
        case 404:
            return problem(NotFound(f"there is nothing at {request.url.path}"))
        case 405:
            answer = problem(MethodNotAllowed(f"{request.url.path} does not take {request.method}"))
            answer.headers.update(error.headers or {})  # Allow
            return answer
        case _:
            return problem(BadQuery(error.detail))


class LastDoor:
    """The outermost door: what nobody foresaw is logged with its traceback, and answered 500 without its words."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, note)
        except ClientDisconnect:
            log.info("request.abandoned", path=scope.get("path"))
        except Exception:
            log.exception("request.crashed", method=scope.get("method"), path=scope.get("path"))
            if has_begun:
                raise  # the connection is cut: half an answer must not look whole
            await problem(AgentError("an error inside this service; its log has the rest"))(
                scope, receive, send
            )
