"""Facts, slots and backup mode of real servers, as a role without special rights sees them."""

from __future__ import annotations

import shutil
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from pgwal_process import succeed

from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.errors import ConnectionFailed, PgwalError, PrivilegeMissing, ServerError, SettingRequired
from pgwal.postgres.connection import ConnectionParameters, connect_sql
from pgwal.postgres.server import (
    BackupSession,
    backup_function_signatures,
    current_flush_lsn,
    read_control_stamp,
    read_server_facts,
)
from pgwal.postgres.slots import read_slot
from pgwal.postgres_version import version_of_major
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

if TYPE_CHECKING:
    from pathlib import Path

    from fix_servers import ServerFactory

SEGMENT_SIZE = 16 << 20
PATIENCE_S = 30.0


def connect(server: ThrowawayServer, **changes: str) -> psycopg.Connection:
    return connect_sql(ConnectionParameters(psycopg.conninfo.make_conninfo(server.conninfo, **changes)))


def create_plain_role(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("CREATE ROLE plain LOGIN")


# ---- facts


@pytest.mark.postgres
def test_facts_are_those_of_the_control_file(server: ThrowawayServer, scratch: Path) -> None:
    create_plain_role(server)
    location = scratch / "space"
    location.mkdir()
    give_to_server(location)
    with server.connect() as connection:
        connection.execute(f"CREATE TABLESPACE space LOCATION '{location}'")
    with connect(server, user="plain") as connection:
        facts = read_server_facts(connection)
    control = ControlFile.decode((server.data_directory / CONTROL_FILE_PATH).read_bytes())
    assert facts.major == server.installation.major == control.major
    assert facts.system_identifier == control.system_identifier
    assert facts.timeline_id == control.timeline_id == 1
    assert (facts.segment_size, facts.block_size) == (control.segment_size, control.block_size)
    assert (facts.wal_page_size, facts.blocks_per_file) == (control.wal_page_size, control.blocks_per_file)
    assert facts.data_checksums == (control.data_checksum_version > 0)
    assert (facts.wal_level, facts.full_page_writes, facts.in_recovery) == ("replica", True, False)
    assert list(facts.tablespaces.values()) == [str(location)]
    assert facts.data_directory is None
    with connect(server) as connection:
        assert read_server_facts(connection).data_directory == str(server.data_directory)


@pytest.mark.postgres(13, 18)
def test_facts_of_another_cluster(make_server: ServerFactory) -> None:
    server = make_server(
        initdb_args=("--wal-segsize=1", "--data-checksums"),
        settings={"full_page_writes": False, "wal_level": "logical"},
    )
    with connect(server) as connection:
        facts = read_server_facts(connection)
    assert (facts.segment_size, facts.data_checksums) == (1 << 20, True)
    assert (facts.full_page_writes, facts.wal_level) == (False, "logical")


@pytest.mark.postgres
def test_a_standby_and_what_it_becomes(server: ThrowawayServer, make_server: ServerFactory, scratch: Path) -> None:
    server.stop()
    copy = scratch / "standby"
    shutil.copytree(server.data_directory, copy)
    (copy / "standby.signal").touch()
    give_to_server(copy)
    server.start()
    standby = make_server(adopt=copy, settings={"primary_conninfo": server.conninfo})
    with server.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    with connect(server) as connection:
        end = current_flush_lsn(connection)
    with connect(standby) as connection:
        facts = read_server_facts(connection)
        assert (facts.in_recovery, facts.timeline_id, facts.full_page_writes) == (True, 1, True)
        deadline = time.monotonic() + PATIENCE_S
        while current_flush_lsn(connection) < end:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        _check_backup_of_a_standby(standby)
        standby.promote()
        # At once, long before the checkpoint that pg_control would tell it from.
        facts = read_server_facts(connection)
        assert (facts.in_recovery, facts.timeline_id) == (False, 2)


@pytest.mark.postgres(17, 18, 19)
def test_a_timeline_above_2_31(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(), scratch / "repo"
    if not server.installation.has_tool("pg_resetwal"):
        pytest.skip("no pg_resetwal, which gives a cluster its timeline")
    server.stop()
    server.run_tool("pg_resetwal", "-l", "8000000F0000000000000010", "-D", server.data_directory)
    history = server.data_directory / "pg_wal/8000000F.history"
    history.write_text("1\t0/5000000\tno recovery target specified\n")
    give_to_server(server.data_directory)
    server.start()
    with connect(server) as connection:
        assert read_server_facts(connection).timeline_id == 0x8000000F
        assert read_control_stamp(connection).timeline_id == 0x8000000F
    taking = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    succeed("full", *taking, "--pgdata", server.data_directory)
    with server.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    succeed("incremental", *taking)
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    succeed("verify", "--repo", repo)


def _check_backup_of_a_standby(standby: ThrowawayServer) -> None:
    with BackupSession(connect(standby)) as backup:
        start_lsn = backup.start("standby", fast=True)
        assert b"BACKUP FROM: standby" in backup.stop().label_file
        assert start_lsn > 0
    with BackupSession(connect(standby)) as backup:
        backup.start("left", fast=True)


def _hold_for_30_s(session: BackupSession) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        session.require_held()


@pytest.mark.postgres(13, 18)
def test_a_backup_session_that_the_server_has_ended_is_noticed_without_a_question(server: ThrowawayServer) -> None:
    connection = connect(server)
    with BackupSession(connection) as session, server.connect() as other:
        session.start("lost", fast=True)
        session.require_held()
        other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        with pytest.raises(ConnectionFailed, match="the connection was lost"):
            _hold_for_30_s(session)


@pytest.mark.postgres(18)
def test_sessions_have_no_time_limits(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("CREATE ROLE hurried LOGIN")
        for name in ("statement_timeout", "idle_session_timeout", "transaction_timeout", "lock_timeout"):
            connection.execute(f"ALTER ROLE hurried SET {name} = '100ms'")
        connection.execute("ALTER ROLE hurried SET search_path = evil, pg_catalog")
        connection.execute("ALTER ROLE hurried SET DateStyle = 'German'")
        connection.execute("ALTER ROLE hurried SET bytea_output = 'escape'")
        connection.execute("ALTER ROLE hurried SET IntervalStyle = 'sql_standard'")
    with connect(server, user="hurried") as connection:
        spelt = connection.execute("SELECT '2026-12-01'::date::text, '\\x00ff'::bytea::text, '1 day'::interval::text")
        assert spelt.fetchone() == ("2026-12-01", r"\x00ff", "1 day")
        connection.execute("SELECT pg_sleep(0.3)")
        time.sleep(0.3)
        assert connection.execute("SHOW search_path").fetchone() == ("",)


# ---- slots


@pytest.mark.postgres
def test_slots_as_any_role_sees_them(server: ThrowawayServer) -> None:
    create_plain_role(server)
    with server.connect() as connection, connect(server, user="plain") as plain:
        assert read_slot(plain, "pgwal") is None
        connection.execute("SELECT pg_create_physical_replication_slot('pgwal', true)")
        slot = read_slot(plain, "pgwal")
        assert slot is not None
        assert (slot.slot_type, slot.active, slot.active_pid) == ("physical", False, None)
        assert slot.wal_status == "reserved"
        assert slot.restart_lsn
        assert slot.restart_lsn <= current_flush_lsn(plain)


# ---- backup mode


@pytest.mark.postgres
def test_a_backup_session_starts_and_stops(server: ThrowawayServer) -> None:
    create_plain_role(server)
    with server.connect() as connection:
        for signature in backup_function_signatures(connection.info.server_version):
            connection.execute(f"GRANT EXECUTE ON FUNCTION {signature} TO plain")
    own = connect(server, user="plain")
    with BackupSession(own) as backup:
        start_lsn = backup.start("Größe 1", fast=True)
        assert start_lsn % SEGMENT_SIZE == 0x28
        stop = backup.stop()
    assert own.closed
    assert stop.stop_lsn > start_lsn
    assert stop.tablespace_map == b""
    lines = stop.label_file.decode().splitlines()
    written_lsn = version_of_major(server.installation.major).lsn_text(start_lsn)
    assert lines[0].startswith(f"START WAL LOCATION: {written_lsn} (file ")
    assert "LABEL: Größe 1" in lines
    assert "START TIMELINE: 1" in lines


@pytest.mark.postgres(13, 15, 18)
def test_the_tablespace_map_holds_the_bytes_of_the_path(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server()
    location = scratch / "Größe"
    location.mkdir()
    give_to_server(location)
    with server.connect() as connection:
        connection.execute(f"CREATE TABLESPACE space LOCATION '{location}'")
        connection.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0")
        (oid,) = connection.execute("SELECT oid FROM pg_tablespace WHERE spcname = 'space'").fetchone() or (0,)
    for dbname in ("postgres", "bytes"):
        with BackupSession(connect(server, dbname=dbname)) as backup:
            backup.start("label", fast=True)
            assert backup.stop().tablespace_map == f"{oid} {location}\n".encode()


@pytest.mark.postgres(13, 18)
def test_a_tablespace_that_is_being_dropped_is_waited_for(server: ThrowawayServer, scratch: Path) -> None:
    location = scratch / "space"
    location.mkdir()
    give_to_server(location)
    with server.connect() as connection:
        connection.execute(f"CREATE TABLESPACE space LOCATION '{location}'")
        connection.execute("BEGIN")
        connection.execute("DELETE FROM pg_tablespace WHERE spcname = 'space'")
        # As DROP TABLESPACE does before it commits.
        (link,) = (server.data_directory / "pg_tblspc").iterdir()
        link.unlink()
        timer = threading.Timer(0.5, connection.execute, ["COMMIT"])
        timer.start()
        with connect(server) as own:
            assert read_server_facts(own).tablespaces == {}
        timer.join()


@pytest.mark.postgres(13, 15, 18)
def test_leaving_without_stop_aborts_the_backup(server: ThrowawayServer) -> None:
    connection = connect(server)
    with BackupSession(connection) as backup:
        backup.start("left", fast=True)
    assert connection.closed
    deadline = time.monotonic() + PATIENCE_S
    while "aborting backup due to backend exiting" not in server.log_file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.postgres
def test_missing_privileges_name_their_grant(server: ThrowawayServer) -> None:
    create_plain_role(server)
    with BackupSession(connect(server, user="plain")) as backup, pytest.raises(PrivilegeMissing) as missing:
        backup.start("label", fast=True)
    hint = missing.value.hint or ""
    assert "in database postgres" in hint
    with server.connect() as connection:
        connection.execute(hint[hint.index("GRANT") :])
    with BackupSession(connect(server, user="plain")) as backup:
        backup.start("label", fast=True)
        backup.stop()


@pytest.mark.postgres
def test_minimal_wal_is_refused(make_server: ServerFactory) -> None:
    server = make_server(settings={"wal_level": "minimal", "max_wal_senders": 0})
    with BackupSession(connect(server)) as backup, pytest.raises(SettingRequired, match="WAL level") as refused:
        backup.start("label", fast=True)
    assert "wal_level = replica" in (refused.value.hint or "")


@pytest.mark.postgres(15, 18)
def test_what_else_can_go_wrong(server: ThrowawayServer) -> None:
    with BackupSession(connect(server)) as backup:
        with pytest.raises(PgwalError, match="single line"):
            backup.start("two\nlines", fast=True)
        with pytest.raises(ServerError, match="too long"):
            backup.start("x" * 2000, fast=True)
        with pytest.raises(ServerError, match="not in progress"):
            backup.stop()
        backup.start("label", fast=True)
        with pytest.raises(ServerError, match="already in progress"):
            backup.start("label", fast=True)
        server.kill()
        with pytest.raises(ConnectionFailed):
            backup.stop()
