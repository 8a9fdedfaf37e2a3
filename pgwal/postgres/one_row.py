"""The one row of a query that always answers with one."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg

from pgwal.errors import ServerError

_RowT = TypeVar("_RowT")


def one_row(connection: psycopg.Connection, query: str, parameters: dict[str, object] | None = None) -> tuple[Any, ...]:
    """Run a query that always gives one row, and return that; raises ServerError."""
    return only_row(connection.execute(query, parameters).fetchall())


def only_row(rows: list[_RowT]) -> _RowT:
    """Return the one row of a query that always gives one; raises ServerError."""
    if len(rows) != 1:
        raise ServerError(f"the server answers with {len(rows)} rows instead of one")
    return rows[0]
