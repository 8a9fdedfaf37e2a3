"""Servers that look like the one whose WAL is here, and are not: what one lost and what another one wrote never mix.

Machines are reverted to snapshots, copies are started beside their originals, two standbys are promoted to the same
timeline number, an old primary comes back.  Each time what was received can still be restored, row by row, and pgwal
refuses to go on, or goes on with what is right.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from subprocess import Popen

import pytest
from cold_copy import ColdCopy, promote_alone
from differential.test_timelines import has_received, insert_lsn, one_value, replays, wait_for
from fix_servers import ServerFactory
from pgwal_process import Outcome, assert_failed, finish, run_pgwal, start_pgwal, succeed
from receiver.test_synchronous import receiver_args, require_receiver
from restore.restored_server import Scene

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal_cli.exit_codes import CHAIN_BROKEN, FAILED
from pgwal_cli.throwaway_server import ThrowawayServer

SETTINGS: dict[str, str | int | bool] = {"wal_keep_size": "1GB", "autovacuum": False}
PART = r"they part at (\w+/\w+)"
OTHER_CHECKPOINT = r"the checkpoint record at \w+/\w+ .* is not the server's"
WAY_OUT = "another.*--accept-new-history"


@dataclass
class Case:
    """A server whose table ``kept`` has the rows that it should have, a repository, and what is restored of that."""

    make_server: ServerFactory
    scratch: Path
    server: ThrowawayServer
    repo: Path
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def source(self, server: ThrowawayServer | None = None) -> list[str | Path]:
        return ["--repo", self.repo, "-d", (server or self.server).conninfo]

    def receive(self) -> None:
        succeed("stream", *self.source(), "--once")

    def back_up(self, command: str = "full") -> str:
        return str(json.loads(succeed(command, *self.source(), "-c", "fast", "--json"))["id"])

    def copy(self) -> ColdCopy:
        """Take the server down for a moment to copy what it has."""
        self.server.stop()
        copy = ColdCopy.take(self.server, self.scratch / f"copy{next(self.numbers)}")
        self.server.start()
        return copy

    def roll_back(self, copy: ColdCopy) -> None:
        self.server.kill()
        copy.put_back(self.server)
        self.server.start()

    def received_end(self) -> Lsn:
        state = Repository.open(self.repo).receiver_state()
        assert state is not None
        return state.flushed_lsn

    def restored(self) -> list[int]:
        """Restore the newest backup and all WAL, and return the rows."""
        scene = Scene(self.repo, self.make_server)
        with scene.started(scene.restore(self.scratch / f"restored{next(self.numbers)}", "latest")) as server:
            return rows(server)

    def backups(self) -> list[str]:
        return [entry["id"] for entry in json.loads(succeed("list", "--repo", self.repo, "--json"))["backups"]]

    def assert_refused(self, *commands: str, server: ThrowawayServer | None = None) -> list[Lsn]:
        """Check that commands refuse to go on with the server; return where they say that the two histories part."""
        before, positions = self.backups(), []
        for command in commands:
            options = ["--once"] if command == "stream" else ["-c", "fast"]
            outcome = run_pgwal(command, *self.source(server), *options)
            assert_failed(outcome, CHAIN_BROKEN, f"{PART}|{OTHER_CHECKPOINT}", "another")
            if re.search(PART, outcome.errors[0]):
                positions.append(parting(outcome))
        assert self.backups() == before
        return positions


def parting(outcome: Outcome) -> Lsn:
    match = re.search(PART, outcome.errors[-1])
    assert match is not None, outcome.stderr
    return Lsn.parse(match[1])


def insert(server: ThrowawayServer, *numbers: int) -> None:
    """Insert rows, each in a transaction of its own, without waiting for a standby."""
    with server.connect() as connection:
        connection.execute("SET synchronous_commit = local")
        for number in numbers:
            connection.execute("INSERT INTO kept VALUES (%s)", [number])


def rows(server: ThrowawayServer) -> list[int]:
    with server.connect() as connection:
        return [number for (number,) in connection.execute("SELECT id FROM kept ORDER BY id")]


def write_past(server: ThrowawayServer, end: Lsn) -> None:
    """Write WAL until there is more of it than before; whole segments as long as whole ones are missing."""
    while insert_lsn(server) <= end:
        with server.connect() as connection:
            connection.execute("SELECT pg_logical_emit_message(false, 'past', repeat('p', 40000))")
            if end - insert_lsn(server) > 16 << 20:
                connection.execute("SELECT pg_switch_wal()")


@pytest.fixture
def case(make_server: ServerFactory, scratch: Path) -> Case:
    """A full backup of a server with rows 1, 2 and 3."""
    settings = dict(SETTINGS)
    if make_server.installation.major >= 17:
        settings["summarize_wal"] = True
    case = Case(make_server, scratch, make_server(settings=settings), scratch / "repo")
    with case.server.connect() as connection:
        connection.execute("CREATE TABLE kept (id int)")
    insert(case.server, 1, 2, 3)
    case.back_up()
    return case


@contextmanager
def stream(case: Case, conninfo: str) -> Iterator[Popen[str]]:
    process = start_pgwal("stream", "--repo", case.repo, "-d", conninfo)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# ---- rolled back


@pytest.mark.postgres(13, 16, 18, 19)
def test_a_server_that_was_rolled_back_and_ran_on(case: Case) -> None:
    """The receiver was away, and comes back when there is more WAL than it has, in segments that it has not."""
    copy = case.copy()
    fork = insert_lsn(case.server)
    insert(case.server, 4, 5)
    one_value(case.server, "SELECT pg_switch_wal()")
    insert(case.server, 6)
    case.receive()
    end = case.received_end()
    case.roll_back(copy)
    insert(case.server, 100, 101)
    write_past(case.server, Lsn(end + (16 << 20)))
    insert(case.server, 102)
    positions = case.assert_refused("stream", "incremental", "full", "backup")
    assert all(position >= Lsn(fork - 1024) for position in positions)
    assert positions[0] <= end
    assert case.restored() == [1, 2, 3, 4, 5, 6]


@pytest.mark.postgres(17, 18, 19)
def test_a_server_that_was_rolled_back_within_the_open_segment(case: Case) -> None:
    """Summaries of what was lost end behind the position from which WAL is received again."""
    copy = case.copy()
    insert(case.server, 4)
    with case.server.connect() as connection:
        # Where the server cuts its summaries.
        connection.execute("CHECKPOINT")
    insert(case.server, 5)
    case.receive()
    end = case.received_end()
    case.roll_back(copy)
    insert(case.server, 100)
    write_past(case.server, end)
    insert(case.server, 101)
    assert insert_lsn(case.server) - end < 1 << 20, "not within the segment"
    case.assert_refused("stream", "incremental", "full")
    assert case.restored() == [1, 2, 3, 4, 5]
    succeed("stream", *case.source(), "--once", "--accept-new-history")
    case.back_up("incremental")
    insert(case.server, 102)
    case.receive()
    assert case.restored() == [1, 2, 3, 100, 101, 102]


@pytest.mark.postgres(13, 17, 18, 19)
def test_acknowledged_rows_are_never_overwritten(case: Case) -> None:
    """A synchronous standby has six commits that the server loses; it comes back behind them and makes others."""
    process = start_pgwal(*receiver_args(case.server, case.repo))
    try:
        require_receiver(case.server)
        copy = case.copy()
        fork = insert_lsn(case.server)
        require_receiver(case.server)
        with case.server.connect() as connection:
            for number in (4, 5, 6, 7, 8, 9):
                connection.execute("INSERT INTO kept VALUES (%s)", [number])
        process.send_signal(signal.SIGSTOP)
        end = insert_lsn(case.server)
        assert case.restored() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        case.roll_back(copy)
        insert(case.server, 100, 101)
        assert insert_lsn(case.server) < end
        process.send_signal(signal.SIGCONT)
        outcome = finish(process)
    finally:
        process.kill()
    assert outcome.code == CHAIN_BROKEN, outcome.stderr
    assert re.search(WAY_OUT, outcome.hints[-1]), outcome.stderr
    assert fork <= parting(outcome) <= end
    assert case.restored() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.postgres(14, 18, 19)
def test_backups_of_a_server_that_lies_behind(case: Case) -> None:
    """It has not reached yet what is here; a backup where one stood before would get the WAL of another life."""
    copy = case.copy()
    insert(case.server, 4)
    first = case.back_up("incremental")
    insert(case.server, 5)
    for _ in range(3):
        one_value(case.server, "SELECT pg_switch_wal()")
        insert(case.server, 6)
    case.receive()
    end = case.received_end()
    case.roll_back(copy)
    insert(case.server, 100)
    assert insert_lsn(case.server) < end
    case.assert_refused("full", "incremental", "stream")
    assert insert_lsn(case.server) < end
    assert case.backups()[-1] == first
    assert case.restored() == [1, 2, 3, 4, 5, 6, 6, 6]


# ---- other servers


def both(first: ThrowawayServer, second: ThrowawayServer) -> str:
    """Return the connection string for whichever of two is the primary."""
    hosts = f"host={first.socket_directory},{second.socket_directory} port={first.port},{second.port}"
    return f"{hosts} user=postgres dbname=postgres target_session_attrs=read-write"


@pytest.mark.postgres(13, 18, 19)
def test_two_servers_promoted_to_the_same_timeline_number(case: Case) -> None:
    """The second one was promoted from an earlier point, and is reached by the same connection string."""
    first = case.server
    copy = case.copy()
    insert(first, 4)
    case.receive()
    second = case.make_server(adopt=copy.separate(), start=False)
    first.stop()
    promote_alone(first)
    insert(first, 5)
    one_value(first, "SELECT pg_switch_wal()")
    insert(first, 6)
    conninfo = both(first, second)
    succeed("stream", "--repo", case.repo, "-d", conninfo, "--once")
    end = case.received_end()
    first.kill()
    promote_alone(second)
    insert(second, 100)
    write_past(second, end)
    insert(second, 101)
    before = case.backups()
    for command in (["stream", "--once"], ["incremental"], ["full"]):
        outcome = run_pgwal(*command, "--repo", case.repo, "-d", conninfo)
        assert_failed(outcome, CHAIN_BROKEN, "timeline 2 of this server is not the timeline 2", WAY_OUT)
    assert case.backups() == before
    assert case.restored() == [1, 2, 3, 4, 5, 6]


@pytest.mark.postgres(13, 18, 19)
def test_the_old_primary_with_more_wal_than_the_new_one(case: Case) -> None:
    """The newest timeline tells who is behind, not the newest segment."""
    old = case.server
    copy = case.copy()
    new = case.make_server(adopt=copy.separate(), start=False)
    promote_alone(new)
    insert(new, 4)
    case.server = new
    case.receive()
    insert(old, 100)
    for _ in range(3):
        one_value(old, "SELECT pg_switch_wal()")
        insert(old, 101)
    assert insert_lsn(old) > Lsn(case.received_end() + (16 << 20))
    for command in (["stream", "--once"], ["incremental"], ["full"]):
        outcome = run_pgwal(*command, *case.source(old))
        assert_failed(
            outcome, FAILED, "WAL of timeline 2, this server is still on timeline 1", "from before a failover"
        )
    insert(new, 5)
    case.receive()
    case.back_up("incremental")
    assert case.restored() == [1, 2, 3, 4, 5]


@pytest.mark.postgres(13, 18, 19)
def test_a_clone_that_was_started_beside_the_original(case: Case) -> None:
    """Equal system identifier and timeline, and both run: what is received follows one of them only."""
    copy = case.copy()
    insert(case.server, 4)
    case.receive()
    clone = case.make_server(adopt=copy.separate())
    insert(clone, 100)
    write_past(clone, case.received_end())
    case.assert_refused("stream", "incremental", "full", server=clone)
    insert(case.server, 5)
    case.receive()
    case.back_up("incremental")
    assert case.restored() == [1, 2, 3, 4, 5]


# ---- what must not be refused


@pytest.mark.postgres(13, 18, 19)
def test_two_promotions_within_one_segment(case: Case) -> None:
    """The server keeps the middle timeline's WAL under the name of the last one alone."""
    server = case.server
    server.configure(archive_mode=True, archive_command="true")
    server.restart()
    one_value(server, "SELECT pg_create_physical_replication_slot('pgwal', true)")
    slot = ("--slot", "pgwal")
    succeed("stream", *case.source(), "--once", *slot)
    insert(server, 4)
    for number in (5, 6):
        server.kill()
        promote_alone(server)
        insert(server, number)
    assert one_value(server, "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)") == "00000003"
    succeed("stream", *case.source(), "--once", *slot)
    succeed("incremental", *case.source(), "-c", "fast", *slot)
    insert(server, 7)
    succeed("stream", *case.source(), "--once", *slot)
    assert case.restored() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.postgres(14, 18, 19)
