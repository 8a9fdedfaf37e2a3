"""The server's files over SQL: what is listed and read, what a role needs for it, and backups made that way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import time
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from fix_servers import ServerFactory
from hypothesis import given
from hypothesis import strategies as st
from pgwal_process import assert_failed, assert_nothing_raw, finish, run_pgwal, start_pgwal, succeed
from psycopg.conninfo import make_conninfo
from test_main_job import PGWAL, checksums, prepare, run_load, wait_until_promoted

from pgwal.backup.source import SourceDirectory, SourceFile, WantedContent, extents, read_each
from pgwal.backup.walk import EntryKind, EntryStatus, walk
from pgwal.control_file import ControlFile
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.errors import FormatError, PrivilegeMissing, ServerError, WrongCluster
from pgwal.postgres import file_contents
from pgwal.postgres.binary_copy import BinaryCopyReader
from pgwal.postgres.connection import ConnectionParameters, connect_sql
from pgwal.postgres.directories import SqlDirectories
from pgwal.postgres.files import SqlDataDirectory
from pgwal.postgres.identifier import quoted_identifier
from pgwal.postgres.privileges import FILE_FUNCTIONS
from pgwal.relation import BLOCK_SIZE, parse_relation_path
from pgwal_cli.exit_codes import FAILED, NO_CONNECTION
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import (
    ThrowawayServer,
    give_to_server,
)

ROLE = "backup role"
FILE_NAMES = ["a name with blanks", 'it\'s "quoted"', "back\\slash", r"\x41", "größe.conf", ".hidden", "percent %s"]


def open_source(server: ThrowawayServer, **changes: str) -> SqlDataDirectory:
    return SqlDataDirectory(connect_sql(ConnectionParameters(make_conninfo(server.conninfo, **changes))))


def write(server: ThrowawayServer, name: str | bytes, content: bytes) -> Path:
    path = server.data_directory / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    give_to_server(path.parent)
    path.write_bytes(content)
    give_to_server(path)
    return path


def read_all(chunks: Iterator[bytes] | None) -> bytes | None:
    return None if chunks is None else b"".join(chunks)


# ---- what is listed and read


@pytest.mark.postgres
def test_lists_and_reads_what_the_local_reader_does(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(settings={"autovacuum": False})
    for name in FILE_NAMES:
        write(server, name, name.encode())
    write(server, "a directory/of one\nfile", b"x" * 3_000_000)
    with server.connect() as session:
        make_relations(session, server, scratch)
        local = LocalDataDirectory(server.data_directory)
        with open_source(server) as source:
            listed = list(source.list())
            assert list(map(in_whole_seconds, listed)) == list(map(in_whole_seconds, local.list()))
            files = [item for item in listed if isinstance(item, SourceFile)]
            assert {*FILE_NAMES, "a directory/of one\nfile"} <= {file.path for file in files}
            assert_hold_what_belongs(files, session, server.installation.major)
            assert_small_files_read_alike(source, local, files)
            for file in files:
                assert_read_alike(source, local, file)
            assert ControlFile.decode(source.read_control_file()) == ControlFile.decode(local.read_control_file())


def make_relations(session: psycopg.Connection, server: ThrowawayServer, scratch: Path) -> None:
    location = scratch / "a space"
    location.mkdir()
    give_to_server(location)
    session.execute(f"CREATE TABLESPACE linked LOCATION '{location}'")
    session.execute("CREATE TABLE in_linked (i) TABLESPACE linked AS SELECT generate_series(1, 10000)")
    if server.installation.major >= 15:
        session.execute("SET allow_in_place_tablespaces = on")
        session.execute("CREATE TABLESPACE in_place LOCATION ''")
        session.execute("CREATE TABLE in_in_place (i) TABLESPACE in_place AS SELECT generate_series(1, 10000)")
    session.execute("CREATE TABLE plain AS SELECT i, repeat('x', 500) FROM generate_series(1, 20000) AS i")
    session.execute("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) AS i")
    session.execute("CREATE TABLE empty (i int)")
    session.execute("CREATE TEMP TABLE temporary AS SELECT generate_series(1, 1000) AS i")
    session.execute("VACUUM")
    session.execute("CHECKPOINT")


def assert_hold_what_belongs(files: Sequence[SourceFile], session: psycopg.Connection, major: int) -> None:
    sizes = {file.path: file.size_bytes for file in files}
    tables = ["in_linked", "plain", "empty", "unlogged", "temporary", *(["in_in_place"] if major >= 15 else [])]
    paths = {}
    for table in tables:
        (paths[table],) = session.execute("SELECT pg_relation_filepath(%s)", (table,)).fetchone() or ("",)
    assert paths["in_linked"].startswith("pg_tblspc/")
    assert sizes[paths["in_linked"]] == sizes.get(paths.get("in_in_place", ""), sizes[paths["in_linked"]])
    assert sizes[paths["plain"]] > 10_000_000
    assert sizes[paths["empty"]] == 0
    assert paths["unlogged"] not in sizes
    assert paths["unlogged"] + "_init" in sizes
    assert paths["temporary"] not in sizes
    assert "global/pg_control" not in sizes


def in_whole_seconds(item: SourceDirectory | SourceFile) -> SourceDirectory | SourceFile:
    """Return an item as SQL tells it: times without fractions."""
    return item if isinstance(item, SourceDirectory) else item._replace(mtime_s=int(item.mtime_s))


def assert_small_files_read_alike(
    source: SqlDataDirectory, local: LocalDataDirectory, files: Sequence[SourceFile]
) -> None:
    wanted = []
    for number, file in enumerate(files):
        if 0 < file.size_bytes <= 20 * BLOCK_SIZE:
            wanted.append(WantedContent(file.path, file.size_bytes, None))
        if file.size_bytes >= BLOCK_SIZE:
            # Some at the end, some apart, some behind it.
            last = file.size_bytes // BLOCK_SIZE - 1
            blocks = array("I", sorted({last // 2, last, last + 1 + number % 2}))
            wanted.append(WantedContent(file.path, BLOCK_SIZE * len(blocks), blocks))
    wanted.insert(1, WantedContent("no/such/file", 5, None))
    expected = read_each(local, wanted)
    assert expected.count(None) == 1
    for start in range(0, len(wanted), 100):
        group = wanted[start : start + 100]
        assert list(local.read_small(group)) == expected[start : start + 100]
        assert list(source.read_small(group)) == expected[start : start + 100]
    assert list(source.read_small([])) == []


def assert_read_alike(source: SqlDataDirectory, local: LocalDataDirectory, file: SourceFile) -> None:
    content = read_all(local.read_file(file.path, file.size_bytes))
    assert read_all(source.read_file(file.path, file.size_bytes)) == content, file
    if parse_relation_path(file.path) is None:
        return
    count = file.size_bytes // BLOCK_SIZE
    for blocks in (range(count), range(0, count, 3), [n for n in range(count) if n % 7 < 4], range(count - 1, count)):
        wanted = array("I", [n for n in blocks if n >= 0])
        expected = read_all(local.read_blocks(file.path, wanted))
        assert read_all(source.read_blocks(file.path, wanted)) == expected, file


@pytest.mark.postgres(13, 18)
def test_many_files_in_one_directory(server: ThrowawayServer) -> None:
    directory = server.data_directory / "many"
    directory.mkdir()
    for number in range(2500):
        (directory / f"{number:04}").touch()
    give_to_server(directory)
    with open_source(server) as source:
        listed = [item.path for item in source.list() if item.path.startswith("many/")]
    assert listed == [f"many/{number:04}" for number in range(2500)]


# ---- what changes meanwhile


@pytest.mark.postgres(13, 18)
def test_files_that_change_between_listing_and_reading(server: ThrowawayServer) -> None:
    content = os.urandom(20 * BLOCK_SIZE)
    path = write(server, "changing", content)
    blocks = array("I", [0, 1, 5, 9, 19])

    def chosen(of: bytes) -> bytes:
        return b"".join(of[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE] for n in blocks)

    with open_source(server) as source:
        path.write_bytes(content + b"grown")
        assert read_all(source.read_file("changing", len(content))) == content
        assert read_all(source.read_blocks("changing", blocks)) == chosen(content)
        for kept in (0, 1, BLOCK_SIZE, 5 * BLOCK_SIZE + 100, len(content) - 1):
            path.write_bytes(content[:kept])
            shortened = content[:kept].ljust(len(content), b"\0")
            assert read_all(source.read_file("changing", len(content))) == shortened
            assert read_all(source.read_blocks("changing", blocks)) == chosen(shortened)
            wanted = [
                WantedContent("changing", len(content), None),
                WantedContent("PG_VERSION", 2, None),
                WantedContent("changing", BLOCK_SIZE * len(blocks), blocks),
            ]
            assert list(source.read_small(wanted))[::2] == [shortened, chosen(shortened)]
        path.unlink()
        assert [content is None for content in source.read_small(wanted)] == [True, False, True]
        assert source.read_file("changing", len(content)) is None
        assert source.read_blocks("changing", blocks) is None
        assert source.read_file("no/such/directory", 1) is None
        # Nothing is to be read of these, so the server is not asked.
        assert read_all(source.read_file("changing", 0)) == b""
        assert read_all(source.read_blocks("changing", array("I"))) == b""


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize(("limit", "value"), [("SQL_QUERY_READS", 2), ("SQL_QUERY_BYTES", 2 * BLOCK_SIZE)])
def test_a_file_that_vanishes_while_it_is_read(
    server: ThrowawayServer, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(file_contents, "SQL_READ_BYTES", BLOCK_SIZE)
    monkeypatch.setattr(file_contents, limit, value)
    content = os.urandom(10 * BLOCK_SIZE)
    path = write(server, "vanishing", content)
    with open_source(server) as source:
        chunks = source.read_file("vanishing", len(content))
        assert chunks is not None
        first = next(chunks)
        path.unlink()
        found = first + b"".join(chunks)
    assert len(found) == len(content)
    zeros_from = found.index(bytes(BLOCK_SIZE))
    assert found == content[:zeros_from].ljust(len(content), b"\0")


@pytest.mark.postgres(13, 18)
def test_what_is_not_read_to_its_end_leaves_the_connection_usable(server: ThrowawayServer) -> None:
    write(server, "large", bytes(30_000_000))
    with open_source(server) as source:
        chunks = source.read_file("large", 30_000_000)
        assert chunks is not None
        next(chunks)
        del chunks
        assert read_all(source.read_file("large", 1000)) == bytes(1000)


@pytest.mark.postgres(13, 18)
def test_a_directory_and_a_file_that_vanish_while_they_are_listed(server: ThrowawayServer) -> None:
    write(server, "zz/one", b"1")
    write(server, "zz/two", b"2")
    with open_source(server) as source:
        listing = source.list()
        assert SourceDirectory("zz") in listing
        shutil.rmtree(server.data_directory / "zz")
        assert list(listing) == []
    with connect_sql(ConnectionParameters(server.conninfo)) as connection:
        directories = SqlDirectories(connection)
        (kept, gone) = directories.statuses("", ["base", "zz"])
        assert kept is not None
        assert kept.kind is EntryKind.DIRECTORY
        assert gone is None


# ---- names


@pytest.mark.postgres(13, 18)
def test_names_that_lead_elsewhere_are_refused(server: ThrowawayServer) -> None:
    with server.connect() as session, open_source(server) as source:
        session.execute("SET allow_system_table_mods = on")
        session.execute("ALTER FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) RENAME TO honest_ls_dir")
        for name in ("../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "base/../..", "a/"):
            session.execute(
                "CREATE OR REPLACE FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) RETURNS SETOF text"
                f" LANGUAGE sql AS $$ SELECT text '{name}' $$"
            )
            with pytest.raises(FormatError, match=r"not a plain (name|path)"):
                list(source.list())


class FixedDirectory:
    """One directory that holds certain names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def names(self, directory: str) -> list[str]:
        return [] if directory else list(self._names)

    def statuses(self, _: str, names: Sequence[str]) -> Iterator[EntryStatus | None]:
        return iter([EntryStatus(EntryKind.FILE, 1, 0.0) for _ in names])


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../x", "/x", "x\0y", "x/", "\udcc3\udca9"])
def test_no_source_may_name_what_is_elsewhere(name: str) -> None:
    with pytest.raises(FormatError):
        list(walk(FixedDirectory(["fine", name]), 18, pytest.fail))


