"""Statements that are made ready once: said in SQLAlchemy's words, run by SQLite's driver itself.

Building a statement anew and sending it through SQLAlchemy's layers costs several times what SQLite takes to run it. What every
order and every move writes is therefore compiled when its module is read. The schema still decides: names come from the
tables, values go through the types of their columns.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from sqlalchemy import Connection, Table, bindparam, insert
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

_DIALECT: Final = SQLiteDialect_pysqlite(paramstyle="qmark")

Processor = Callable[[Any], Any]


class Prepared:
    """One statement. Its parameters are its `bindparam`s by name; what it selects comes back as tuples."""

    def __init__(self, statement: Any) -> None:
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        self.text: Final = str(compiled)
        names = compiled.positiontup or ()
        self._given: Final = {name: value for name, value in compiled.params.items() if value is not None}
        self._binds: Final = tuple(
            (name, compiled.binds[name].type.bind_processor(_DIALECT) if name in compiled.binds else None)
            for name in names
        )
        columns = getattr(statement, "selected_columns", ())
        self._results: Final = tuple(column.type.result_processor(_DIALECT, None) for column in columns)
        self._names: Final = tuple(column.key for column in columns)

    def run(self, driver: sqlite3.Connection, values: Mapping[str, Any]) -> sqlite3.Cursor:
        """Run it; the cursor counts the rows that it changed."""
        return driver.execute(self.text, self._row(values))

    def run_for(self, driver: sqlite3.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run it once for each of these."""
        driver.executemany(self.text, [self._row(values) for values in rows])

    def first(self, driver: sqlite3.Connection, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The first row, or None."""
        row = self.run(driver, values).fetchone()
        return None if row is None else self._told(row)

    def named(self, driver: sqlite3.Connection, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The first row by the names of its columns, or None."""
        row = self.first(driver, values)
        return None if row is None else dict(zip(self._names, row, strict=True))

    def all(self, driver: sqlite3.Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Every row."""
        return [self._told(row) for row in self.run(driver, values).fetchall()]

    def _row(self, values: Mapping[str, Any]) -> list[Any]:
        told = {**self._given, **values} if self._given else values
        return [told[name] if process is None else process(told[name]) for name, process in self._binds]

    def _told(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value if process is None else process(value)
            for value, process in zip(row, self._results, strict=True)
        )


def inserting(table: Table, *left_out: str) -> Prepared:
    """A new row of this table, each column by its key; those `left_out` are the database's to fill."""
    keys = [key for key in table.columns.keys() if key not in left_out]  # noqa: SIM118 - a ColumnCollection iterates columns
    return Prepared(insert(table).values({key: bindparam(key, type_=table.c[key].type) for key in keys}))


def driver_of(tx: Connection) -> sqlite3.Connection:
    """The driver's own connection below this one, inside the same transaction."""
    driver = tx.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - the engine is made for nothing else
    return driver
