"""--pgdata names the directory of the server at the other end of the connection, and nothing that is like it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from differential.test_timelines import Pair, one_value, pair, replays  # noqa: F401
from fix_servers import ServerFactory
from hypothesis import given
from hypothesis import strategies as st
from pgwal_process import assert_failed, run_pgwal, succeed

from pgwal.control_file import ControlStamp
from pgwal.datadir.postmaster_file import PostmasterFile
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.errors import FormatError
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters, connect_sql
from pgwal.postgres.server import read_control_stamp
from pgwal_cli.exit_codes import FAILED
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

CHECKPOINTED = "is not that of this server: its last checkpoint is at .*, the server's at .*"
STARTED = "is not that of this server: the one that runs on it was started at .*, this one at"
HINT = "not a standby of it or a copy"


def assert_refused(server: ThrowawayServer, directory: Path, repo: Path, pattern: str) -> None:
    refused = run_pgwal("full", "--repo", repo, "-d", server.conninfo, "--pgdata", directory, "-c", "fast")
    assert_failed(refused, FAILED, pattern, HINT)
    assert not repo.exists()


@pytest.mark.postgres(13, 18)
def test_a_copy_of_the_cluster_is_refused(make_server: ServerFactory, scratch: Path) -> None:
    """One that is ahead, one that is behind, and one that is like the server's but for who runs on it."""
    server, repo = make_server(start=False), scratch / "repo"
    copies = [scratch / name for name in ("ahead", "cold")]
    for copy in copies:
        shutil.copytree(server.data_directory, copy, symlinks=True)
        give_to_server(copy)
    server.start()
    other = make_server(adopt=copies[0])
    for further, behind in ((other, server), (server, other)):
        with further.connect() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t AS SELECT generate_series(1, 1000) AS i")
            connection.execute("CHECKPOINT")
        assert_refused(behind, further.data_directory, repo, CHECKPOINTED)
    assert_refused(server, copies[1], repo, CHECKPOINTED)
    # As a snapshot of before the server was started last would be, or one that was started again.
    for name in ("PG_VERSION", "global/pg_control"):
        shutil.copy(server.data_directory / name, copies[1] / name)
    assert_refused(server, copies[1], repo, "it has no postmaster.pid")
    source = ["-d", server.conninfo, "--pgdata", copies[1]]
    assert_failed(run_pgwal("backup", "--dry-run", "--repo", repo, *source), FAILED, "it has no postmaster.pid", HINT)
    assert "it has no postmaster.pid" in run_pgwal("check", *source).stdout
    lines = (server.data_directory / "postmaster.pid").read_text().splitlines()
    for number, value in ((2, int(lines[2]) - 3600), (3, other.port)):
        changed = [*lines[:number], str(value), *lines[number + 1 :]]
        (copies[1] / "postmaster.pid").write_text("\n".join(changed))
        assert_refused(server, copies[1], repo, STARTED)
    # One that passes for the server's until its backup starts: it does not get the checkpoint.
    (copies[1] / "postmaster.pid").write_text("\n".join(lines))
    refused = run_pgwal("full", "--repo", repo, "-d", server.conninfo, "--pgdata", copies[1], "-c", "fast")
    assert_failed(refused, FAILED, CHECKPOINTED, HINT)
    assert succeed("list", "--repo", repo) == "no backups\n"
    succeed("full", "--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast")


@pytest.mark.postgres(13, 18)
def test_the_directory_of_a_standby_is_refused(pair: Pair) -> None:  # noqa: F811
    with pair.primary.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
        connection.execute("CHECKPOINT")
        (lsn,) = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("",)
    deadline = time.monotonic() + 30
    while not replays(pair.standby, Lsn.parse(lsn)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    one_value(pair.standby, "SELECT 1")
    with pair.standby.connect() as connection:
        connection.execute("CHECKPOINT")
    assert_refused(pair.primary, pair.standby.data_directory, pair.repo, "is not that of this server")
    assert_refused(pair.standby, pair.primary.data_directory, pair.repo, "is not that of this server")
    for server in (pair.standby, pair.primary):
        succeed("full", *pair.source(server))


@pytest.mark.postgres
def test_the_server_says_what_is_in_its_control_file(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute("CHECKPOINT")
    with connect_sql(ConnectionParameters(server.conninfo)) as connection:
        said = read_control_stamp(connection)
    found = ControlStamp.decode(LocalDataDirectory(server.data_directory).read_control_file())
    assert said == found
    assert found.checkpoint_lsn > found.redo_lsn or server.installation.major < 17
    assert abs(found.checkpoint_at_s - time.time()) < 60


@given(st.lists(st.one_of(st.integers(-(10**12), 10**12).map(lambda n: str(n).encode()), st.binary(max_size=9))))
def test_any_postmaster_file_is_understood_or_refused(lines: list[bytes]) -> None:
    content = b"\n".join(lines)
    # What does not end with a line feed may have been cut off.
    start, port, *rest = [*content.split(b"\n")[2:], b"", b""]
    is_understood = start.isdigit() and port.isdigit() and len(rest) > 2 and len(start) <= 11 and len(port) <= 5
    if is_understood:
        assert PostmasterFile.decode(content) == (int(start), int(port))
    else:
        with pytest.raises(FormatError):
            PostmasterFile.decode(content)
