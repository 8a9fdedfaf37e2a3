"""Some databases of a cluster restored: their rows are there, the others replay without an error and can be dropped."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from fix_formats import PACKED_FORMAT, new_repository
from fix_servers import ServerFactory
from hypothesis import given
from hypothesis import strategies as st
from pgwal_process import assert_failed, run_pgwal, succeed
from psycopg import sql
from restore.restored_server import Scene

from pgwal.backup.database_names import database_catalog_path, database_names
from pgwal.checksum import crc32c
from pgwal.errors import FormatError
from pgwal.relation import BLOCK_SIZE
from pgwal_cli.throwaway_server import ThrowawayServer

ROWS = 6_000

# ---- the shared catalog


def relation_map(size: int, mappings: list[tuple[int, int]]) -> bytes:
    crc_offset = {512: 504, 524: 520}[size]
    content = struct.pack("<2I", 0x592717, len(mappings)) + b"".join(struct.pack("<2I", *each) for each in mappings)
    content = content.ljust(crc_offset, b"\0")
    return (content + struct.pack("<I", crc32c(content))).ljust(size, b"\0")


@pytest.mark.parametrize("size", [512, 524])
def test_where_the_catalog_is(size: int) -> None:
    content = relation_map(size, [(1260, 5), (1262, 70_000)])
    assert database_catalog_path(content) == "global/70000"
    for wrong in (
        content[:-1],
        b"\1" + content[1:],
        content[:12] + b"\1" + content[13:],
        relation_map(size, [(1260, 5)]),
        b"",
    ):
        with pytest.raises(FormatError):
            database_catalog_path(wrong)


def page(rows: list[tuple[int, bytes]], *, flags: int = 1) -> bytes:
    """Return a heap page of rows with a header of 24 bytes each, the first one at its end."""
    content, pointers = bytearray(BLOCK_SIZE), b""
    upper = BLOCK_SIZE
    for oid, name in rows:
        item = b"\0" * 22 + b"\x18\0" + struct.pack("<I64s", oid, name) + b"more columns"
        upper -= len(item) + -len(item) % 8
        content[upper : upper + len(item)] = item
        pointers += struct.pack("<I", upper | flags << 15 | len(item) << 17)
    header = struct.pack("<8s6HI", b"", 0, 0, 24 + len(pointers), upper, BLOCK_SIZE, BLOCK_SIZE | 4, 0)
    content[: 24 + len(pointers)] = header + pointers
    return bytes(content)


def test_names_of_databases() -> None:
    first = page([(5, b"postgres"), (16384, b"old name"), (16385, b"x" * 63)])
    catalog = first + bytes(BLOCK_SIZE) + page([(16384, b"new name"), (16390, b"postgres")])
    # What is not whole, or does not count any more.
    catalog += page([(7, b"dead")], flags=3) + page([(8, b"cut")])[:-1]
    assert database_names(catalog) == {
        b"postgres": {5, 16390}, b"old name": {16384}, b"x" * 63: {16385}, b"new name": {16384}
    }  # fmt: skip


@given(content=st.binary(max_size=200), at=st.integers(0, BLOCK_SIZE - 200))
def test_broken_catalogs_raise_nothing_else(content: bytes, at: int) -> None:
    whole = bytearray(page([(16384 + number, b"name") for number in range(20)]))
    whole[at : at + len(content)] = content
    with suppress(FormatError):
        database_names(bytes(whole))


# ---- servers


def run(server: ThrowawayServer, database: str, *statements: str) -> None:
    with server.connect(dbname=database) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rows(server: ThrowawayServer, database: str, query: str = "SELECT count(*), sum(id) FROM t") -> tuple[int, ...]:
    with server.connect(dbname=database) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return tuple(map(int, row))


def fill(server: ThrowawayServer, database: str) -> None:
    run(
        server, database,
        "CREATE TABLE t (id int, filler text)",
        f"INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, {ROWS}) AS i",
        "CREATE INDEX ON t (id)",
        "CREATE INDEX ON t USING hash (id)",
        "CREATE TABLE quiet AS SELECT i AS id, repeat('y', 500) AS filler FROM generate_series(1, 2000) AS i",
        "CREATE TABLE gone AS SELECT i AS id FROM generate_series(1, 2000) AS i",
        "CREATE TABLE frozen WITH (autovacuum_enabled = off) AS SELECT i AS id FROM generate_series(1, 2000) AS i",
    )  # fmt: skip


def churn(server: ThrowawayServer, database: str) -> None:
    """Change, delete, vacuum and drop: with records that refer to pages and have no image of them."""
    run(
        server, database,
        "VACUUM frozen",
        f"DELETE FROM t WHERE id BETWEEN 100 AND {ROWS // 4}",
        "VACUUM t",
        "INSERT INTO t SELECT i, 'more' FROM generate_series(1000000, 1004000) AS i",
        f"UPDATE t SET filler = 'changed' WHERE id > {ROWS - 500}",
        "CHECKPOINT",
        "DROP TABLE gone",
        f"DELETE FROM t WHERE id > {ROWS // 2} AND id < 1000000",
        "VACUUM t",
        "REINDEX TABLE t",
        "INSERT INTO t SELECT i, 'last' FROM generate_series(2000000, 2001000) AS i",
    )  # fmt: skip


def replay_beside_others(make_server: ServerFactory, scratch: Path, *initdb_args: str) -> None:
    """Restore one of three databases, with much of the others changed by WAL, and use what comes out."""
    settings: dict[str, str | int | bool] = {"full_page_writes": False} if "--bare" in initdb_args else {}
    arguments = tuple(each for each in initdb_args if each != "--bare")
    server = make_server(
        initdb_args=("--wal-segsize=1", *arguments), settings={"autovacuum": False, "wal_keep_size": "1GB", **settings}
    )
    repo = scratch / "repo"
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    for name in ("wanted", "other", "Template"):
        run(server, "postgres", f'CREATE DATABASE "{name}"')
        fill(server, name)
    succeed("full", *source)
    churn(server, "other")
    if not settings:
        # With full_page_writes off, there are no incremental backups.
        succeed("incremental", *source)
    for name in ("wanted", "other"):
        run(server, name, "INSERT INTO quiet VALUES (-1, 'later')")
    churn(server, "wanted")
    run(server, "other", "DELETE FROM t WHERE id > 1000000", "VACUUM t", "VACUUM quiet")
    # Copied as files, from version 15 on only when that is asked for.
    copying = " STRATEGY file_copy" if server.installation.major >= 15 else ""
    run(server, "postgres", f'CREATE DATABASE "copy" TEMPLATE "Template"{copying}')
    run(server, "copy", "DELETE FROM t WHERE id < 2000", "VACUUM t")
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    expected = {name: (rows(server, name), rows(server, name, "SELECT count(*), sum(id) FROM quiet"))
                for name in ("wanted", "copy")}  # fmt: skip
    server.kill()
    target = scratch / "restored"
    restore = ["restore", "--repo", repo, "-D", target, "-N", "--database", "wanted"]
    forecast = json.loads(succeed(*restore, "--dry-run", "--json"))
    outcome = run_pgwal(*restore, "--json")
    assert outcome.code == 0, outcome.stderr
    assert "databases without their rows, which are to be dropped: other (" in outcome.stderr
    assert json.loads(outcome.stdout)["written_bytes"] <= forecast["file_systems"][0]["needed_bytes"]
    scene = Scene(repo, make_server)
    with scene.started(target) as restored:
        assert "PANIC" not in restored.log_tail(10_000)
        for name, (changed, quiet) in expected.items():
            assert rows(restored, name) == changed
            assert rows(restored, name, "SELECT count(*), sum(id) FROM quiet") == quiet
        amcheck(restored, "wanted")
        for name in ("other", "Template", "copy"):
            run(restored, "wanted", f'DROP DATABASE "{name}"')
        assert rows(restored, "wanted") == expected["wanted"][0]
        restored.restart()
        run(restored, "wanted", "VACUUM (FREEZE) t", "CHECKPOINT")


def amcheck(server: ThrowawayServer, database: str) -> None:
    with server.connect(dbname=database) as connection:
        if connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'").fetchone() is None:
            return  # The wheel of 16 comes without it.
        connection.execute("CREATE EXTENSION amcheck")
        connection.execute(
            "SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid"
            " WHERE c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree') AND c.relpersistence <> 't'"
        )
        if server.installation.major >= 14:
            query = (
                "SELECT count(*) FROM pg_class c, verify_heapam(c.oid) WHERE c.relkind IN ('r', 't', 'm')"
                " AND c.relpersistence <> 't'"
            )
            assert connection.execute(query).fetchone() == (0,)


@pytest.mark.postgres(18)
@pytest.mark.parametrize("initdb_args", [("--no-data-checksums",)], ids=["no-checksums"])
def test_one_database(make_server: ServerFactory, scratch: Path, initdb_args: tuple[str, ...]) -> None:
    replay_beside_others(make_server, scratch, *initdb_args)


@pytest.mark.skipif("PGWAL_LARGE_TESTS" not in os.environ, reason="PGWAL_LARGE_TESTS is not set")
@pytest.mark.postgres
@pytest.mark.parametrize("way", ["plain", "checksums", "bare"])
def test_one_database_on_every_version(make_server: ServerFactory, scratch: Path, way: str) -> None:
    major = make_server.installation.major
    without = ["--no-data-checksums"] if major >= 18 else []
    arguments = {"plain": without, "checksums": ["-k"], "bare": [*without, "--bare"]}[way]
    replay_beside_others(make_server, scratch, *arguments)


@pytest.mark.postgres(18)
def test_what_is_not_restored_takes_no_room(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(initdb_args=("--wal-segsize=1",)), new_repository(scratch / "repo", PACKED_FORMAT)
    names = ["one", "two", "ä"]
    for name in names:
        run(server, "postgres", f'CREATE DATABASE "{name}"')
    for name in ("one", "two"):
        run(server, name, "CREATE TABLE t AS SELECT i AS id, repeat('x', 500) FROM generate_series(1, 20000) AS i")
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    succeed("full", *source)
    run(server, "two", "UPDATE t SET id = -id WHERE id > 19000")
    succeed("incremental", *source)
    # Without an image, of pages that come out of both backups.
    run(server, "two", "DELETE FROM t WHERE id IN (1, 2, -19999)")
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    with server.connect(dbname="two") as connection:
        query = sql.SQL("SELECT pg_relation_filepath('t'), pg_relation_size('t')")
        row = connection.execute(query).fetchone()
        assert row is not None
    server.kill()
    restore = ["restore", "--repo", repo, "-N", "-D"]
    for wrong in (["three"], ["one", "ONE"], [""]):
        names = [each for name in wrong for each in ("--database", name)]
        outcome = run_pgwal(*restore, scratch / "none", *names)
        assert_failed(outcome, 1, f"has no database {wrong[-1]}", "It has these: one, postgres, template0, template1,")
        assert not (scratch / "none").exists()
    for other, why in (["--standby"], "no pages"), (["--restore-command", "false"], "must be in the repository"):
        outcome = run_pgwal(*restore, scratch / "none", "--database", "one", *other)
        assert_failed(outcome, 2, f"--database and {other[0]} exclude each other: .*{why}")
        assert not (scratch / "none").exists()
    target = scratch / "restored"
    succeed(*restore, target, "--database", "one", "--database", "ä")
    file = (target / row[0]).stat()
    assert file.st_size == row[1] > 10 << 20
    # Those blocks, and the ones whose hint bits were set since.
    assert file.st_blocks * 512 < 2 << 20
    with Scene(repo, make_server).started(target) as restored:
        assert rows(restored, "one", "SELECT count(*) FROM t") == (20_000,)
        assert rows(restored, "ä", "SELECT 1") == (1,)
        run(restored, "postgres", "DROP DATABASE two")
