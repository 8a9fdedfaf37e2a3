"""Unlogged relations that are made while a backup is taken: the restored server starts, and has them empty."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from fix_servers import ServerFactory
from pgwal_process import succeed
from restore.restored_server import Scene

from pgwal.engine.created_init_forks import CreatedInitForks
from pgwal.lsn import Lsn
from pgwal.wal import layout
from pgwal.wal.page_magic import wal_format_of_major
from pgwal_cli.throwaway_server import ThrowawayServer

FORMAT = wal_format_of_major(18)
OTHER_DATABASE = 6


def locator(rel_number: int, db_oid: int = 5) -> dict[str, int]:
    return {"spc_oid": 1663, "db_oid": db_oid, "rel_number": rel_number}


def create(forks: CreatedInitForks, fork: int, **place: int) -> None:
    data = layout.SmgrCreate.build({"locator": place, "fork": fork})
    forks.take(FORMAT, Lsn(1000), layout.RM_SMGR, layout.SMGR_CREATE, data)


def test_forks_that_recovery_makes_anew() -> None:
    forks = CreatedInitForks()
    assert not forks.is_in_the_way("base/5/100")
    create(forks, 3, **locator(100))
    for suffix, is_in_the_way in {"": True, ".1": True, "_fsm": True, "_vm": True, "_init": False}.items():
        assert forks.is_in_the_way(f"base/5/100{suffix}") == is_in_the_way
    for other in ("base/5/101", "base/6/100", "global/100", "base/5/PG_VERSION", "pg_tblspc/9/PG_18_202506291/5/100"):
        assert not forks.is_in_the_way(other)


def test_what_was_another_relation_before_is_wanted() -> None:
    forks = CreatedInitForks()
    create(forks, 0, **locator(100))
    truncation = layout.SmgrTruncate.build({"block_no": 3, "locator": locator(101), "flags": 1})
    forks.take(FORMAT, Lsn(1001), layout.RM_SMGR, layout.SMGR_TRUNCATE, truncation)
    payload = layout.payloads(FORMAT)[layout.RM_DBASE, FORMAT.dbase_drop]
    dropped = payload.build({"db_oid": OTHER_DATABASE, "spc_oids": [1663]})
    forks.take(FORMAT, Lsn(1002), layout.RM_DBASE, FORMAT.dbase_drop, dropped)
    create(forks, 3, **locator(100))
    create(forks, 3, **locator(101))
    create(forks, 3, **locator(102))
    create(forks, 3, **locator(102, OTHER_DATABASE))
    paths = ["base/5/100", "base/5/101", "base/5/102", f"base/{OTHER_DATABASE}/102"]
    assert [path for path in paths if forks.is_in_the_way(path)] == ["base/5/102"]


@contextmanager
def half_built_index(server: ThrowawayServer) -> Iterator[None]:
    """Have an index of an unlogged table be built, whose main fork is there and its init fork not yet."""
    with server.connect() as connection, server.connect() as builder:
        connection.execute("SELECT pg_advisory_lock(1)")
        building = threading.Thread(target=builder.execute, args=("CREATE INDEX made ON unlogged (slow(i))",))
        building.start()
        while not connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchall():
            pass
        yield
        connection.execute("SELECT pg_advisory_unlock(1)")
        building.join()


@pytest.mark.postgres(13, 18, 19)
def test_an_unlogged_index_that_is_built_meanwhile(make_server: ServerFactory, scratch: Path, repo: Path) -> None:
    source = make_server()
    scene = Scene(repo, make_server)
    with source.connect() as connection:
        connection.execute("CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS i")
        connection.execute(
            "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE sql AS"
            " 'SELECT $1 FROM (SELECT pg_advisory_lock_shared(1)) AS waits'"
        )
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS i")
    options = ("--repo", scene.repo, "-d", source.conninfo)
    succeed("stream", *options, "--create-slot", "-S", "pgwal", "--once")
    with half_built_index(source):
        succeed("full", *options, "-S", "pgwal", "-c", "fast")
    succeed("stream", *options, "-S", "pgwal", "--once")
    restored = scene.restore(scratch / "target", "latest")
    with scene.started(restored) as server, server.connect() as connection:
        assert rows(connection, "SELECT count(*) FROM kept") == 100
        assert rows(connection, "SELECT count(*) FROM unlogged") == 0
        connection.execute("INSERT INTO unlogged VALUES (7)")
        connection.execute("SET enable_seqscan = off")
        assert rows(connection, "SELECT i FROM unlogged WHERE slow(i) = 7") == 7


def rows(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
