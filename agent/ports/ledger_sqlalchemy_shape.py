"""The shape of a ledger's file, as it lies, held against the tables that this program uses."""

import re
import sqlite3
from functools import cache
from typing import Final

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from agent.ports.ledger_schema import metadata

_ALEMBIC: Final = "alembic_version"
# A migrated table differs from a new one in white space, and in how an added column stands behind the constraints.
_SPACE: Final = re.compile(r"\s+")


def revision_of(connection: sqlite3.Connection) -> str | None:
    """The schema's revision, None for a file without one."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    if connection.execute(query, (_ALEMBIC,)).fetchone() is None:
        return None
    row = connection.execute(f"SELECT version_num FROM {_ALEMBIC}").fetchone()  # noqa: S608 - our own word
    return None if row is None else str(row[0])


def differences(connection: sqlite3.Connection) -> tuple[str, ...]:
    """What the file has more, less or otherwise than the tables and indices of this program."""
    found, expected = _shape_of(connection), _expected()
    lacking = [f"{what} is missing" for what in sorted(expected.keys() - found.keys())]
    strange = [f"{what} is not of this program" for what in sorted(found.keys() - expected.keys())]
    other = [
        f"{what} is another than this program's"
        for what in sorted(found.keys() & expected.keys())
        if found[what] != expected[what]
    ]
    return (*lacking, *strange, *other)


@cache
def _expected() -> dict[str, object]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    try:
        metadata.create_all(engine)
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            if not isinstance(raw, sqlite3.Connection):
                raise TypeError("the driver of SQLite is another than the standard library's")
            return _shape_of(raw)
    finally:
        engine.dispose()


def _shape_of(connection: sqlite3.Connection) -> dict[str, object]:
    """Everything in the file by type and name: columns of tables, the text of the rest."""
    shape: dict[str, object] = {}
    query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND name <> ?"
    for kind, name, sql in connection.execute(query, (_ALEMBIC,)).fetchall():
        if kind == "table":
            shape[f"{kind} {name}"] = _columns(connection, name)
        else:
            shape[f"{kind} {name}"] = _SPACE.sub(" ", sql or "").strip()
    return shape


def _columns(connection: sqlite3.Connection, table: str) -> tuple[object, ...]:
    """Name, type, whether it may be empty and place in the key of each column, by name; what refers where; what is unique."""
    quoted = '"' + table.replace('"', '""') + '"'
    columns = sorted(
        (name, kind, required, place)
        for _, name, kind, required, _, place in connection.execute(f"PRAGMA table_info({quoted})")
    )
    references = sorted(
        (row[2], row[3], row[4]) for row in connection.execute(f"PRAGMA foreign_key_list({quoted})")
    )
    unique = []
    for row in connection.execute(f"PRAGMA index_list({quoted})").fetchall():
        if row[2] and row[3] == "u":
            names = [each[2] for each in connection.execute(f"PRAGMA index_info('{row[1]}')")]
            unique.append(tuple(names))
    return (tuple(columns), tuple(references), tuple(sorted(unique)))
