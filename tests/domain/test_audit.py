"""The lines of the audit log: their bytes are those that digests of released ledgers were made of."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from msgspec import json

from agent.domain.audit import (
    Line,
    NewEvent,
    bytes_of,
    digest_of_line,
    is_told,
    next_line,
    parse_line,
    told_of_task,
)
from agent.domain.ids import Digest, OrderId
from tests.builders import consortium, uuid_of

AT = datetime(2026, 3, 1, 12, 0, 0, 123_457, tzinfo=UTC)
ORDER = OrderId(uuid_of("order"))


def two_lines() -> tuple[Line, Line]:
    first = next_line(NewEvent(name="service.started", values={"service": "api", "é": None}), AT, 0, None)
    about = NewEvent(
        name="run.ended", order_id=ORDER, position=2, dataset=uuid_of("d"), values={"wall_s": 1.5}
    )
    return first, next_line(about, AT.replace(microsecond=0), first.seq, digest_of_line(first))


def test_a_line_is_these_bytes_for_ever() -> None:
    first, second = two_lines()

    assert (
        bytes_of(first)
        == (
            '{"seq":1,"at":"2026-03-01T12:00:00.123457Z","name":"service.started","order":null,"position":null,"dataset":null,'
            '"values":{"service":"api","é":null},"previous":null}'
        ).encode()
    )
    assert (
        bytes_of(second)
        == (
            '{"seq":2,"at":"2026-03-01T12:00:00Z","name":"run.ended","order":"' + ORDER + '","position":2,'
            f'"dataset":"{uuid_of("d")}","values":{{"wall_s":1.5}},"previous":"{digest_of_line(first)}"}}'
        ).encode()
    )
    assert digest_of_line(first) == "sha256:9b29c9d0c80af3e1723a76f15769b482c14fad5c0bb3b0b9db24d52e21b9c9df"


def test_a_line_comes_back_from_its_bytes_with_its_values_as_they_were_written() -> None:
    _, second = two_lines()

    again = parse_line(bytes_of(second).replace(b'{"wall_s":1.5}', b'{ "wall_s" : 1.5 }'))

    assert again.told == {"wall_s": 1.5}
    assert bytes_of(again) == bytes_of(second).replace(b'{"wall_s":1.5}', b'{ "wall_s" : 1.5 }')


def test_a_moment_of_another_zone_is_written_in_utc() -> None:
    there = AT.astimezone(timezone(timedelta(hours=2)))

    line = next_line(NewEvent(name="x"), there, 0, None)

    assert json.decode(bytes_of(line))["at"] == "2026-03-01T12:00:00.123457Z"


@pytest.mark.parametrize(
    "changed",
    [
        {"seq": 2},
        {"at": AT + timedelta(microseconds=1)},
        {"name": "other"},
        {"order": ORDER},
        {"position": 0},
        {"dataset": uuid_of("d")},
        {"previous": Digest("sha256:" + "0" * 64)},
    ],
)
def test_each_member_is_in_the_digest(changed: dict[str, object]) -> None:
    first, _ = two_lines()
    members = {name: getattr(first, name) for name in first.__struct_fields__}

    assert digest_of_line(Line(**members | changed)) != digest_of_line(first)


def test_the_first_line_of_a_task_tells_whose_it_is_and_what_runs() -> None:
    world = consortium()
    signed = world.order()

    told = [told_of_task(signed, position) for position in (0, 4)]

    assert told[0]["kind"] == "learn"
    assert told[0]["orchestrator"] == signed.signer
    assert told[0]["order"] == signed.digest
    assert "problem_image" not in told[0]
    assert (told[1]["kind"], told[1]["problem_image"]) == ("test", signed.order.images[0])


def test_a_delivery_that_is_tried_for_ever_gets_few_lines() -> None:
    assert [n for n in range(1, 70) if is_told(n)] == [1, 2, 3, 4, 8, 16, 32, 64]
