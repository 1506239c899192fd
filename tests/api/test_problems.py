"""Errors as answers: what a caller reads of each, and what nobody may read."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from agent import errors
from agent.api.problems import PROBLEM_TYPE, problem, problem_app
from agent.errors import AgentError, OrderExpired, PeerRefused, QueueFull

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AgentError)]


def made(kind: type[AgentError]) -> AgentError:
    more = ("cause",) if kind is errors.JobFailed else ()
    return kind("what was seen", *more)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_tells_its_code_what_was_seen_and_what_to_do(kind: type[AgentError]) -> None:
    answer = problem(made(kind))

    told = json.loads(bytes(answer.body))
    assert answer.status_code == told["status"] == kind.status
    assert answer.media_type == PROBLEM_TYPE
    assert told["code"] == kind.code
    assert told["type"] == f"urn:dc-compute:error:{kind.code}"
    assert told["docs"] == f"docs/errors.md#{kind.code}"
    assert told["detail"] == "what was seen"
    assert told["advice"] == kind.advice


def test_who_must_wait_is_told_how_long() -> None:
    assert int(problem(QueueFull("1000 jobs wait")).headers["Retry-After"]) > 0
    assert "Retry-After" not in problem(OrderExpired("it is over")).headers


def test_a_long_detail_is_cut() -> None:
    assert len(json.loads(bytes(problem(PeerRefused("x" * 100_000)).body))["detail"]) == 1000


# ------------------------------------------------------------------ an application of routes


def refuse(_request: Request) -> Response:
    raise OrderExpired("order 1 expired yesterday")


def crash(_request: Request) -> Response:
    raise ZeroDivisionError("the password is hunter2")


def crash_midway(_request: Request) -> Response:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ZeroDivisionError("the password is hunter2")

    return StreamingResponse(pieces())


def ask(method: str, path: str) -> Any:
    """The answer of an application of these routes, without a network."""
    app = problem_app(
        [
            Route("/refuse", refuse),
            Route("/crash", crash),
            Route("/midway", crash_midway),
            Route("/only-get", refuse),
        ]
    )

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="https://agent.test") as client:
            return await client.request(method, path)

    return asyncio.run(send())


def test_an_error_of_a_handler_becomes_its_problem() -> None:
    answer = ask("GET", "/refuse")

    assert (answer.status_code, answer.json()["code"]) == (422, "order-expired")


def test_a_path_that_is_not_there_is_a_problem_too() -> None:
    answer = ask("GET", "/nowhere")

    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_a_method_that_is_not_taken_is_a_problem_too() -> None:
    answer = ask("DELETE", "/only-get")

    assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
    assert "GET" in answer.headers["allow"]


def test_a_crash_is_answered_without_its_words_and_logged_with_them() -> None:
    with capture_logs() as logged:
        answer = ask("GET", "/crash")

    assert (answer.status_code, answer.json()["code"]) == (500, "agent-error")
    assert "hunter2" not in answer.text
    assert [(line["event"], line["exc_info"]) for line in logged] == [("request.crashed", True)]


def test_a_crash_midway_cuts_the_answer() -> None:
    """Half an answer must not look whole."""
    with pytest.raises(ZeroDivisionError):
        ask("GET", "/midway")
