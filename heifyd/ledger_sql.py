"""Runs SQLAlchemy Core statements by the driver itself: each is compiled once, as that costs most of its time."""

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.compiler import SQLCompiler

Change: TypeAlias = sa.Insert | sa.Update | sa.Delete
_Process: TypeAlias = Callable[[Any], Any]

_DIALECT: Final = SQLiteDialect_pysqlite()
_MOST_KEPT: Final = 64


class Transaction:
    """What is done in one transaction. What the driver raises comes as it is (sqlite3.Error)."""

    def __init__(self, driver: sqlite3.Connection) -> None:
        self._driver = driver

    def rows(self, query: sa.Select[Any], values: Mapping[str, Any]) -> list[Any]:
        """Return what a query finds, as named tuples; `values` are its open parameters."""
        prepared = _prepared(query)
        return [prepared.row(found) for found in self._driver.execute(prepared.sql, prepared.bound(values))]

    def change(self, statement: Change, values: Mapping[str, Any] | None = None) -> int:
        """Run a statement that changes rows, and return how many those are; `values` are its open parameters."""
        prepared = _prepared(statement)
        return self._driver.execute(prepared.sql, prepared.bound(values or {})).rowcount

    def create(self, metadata: sa.MetaData) -> None:
        """Create tables and their indexes."""
        for table in metadata.sorted_tables:
            self.run(str(CreateTable(table).compile(dialect=_DIALECT)))
            for index in table.indexes:
                self.run(str(CreateIndex(index).compile(dialect=_DIALECT)))

    def run(self, sql: str) -> None:
        """Run a statement that is SQL already."""
        self._driver.execute(sql)


class _Prepared:
    """A statement as the driver takes it, and how values get into it and out of it."""

    def __init__(self, statement: sa.Select[Any] | Change) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 (narrows the type)
        self.sql = compiled.string
        self._open: list[tuple[str, bool, Any, _Process | None]] = []
        for name in compiled.positiontup or ():
            bind = compiled.binds[name]
            self._open.append((name, bind.required, compiled.params[name], bind.type.bind_processor(_DIALECT)))
        if isinstance(statement, sa.Select):
            columns = statement.selected_columns
            make: Any = namedtuple  # noqa: PYI024 (the names are the query's, not known before)
            self._row = make("_Row", columns.keys())._make
            self._processed = [
                (at, process)
                for at, column in enumerate(columns)
                if (process := column.type.result_processor(_DIALECT, None)) is not None
            ]

    def bound(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the driver's parameters. Raises KeyError for an open one that `values` lack."""
        given = []
        for name, required, value, process in self._open:
            wanted = values[name] if required else values.get(name, value)
            given.append(wanted if process is None else process(wanted))
        return given

    def row(self, found: tuple[Any, ...]) -> Any:
        """Return a row of the driver's as a named tuple of Python's values."""
        if not self._processed:
            return self._row(found)
        read = list(found)
        for at, process in self._processed:
            read[at] = process(read[at])
        return self._row(read)


@lru_cache(_MOST_KEPT)
def _prepared(statement: sa.Select[Any] | Change) -> _Prepared:
    return _Prepared(statement)
