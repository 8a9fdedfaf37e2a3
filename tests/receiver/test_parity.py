"""Segments are byte for byte the server's and pg_receivewal's, which can hand over its directory and take it back."""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_servers import ServerFactory
from lending import lent_to_server
from pgwal_process import succeed
from receiver.oracle import flush_lsn, server_bytes
from test_main_job import prepare, run_load

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server


def make(make_server: ServerFactory, size_mb: int) -> ThrowawayServer:
    settings: dict[str, str | int | bool] = {
        "wal_keep_size": "4GB",
        "max_wal_size": "2GB",
        "min_wal_size": f"{2 * size_mb}MB",
    }
    return make_server(initdb_args=(f"--wal-segsize={size_mb}",), settings=settings)


def create_slot(server: ThrowawayServer, name: str) -> None:
    with server.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", [name])


def write_wal(server: ThrowawayServer, first_step: int) -> Lsn:
    """Make changes, an end of a segment among them, and return a position that a little more is written after.

    pg_receivewal ends only when it gets something behind its ``--endpos``.
    """
    run_load(server, first_step)
    with server.connect() as connection:
        connection.execute("SELECT pg_switch_wal()")
    run_load(server, first_step + 1)
    end = flush_lsn(server)
    with server.connect() as connection:
        connection.execute("CREATE TABLE last_words ()")
        connection.execute("DROP TABLE last_words")
    return end


def receive(server: ThrowawayServer, repo: Path, end: Lsn) -> None:
    source: list[str | Path] = ["--repo", repo, "-d", server.conninfo, "--slot", "pgwal"]
    succeed("stream", *source, "--endpos", str(end), "--compress", "none")


def pg_receivewal(server: ThrowawayServer, directory: Path, slot: str, end: Lsn) -> None:
    server.run_tool("pg_receivewal", "-D", str(directory), "--slot", slot, "--endpos", str(end), "--no-loop")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_equal_the_servers(server: ThrowawayServer, repository: Repository, directory: Path, end: Lsn) -> None:
    """Check names and bytes of every file: segments with no hole, and one partial that has zeros behind what came.

    That may be more than was asked for, where the server had written something of its own accord.
    """
    geometry = repository.geometry
    found = contents(directory)
    last = geometry.segment_no(end)
    first = geometry.parse_file_name(min(found))[1]
    names = [geometry.file_name(1, number) for number in range(first, last)]
    assert sorted(found) == [*names, f"{geometry.file_name(1, last)}.partial"]
    for number in range(first, last):
        assert found[geometry.file_name(1, number)] == server_bytes(server, repository, 1, number)
    partial = found[f"{geometry.file_name(1, last)}.partial"]
    assert len(partial) == geometry.segment_size
    length = max(end - geometry.segment_start(last), len(partial.rstrip(b"\0")))
    assert partial[:length] == server_bytes(server, repository, 1, last)[:length]


@pytest.mark.postgres
def test_files_are_the_servers_and_pg_receivewals(make_server: ServerFactory, scratch: Path) -> None:
    check_files(make_server, scratch, 16)


@pytest.mark.postgres(15, 18)
@pytest.mark.parametrize("size_mb", [1, 64])
def test_files_of_other_sizes_are_too(make_server: ServerFactory, scratch: Path, size_mb: int) -> None:
    check_files(make_server, scratch, size_mb)


def check_files(make_server: ServerFactory, scratch: Path, size_mb: int) -> None:
    server, repo = make(make_server, size_mb), scratch / "repo"
    create_slot(server, "pgwal")
    create_slot(server, "peer")
    prepare(server)
    end = write_wal(server, 1)
    receive(server, repo, end)
    repository = Repository.open(repo)
    assert_equal_the_servers(server, repository, repo / "wal", end)
    if server.installation.has_tool("pg_receivewal"):
        peer = scratch / "peer"
        peer.mkdir()
        give_to_server(peer)
        pg_receivewal(server, peer, "peer", end)
        assert_equal_the_servers(server, repository, peer, end)
        assert contents(repo / "wal").keys() == contents(peer).keys()


@pytest.mark.postgres(15, 18)
def test_a_directory_goes_from_pg_receivewal_to_pgwal_and_back(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make(make_server, 1), scratch / "repo"
    create_slot(server, "pgwal")
    prepare(server)
    (repo / "wal").mkdir(parents=True)
    for step, receiver in enumerate((pg_receivewal, receive, pg_receivewal, receive)):
        end = write_wal(server, 10 * step)
        if receiver is receive:
            receive(server, repo, end)
            # What was received by others is summarised, too.
            first = Repository.open(repo).wal.segments()[0]
            assert Repository.open(repo).summaries.ranges()[0].start <= (first.segment_no + 1) << 20
        else:
            before = contents(repo / "wal")
            with lent_to_server(repo):
                pg_receivewal(server, repo / "wal", "pgwal", end)
            after = contents(repo / "wal")
            assert all(after[name] == before[name] for name in before if not name.endswith(".partial"))
        if (repo / "pgwal.json").exists():
            assert_equal_the_servers(server, Repository.open(repo), repo / "wal", end)
