"""What the ledger's tables are made of: moments, indices over a part of a table, triggers that keep counts."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import DDL, BigInteger, Column, Dialect, MetaData, Table, Text, TypeDecorator, event, text

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


def counts_table(name: str, metadata: MetaData) -> Table:
    """How many rows of another table are in each state: what the triggers of `counting` keep."""
    return Table(
        name,
        metadata,
        Column("state", Text, primary_key=True),
        Column("count", BigInteger, key="count_", nullable=False),
        sqlite_with_rowid=False,
    )


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


def needing(are_open: str) -> tuple[str, ...]:
    """The triggers that keep in `image_needs` how many jobs in these states, and how many held, name each set of images."""
    of_order = "images = (SELECT images FROM orders WHERE id = {row}.order_id);"
    change = f"UPDATE image_needs SET open = open + {{open}}, held = held + {{held}} WHERE {of_order}"  # noqa: S608 - our own words
    more = (
        "INSERT INTO image_needs SELECT images, 1, NEW.state = 'held' FROM orders"
        " WHERE id = NEW.order_id AND images IS NOT NULL"
        " ON CONFLICT (images) DO UPDATE SET open = open + 1, held = held + excluded.held;"
    )
    moved = change.format(
        open=f"(NEW.state IN ({are_open})) - (OLD.state IN ({are_open}))",
        held="(NEW.state = 'held') - (OLD.state = 'held')",
        row="NEW",
    )
    gone = change.format(open="-1", held="- (OLD.state = 'held')", row="OLD")
    return (
        f"CREATE TRIGGER needs_come AFTER INSERT ON jobs WHEN NEW.state IN ({are_open}) BEGIN {more} END",
        f"CREATE TRIGGER needs_go AFTER DELETE ON jobs WHEN OLD.state IN ({are_open}) BEGIN {gone} END",
        "CREATE TRIGGER needs_move AFTER UPDATE OF state ON jobs WHEN 'held' IN (OLD.state, NEW.state)"
        f" OR (OLD.state IN ({are_open})) IS NOT (NEW.state IN ({are_open})) BEGIN {moved} END",
    )


def trigger(table: Table, *words: str) -> None:
    """Make these triggers with the table."""
    for one in words:
        event.listen(table, "after_create", DDL(one).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]


def partly(condition: str) -> dict[str, Any]:
    """The options of an index over the rows for which this holds. In SQLite's words alone: to name another dialect here would
    load it into every process that opens a ledger, 3 MB each."""
    return {"sqlite_where": text(condition)}
