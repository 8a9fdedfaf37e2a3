"""The names of relations and databases, found by the numbers that their files are named by."""

from __future__ import annotations

from collections.abc import Collection

import psycopg

from pgwal.budget import SQL_RELATIONS_AT_ONCE
from pgwal.postgres.connection import translated_errors
from pgwal.relation import GLOBAL_TABLESPACE_OID, RelFileLocator

_NAMES = """
    SELECT CASE WHEN c.relisshared THEN %(global)s ELSE coalesce(nullif(c.reltablespace, 0), d.dattablespace) END,
           CASE WHEN c.relisshared THEN 0 ELSE d.oid END,
           pg_relation_filenode(c.oid),
           c.oid::regclass::text
      FROM pg_class AS c, pg_database AS d
     WHERE d.datname = current_database() AND pg_relation_filenode(c.oid) = ANY (%(numbers)s)
"""


def read_relation_names(connection: psycopg.Connection, rel_numbers: Collection[int]) -> dict[RelFileLocator, str]:
    """Return the names, with their schemas, of relations of the connected database and of shared ones."""
    names: dict[RelFileLocator, str] = {}
    wanted = sorted(rel_numbers)
    for start in range(0, len(wanted), SQL_RELATIONS_AT_ONCE):
        numbers = wanted[start : start + SQL_RELATIONS_AT_ONCE]
        with translated_errors(connection):
            rows = connection.execute(_NAMES, {"global": GLOBAL_TABLESPACE_OID, "numbers": numbers}).fetchall()
        for spc_oid, db_oid, rel_number, name in rows:
            names[RelFileLocator(int(spc_oid), int(db_oid), int(rel_number))] = name
    return names


def read_database_names(connection: psycopg.Connection) -> dict[int, str]:
    with translated_errors(connection):
        return {int(oid): name for oid, name in connection.execute("SELECT oid, datname FROM pg_database").fetchall()}