def test_a_standby_that_restarts_behind_what_it_had_sent(case: Case) -> None:
    """It sends what it has received, and has only what it has replayed after a restart: the receiver waits for it."""
    primary = case.server
    copy = case.copy()
    (copy.directory / "standby.signal").touch()
    settings: dict[str, str | int | bool] = {
        "primary_conninfo": primary.conninfo,
        "wal_retrieve_retry_interval": "100ms",
        "recovery_min_apply_delay": "1h",
        "log_replication_commands": True,
    }
    standby = case.make_server(adopt=copy.separate(), settings=settings)
    with stream(case, standby.conninfo) as receiver:
        insert(primary, 4, 5, 6)
        sent = insert_lsn(primary)
        wait_for(lambda: has_received(case.repo, 1, sent), "the receiver")
        assert not replays(standby, sent)
        asked = times_asked(standby)
        standby.restart()
        assert not replays(standby, sent)
        wait_for(lambda: receiver.poll() is not None or times_asked(standby) > asked, "the receiver to ask again")
        assert not replays(standby, sent)
        standby.configure(recovery_min_apply_delay=0)
        standby.reload()
        insert(primary, 7)
        wait_for(lambda: receiver.poll() is not None or has_received(case.repo, 1, insert_lsn(primary)), "the receiver")
        receiver.terminate()
        outcome = finish(receiver)
    assert outcome.code == 0, outcome.stderr
    assert case.restored() == [1, 2, 3, 4, 5, 6, 7]


def times_asked(standby: ThrowawayServer) -> int:
    """Return how often a receiver asked for WAL, or for where it may ask, whatever became of it."""
    return len(re.findall(r"replication command: IDENTIFY_SYSTEM", standby.log_file.read_text()))
