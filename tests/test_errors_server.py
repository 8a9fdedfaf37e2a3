"""What the server refuses: the connection, privileges, settings, slots; and that a refusal leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_servers import ServerFactory, Templates
from pgwal_process import assert_failed, assert_nothing_raw, finish, run_pgwal, start_pgwal, succeed
from psycopg.conninfo import make_conninfo

from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

pytestmark = pytest.mark.postgres(15, 18)
EITHER_WILL_DO = pytest.mark.postgres(18)
"""For what no version has a say in."""

FAILED, NO_CONNECTION, CHAIN_BROKEN, LOCKED = 1, 3, 4, 6
PASSWORD = "a secret"

ROLES = f"""
    SET password_encryption = 'scram-sha-256';
    CREATE ROLE keeper LOGIN REPLICATION PASSWORD '{PASSWORD}';
    CREATE ROLE plain LOGIN;
    CREATE ROLE "Receiver" LOGIN REPLICATION;
"""


@pytest.fixture(scope="module")
def servers(
    installation: ServerInstallation, server_templates: Templates, module_scratch: Path
) -> Iterator[ServerFactory]:
    with ServerFactory(installation, server_templates, module_scratch / f"errors-{installation.major}") as factory:
        yield factory


@pytest.fixture(scope="module")
def cluster(servers: ServerFactory) -> ThrowawayServer:
    """A server with roles of few rights, which asks for passwords over TCP."""
    server = servers(start=False)
    rules = server.data_directory / "pg_hba.conf"
    rules.write_text(
        "local all all trust\nlocal replication all trust\n"
        "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
    )
    server.listen_addresses = "127.0.0.1"
    server.start()
    with server.connect() as connection:
        connection.execute(ROLES)
        signatures = (
            ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)")
            if server.installation.major >= 15
            else ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)")
        )
        for signature in signatures:
            connection.execute(f"GRANT EXECUTE ON FUNCTION {signature} TO plain")
    return server


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Where a repository is to be; there is none yet."""
    return tmp_path / "repo"


def as_role(server: ThrowawayServer, role: str) -> str:
    return make_conninfo(server.conninfo, user=role)


def over_tcp(server: ThrowawayServer) -> list[str]:
    return ["-h", "127.0.0.1", "-p", str(server.port), "-U", "keeper", "-d", "postgres"]


def each_command(server: ThrowawayServer, repo: Path) -> list[list[str | Path]]:
    """Return the commands that connect, but for the options that say where to."""
    return [
        ["stream", "--repo", repo, "--once"],
        ["full", "--repo", repo, "--pgdata", server.data_directory, "-c", "fast"],
        ["incremental", "--repo", repo, "--pgdata", server.data_directory, "-c", "fast"],
    ]


def taking(kind: str, server: ThrowawayServer, repo: Path) -> list[str | Path]:
    return [kind, "--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast"]


@contextmanager
def streaming(server: ThrowawayServer, repo: Path, *args: str) -> Iterator[None]:
    process = start_pgwal("stream", "--repo", repo, "-d", server.conninfo, *args)
    try:
        deadline = time.monotonic() + 30
        with server.connect() as connection:
            while connection.execute("SELECT FROM pg_stat_replication WHERE state = 'streaming'").rowcount == 0:
                assert process.poll() is None, finish(process).stderr
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)


# ---- the connection


@EITHER_WILL_DO
def test_no_server(cluster: ThrowawayServer, repo: Path) -> None:
    for command in each_command(cluster, repo):
        outcome = run_pgwal(*command, "-h", "127.0.0.1", "-p", "1", "-U", "postgres")
        assert_failed(outcome, NO_CONNECTION, "port 1 failed: Connection refused", "server runs and that -h and -p")
    outcome = run_pgwal("stream", "--repo", repo, "-h", "/nonexistent")
    assert_failed(outcome, NO_CONNECTION, "No such file or directory", "-h and -p")
    outcome = run_pgwal("stream", "--repo", repo, "-h", "127.0.0.1", "-p", "fast")
    assert_failed(outcome, NO_CONNECTION, '"fast"|127.0.0.1', "the port given with -p")
    outcome = run_pgwal("stream", "--repo", repo, "-h", "no-such-host.invalid")
    assert_failed(outcome, NO_CONNECTION, "no-such-host.invalid", "host name")
    assert not repo.exists()


