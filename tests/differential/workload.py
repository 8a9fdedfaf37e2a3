"""A workload that reaches the WAL in as many ways as it can, for a server of any version from 13 to 19.

It is SQL in steps: ``prepare`` makes what the steps of ``run`` change.  It is small, some 30000 records, and
always the same but for what versions and builds lack: bloom, in-place tablespaces, kinds of compression.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import psycopg
from psycopg import sql

from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

SETTINGS: dict[str, str | int | bool] = {
    "max_prepared_transactions": 10,
    # What is vacuumed, and when, is in the steps alone.
    "autovacuum": False,
    "max_wal_size": "1GB",
}
"""Settings that a server needs for the workload."""

INITDB_ARGS = ("-k", "--wal-segsize=1")
"""Arguments of initdb for it: checksums, so that hint bits are logged, and segments that a record can exceed."""

# A step is statements that end a line with a semicolon; each runs on its own, unless BEGIN says otherwise.

PREPARE = """
    CREATE TABLE kinds (id int PRIMARY KEY, h int, tags int[], at point, place text, bulk text);
    INSERT INTO kinds SELECT i, i % 500, ARRAY[i % 7, i % 11, i], point(i % 40, i / 40), md5(i::text),
        repeat('k', 150) FROM generate_series(1, 1500) AS i;
    CREATE INDEX kinds_hash ON kinds USING hash (h);
    CREATE INDEX kinds_gin ON kinds USING gin (tags) WITH (fastupdate = on);
    CREATE INDEX kinds_gist ON kinds USING gist (at);
    CREATE INDEX kinds_spgist ON kinds USING spgist (place);
    CREATE INDEX kinds_quadtree ON kinds USING spgist (at);
    CREATE INDEX kinds_brin ON kinds USING brin (id) WITH (pages_per_range = 4, autosummarize = off);

    CREATE TABLE shrinking (id int, filler text) WITH (fillfactor = 100);
    INSERT INTO shrinking SELECT i, repeat('s', 900) FROM generate_series(1, 1600) AS i;
    CREATE TABLE emptied AS SELECT i AS id FROM generate_series(1, 1000) AS i;
    CREATE TABLE dropped AS SELECT i AS id FROM generate_series(1, 1000) AS i;
    CREATE TABLE dropped_when_prepared AS SELECT i AS id FROM generate_series(1, 500) AS i;
    CREATE TABLE kept_after_all AS SELECT i AS id FROM generate_series(1, 500) AS i;
    CREATE TABLE rewritten (id int PRIMARY KEY, filler text);
    INSERT INTO rewritten SELECT i, md5(i::text) FROM generate_series(1, 1000) AS i;
    CREATE TABLE moved (id int PRIMARY KEY, filler text);
    INSERT INTO moved SELECT i, md5(i::text) FROM generate_series(1, 500) AS i;
    CREATE TABLE long_values (id int PRIMARY KEY, value text);
    ALTER TABLE long_values ALTER value SET STORAGE EXTERNAL;
    INSERT INTO long_values SELECT i, repeat(md5(i::text), 300) FROM generate_series(1, 30) AS i;
    CREATE UNLOGGED TABLE forgotten (id int PRIMARY KEY);
    INSERT INTO forgotten SELECT i FROM generate_series(1, 500) AS i;
    CREATE TABLE to_unlogged AS SELECT i AS id FROM generate_series(1, 500) AS i;
    CREATE UNLOGGED TABLE to_logged AS SELECT i AS id FROM generate_series(1, 500) AS i;
    CREATE MATERIALIZED VIEW rewritten_view AS SELECT id FROM rewritten;
    CREATE SEQUENCE counter;
    CREATE SEQUENCE restarted;
    SELECT count(nextval('counter')) FROM generate_series(1, 50);
    SELECT lo_from_bytea(1000001, repeat('large', 3000)::bytea);
    VACUUM kinds, shrinking, rewritten, long_values;
    CREATE DATABASE moving;