@pytest.mark.postgres(13, 18)
def test_names_that_are_no_text_of_the_database(server: ThrowawayServer) -> None:
    write(server, b"no \xff UTF-8", b"content")
    with open_source(server) as source, pytest.raises(ServerError, match=r"no \\udcff UTF-8") as refused:
        list(source.list())
    assert "--pgdata" in (refused.value.hint or "")
    with server.connect() as session:
        session.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        session.execute("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    for database in ("bytes", "latin"):
        with open_source(server, dbname=database) as source:
            (file,) = [item for item in source.list() if item.path.startswith("no ")]
            assert os.fsencode(file.path) == b"no \xff UTF-8"
            assert read_all(source.read_file(file.path, 7)) == b"content"
            wanted = [WantedContent(file.path, 7, None), WantedContent("PG_VERSION", 2, None)]
            assert source.read_small(wanted)[0] == b"content"


@pytest.mark.postgres(18)
def test_a_link_that_leads_back_is_refused(server: ThrowawayServer) -> None:
    write(server, "own/file", b"")
    (server.data_directory / "own" / "loop").symlink_to(".")
    with open_source(server) as source, pytest.raises(ServerError, match="deep in each other: own/loop/loop"):
        list(source.list())


# ---- privileges


def list_and_read(source: SqlDataDirectory) -> bytes | None:
    assert list(source.list())
    return read_all(source.read_file("PG_VERSION", 3))


@pytest.mark.postgres
def test_each_missing_privilege_is_named_alone(server: ThrowawayServer) -> None:
    with server.connect() as session:
        session.execute(f'CREATE ROLE "{ROLE}" LOGIN')
        with open_source(server, user=ROLE) as source:
            for granted, signature in enumerate(FILE_FUNCTIONS):
                with pytest.raises(PrivilegeMissing, match="permission denied for function") as missing:
                    list_and_read(source)
                missing_functions = ", ".join(f"pg_catalog.{each}" for each in FILE_FUNCTIONS[granted:])
                grant = f'GRANT EXECUTE ON FUNCTION {missing_functions} TO "{ROLE}";'
                assert missing.value.hint == f"A superuser can run, in database postgres: {grant}"
                session.execute(f'GRANT EXECUTE ON FUNCTION {signature} TO "{ROLE}"')
            assert list_and_read(source) == f"{server.installation.major}\n".encode()


@pytest.mark.postgres(18)
def test_a_file_that_the_server_may_not_open(server: ThrowawayServer) -> None:
    write(server, "closed", b"content").chmod(0)
    with open_source(server) as source, pytest.raises(ServerError, match="Permission denied") as refused:
        source.read_file("closed", 7)
    assert refused.value.hint is None


@pytest.mark.postgres(18)
def test_two_connections_must_lead_to_one_server(server: ThrowawayServer, make_server: ServerFactory) -> None:
    with open_source(server) as source:
        with server.connect() as same:
            source.require_same_server(same)
        with make_server().connect() as other, pytest.raises(WrongCluster, match="two different servers"):
            source.require_same_server(other)


@pytest.mark.postgres(13, 14, 18)
def test_directories_that_a_base_backup_leaves_empty(server: ThrowawayServer, scratch: Path) -> None:
    """A tablespace below the data directory comes once, by its link, and temporary statistics not at all."""
    inside = server.data_directory / "spaces" / "inside"
    inside.mkdir(parents=True)
    give_to_server(inside.parent)
    give_to_server(inside)
    write(server, "statistics/db_0.stat", b"x")
    with server.connect() as session:
        session.execute(f"CREATE TABLESPACE inside LOCATION '{inside}'")
        session.execute("CREATE TABLE t TABLESPACE inside AS SELECT 1")
        if server.installation.major < 15:
            session.execute("ALTER SYSTEM SET stats_temp_directory = './statistics/'")
            session.execute("SELECT pg_reload_conf()")
        (path,) = session.execute("SELECT pg_relation_filepath('t')").fetchone() or ("",)
        session.execute("CHECKPOINT")
    for source in ([], ["--pgdata", server.data_directory]):
        taken = succeed("full", "--repo", scratch / "repo", "-d", server.conninfo, *source, "-c", "fast", "--json")
        data = scratch / "repo" / "backups" / json.loads(taken)["id"] / "data"
        assert (data / path).is_file()
        assert list((data / "spaces" / "inside").iterdir()) == []
        names = [entry.name for entry in (data / "statistics").iterdir()]
        assert names == ([] if server.installation.major < 15 else ["db_0.stat"])


# ---- the end of a backup under way


def start_full(server: ThrowawayServer, repo: Path, jobs: str) -> subprocess.Popen[str]:
    """Start a full backup, and return it while it copies a large file."""
    with write(server, "large", b"").open("wb") as file:
        file.truncate(4 << 30)
    process = start_pgwal("full", "--repo", repo, "-d", server.conninfo, "-c", "fast", "-j", jobs)
    deadline = time.monotonic() + 30
    # Small files are read by other queries.
    reading = "SELECT FROM pg_stat_activity WHERE query LIKE 'COPY (SELECT pg_read_binary_file((SELECT%'"
    with server.connect() as session:
        while not session.execute(reading).rowcount:
            assert process.poll() is None, finish(process).stderr
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return process


def assert_no_backup(repo: Path) -> None:
    assert list((repo / "backups").iterdir()) == []
    assert [path for path in repo.glob("packs/*/*") if path.is_file()] == []


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, "1"), (signal.SIGTERM, "1"), (signal.SIGTERM, "3")])
def test_interrupted_while_it_reads(server: ThrowawayServer, repo: Path, number: signal.Signals, jobs: str) -> None:
    process = start_full(server, repo, jobs)
    process.send_signal(number)
    outcome = finish(process)
    assert outcome.code == 128 + number, outcome.stderr
    assert outcome.errors == []
    assert_nothing_raw(outcome)
    assert_no_backup(repo)
    with server.connect() as session:
        sessions = "SELECT FROM pg_stat_activity WHERE application_name = 'pgwal'"
        deadline = time.monotonic() + 10
        while session.execute(sessions).rowcount:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("jobs", ["1", "3"])
