"""Record the WAL that is measured: four loads on the embedded server, a directory of segments each, kept for later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pgwal_cli.server_installation import embedded_installation, make_reachable
from pgwal_cli.throwaway_server import ThrowawayServer

WAL_BYTES = 2 << 30
_SEGMENT_SIZE = 16 << 20
_SETTINGS: dict[str, str | int | bool] = {
    "fsync": False,
    "synchronous_commit": False,
    "shared_buffers": "512MB",
    "max_wal_size": "1GB",
    "wal_keep_size": "100GB",
    "autovacuum": True,
}


class Load(NamedTuple):
    """A kind of load: what prepares it, and what is repeated until there is WAL enough."""

    name: str
    prepare: Callable[[ThrowawayServer], None]
    repeat: Callable[[ThrowawayServer], None]
    settings: dict[str, str | int | bool]
    wal_bytes: int = WAL_BYTES


def _nothing(_server: ThrowawayServer) -> None:
    """Prepare nothing."""


def _fill(server: ThrowawayServer) -> None:
    server.run_tool("pgbench", "-i", "-q", "-s", "50")


def _transact(server: ThrowawayServer) -> None:
    server.run_tool("pgbench", "-n", "-c", "4", "-j", "2", "-T", "20")


def _bulk_load(server: ThrowawayServer) -> None:
    server.run_tool("pgbench", "-i", "-q", "-s", "50")


def _small_records(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS small")
        connection.execute("CREATE TABLE small (id int) WITH (autovacuum_enabled = off)")
        connection.execute("INSERT INTO small SELECT generate_series(1, 4000000)")
        connection.execute("UPDATE small SET id = id + 1 WHERE id % 4 = 0")
        connection.execute("DELETE FROM small")


_MAKE_MEASURED = """
    CREATE TABLE measured (day int, place int, note text) PARTITION BY LIST (day);
    CREATE INDEX ON measured (place);
    CREATE PROCEDURE work_in_temporary_tables(rounds int) LANGUAGE plpgsql AS $$
    BEGIN
        FOR round IN 1..rounds LOOP
            CREATE TEMPORARY TABLE picked (id int PRIMARY KEY, note text);
            INSERT INTO picked SELECT i, 'picked' FROM generate_series(1, 20) AS i;
            COMMIT;
            DROP TABLE picked;
            COMMIT;
        END LOOP;
    END $$;
    CREATE PROCEDURE turn_partitions(first int, rounds int) LANGUAGE plpgsql AS $$
    BEGIN
        FOR day IN first..first + rounds - 1 LOOP
            EXECUTE format('CREATE TABLE day_%s (LIKE measured)', day);
            EXECUTE format('INSERT INTO day_%s SELECT %s, i, ''measured'' FROM generate_series(1, 300) AS i', day, day);
            COMMIT;
            EXECUTE format('ALTER TABLE measured ATTACH PARTITION day_%s FOR VALUES IN (%s)', day, day);
            COMMIT;
            IF day >= first + 3 THEN
                EXECUTE format('ALTER TABLE measured DETACH PARTITION day_%s', day - 3);
                EXECUTE format('TRUNCATE day_%s', day - 3);
                COMMIT;
                EXECUTE format('DROP TABLE day_%s', day - 3);
                COMMIT;
            END IF;
        END LOOP;
        FOR day IN first + greatest(rounds - 3, 0)..first + rounds - 1 LOOP
            EXECUTE format('DROP TABLE day_%s', day);
            COMMIT;
        END LOOP;
    END $$;
"""


def make_measured(server: ThrowawayServer) -> None:
    """Make what ``make_and_drop`` needs, once."""
    with server.connect() as connection:
        connection.execute(_MAKE_MEASURED)


def make_and_drop(server: ThrowawayServer) -> None:
    """Make, fill and drop temporary tables and partitions, each step a transaction of its own."""
    with server.connect() as connection:
        for _ in range(10):
            connection.execute("CALL work_in_temporary_tables(200)")
            connection.execute("CALL turn_partitions(1, 20)")


# One in two hundred records creates, drops or truncates relation files, as in the server's regression tests.
DDL = Load("ddl", make_measured, make_and_drop, {}, 1 << 30)
LOADS = (
    Load("oltp", _fill, _transact, {}),
    Load("bulk", _nothing, _bulk_load, {}),
    # Without page images, nearly all of it is records of some fifty bytes.
    Load("small", _nothing, _small_records, {"full_page_writes": False}),
    DDL,
)


def cache_directory() -> Path:
    """Return where recordings are kept: PGWAL_BENCHMARK_CACHE, or below the user's cache."""
    given = os.environ.get("PGWAL_BENCHMARK_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(caches) / "pgwal-benchmarks"


def recorded_wal(load: Load, scratch: Path, wal_bytes: int = 0) -> Path:
    """Return the directory of whole segments of a load, recording them when they are not there yet."""
    wal_bytes = wal_bytes or load.wal_bytes
    recorded = cache_directory() / f"{load.name}-{wal_bytes >> 20}MB"
    if recorded.is_dir():
        return recorded
    print(f"recording {wal_bytes >> 20} MB of {load.name} WAL in {recorded}", flush=True)
    unfinished = recorded.with_name(f"{recorded.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _record(load, scratch / f"record-{load.name}", wal_bytes, unfinished)
    unfinished.rename(recorded)
    return recorded


def _record(load: Load, directory: Path, wal_bytes: int, target: Path) -> None:
    installation = make_reachable(embedded_installation(), directory.parent)
    with ThrowawayServer(installation, directory) as server:
        server.initdb("-k")
        server.configure(**_SETTINGS | load.settings)
        server.start()
        load.prepare(server)
        first, start = _switch(server)
        while _written_since(server, start) < wal_bytes:
            load.repeat(server)
        last, _ = _switch(server)
        server.stop()
        for segment in sorted((server.data_directory / "pg_wal").iterdir()):
            # The segment of the first switch is the one before the load.
            if len(segment.name) == 24 and first < segment.name <= last:
                shutil.copyfile(segment, target / segment.name)
    shutil.rmtree(directory, ignore_errors=True)


def _switch(server: ThrowawayServer) -> tuple[str, str]:
    """End the segment, and return its name and the LSN at which it ended."""
    with server.connect() as connection:
        row = connection.execute("SELECT pg_walfile_name(lsn), lsn::text FROM pg_switch_wal() AS lsn").fetchone()
    assert row is not None
    return row[0], row[1]


def _written_since(server: ThrowawayServer, start: str) -> int:
    with server.connect() as connection:
        row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)::bigint", [start]).fetchone()
    assert row is not None
    return int(row[0])