"""

INDEXES = """
    INSERT INTO kinds SELECT i, i % 500, ARRAY[i % 7, i % 11, i], point(i % 40, i / 40), md5(i::text),
        repeat('k', 150) FROM generate_series(1501, 1800) AS i;
    UPDATE kinds SET tags = tags || 12345, at = at + point(0.5, 0.5), h = h + 1 WHERE id % 17 = 0;
    UPDATE kinds SET bulk = 'hot' WHERE id % 29 = 0;
    DELETE FROM kinds WHERE id % 13 = 0;
    SELECT brin_summarize_new_values('kinds_brin');
    SELECT gin_clean_pending_list('kinds_gin');
    VACUUM kinds;
    SELECT count(*) FROM kinds WHERE tags @> ARRAY[5];
    SELECT brin_desummarize_range('kinds_brin', 0);
    INSERT INTO kinds SELECT i, i % 500, ARRAY[i % 7], point(3, 3), 'same', '' FROM generate_series(1801, 2100) AS i;
    INSERT INTO kinds VALUES (1, 1, '{}', point(1, 1), '', '') ON CONFLICT (id) DO UPDATE SET bulk = 'conflict';
    DELETE FROM kinds WHERE id BETWEEN 600 AND 900;
    VACUUM (FREEZE) kinds;
"""

BLOOM = """
    CREATE EXTENSION bloom;
    CREATE INDEX kinds_bloom ON kinds USING bloom (id, h);
    UPDATE kinds SET h = h + 1 WHERE id % 31 = 0;
    VACUUM kinds;
"""

SHRINKING_AND_GROWING = """
    DELETE FROM shrinking WHERE id > 700;
    VACUUM shrinking;
    CHECKPOINT;
    INSERT INTO shrinking SELECT i, repeat('n', 900) FROM generate_series(701, 1200) AS i;
    DELETE FROM shrinking WHERE id > 900;
    VACUUM shrinking;
    INSERT INTO shrinking SELECT i, repeat('m', 900) FROM generate_series(901, 1000) AS i;
    TRUNCATE emptied;
    INSERT INTO emptied SELECT i FROM generate_series(1, 300) AS i;
    BEGIN;
    TRUNCATE kept_after_all;
    INSERT INTO kept_after_all VALUES (1);
    ROLLBACK;
    BEGIN;
    CREATE TABLE made_and_truncated AS SELECT i AS id FROM generate_series(1, 300) AS i;
    TRUNCATE made_and_truncated;
    INSERT INTO made_and_truncated VALUES (1);
    COMMIT;
    DROP TABLE dropped;
"""

VISIBILITY_MAP = """
    CREATE EXTENSION pg_visibility;
    SELECT pg_truncate_visibility_map('rewritten');
"""

REWRITES = """
    UPDATE rewritten SET filler = 'x' WHERE id % 3 = 0;
    VACUUM FULL rewritten;
    CLUSTER rewritten USING rewritten_pkey;
    REINDEX TABLE long_values;
    REINDEX INDEX CONCURRENTLY rewritten_pkey;
    REFRESH MATERIALIZED VIEW rewritten_view;
    ALTER TABLE rewritten ADD made_at timestamptz DEFAULT clock_timestamp();
    VACUUM FULL pg_class;
    REINDEX TABLE pg_database;
    ALTER TABLE to_unlogged SET UNLOGGED;
    ALTER TABLE to_logged SET LOGGED;
    INSERT INTO to_unlogged VALUES (0);
    INSERT INTO to_logged VALUES (0);
    INSERT INTO forgotten SELECT i FROM generate_series(501, 900) AS i;
    TRUNCATE forgotten;
    CREATE UNLOGGED TABLE forgotten_soon (id int PRIMARY KEY);
    CREATE UNLOGGED SEQUENCE forgotten_counter;
    CREATE TEMPORARY TABLE mine AS SELECT i AS id FROM generate_series(1, 500) AS i;
    CREATE INDEX ON mine (id);
    DROP TABLE mine;
