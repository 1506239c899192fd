"""Every route of /openapi.json, by chance, on both doors: no answer is a server error, and each is one that is described.

`DC_COMPUTE_EXAMPLES` says how many calls a route gets; `make test-host` asks for more (tests/host/slow/test_schema_long.py).
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
import requests
import schemathesis
from requests.auth import AuthBase
from schemathesis.checks import CheckContext, CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from agent.api import events
from agent.api.openapi import describe
from agent.api.routes import TABLE
from agent.api.serving import listen, serving
from agent.api.table import Who
from agent.domain.images import ImageDescription
from agent.trust.keys import SigningKey
from tests.api.house import AUTHORITY, House, open_house, signed_headers
from tests.builders import NOW

EXAMPLES = int(os.environ.get("DC_COMPUTE_EXAMPLES", "6"))
PATIENCE_S = 20.0
RESTING = 503  # foreseen where it is described: /ready says so of an agent that chance has drained


def not_a_fault(
    context: CheckContext, answer: schemathesis.Response, case: schemathesis.Case[Any]
) -> bool | None:
    """No server error but the one that is no fault. Whether it is described there, another check says."""
    return None if answer.status_code == RESTING else not_a_server_error(context, answer, case)


CHECKS: list[CheckFunction] = [
    not_a_fault,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


class Signed(AuthBase):
    """Signs each request as the contract asks, so that what is drawn gets behind the signature's checks."""

    def __init__(self, house: House, key: SigningKey) -> None:
        self._house, self._key = house, key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        parts = urlsplit(request.url or "")
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        body = request.body.encode() if isinstance(request.body, str) else request.body
        assert body is None or isinstance(body, bytes)
        for name in ("Content-Length", "Transfer-Encoding", "Content-Type"):
            request.headers.pop(name, None)
        now = self._house.clock()
        request.headers.update(
            signed_headers(self._key, request.method or "GET", target, body or None, now=now)
        )
        return request


class Stage:
    """A house whose doors are open, with an order, a receipt and an image in it."""

    def __init__(self, folder: Path, doors: ExitStack) -> None:
        self.house = open_house(folder)
        order = self.house.world.order()
        self.house.operator.post("/v1/learnuplets", order.envelope)
        self.order, self.image = order.order.id, order.order.images[0]
        self.house.ledger.describe(
            ImageDescription(image=self.image, read_at=NOW, archive_bytes=1, problem="no tar")
        )
        self.operator = doors.enter_context(
            serving(self.house.operator.app, listen("127.0.0.1", 0), tls=None)
        )
        self.network = doors.enter_context(serving(self.house.network.app, listen("127.0.0.1", 0), tls=None))

    def aim(self, case: schemathesis.Case[Any]) -> None:
        """Every second call is about what is here: an id drawn by chance is nobody's."""
        if hash(str(case.query)) % 2 == 0:
            case.path_parameters.update(
                {name: value for name, value in self.known.items() if name in case.path_parameters}
            )

    @property
    def known(self) -> dict[str, str]:
        return {"id": self.order, "digest": self.image}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as doors:
        patch.setattr(events, "STREAM_S", 0.05)  # who sends by chance reads whole answers
        yield Stage(tmp_path_factory.mktemp("house"), doors)


SCHEMA = schemathesis.openapi.from_dict(describe(TABLE))
BY_CHANCE = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)


@SCHEMA.parametrize()
@BY_CHANCE
def test_the_operator_s_door_answers_as_it_is_described(stage: Stage, case: schemathesis.Case[Any]) -> None:
    stage.aim(case)
    answer = case.call(base_url=stage.operator, timeout=PATIENCE_S)

    case.validate_response(answer, checks=CHECKS)


@SCHEMA.parametrize()
@BY_CHANCE
def test_the_signed_door_answers_as_it_is_described(stage: Stage, case: schemathesis.Case[Any]) -> None:
    stage.aim(case)
    row = next(
        row for row in TABLE if (row.method, row.path) == (case.operation.method.upper(), case.operation.path)
    )
    key = stage.house.world.agent("b") if row.who is Who.AGENTS else stage.house.world.orchestrator
    stage.house.clock.pass_by(timedelta(seconds=1))
    auth = None if row.who is Who.ANYBODY else Signed(stage.house, key)
    answer = case.call(base_url=stage.network, timeout=PATIENCE_S, headers={"Host": AUTHORITY}, auth=auth)

    case.validate_response(answer, checks=CHECKS)
    assert answer.status_code != 401, answer.text  # else the hook signs nothing, and nothing was tried
