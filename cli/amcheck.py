"""Check all tables and btree indexes of a database with the server's extension amcheck."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import psycopg

from pgwal.errors import PgwalError
from pgwal.postgres_version import version_of_server

_TABLES = """
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence <> 't'
        AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'heap') ORDER BY 2"""
_INDEXES = """
    WITH own_function AS (
        SELECT p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
        WHERE p.oid >= 16384 AND l.lanname <> 'internal'
            AND NOT (l.lanname = 'c' AND p.probin LIKE '$libdir/%' AND strpos(p.probin, '..') = 0)
    ), own_operator AS (
        SELECT oid FROM pg_operator WHERE oprcode::oid IN (SELECT oid FROM own_function)
    ), own_family AS (
        SELECT amprocfamily AS oid FROM pg_amproc WHERE amproc::oid IN (SELECT oid FROM own_function)
        UNION SELECT amopfamily FROM pg_amop WHERE amopopr IN (SELECT oid FROM own_operator)
    )
    SELECT c.oid, format('%I.%I', n.nspname, c.relname),
        EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND (d.refclassid = 'pg_proc'::regclass AND d.refobjid IN (SELECT oid FROM own_function)
                OR d.refclassid = 'pg_operator'::regclass AND d.refobjid IN (SELECT oid FROM own_operator)
                OR d.refclassid = 'pg_type'::regclass
                    AND d.refobjid IN (SELECT oid FROM pg_type WHERE typtype = 'd' AND oid >= 16384)))
        OR EXISTS (SELECT FROM pg_opclass o
            WHERE o.oid = ANY (i.indclass) AND o.opcfamily IN (SELECT oid FROM own_family))
        OR EXISTS (SELECT FROM own_family)
            AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.atttypid >= 16384)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_index i ON i.indexrelid = c.oid
    WHERE c.relkind = 'i' AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')
        AND c.relpersistence <> 't' AND i.indisready AND i.indisvalid ORDER BY 2"""
"""All btree indexes, and whether checking one would run functions that the backup brings along."""


@dataclass(slots=True)
class CheckedDatabase:
    """What was checked of a database, and all that was wrong."""

    name: str
    table_count: int = 0
    index_count: int = 0
    unchecked_indexes: list[str] = field(default_factory=list)
    """Those whose check would run functions of the cluster's own."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def check_database(connection: psycopg.Connection, checked: CheckedDatabase) -> None:
    """Check the database of a connection, and note what is found as it is found.

    The connection is one of a throw-away server: what is in the way of the extension is removed.  Raises PgwalError
    where the installation lacks the extension, and psycopg's errors for what keeps all of it from being checked.
    """
    begin_s = time.monotonic()
    try:
        _install(connection)
        _check_tables(connection, checked)
        _check_indexes(connection, checked)
    finally:
        checked.seconds = time.monotonic() - begin_s


def _install(connection: psycopg.Connection) -> None:
    available = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'").fetchone()
    if available is None:
        raise PgwalError(
            "the server's installation lacks the extension amcheck", hint="Install PostgreSQL's contrib modules."
        )
    # An event trigger runs what the backup brings along when something is created; a change of the catalog fires none.
    connection.execute("UPDATE pg_catalog.pg_event_trigger SET evtenabled = 'D'")
    connection.execute("DROP EXTENSION IF EXISTS amcheck CASCADE")
    connection.execute("CREATE SCHEMA pgwal_trial_restore")
    connection.execute("CREATE EXTENSION amcheck SCHEMA pgwal_trial_restore")


def _check_tables(connection: psycopg.Connection, checked: CheckedDatabase) -> None:
    if not version_of_server(connection.info.server_version).has_verify_heapam:
        return
    for oid, relation in connection.execute(_TABLES).fetchall():
        checked.table_count += 1
        query = "SELECT format('block %%s, offset %%s: %%s', blkno, offnum, msg) FROM verify_heapam(%s::oid)"
        checked.problems += _run(connection, query, oid, f"{checked.name}: table {relation}")


def _check_indexes(connection: psycopg.Connection, checked: CheckedDatabase) -> None:
    for oid, relation, runs_own_functions in connection.execute(_INDEXES).fetchall():
        if runs_own_functions:
            checked.unchecked_indexes.append(f"{checked.name}: {relation}")
            continue
        checked.index_count += 1
        query = "SELECT NULL FROM bt_index_check(%s::oid, heapallindexed => true)"
        checked.problems += _run(connection, query, oid, f"{checked.name}: index {relation}")


def _run(connection: psycopg.Connection, query: str, oid: int, what: str) -> list[str]:
    """Run a check and return what it finds, or how it fails."""
    query = query.replace(" FROM ", " FROM pgwal_trial_restore.")
    try:
        rows = connection.execute(query, (oid,)).fetchall()
    except psycopg.Error as error:
        return [f"{what}: {first_line(error)}"]
    return [f"{what}: {text}" for (text,) in rows if text is not None]


def first_line(error: psycopg.Error) -> str:
    """Return what a server said first."""
    return str(error).partition("\n")[0]