"""

VALUES = """
    UPDATE long_values SET value = repeat(md5(value), 200) WHERE id % 3 = 0;
    DELETE FROM long_values WHERE id % 5 = 0;
    VACUUM long_values;
    SELECT lo_put(1000001, 5000, repeat('changed', 500)::bytea);
    SELECT lo_from_bytea(1000002, repeat('second', 2000)::bytea);
    SELECT lo_unlink(1000002);
    SELECT count(nextval('counter')) FROM generate_series(1, 100);
    SELECT setval('counter', 100000);
    ALTER SEQUENCE restarted RESTART WITH 7;
    CREATE SEQUENCE made_counter;
    SELECT nextval('made_counter');
"""

TRANSACTIONS = """
    BEGIN;
    SAVEPOINT outer_one;
    CREATE TABLE never_there AS SELECT i AS id FROM generate_series(1, 300) AS i;
    DELETE FROM kept_after_all WHERE id % 2 = 0;
    SAVEPOINT inner_one;
    TRUNCATE rewritten;
    ROLLBACK TO inner_one;
    UPDATE rewritten SET filler = 'sub' WHERE id % 50 = 0;
    ROLLBACK TO outer_one;
    INSERT INTO kept_after_all VALUES (501);
    COMMIT;
    BEGIN;
    CREATE TABLE never_there AS SELECT i AS id FROM generate_series(1, 300) AS i;
    ROLLBACK;
    BEGIN;
    DROP TABLE dropped_when_prepared;
    CREATE TABLE made_when_prepared AS SELECT i AS id FROM generate_series(1, 300) AS i;
    PREPARE TRANSACTION 'drops';
    BEGIN;
    DROP TABLE kept_after_all;
    CREATE TABLE gone_when_prepared AS SELECT i AS id FROM generate_series(1, 300) AS i;
    PREPARE TRANSACTION 'keeps';
    CHECKPOINT;
    COMMIT PREPARED 'drops';
    ROLLBACK PREPARED 'keeps';
    BEGIN;
    SELECT id FROM rewritten WHERE id % 20 = 0 FOR UPDATE;
    SAVEPOINT twice;
    SELECT id FROM rewritten WHERE id % 40 = 0 FOR SHARE;
    UPDATE rewritten SET filler = 'locked twice' WHERE id % 40 = 0;
    COMMIT;
    SELECT pg_replication_origin_create('origin');
    SELECT pg_replication_origin_session_setup('origin');
    BEGIN;
    SELECT pg_replication_origin_xact_setup('0/28', now());
    INSERT INTO kept_after_all VALUES (502);
    COMMIT;
    SELECT pg_replication_origin_session_reset();
    SELECT pg_replication_origin_drop('origin');
"""

MESSAGES = """
    SELECT pg_logical_emit_message(false, 'test', 'short');
    SELECT pg_logical_emit_message(true, 'test', repeat('longer than a segment ', 110000));
    SELECT pg_switch_wal();
    SELECT pg_logical_emit_message(false, 'test', repeat('m', 1048576 - 200));
    SELECT pg_create_restore_point('a name');
    SELECT pg_switch_wal();
    SELECT pg_switch_wal();
"""

IN_PLACE_TABLESPACE = """
    SET allow_in_place_tablespaces = on;
    CREATE TABLESPACE in_place LOCATION '';
    CREATE TABLE in_place_table TABLESPACE in_place AS SELECT i AS id FROM generate_series(1, 500) AS i;
    CREATE UNLOGGED TABLE in_place_forgotten (id int PRIMARY KEY) TABLESPACE in_place;
"""

MOVES = """
    ALTER TABLE moved SET TABLESPACE elsewhere;
    ALTER INDEX moved_pkey SET TABLESPACE elsewhere;
    UPDATE moved SET filler = 'moved' WHERE id % 10 = 0;
    CREATE TABLE elsewhere_made TABLESPACE elsewhere AS SELECT i AS id FROM generate_series(1, 300) AS i;
    ALTER DATABASE moving SET TABLESPACE elsewhere;
