"""What a cluster holds, as far as two must be alike: rows of every table of every database, by checksum."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import TupleRow

from pgwal_cli.throwaway_server import ThrowawayServer

UNLOGGED = "unlogged"
LOCKED = "locked by a prepared transaction"
# Nextval writes WAL once for so many values to come (src/backend/commands/sequence.c).
SEQUENCE_AHEAD = 32

ROWS = "SELECT {name}, count(*)::text || ':' || coalesce(sum(hashtextextended(t::text, 0))::text, '') FROM {table} AS t"

RELATIONS = """
    SELECT oid::regclass::text, relkind::text, relpersistence::text,
        EXISTS (SELECT FROM pg_locks AS l WHERE l.relation = c.oid AND l.pid IS NULL AND l.mode = 'AccessExclusiveLock'
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
    FROM pg_class AS c
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'm', 'S') AND relispopulated
    ORDER BY 1
"""

# Without statistics, which autovacuum changes, and temporary tables, which a new start removes.
RELATION_FILES = """(SELECT oid, relname, relkind, relpersistence, relfilenode, reltablespace FROM pg_class
    WHERE relpersistence <> 't')"""
ATTRIBUTES = """(SELECT attrelid, attname, atttypid, attnum, attisdropped FROM pg_attribute
    WHERE attrelid IN (SELECT oid FROM pg_class WHERE relpersistence <> 't'))"""
CATALOGS = {
    "pg_class": RELATION_FILES,
    "pg_attribute": ATTRIBUTES,
    "pg_database": "(SELECT oid, datname, dattablespace FROM pg_database)",
    "pg_tablespace": "(SELECT oid, spcname FROM pg_tablespace)",
    "pg_largeobject": "(SELECT loid, pageno, data FROM pg_largeobject)",
    "pg_prepared_xacts": "(SELECT gid, transaction::text, database FROM pg_prepared_xacts)",
}

State = dict[str, dict[str, str]]
"""Of each database, what stands for the content of each relation."""


def read_state(server: ThrowawayServer) -> State:
    """Read everything; nothing may change meanwhile."""
    with server.connect() as connection:
        names = [name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datallowconn")]
    state = {}
    for name in names:
        with server.connect(dbname=name) as connection:
            state[name] = _read_database(connection)
    return state


def _read_database(connection: psycopg.Connection[TupleRow]) -> dict[str, str]:
    queries = [ROWS.format(name=f"'{name}'", table=query) for name, query in CATALOGS.items()]
    found: dict[str, str] = {}
    for name, kind, persistence, is_locked in connection.execute(RELATIONS).fetchall():
        if is_locked:
            found[name] = LOCKED
        elif persistence == "u":
            found[name] = UNLOGGED
        elif kind == "S":
            queries.append(f"SELECT '{name}', 'sequence ' || last_value FROM {name}")
        else:
            queries.append(ROWS.format(name=f"'{name}'", table=name))
    found.update(connection.execute(" UNION ALL ".join(queries).encode()).fetchall())
    return found


def differences(expected: State, actual: State) -> list[str]:
    """Say what of a restored cluster is not as it was; sequences may have gone on by what WAL reserves."""
    found = []
    for database in sorted(expected.keys() | actual.keys()):
        was, now = expected.get(database), actual.get(database)
        if was is None or now is None:
            found.append(f"database {database} is {'missing' if now is None else 'there'}")
            continue
        for name in sorted(was.keys() | now.keys()):
            if not _is_alike(was.get(name), now.get(name)):
                found.append(f"{database}: {name} was {was.get(name)}, is {now.get(name)}")
    return found


def _is_alike(was: str | None, now: str | None) -> bool:
    if was is None or now is None or not was.startswith("sequence ") or not now.startswith("sequence "):
        return was == now
    ahead = int(now.split()[1]) - int(was.split()[1])
    return 0 <= ahead <= SEQUENCE_AHEAD


# ---- soundness


def damage(server: ThrowawayServer) -> list[str]:
    """Return what is wrong with any heap, index or visibility map, as far as the server comes with the modules.

    Rolls back prepared transactions first, whose locks would be in the way.
    """
    found = []
    with server.connect() as connection:
        query = "SELECT gid, database FROM pg_prepared_xacts"
        prepared = connection.execute(query).fetchall()
        names = [name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datallowconn")]
    for gid, database in prepared:
        with server.connect(dbname=database) as connection:
            connection.execute(f"ROLLBACK PREPARED '{gid}'".encode())
    for name in names:
        with server.connect(dbname=name) as connection:
            found += [f"{name}: {each}" for each in _database_damage(connection, server.installation.major)]
    return found


def _database_damage(connection: psycopg.Connection[TupleRow], major: int) -> list[str]:
    available = {name for (name,) in connection.execute("SELECT name FROM pg_available_extensions")}
    found = [*_unlogged_rows(connection)]
    if "amcheck" in available:
        connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
        found += _index_damage(connection)
        if major >= 14:
            found += _heap_damage(connection)
    if "pg_visibility" in available:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_visibility")
        found += _visibility_damage(connection)
    return found + _index_answers(connection)


def _unlogged_rows(connection: psycopg.Connection[TupleRow]) -> list[str]:
    query = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relpersistence = 'u'"
    tables = [name for (name,) in connection.execute(query).fetchall()]
    return [f"unlogged table {name} has rows" for name in tables if _value(connection, f"SELECT count(*) FROM {name}")]


def _index_damage(connection: psycopg.Connection[TupleRow]) -> list[str]:
    query = """
        SELECT i.indexrelid::regclass::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE c.relkind = 'i' AND c.relam = 403 AND c.relpersistence = 'p' AND i.indisvalid AND i.indisready
    """
    found = []
    for (name,) in connection.execute(query).fetchall():
        try:
            connection.execute("SELECT bt_index_check(%s::regclass, true)", [name])
        except psycopg.Error as error:
            found.append(f"index {name}: {error}")
    return found


def _heap_damage(connection: psycopg.Connection[TupleRow]) -> list[str]:
    query = """
        SELECT c.oid::regclass::text || ': ' || v.msg FROM pg_class AS c, verify_heapam(c.oid) AS v
        WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' LIMIT 20
    """
    return [message for (message,) in connection.execute(query).fetchall()]


def _visibility_damage(connection: psycopg.Connection[TupleRow]) -> list[str]:
    found = []
    for check in ("pg_check_visible", "pg_check_frozen"):
        query = f"""
            SELECT '{check} of ' || c.oid::regclass::text || ': ' || v.t_ctid FROM pg_class AS c, {check}(c.oid) AS v
            WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' LIMIT 20
        """
        found += [message for (message,) in connection.execute(query.encode()).fetchall()]
    return found


CONDITIONS = {
    "hash": "h = {n}",
    "gin": "tags @> ARRAY[{n}]",
    "gist": "at <@ box(point(0, 0), point({n}, {n}))",
    "spgist": "place >= md5('{n}')",
    "brin": "id BETWEEN {n} AND {n} * 1000",
    "btree": "id > {n}",
}


def _index_answers(connection: psycopg.Connection[TupleRow]) -> list[str]:
    """Compare what the tables' indexes answer with what a sequential scan answers."""
    query = """
        SELECT DISTINCT i.indrelid::regclass::text, a.amname FROM pg_index AS i
        JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'i' AND c.relpersistence = 'p' AND i.indisvalid
            AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = i.indrelid AND attname = 'tags')
        ORDER BY 1, 2
    """
    found = []
    for table, method in connection.execute(query).fetchall():
        for number in (0, 3, 20):
            count = f"SELECT count(*) FROM {table} WHERE {CONDITIONS[method].format(n=number)}"
            answers = set()
            for index_scan in (False, True):
                connection.execute(f"SET enable_seqscan = {'off' if index_scan else 'on'}")
                for setting in ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"):
                    connection.execute(f"SET {setting} = {'on' if index_scan else 'off'}".encode())
                answers.add(_value(connection, count))
            if len(answers) > 1:
                found.append(f"{table} by {method}: {CONDITIONS[method].format(n=number)} gives {answers}")
    return found


def _value(connection: psycopg.Connection[TupleRow], query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]
