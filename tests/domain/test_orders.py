"""Orders: what is taken from the bytes of an orchestrator, and every rule by which one is refused."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.orders import (
    LEARNUPLET_TYPE,
    MAX_ORDER_BYTES,
    MAX_TASKS,
    PREDUPLET_TYPE,
    DatasetRef,
    Limits,
    ModelRef,
    Order,
    check_window,
    is_expired,
    parse_order,
)
from agent.domain.strict_json import encode
from agent.errors import BadJson, BadOrder, OrderExpired, OrderNotYetValid, TooLarge, UnknownPayloadType
from tests.domain.values import (
    HOUR,
    NOW,
    agent_named,
    dataset,
    digest_named,
    learnuplet,
    preduplet,
    uuid_of,
)

SKEW = timedelta(seconds=30)
SECOND = timedelta(seconds=1)


def wire(order: Order, **changes: Any) -> bytes:
    """The order as JSON with fields changed; None for a field takes it out."""
    fields = json.loads(encode(order)) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def read(data: bytes) -> Order:
    return parse_order(LEARNUPLET_TYPE, data)


@pytest.mark.parametrize("order", [learnuplet(), preduplet()], ids=["learnuplet", "preduplet"])
def test_an_order_is_read_as_it_was_written(order: Order) -> None:
    assert parse_order(order.payload_type, encode(order)) == order


def test_an_order_may_leave_out_what_has_a_default() -> None:
    order = read(wire(learnuplet(), limits=..., max_attempts=...))

    assert (order.limits, order.max_attempts) == (Limits(), 3)


def test_an_order_may_ask_for_less() -> None:
    order = read(wire(learnuplet(), limits={"wall_s": 60, "memory_bytes": 1 << 30}))

    assert order.limits == Limits(wall_s=60, memory_bytes=1 << 30)


def test_a_learnuplet_may_start_from_a_model() -> None:
    start = ModelRef(digest_named("start"), agent_named("b"))

    order = read(encode(learnuplet(model_start=start)))

    assert order.start_model == start
    assert learnuplet().start_model is None


def test_an_order_names_every_image_that_runs() -> None:
    assert learnuplet().images == (digest_named("problem image"), digest_named("algo image"))
    assert preduplet().images == (digest_named("algo image"),)


@pytest.mark.parametrize(
    "payload_type", ["", "application/json", LEARNUPLET_TYPE.replace("v1", "v2"), f"{LEARNUPLET_TYPE} "]
)
def test_another_payload_type_is_no_order(payload_type: str) -> None:
    with pytest.raises(UnknownPayloadType):
        parse_order(payload_type, encode(learnuplet()))


def test_an_order_of_one_kind_is_not_read_as_the_other() -> None:
    with pytest.raises(BadOrder):
        parse_order(PREDUPLET_TYPE, encode(learnuplet()))
    with pytest.raises(BadOrder):
        parse_order(LEARNUPLET_TYPE, encode(preduplet()))


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"id": uuid_of("x").upper()},
        {"id": uuid_of("x").replace("-", "")},
        {"id": uuid_of("x") + "\n"},
        {"id": "../../etc/passwd"},
        {"problem": 7},
        {"problem_image": None},
        {"algo_image": {"id": uuid_of("x"), "digest": "sha256:" + "A" * 64}},
        {"algo_image": {"id": uuid_of("x"), "digest": "sha512:" + "a" * 64}},
        {"algo_image": {"id": uuid_of("x"), "digest": "sha256:" + "a" * 63}},
        {"algo_image": {"id": uuid_of("x"), "digest": "sha256:" + "a" * 64 + "\n"}},
        {"algo_image": {"id": uuid_of("x"), "digest": "sha256:" + "a" * 64, "tag": "latest"}},
        {"model_start": {"digest": digest_named("m"), "agent": "me"}},
        {"model_end": None},
        {"rank": -1},
        {"rank": 1.5},
        {"rank": True},
        {"limits": {"wall_s": 0}},
        {"limits": {"memory_bytes": -1}},
        {"limits": {"pids": "10"}},
        {"limits": {"gpu": 1}},
        {"max_attempts": 0},
        {"max_attempts": 101},
        {"max_attempts": None},
        {"train_data": ...},
        {"train_data": {}},
        {"train_data": [{"id": uuid_of("a")}]},
        {"train_data": [{"id": uuid_of("a"), "version": ""}]},
        {"train_data": [{"id": uuid_of("a"), "version": "../1"}]},
        {"train_data": [{"id": uuid_of("a"), "version": "1\n"}]},
        {"train_data": [{"id": uuid_of("a"), "version": "1" * 65}]},
        {"expires": "tomorrow"},
        {"expires": 1_800_000_000},
    ],
    ids=str,
)
def test_an_order_with_a_field_that_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadOrder):
        read(wire(learnuplet(), **changes))


@pytest.mark.parametrize(
    ("train", "test"),
    [("a a", ""), ("a b", "a"), ("", "c c"), ("", ""), ("a b c d", "e f c")],
)
def test_a_dataset_stands_once_and_an_order_is_not_empty(train: str, test: str) -> None:
    data = {
        "train_data": [{"id": uuid_of(name), "version": "1"} for name in train.split()],
        "test_data": [{"id": uuid_of(name), "version": "1"} for name in test.split()],
    }

    with pytest.raises(BadOrder):
        read(wire(learnuplet(), **data))


def test_two_versions_of_one_dataset_are_one_dataset() -> None:
    with pytest.raises(ValueError, match="twice"):
        learnuplet(train_data=(dataset("a", "1"), dataset("a", "2")))
    with pytest.raises(ValueError, match="twice"):
        preduplet(data=(dataset("a"), dataset("a")))


def test_an_order_has_a_thousand_tasks_at_most() -> None:
    def refs(count: int, prefix: str) -> tuple[DatasetRef, ...]:
        return tuple(dataset(f"{prefix}{n}") for n in range(count))

    half = MAX_TASKS // 2
    whole = learnuplet(train_data=refs(half, "train"), test_data=refs(half, "test"))
    assert read(encode(whole)) == whole

    with pytest.raises(ValueError, match="at most"):
        learnuplet(train_data=refs(half, "train"), test_data=refs(half + 1, "test"))
    too_many = [{"id": ref.id, "version": "1"} for ref in refs(MAX_TASKS + 1, "x")]
    with pytest.raises(BadOrder):
        read(wire(learnuplet(), train_data=too_many))


def test_an_order_over_its_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooLarge):
        read(b"[" * (MAX_ORDER_BYTES + 1))


def test_an_order_with_a_key_twice_is_refused() -> None:
    data = encode(learnuplet()).replace(b'{"id"', b'{"rank":0,"id"', 1)

    with pytest.raises(BadJson):
        read(data)


# ------------------------------------------------------------------ times


@pytest.mark.parametrize(
    "expires",
    [
        "2026-03-01T13:00:00",  # nobody knows where
        "2026-03-01T13:00:00+01:00",
        "2026-03-01T13:00:00.5Z",
        "2026-03-01T13:00:00.000001Z",
        "2026-03-01",
    ],
)
def test_times_are_utc_with_z_and_whole_seconds(expires: str) -> None:
    with pytest.raises(BadOrder):
        read(wire(learnuplet(), expires=expires))


@pytest.mark.parametrize("length", [timedelta(0), -SECOND])
def test_an_order_ends_after_it_begins(length: timedelta) -> None:
    with pytest.raises(ValueError, match="expires"):
        learnuplet(not_before=NOW, expires=NOW + length)


@pytest.mark.parametrize("order", [learnuplet(), preduplet()], ids=["learnuplet", "preduplet"])
def test_the_window_is_as_wide_as_the_order_says_and_the_skew_allows(order: Order) -> None:
    opens, closes = order.not_before - SKEW, order.expires + SKEW

    with pytest.raises(OrderNotYetValid):
        check_window(order, opens - SECOND, SKEW)
    check_window(order, opens, SKEW)
    check_window(order, closes - SECOND, SKEW)
    with pytest.raises(OrderExpired):
        check_window(order, closes, SKEW)


@given(
    st.datetimes(datetime(2026, 2, 28), datetime(2026, 3, 3), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(0, 7200),
)
def test_a_moment_is_before_in_or_after_the_window(moment: datetime, skew_s: int) -> None:
    order, skew = learnuplet(), timedelta(seconds=skew_s)
    is_early, is_late = moment + skew < order.not_before, moment - skew >= order.expires

    assert is_expired(order, moment, skew) is is_late
    if is_early or is_late:
        with pytest.raises(OrderNotYetValid if is_early else OrderExpired):
            check_window(order, moment, skew)
    else:
        check_window(order, moment, skew)


def test_the_window_is_the_same_whatever_zone_the_clock_tells() -> None:
    tokyo = timezone(timedelta(hours=9))

    check_window(learnuplet(), NOW.astimezone(tokyo), SKEW)
    assert is_expired(learnuplet(), (NOW + HOUR + SKEW).astimezone(tokyo), SKEW)
