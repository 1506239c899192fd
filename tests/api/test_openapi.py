"""/openapi.json describes what is served, by the types that parse and write it."""

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api.openapi import PAYLOADS, describe, errors_of
from agent.api.problems import Problem
from agent.api.routes import TABLE
from agent.api.table import Row, Who
from agent.domain.images import ImageDescription
from agent.domain.jobs import JobState
from agent.errors import AgentError
from tests.api.house import House, open_house
from tests.builders import NOW

METHODS = {"get", "post", "put", "delete", "patch"}

DOCUMENT = describe(TABLE)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path)


def operations() -> list[tuple[Row, dict[str, Any]]]:
    return [(row, DOCUMENT["paths"][row.path][row.method.lower()]) for row in TABLE]


every_operation = pytest.mark.parametrize(
    ("row", "operation"), operations(), ids=lambda x: getattr(x, "path", "")
)


def test_it_is_served_as_json(house: House) -> None:
    answer = house.network.get("/openapi.json")

    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(DOCUMENT))


def test_it_holds_each_route_of_the_table_and_no_other() -> None:
    described = {
        (method, path) for path, item in DOCUMENT["paths"].items() for method in item if method in METHODS
    }

    assert described == {(row.method.lower(), row.path) for row in TABLE}


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}

    assert references <= set(DOCUMENT["components"]["schemas"])


def test_the_payloads_of_envelopes_are_described_too() -> None:
    assert {kind.__name__ for kind in PAYLOADS} <= set(DOCUMENT["components"]["schemas"])


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, operation in operations()]

    assert len(set(ids)) == len(ids)


@every_operation
def test_each_operation_says_what_it_does(row: Row, operation: dict[str, Any]) -> None:
    assert operation["summary"].endswith(".")
    assert row.who.words in operation["description"]


@every_operation
def test_each_operation_asks_for_a_signature_or_says_that_it_does_not(
    row: Row, operation: dict[str, Any]
) -> None:
    assert operation["security"] == ([] if row.who is Who.ANYBODY else [{"rfc9421": []}])


@every_operation
def test_each_error_of_a_route_has_its_status_with_its_code(row: Row, operation: dict[str, Any]) -> None:
    for error in errors_of(row):
        if error.status not in row.gives:
            answer = operation["responses"][str(error.status)]
            assert error.code in answer["description"]
            assert "application/problem+json" in answer["content"]


@every_operation
def test_each_status_is_one_of_http(row: Row, operation: dict[str, Any]) -> None:
    assert all(HTTPStatus(int(status)) for status in operation["responses"])


def test_the_body_of_an_order_is_described_by_the_type_that_parses_it() -> None:
    schema = DOCUMENT["components"]["schemas"]["WireEnvelope"]

    assert set(schema["required"]) == {"payloadType", "payload", "signatures"}
    assert schema["additionalProperties"] is False


def test_the_filters_of_a_list_are_described() -> None:
    parameters = {p["name"]: p for p in DOCUMENT["paths"]["/v1/orders"]["get"]["parameters"]}

    assert set(parameters) == {"state", "order", "limit", "after"}
    assert parameters["limit"]["schema"]["maximum"] == 500
    assert set(parameters["state"]["schema"]["items"]["enum"]) == {state.value for state in JobState}


def test_a_problem_is_what_errors_are_answered_with(house: House) -> None:
    answer = house.network.get("/nowhere")

    problem = msgspec.json.decode(answer.content, type=Problem, strict=True)
    assert set(answer.json()) == set(DOCUMENT["components"]["schemas"]["Problem"]["properties"])
    assert problem.docs == "docs/errors.md#not-found"


def test_every_answer_of_a_route_has_the_shape_that_is_described(house: House) -> None:
    order = house.world.order()
    house.operator.post("/v1/learnuplets", order.envelope)
    image = order.order.images[0]
    house.ledger.describe(ImageDescription(image=image, read_at=NOW, archive_bytes=1, problem="no tar"))

    for row in TABLE:
        if row.method == "GET" and row.path != "/metrics" and not row.is_stream:  # those: test_events.py
            path = row.path.replace("{id}", order.order.id).replace("{digest}", image)
            answer = house.operator.get(path)
            kind = row.gives[answer.status_code]
            assert msgspec.json.decode(answer.content, type=kind) is not None


def test_every_error_class_that_a_route_names_is_an_error_of_ours() -> None:
    for row in TABLE:
        assert all(issubclass(error, AgentError) for error in errors_of(row))