def test_the_connection_is_lost_while_it_reads(server: ThrowawayServer, repo: Path, jobs: str) -> None:
    process = start_full(server, repo, jobs)
    with server.connect() as session:
        ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%'"
        # Between two pieces of the file there is none.
        while not session.execute(ending).rowcount:
            assert process.poll() is None, finish(process).stderr
    assert_failed(finish(process), NO_CONNECTION, "the connection was lost")
    assert_no_backup(repo)


@pytest.mark.postgres(18)
def test_a_source_that_is_closed_in_the_middle(server: ThrowawayServer) -> None:
    write(server, "large", bytes(30_000_000))
    with open_source(server) as source:
        chunks = source.read_file("large", 30_000_000)
        assert chunks is not None
        next(chunks)
    # A failure elsewhere leaves it like this; nothing is to be said of it on stderr.
    del chunks


# ---- check, grants, backups


@pytest.mark.postgres(15, 18)
def test_a_role_with_the_printed_grants_takes_backups(
    server: ThrowawayServer, make_server: ServerFactory, scratch: Path, repo: Path
) -> None:
    target = scratch / "restored"
    prepare(server)
    with server.connect() as session:
        session.execute(f'CREATE ROLE "{ROLE}" LOGIN')
    as_role = make_conninfo(server.conninfo, user=ROLE)
    # The environment of a machine that has a server of its own changes nothing.
    environment = {"PGDATA": "/nonexistent"}
    taking = ["--repo", repo, "-d", as_role, "-c", "fast", "--json"]
    assert_lacking_is_named(as_role, taking)
    statements = succeed("grants", "--role", ROLE, "-d", server.conninfo)
    with server.connect() as session:
        session.execute(statements)
    assert succeed("grants", "--role", ROLE, "-d", as_role) == "-- nothing is missing in database postgres\n"
    assert json.loads(succeed("grants", "--role", ROLE, "-d", as_role, "--json"))["statements"] == []
    assert not json.loads(succeed("check", "-d", as_role, "--json"))["lacking"]

    full = json.loads(succeed("full", *taking, env=environment))
    run_load(server, 1)
    incremental = json.loads(succeed("incremental", *taking, "--progress", env=environment))
    assert incremental["prior"] == full["id"]
    assert 0 < incremental["copied_block_count"] < incremental["block_count"]
    expected = checksums(server)

    succeed("restore", "latest", "--repo", repo, "-D", target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(repo)], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{relay.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected


def assert_lacking_is_named(conninfo: str, taking: Sequence[str | Path]) -> None:
    outcome = run_pgwal("check", "-d", conninfo, "--json")
    lacking = [each for each in json.loads(outcome.stdout)["findings"] if each["status"] == "lacking"]
    assert (outcome.code, outcome.stderr) == (FAILED, "")
    assert [each["name"] for each in lacking] == ["replication connection", "backup functions", "file functions"]
    assert lacking[0]["hint"].endswith(f'ALTER ROLE "{ROLE}" REPLICATION;')
    refused = run_pgwal("full", *taking)
    functions = r"pg_backup_start\(.*pg_backup_stop\(.*pg_ls_dir\(.*pg_stat_file\(.*pg_read_binary_file\("
    assert_failed(refused, FAILED, "permission denied for function pg_backup_start", f"GRANT EXECUTE .*{functions}")
    as_text = run_pgwal("check", "-d", conninfo)
    assert as_text.code == FAILED
    assert all(each["hint"] in as_text.stdout for each in lacking)


@pytest.mark.postgres(13, 18)
def test_grants_for_a_role_that_is_not_there(server: ThrowawayServer) -> None:
    printed = succeed("grants", "--role", "new", "-d", server.conninfo)
    assert "CREATE ROLE new LOGIN REPLICATION;" in printed
    with server.connect() as session:
        session.execute(printed)
        session.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; ALTER ROLE new NOLOGIN NOREPLICATION")
    printed = succeed("grants", "--role", "new", "-d", server.conninfo)
    assert printed.splitlines()[1:] == [
        "ALTER ROLE new LOGIN;",
        "ALTER ROLE new REPLICATION;",
        "GRANT CONNECT ON DATABASE postgres TO new;",
    ]
    with server.connect() as session:
        session.execute(printed)
    as_role = make_conninfo(server.conninfo, user="new")
    assert succeed("grants", "--role", "new", "-d", as_role).startswith("-- nothing is missing")
    succeed("check", "-d", as_role)
    succeed("check", "-d", as_role, "--pgdata", server.data_directory)
    assert succeed("grants", "--role", "postgres", "-d", as_role).startswith("-- nothing is missing")


@pytest.mark.postgres(13, 18)
def test_names_are_quoted_where_the_server_would(server: ThrowawayServer) -> None:
    with server.connect() as session:
        keywords = [word for (word,) in session.execute("SELECT word FROM pg_get_keywords()")]
        for name in [*keywords, "plain", "_1", "1a", "Upper", 'a"b', "a b", "größe", "dollar$"]:
            (quoted,) = session.execute("SELECT quote_ident(%s)", (name,)).fetchone() or ("",)
            if quoted != name:
                # Of another version's keywords it may quote more.
                assert quoted_identifier(name) == quoted
        session.execute(succeed("grants", "--role", "user", "-d", server.conninfo))


def findings(*args: str | Path, code: int = 0) -> dict[str, tuple[str, str]]:
    outcome = run_pgwal("check", *args, "--json")
    assert (outcome.code, outcome.stderr) == (code, "")
    return {each["name"]: (each["status"], each["message"]) for each in json.loads(outcome.stdout)["findings"]}


@pytest.mark.postgres(13, 18)
def test_check_looks_at_settings(make_server: ServerFactory, scratch: Path) -> None:
    settings = {"wal_level": "minimal", "max_wal_senders": 0, "max_replication_slots": 0, "full_page_writes": False}
    server = make_server(settings={**settings, "fsync": False})
    found = findings("-d", server.conninfo, "--pgdata", scratch, code=FAILED)
    lacking = {name for name, (status, _) in found.items() if status == "lacking"}
    assert lacking == {"wal_level", "replication connection", "max_wal_senders", "data directory"}
    warnings = {name for name, (status, _) in found.items() if status == "warning"}
    assert {"max_replication_slots", "fsync", "max_slot_wal_keep_size", "full_page_writes"} <= warnings


@pytest.mark.postgres(13, 18)
def test_check_looks_at_slot_directory_and_archiver(make_server: ServerFactory) -> None:
    server = make_server(settings={"archive_mode": True, "archive_command": "false"})
    other = make_server(own_system_identifier=True, start=False)
    with server.connect() as session:
        session.execute("SELECT pg_create_physical_replication_slot('mine', true)")
        session.execute("SELECT pg_switch_wal()")
        deadline = "clock_timestamp() + interval '30 s'"
        session.execute(
            f"DO $$ DECLARE until timestamptz := {deadline}; BEGIN"
            " WHILE (SELECT failed_count FROM pg_stat_archiver) = 0 AND clock_timestamp() < until LOOP"
            " PERFORM pg_sleep(0.1); PERFORM pg_stat_clear_snapshot(); END LOOP; END $$"
        )
    source = ["-d", server.conninfo]
    found = findings(*source, "--slot", "mine", "--pgdata", server.data_directory)
    assert (found["slot mine"][0], found["data directory"][0], found["archiving"][0]) == ("ok", "ok", "warning")
    assert "file functions" not in found
    found = findings(*source, "--slot", "absent", "--pgdata", other.data_directory, code=FAILED)
    assert (found["slot absent"][0], found["data directory"][0]) == ("warning", "lacking")


# ---- the binary COPY format, and extents

VALUES = st.lists(st.none() | st.binary(max_size=40), max_size=8)


def encoded(values: Sequence[bytes | None], extension: bytes = b"") -> bytes:
    rows = b"".join(
        struct.pack(">hi", 1, -1) if value is None else struct.pack(">hi", 1, len(value)) + value for value in values
    )
    return b"PGCOPY\n\xff\r\n\0" + struct.pack(">II", 0, len(extension)) + extension + rows + b"\xff\xff"


@given(VALUES, st.binary(max_size=5), st.lists(st.integers(0, 400)))
def test_binary_copy_in_pieces_of_any_size(values: list[bytes | None], extension: bytes, cuts: list[int]) -> None:
    content = encoded(values, extension)
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    reader = BinaryCopyReader()
    pieces = [content[start:end] for start, end in pairwise(edges)]
    assert [value for piece in pieces for value in reader.feed(memoryview(piece))] == values
    reader.finish()


@given(VALUES, st.integers(0, 400))
def test_binary_copy_that_ends_early(values: list[bytes | None], kept: int) -> None:
    content = encoded(values)
    reader = BinaryCopyReader()
    found = list(reader.feed(content[: min(kept, len(content) - 1)]))
    assert found == values[: len(found)]
    with pytest.raises(FormatError, match="before its trailer"):
        reader.finish()


@pytest.mark.parametrize(
    "content",
    [
        b"COPYPG\n\xff\r\n\0" + bytes(8),
        encoded([])[:-2] + struct.pack(">hii", 2, -1, -1),
        encoded([])[:-2] + struct.pack(">hi", 1, -2),
        encoded([b"x"]) + b"more",
    ],
)
def test_what_is_no_binary_copy_of_one_column(content: bytes) -> None:
    with pytest.raises(FormatError, match="binary COPY"):
        list(BinaryCopyReader().feed(content))


@given(st.sets(st.integers(0, 60)))
def test_extents_are_the_blocks_joined(blocks: set[int]) -> None:
    joined = list(extents(array("I", sorted(blocks))))
    assert [at // BLOCK_SIZE for start, size in joined for at in range(start, start + size, BLOCK_SIZE)] == sorted(
        blocks
    )
    assert all(end[0] > sum(start) for start, end in pairwise(joined))