def test_passwords(cluster: ThrowawayServer, repo: Path) -> None:
    for command in each_command(cluster, repo)[:2]:
        refused = run_pgwal(*command, *over_tcp(cluster), env={"PGPASSWORD": "wrong"})
        assert_failed(
            refused, NO_CONNECTION, 'authentication failed for user "keeper"', "password of keeper.*PGPASSWORD"
        )
        missing = run_pgwal(*command, *over_tcp(cluster), "-w")
        assert_failed(missing, NO_CONNECTION, "no password supplied", "PGPASSWORD")
    # Nobody is there to ask.
    missing = run_pgwal(*command, *over_tcp(cluster))
    assert_failed(missing, NO_CONNECTION, "no password supplied", "PGPASSWORD")
    assert not repo.exists()
    succeed("stream", "--repo", repo, "--once", *over_tcp(cluster), env={"PGPASSWORD": PASSWORD})


def test_database_or_role_that_does_not_exist(cluster: ThrowawayServer, repo: Path) -> None:
    command = taking("full", cluster, repo)
    missing = run_pgwal(*command, "-d", make_conninfo(cluster.conninfo, dbname="nowhere"))
    assert_failed(missing, NO_CONNECTION, 'database "nowhere" does not exist', "-d postgres")
    missing = run_pgwal(*command, "-d", as_role(cluster, "nobody_here"))
    assert_failed(missing, NO_CONNECTION, 'role "nobody_here" does not exist', "CREATE ROLE")
    assert not repo.exists()


def test_connection_strings_that_are_none_hide_their_password(repo: Path) -> None:
    for text in ("host=/tmp password=hidden nonsense", "postgresql://me:hidden@[host/db"):
        outcome = run_pgwal("stream", "--repo", repo, "-d", text)
        assert_failed(outcome, NO_CONNECTION, "connection string is not valid", "postgresql://")
        assert "hidden" not in outcome.stderr


def test_a_keyword_that_no_connection_string_has_is_named_unless_it_may_be_part_of_a_password(repo: Path) -> None:
    for text in ("host=/tmp dbnam=x", "postgresql://host/db?dbnam=x"):
        assert_failed(run_pgwal("check", "-d", text), NO_CONNECTION, "no parameter is called 'dbnam'", "host=")
    for text in ("host=/tmp password=my hidden=x", "postgresql://me:hidden@[::1/db"):
        outcome = run_pgwal("stream", "--repo", repo, "-d", text)
        assert_failed(outcome, NO_CONNECTION, "connection string is not valid", "host=")
        assert "hidden" not in outcome.stderr


@EITHER_WILL_DO
def test_where_to_connect_may_be_said_in_each_way(cluster: ThrowawayServer, repo: Path) -> None:
    directory, port = str(cluster.socket_directory), str(cluster.port)
    command: list[str | Path] = ["stream", "--repo", repo, "--once"]
    succeed(*command, env={"PGHOST": directory, "PGPORT": port, "PGUSER": "postgres", "PGDATABASE": "postgres"})
    succeed(*command, "-h", directory, "-p", port, "-U", "postgres")
    succeed(*command, "-d", f"host={directory} port={port} user=postgres dbname=postgres")
    succeed(*command, "-d", f"postgresql://postgres@/postgres?host={directory}&port={port}")
    # What the command line says wins over the environment.
    succeed(*command, "-h", directory, env={"PGHOST": "/nonexistent", "PGPORT": port, "PGUSER": "postgres"})


# ---- privileges


def test_role_without_replication(cluster: ThrowawayServer, repo: Path) -> None:
    refused = run_pgwal("stream", "--repo", repo, "-d", as_role(cluster, "plain"))
    assert_failed(
        refused, FAILED, "must be superuser or replication role|permission denied", "ALTER ROLE plain REPLICATION;"
    )
    assert not repo.exists()
    # A backup receives WAL itself where no receiver runs.
    refused = run_pgwal(*taking("full", cluster, repo), "-d", as_role(cluster, "plain"))
    assert_failed(
        refused, FAILED, "must be superuser or replication role|permission denied", "ALTER ROLE plain REPLICATION;"
    )
    assert succeed("list", "--repo", repo) == "no backups\n"


def test_role_that_may_not_take_backups(cluster: ThrowawayServer, repo: Path) -> None:
    refused = run_pgwal(*taking("full", cluster, repo), "-d", as_role(cluster, "Receiver"))
    grant = r'in database postgres: GRANT EXECUTE ON FUNCTION pg_catalog\.pg_.* TO "Receiver";'
    assert_failed(refused, FAILED, "permission denied for function pg_.*start", grant)
    assert not repo.exists()


# ---- settings


def test_wal_level_minimal(servers: ServerFactory, repo: Path) -> None:
    server = servers(settings={"wal_level": "minimal", "max_wal_senders": 0})
    refused = run_pgwal(*taking("full", server, repo))
    assert_failed(refused, FAILED, "wal_level is minimal", "wal_level = replica, restart")
    refused = run_pgwal("stream", "--repo", repo, "-d", server.conninfo)
    assert_failed(
        refused, FAILED, "replication is switched off: .*max_wal_senders", "wal_level = replica and max_wal_senders"
    )
    assert not repo.exists()


