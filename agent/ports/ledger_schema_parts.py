"""What the ledger's tables are made of: moments, indices over a part of a table, triggers that keep counts."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import DDL, BigInteger, Dialect, Table, TypeDecorator, event, text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """An aware moment, kept as whole microseconds since 1970 in UTC: sortable, exact, no time zone to guess."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


def counting(table: str, counts: str) -> tuple[str, ...]:
    """The triggers that keep in `counts` how many rows of `table` are in each state."""
    more = f"INSERT INTO {counts} VALUES (NEW.state, 1) ON CONFLICT (state) DO UPDATE SET count = count + 1;"  # noqa: S608 - our own words
    less = f"UPDATE {counts} SET count = count - 1 WHERE state = OLD.state;"  # noqa: S608
    return (
        f"CREATE TRIGGER {table}_come AFTER INSERT ON {table} BEGIN {more} END",
        f"CREATE TRIGGER {table}_go AFTER DELETE ON {table} BEGIN {less} END",
        f"CREATE TRIGGER {table}_move AFTER UPDATE OF state ON {table} WHEN OLD.state IS NOT NEW.state"
        f" BEGIN {less} {more} END",
    )


def trigger(table: Table, *words: str) -> None:
    """Make these triggers with the table."""
    for one in words:
        event.listen(table, "after_create", DDL(one).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]


def partly(condition: str) -> dict[str, Any]:
    """The options of an index over the rows for which this holds."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}
