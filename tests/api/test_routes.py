"""The table of routes: who may call what, by which door, with how much."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.api.routes import ORDER_BODY, TABLE
from agent.api.table import Row, Who
from agent.domain.orders import MAX_ORDER_BYTES
from agent.trust.handoff import MAX_HANDOFF_BYTES
from agent.trust.keys import SigningKey
from agent.trust.roster import Role
from tests.api.house import House, open_house
from tests.builders import digest_named, uuid_of

ROUTES = {
    ("POST", "/v1/learnuplets"): Who.ORCHESTRATORS,
    ("POST", "/v1/preduplets"): Who.ORCHESTRATORS,
    ("POST", "/v1/handoffs"): Who.AGENTS,
    ("GET", "/v1/orders"): Who.READERS,
    ("GET", "/v1/orders/{id}"): Who.READERS,
    ("GET", "/v1/orders/{id}/receipts"): Who.READERS,
    ("GET", "/v1/orders/{id}/log"): Who.OPERATOR,
    ("POST", "/v1/cancellations"): Who.CANCELLERS,
    ("POST", "/v1/orders/{id}/cancel"): Who.OPERATOR,
    ("GET", "/v1/control"): Who.OPERATOR,
    ("POST", "/v1/control"): Who.OPERATOR,
    ("GET", "/v1/services"): Who.OPERATOR,
    ("GET", "/v1/held"): Who.OPERATOR,
    ("GET", "/v1/images/{digest}"): Who.OPERATOR,
    ("GET", "/v1/images/{digest}/files"): Who.OPERATOR,
    ("POST", "/v1/rulings"): Who.OPERATOR,
    ("GET", "/v1/deliveries"): Who.OPERATOR,
    ("POST", "/v1/deliveries"): Who.OPERATOR,
    ("GET", "/health"): Who.ANYBODY,
    ("GET", "/ready"): Who.ANYBODY,
    ("GET", "/metrics"): Who.ANYBODY,
    ("GET", "/openapi.json"): Who.ANYBODY,
}

KEYS: dict[Role, Callable[[House], SigningKey]] = {
    Role.ORCHESTRATOR: lambda house: house.world.orchestrator,
    Role.AGENT: lambda house: house.world.agent("c"),
    Role.STORAGE: lambda house: house.world.storage("a"),
    Role.OWNER: lambda house: house.world.owner,
}

every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.path)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path)


def target_of(row: Row) -> str:
    return row.path.replace("{id}", uuid_of("nothing")).replace("{digest}", digest_named("nothing"))


@pytest.mark.parametrize("row", [row for row in TABLE if row.who is Who.OPERATOR], ids=lambda row: row.path)
@pytest.mark.parametrize("role", Role)
def test_what_is_the_operator_s_nobody_of_the_network_calls(house: House, row: Row, role: Role) -> None:
    body = (
        None if row.takes is None else b'{"target": "%s", "verdict": "approved"}' % digest_named("x").encode()
    )

    answer = house.call(KEYS[role](house), row.method, target_of(row), body)

    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")
    assert house.ledger.rulings() == ()


def test_the_table_is_what_the_contract_says() -> None:
    assert {(row.method, row.path): row.who for row in TABLE} == ROUTES


@every_row
def test_a_stranger_is_answered_only_where_anybody_is(house: House, row: Row) -> None:
    body = None if row.takes is None else b"{}"
    headers = None if row.takes is None else {"content-type": "application/json"}

    answer = house.network.request(row.method, target_of(row), content=body, headers=headers)

    assert (answer.status_code == 401) == (row.who is not Who.ANYBODY)


@pytest.mark.parametrize(
    ("row", "role"),
    [
        (row, role)
        for row in TABLE
        for role in Role
        if row.who is not Who.ANYBODY and role not in row.who.roles
    ],
    ids=lambda value: getattr(value, "path", value),
)
def test_a_role_that_the_table_does_not_name_is_refused(house: House, row: Row, role: Role) -> None:
    answer = house.call(KEYS[role](house), row.method, target_of(row), None if row.takes is None else b"{}")

    assert (answer.status_code, answer.json()["code"]) == (403, "wrong-role")


@every_row
def test_answers_that_peers_act_on_are_signed(house: House, row: Row) -> None:
    role = Role.AGENT if Role.AGENT in row.who.roles else Role.ORCHESTRATOR

    answer = house.call(KEYS[role](house), row.method, target_of(row), None if row.takes is None else b"{}")

    acted_on = {"/v1/handoffs", "/v1/cancellations", "/v1/orders/{id}", "/v1/orders/{id}/receipts"}
    assert ("signature" in answer.headers) == (row.path in acted_on)


@pytest.mark.parametrize("row", [row for row in TABLE if row.is_signed], ids=lambda row: row.path)
def test_a_body_above_the_limit_is_refused_before_it_is_read(house: House, row: Row) -> None:
    headers = {"content-type": "application/json", "content-length": str(row.limit_bytes + 1)}

    by_network = house.network.request(row.method, target_of(row), headers=headers)
    by_operator = house.operator.request(row.method, target_of(row), headers=headers)

    assert (by_network.status_code, by_network.json()["code"]) == (413, "too-large")
    assert (by_operator.status_code, by_operator.json()["code"]) == (413, "too-large")


def test_the_limits_are_those_of_the_contract() -> None:
    limits = {row.path: row.limit_bytes for row in TABLE if row.takes is not None}

    assert limits["/v1/handoffs"] == MAX_HANDOFF_BYTES == 32 << 20
    assert limits["/v1/learnuplets"] == limits["/v1/preduplets"] == ORDER_BODY
    assert MAX_ORDER_BYTES == 1 << 20
    assert 0 <= ORDER_BODY - MAX_ORDER_BYTES * 4 / 3 <= 5000  # base64, and the envelope around it


def test_a_body_that_grows_over_the_limit_is_refused_while_it_is_read(house: House) -> None:
    body = b"[" * (ORDER_BODY + 1)
    headers = {"content-type": "application/json", "transfer-encoding": "chunked"}

    answer = house.operator.request("POST", "/v1/learnuplets", content=body, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/jsonx", "", "multipart/form-data; boundary=x"]
)
def test_another_media_type_is_refused(house: House, media_type: str) -> None:
    answer = house.operator.request(
        "POST", "/v1/learnuplets", content=b"{}", headers={"content-type": media_type}
    )

    assert (answer.status_code, answer.json()["code"]) == (415, "wrong-media-type")


def test_a_media_type_may_carry_its_charset(house: House) -> None:
    answer = house.operator.request(
        "POST", "/v1/learnuplets", content=b"{}", headers={"content-type": "Application/JSON; charset=utf-8"}
    )

    assert answer.json()["code"] == "bad-envelope"