@EITHER_WILL_DO
def test_no_room_for_the_slot_that_a_backup_needs(servers: ServerFactory, repo: Path) -> None:
    server = servers(settings={"max_replication_slots": 0})
    refused = run_pgwal(*taking("full", server, repo))
    assert_failed(refused, FAILED, "all replication slots are in use", "max_replication_slots")
    assert succeed("list", "--repo", repo) == "no backups\n"


def wait_for_setting(server: ThrowawayServer, name: str, value: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        with server.connect() as connection:
            if connection.execute(f"SHOW {name}").fetchone() == (value,):
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- slots


def test_slots_that_cannot_be_used(cluster: ThrowawayServer, repo: Path, tmp_path: Path) -> None:
    stream: list[str | Path] = ["stream", "--repo", repo, "-d", cluster.conninfo, "--slot", "pgwal", "--once"]
    for command in (stream, [*taking("full", cluster, repo), "--slot", "pgwal"]):
        outcome = run_pgwal(*command)
        assert_failed(
            outcome, FAILED, 'replication slot "pgwal" does not exist', "pgwal stream once with --create-slot"
        )
    outcome = run_pgwal(*stream, "--slot", "Not A Name")
    assert_failed(outcome, FAILED, "'Not A Name' is not a name for a replication slot", "lower case")
    succeed(*stream, "--create-slot")
    outcome = run_pgwal(*stream, "--create-slot")
    assert_failed(outcome, FAILED, 'replication slot "pgwal" already exists', "--if-not-exists")
    succeed(*stream, "--create-slot", "--if-not-exists")
    with streaming(cluster, repo, "--slot", "pgwal"):
        outcome = run_pgwal("stream", "--repo", tmp_path / "other", "-d", cluster.conninfo, "--slot", "pgwal")
        assert_failed(outcome, FAILED, 'replication slot "pgwal" is active for PID', "stop the other one")
    with cluster.connect() as connection:
        connection.execute("SELECT pg_drop_replication_slot('pgwal')")


# ---- another cluster


def test_repository_of_another_cluster(cluster: ThrowawayServer, servers: ServerFactory, repo: Path) -> None:
    other = servers(own_system_identifier=True)
    succeed("stream", "--repo", repo, "-d", other.conninfo, "--once")
    for command in each_command(cluster, repo):
        refused = run_pgwal(*command, "-d", cluster.conninfo)
        assert_failed(refused, FAILED, "repository .* belongs to the cluster with system identifier", "each cluster")
    assert succeed("list", "--repo", repo) == "no backups\n"


def test_data_directory_of_another_cluster(cluster: ThrowawayServer, servers: ServerFactory, repo: Path) -> None:
    other = servers(own_system_identifier=True, start=False)
    refused = run_pgwal(*taking("full", cluster, repo), "--pgdata", other.data_directory)
    assert_failed(refused, FAILED, "data directory .* has system identifier .* the server has", "--pgdata")
    assert not repo.exists()
    # Servers that are copies of one cluster have one identifier, as a primary and its standby have.
    twin = servers(start=False)
    refused = run_pgwal(*taking("full", cluster, repo), "--pgdata", twin.data_directory)
    assert_failed(refused, FAILED, "is not that of this server: its last checkpoint", "not a standby of it or a copy")
    assert not repo.exists()


@EITHER_WILL_DO
def test_no_data_directory(cluster: ThrowawayServer, repo: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        refused = run_pgwal(*taking("full", cluster, repo), "--pgdata", place)
        assert_failed(refused, FAILED, f"{place} is not a data directory", "--pgdata names")
    assert not repo.exists()


# ---- WAL that the server no longer has


def test_wal_that_the_server_has_removed(servers: ServerFactory, repo: Path) -> None:
    server = servers(settings={"wal_keep_size": 0})
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    with server.connect() as connection:
        for _ in range(3):
            connection.execute("CREATE TABLE filler (); DROP TABLE filler")
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
    missing = next((repo / "wal").glob("*.partial")).stem
    stream: list[str | Path] = ["stream", "--repo", repo, "-d", server.conninfo, "--once"]
    cause = f"already removed WAL segment {missing}"
    assert_failed(run_pgwal(*stream), CHAIN_BROKEN, cause, "another archive.*run pgwal full")
    # The way out that the hint names is one.
    succeed(*taking("full", server, repo))
    succeed(*stream)


# ---- two at a time


@EITHER_WILL_DO
def test_only_one_receiver_at_a_time(cluster: ThrowawayServer, repo: Path) -> None:
    with streaming(cluster, repo):
        second = run_pgwal("stream", "--repo", repo, "-d", cluster.conninfo, "--once")
        assert_failed(second, LOCKED, r"receiver.lock is held by a receiver, process \d+", "wait until")
