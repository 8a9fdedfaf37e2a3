"""The servers that other tests rely on: each major starts, survives, and fetches WAL through the relay."""

from __future__ import annotations

import shutil
import stat
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgwal.errors import PgwalError, ServerError
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_installation import ServerInstallation, make_reachable
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server, server_account

if TYPE_CHECKING:
    from pathlib import Path

    from fix_servers import ServerFactory
    from psycopg.rows import TupleRow


@pytest.mark.postgres
def test_each_major_answers(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        version = connection.info.server_version
    assert version // 10000 == server.installation.major


@pytest.mark.postgres(13, 18)
def test_a_killed_server_recovers(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        server.kill()
        assert not server.is_running
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    server.start()
    with server.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1000,)
    server.restart()
    assert server.is_running
    server.stop()
    assert not server.is_running


@pytest.mark.postgres(13, 18)
def test_the_relay_fetches_wal(make_server: ServerFactory, scratch: Path) -> None:
    copy = _cluster_with_later_wal_in(scratch / "archive", make_server, scratch)
    with RestoreCommandRelay(_copy_from(scratch / "archive"), scratch / "relay") as relay:
        restored = make_server(adopt=copy, settings=_recovery_settings(relay))
        with restored.connect() as connection:
            _wait_for_end_of_recovery(connection)
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (1000,)
    # The end of WAL is a file that is not there: both exit codes came through.
    assert {code for _, code in relay.answered} == {0, 1}


@pytest.mark.postgres(18)
def test_a_closed_relay_is_an_error_and_no_missing_file(make_server: ServerFactory, scratch: Path) -> None:
    copy = _cluster_with_later_wal_in(scratch / "archive", make_server, scratch)
    with RestoreCommandRelay(_copy_from(scratch / "archive"), scratch / "relay") as relay:
        pass
    restored = make_server(adopt=copy, settings=_recovery_settings(relay), start=False)
    with pytest.raises(ServerError, match="child process exited with exit code 255"):
        restored.start()


def _cluster_with_later_wal_in(archive: Path, make_server: ServerFactory, scratch: Path) -> Path:
    """Return a data directory set to recovery, whose table t is in archived WAL only."""
    archive.mkdir()
    give_to_server(archive)
    primary = make_server(settings={"archive_mode": True, "archive_command": f'cp "%p" "{archive}/%f"'}, start=False)
    copy = scratch / "copy"
    shutil.copytree(primary.data_directory, copy)
    (copy / "recovery.signal").touch()
    primary.start()
    with primary.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        connection.execute("SELECT pg_switch_wal()")
    # Archives what is complete before it ends.
    primary.stop()
    return copy


def _recovery_settings(relay: RestoreCommandRelay) -> dict[str, str | int | bool]:
    # The primary's archive_command would overwrite the primary's archive.
    return {"archive_mode": False, "restore_command": relay.restore_command}


def _copy_from(archive: Path) -> list[str]:
    return ["sh", "-c", 'cp "$0/$1" "$2"', str(archive)]


def _wait_for_end_of_recovery(connection: psycopg.Connection[TupleRow]) -> None:
    deadline = time.monotonic() + 30
    while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.postgres(18)
def test_servers_are_copies_of_one_cluster_unless_asked(make_server: ServerFactory) -> None:
    def system_identifier(server: ThrowawayServer) -> int:
        with server.connect() as connection:
            row = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
        assert row is not None
        return int(row[0])

    identifiers = [
        system_identifier(make_server()),
        system_identifier(make_server()),
        system_identifier(make_server(own_system_identifier=True)),
    ]
    assert identifiers[0] == identifiers[1] != identifiers[2]


@pytest.mark.postgres(18)
def test_settings_are_quoted_and_initdb_takes_arguments(make_server: ServerFactory) -> None:
    text = "it's \\ 100%"
    server = make_server(initdb_args=("--wal-segsize=1",), settings={"cluster_name": text})
    with server.connect() as connection:
        assert connection.execute("SHOW cluster_name").fetchone() == (text,)
        assert connection.execute("SHOW wal_segment_size").fetchone() == ("1MB",)


@pytest.mark.postgres(18)
def test_a_server_that_does_not_start_says_why(make_server: ServerFactory) -> None:
    server = make_server(settings={"shared_preload_libraries": "no_such_library"}, start=False)
    with pytest.raises(ServerError, match='could not access file "no_such_library"'):
        server.start()


@pytest.mark.postgres(18)
def test_a_long_path_moves_the_socket_elsewhere(installation: ServerInstallation, scratch: Path) -> None:
    with ThrowawayServer(installation, scratch / ("long" * 30)) as server:
        server.initdb()
        server.start()
        socket_directory = server.socket_directory
        with server.connect() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not server.is_running
    assert not socket_directory.exists()


@pytest.mark.postgres(16, 17, 18, 19)
def test_client_tools_run(server: ThrowawayServer, scratch: Path) -> None:
    server.run_tool("pg_basebackup", "-D", str(scratch / "backup"), "-c", "fast")
    server.run_tool("pg_verifybackup", "-n", str(scratch / "backup"))
    server.run_tool("pgbench", "-i", "-q")
    with pytest.raises(ServerError, match="pg_waldump failed"):
        server.run_tool("pg_waldump", "0" * 24)
    with pytest.raises(PgwalError, match="comes without"):
        server.run_tool("pg_mistaken")


@pytest.mark.postgres(18)
@pytest.mark.skipif(server_account() is None, reason="only root runs servers as another user")
def test_an_installation_out_of_reach_is_copied(installation: ServerInstallation, scratch: Path) -> None:
    prefix = installation.bin_dir.parent
    package = prefix.parent
    closed = scratch / "closed"
    shutil.copytree(prefix, closed / package.name / prefix.name)
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, closed / libraries.name)
    closed.chmod(0o700)
    hidden = ServerInstallation.found_in(closed / package.name / prefix.name / "bin")
    with pytest.raises(OSError, match="Permission denied"):
        ThrowawayServer(hidden, scratch / "server").initdb()
    copy = make_reachable(hidden, scratch)
    assert copy.bin_dir != hidden.bin_dir
    # Root asks these programs for their version, so nobody else may change them.
    copied = [path.lstat() for path in (copy.bin_dir.parent, *copy.bin_dir.parent.rglob("*"))]
    assert {(found.st_uid, found.st_mode & 0o022 * (not stat.S_ISLNK(found.st_mode))) for found in copied} == {(0, 0)}
    assert make_reachable(hidden, scratch) is copy
    with ThrowawayServer(copy, scratch / "server") as server:
        server.initdb()
        server.start()
        server.run_tool("pg_isready")