"""


class Workload:
    """Runs the workload on a server whose settings include ``SETTINGS``."""

    def __init__(self, server: ThrowawayServer, directory: Path) -> None:
        self._server = server
        self._tablespace = directory / "elsewhere"
        self._major = server.installation.major

    def prepare(self) -> None:
        """Make the tables that ``run`` changes; ends with a checkpoint."""
        self._tablespace.mkdir()
        give_to_server(self._tablespace)
        with self._server.connect() as connection:
            execute(connection, PREPARE)
            create = sql.SQL("CREATE TABLESPACE elsewhere LOCATION {}").format(str(self._tablespace))
            connection.execute(create)
            connection.execute("CHECKPOINT")

    def changed_in_place(self) -> dict[str, int]:
        """Return the relation numbers of what ``run`` changes without making new files of it, by name."""
        query = "SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relname ~ '^(kinds|counter|pg_largeobj)'"
        with self._server.connect() as connection:
            return dict(connection.execute(query).fetchall())

    def run(self) -> None:
        """Make every kind of change, each step with another kind of compression, with checkpoints in between."""
        with self._server.connect() as connection:
            compressions = cycle(self._compressions(connection))
            for number, step in enumerate(self._steps(connection)):
                connection.execute(sql.SQL("SET wal_compression = {}").format(next(compressions)))
                execute(connection, step)
                if number % 2:
                    connection.execute("CHECKPOINT")
                self._use_moving_database(number)
        self._lock_rows_together()

    def _steps(self, connection: psycopg.Connection[tuple[object, ...]]) -> Iterator[str]:
        extensions = {name for (name,) in connection.execute("SELECT name FROM pg_available_extensions")}
        yield INDEXES
        if "bloom" in extensions:
            yield BLOOM
        yield SHRINKING_AND_GROWING
        if "pg_visibility" in extensions:
            yield VISIBILITY_MAP
        # Sequences cannot be unlogged before 15.
        yield REWRITES if self._major >= 15 else REWRITES.replace("UNLOGGED SEQUENCE", "SEQUENCE")
        yield VALUES
        yield TRANSACTIONS
        yield MESSAGES
        if self._major >= 15:
            yield IN_PLACE_TABLESPACE
        yield MOVES
        yield from self._databases()

    def _databases(self) -> Iterator[str]:
        strategies = ["STRATEGY file_copy", "STRATEGY wal_log"] if self._major >= 15 else [""]
        for number, strategy in enumerate(strategies):
            yield f"CREATE DATABASE made_{number} {strategy};"
            yield f"CREATE DATABASE brief_{number} {strategy};\nDROP DATABASE brief_{number};"
        yield "DROP DATABASE made_0;\nCREATE DATABASE made_again TABLESPACE elsewhere;"

    def _compressions(self, connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
        """Return the values of wal_compression that this build knows."""
        known = ["off"]
        for value in ("pglz", "lz4", "zstd") if self._major >= 15 else ("on",):
            try:
                connection.execute(sql.SQL("SET wal_compression = {}").format(value))
            except psycopg.errors.InvalidParameterValue:
                continue
            known.append(value)
        return known

    def _use_moving_database(self, number: int) -> None:
        with self._server.connect(dbname="moving") as connection:
            connection.execute(f"CREATE TABLE step_{number} AS SELECT i AS id FROM generate_series(1, 50) AS i")
        # A process that has just ended may still count as one that uses the database.
        deadline = time.monotonic() + 10
        while self._is_used("moving") and time.monotonic() < deadline:
            time.sleep(0.01)

    def _is_used(self, database: str) -> bool:
        with self._server.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
            return connection.execute(query, [database]).fetchone() != (0,)

    def _lock_rows_together(self) -> None:
        """Have two transactions lock the same rows: multixacts, and their visibility bits."""
        with self._server.connect(autocommit=False) as one, self._server.connect(autocommit=False) as other:
            for connection in (one, other):
                connection.execute("SELECT id FROM rewritten WHERE id % 100 = 0 FOR KEY SHARE")
            other.execute("UPDATE rewritten SET filler = 'shared' WHERE id = 100")
            other.commit()
            one.rollback()


def execute(connection: psycopg.Connection[tuple[object, ...]], step: str) -> None:
    """Run the statements of a step one after another."""
    for statement in step.split(";\n"):
        if statement.strip(" ;\n"):
            connection.execute(statement.encode())
