"""What makes two histories of one cluster, or takes WAL away: operations of a round.

Each gives the round another life where there is one, and says what pgwal may refuse from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from cold_copy import ColdCopy, promote_alone
from pgwal_process import assert_nothing_raw, finish, run_pgwal
from randomised.archive import Archive
from randomised.lives import Moment
from randomised.operations import make_tablespace

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer

if TYPE_CHECKING:
    from randomised.rounds import Round

MOST_SWITCHES = 12
MOST_BREAKS = 3
# So that a backup lasts for a second or two, in which something can happen.
SLOWLY = ("--max-rate", "30M")


def copy_cold(the_round: Round) -> tuple[ColdCopy, Moment]:
    """Take the server down, copy what it has, and start it again; nothing may use it meanwhile."""
    server = the_round.server
    if the_round.chance.random() < 0.5:
        server.stop("fast")
    else:
        with server.connect() as connection:
            # What is replayed at the start must not create tablespaces: those of the copy would be the server's.
            connection.execute("CHECKPOINT")
        server.kill()
    copy = ColdCopy.take(server, the_round.directory / f"copy{next(the_round.numbers)}")
    server.start()
    return copy, the_round.life.now()


# ---- other lives


def roll_back(the_round: Round) -> None:
    """Put a cold copy of the data directory back, as when a machine is reverted to a snapshot."""
    with the_round.load.paused():
        the_round.lose_standby()
        copy, moment = copy_cold(the_round)
    _live_on(the_round)
    is_away = the_round.chance.random() < 0.6
    if is_away:
        the_round.kill_receiver()
    with the_round.load.paused():
        the_round.end_life()
        the_round.server.kill()
        copy.put_back(the_round.server)
        the_round.server.start()
        the_round.begin_life(moment, f"roll back, receiver {'away' if is_away else 'running'}")
    _go_past_or_not(the_round)


def clone(the_round: Round) -> None:
    """Start a cold copy as a second primary, and have everything lead to it."""
    with the_round.load.paused():
        the_round.lose_standby()
        copy, moment = copy_cold(the_round)
    _live_on(the_round)
    stays = the_round.chance.random() < 0.5
    if stays or the_round.chance.random() < 0.5:
        # A receiver that runs on would stay with the first.
        the_round.kill_receiver()
    first_directory = the_round.server.data_directory
    with the_round.load.paused():
        the_round.end_life()
        if not stays:
            the_round.server.kill()
        _take_over(the_round, copy)
        the_round.server.start()
        the_round.begin_life(moment, f"clone, the first {'runs on' if stays else 'is gone'}")
    _go_past_or_not(the_round)
    if the_round.chance.random() < 0.3:
        _read_the_other_directory(the_round, first_directory)


def _take_over(the_round: Round, copy: ColdCopy) -> None:
    """Make a cold copy the round's server: reached as the first one was, where that does not run any more."""
    if the_round.server.is_running:
        directory = the_round.directory / f"clone{next(the_round.numbers)}"
        the_round.server = the_round.load.server = ThrowawayServer(the_round.installation, directory)
        the_round.discard_at_end(the_round.server)
    the_round.server.adopt(copy.separate())


def _read_the_other_directory(the_round: Round, other: Path) -> None:
    repo = the_round.directory / f"refused{next(the_round.numbers)}"
    source = ("--repo", repo, "-d", the_round.server.conninfo, "--pgdata", other, "-c", "fast")
    outcome = run_pgwal("full", *source)
    the_round.note(f"a full backup of the clone by the first's directory ended with {outcome.code}")
    assert outcome.code in (1, 2, 4), f"MIXED: --pgdata of another copy ended with {outcome.code}\n{outcome.stderr}"
    assert outcome.hints, f"NO WAY OUT\n{outcome.stderr}"
    assert_nothing_raw(outcome)


def promote_twice(the_round: Round) -> None:
    """Promote the server, and later a copy from before that, to the same timeline number."""
    with the_round.load.paused():
        the_round.lose_standby()
        copy, moment = copy_cold(the_round)
    the_round.mark()
    if the_round.chance.random() < 0.5:
        _live_on(the_round)
    first = the_round.server
    with the_round.load.paused():
        first.stop("fast")
        promote_alone(first)
    _live_on(the_round)
    is_away = the_round.chance.random() < 0.6
    if is_away:
        the_round.kill_receiver()
    with the_round.load.paused():
        the_round.end_life()
        first.kill()
        _take_over(the_round, copy)
        promote_alone(first)
        the_round.begin_life(moment, f"promote two, receiver {'away' if is_away else 'running'}")
    _go_past_or_not(the_round)


def _live_on(the_round: Round) -> None:
    """Have a life that will be lost, of which the archive gets much, something, or nothing."""
    the_round.mark()
    if the_round.chance.random() < 0.3:
        the_round.start_receiver()
    the_round.let_it_run()
    if the_round.chance.random() < 0.3:
        the_round.make_restore_point()
    if the_round.chance.random() < 0.3:
        with the_round.server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")
    what = the_round.chance.choice(["back up", "back up", "receive", "receive", "nothing"])
    if what == "back up":
        the_round.take("incremental")
    elif what == "receive" and the_round.receiver is None:
        the_round.receive_once()
    if the_round.chance.random() < 0.5:
        the_round.make_restore_point()


def _go_past_or_not(the_round: Round) -> None:
    """Write WAL until there is more than the archive has, which hides that some of it was lost; or do not."""
    archive = the_round.archive
    if not archive.exists or the_round.chance.random() < 0.4:
        the_round.note("the server runs on behind the archive's end")
        return
    end = archive.end()
    with the_round.server.connect() as connection:
        for _ in range(MOST_SWITCHES):
            row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            if Lsn.parse(row[0]) > end:
                break
            connection.execute("SELECT pg_logical_emit_message(false, 'past', repeat('p', 100000)), pg_switch_wal()")
        connection.execute("SELECT pg_logical_emit_message(false, 'past', repeat('p', 300000))")
    the_round.mark()
    the_round.note(f"the server runs on past the archive's end at {end}")


# ---- less WAL


def recycle_wal(the_round: Round) -> None:
    """Have a server without a slot lose WAL that the archive needs."""
    _keep_no_wal(the_round)
    the_round.kill_receiver()
    if the_round.archive.exists:
        the_round.archive.note_received()
        the_round.doubt("recycled WAL")
        _recycle(the_round, the_round.archive)
    the_round.mark()


def recycle_wal_during_backup(the_round: Round) -> None:
    """Recycle WAL while a backup runs, and break its connections for a moment."""
    _keep_no_wal(the_round)
    the_round.kill_receiver()
    the_round.doubt("recycled WAL during a backup")
    break_at = time.monotonic() + the_round.chance.uniform(0.3, 1.0)
    switches_left, breaks_left = MOST_SWITCHES, MOST_BREAKS
    # Before it streams, an error is told to whoever has begun: on a busy machine that may take a while.
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_replication"
        " WHERE application_name ~ 'pgwal' AND state IN ('catchup', 'streaming')"
    )

    def disturb(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        nonlocal switches_left, breaks_left
        if breaks_left and time.monotonic() > break_at and connection.execute(query).fetchone() is not None:
            breaks_left -= 1
            the_round.note("the connection of the receiver breaks")
        if switches_left:
            switches_left -= 1
            connection.execute("SELECT pg_logical_emit_message(false, 'recycled', 'r'), pg_switch_wal()")
            connection.execute("CHECKPOINT")
        time.sleep(0.1)

    _during_backup(the_round, disturb)


def _keep_no_wal(the_round: Round) -> None:
    the_round.archive.recycled = True
    the_round.lose_standby()
    server = the_round.server
    with server.connect() as connection:
        row = connection.execute("SELECT setting::int FROM pg_settings WHERE name = 'wal_segment_size'").fetchone()
    assert row is not None
    least = f"{2 * row[0] >> 20}MB"
    server.configure(wal_keep_size=0, min_wal_size=least, max_wal_size=least)
    server.reload()


def _recycle(the_round: Round, archive: Archive) -> None:
    geometry = Repository.open(archive.repo).geometry
    with the_round.server.connect() as connection:
        row = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()
        assert row is not None
        needed = row[0][:8] + geometry.file_name(1, geometry.segment_no(archive.end()))[8:]
        for _ in range(MOST_SWITCHES):
            connection.execute("SELECT pg_logical_emit_message(false, 'recycled', 'r'), pg_switch_wal()")
            connection.execute("CHECKPOINT")
            if not (the_round.server.data_directory / "pg_wal" / needed).exists():
                break
    the_round.note(f"recycled {needed} and more")


# ---- while a backup is taken


def back_up_with_tablespaces(the_round: Round) -> None:
    """Create and drop tablespaces while a backup is taken."""
    kept: list[str] = []

    def change(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        if kept and the_round.chance.random() < 0.5:
            name = kept.pop()
            connection.execute(f"DROP TABLE IF EXISTS in_{name}".encode())
            connection.execute(f"DROP TABLESPACE {name}".encode())
        else:
            name = make_tablespace(connection, the_round.place, f"round_space{next(the_round.numbers)}")
            connection.execute(f"CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 500)".encode())
            kept.append(name)
        time.sleep(the_round.chance.uniform(0, 0.1))

    if the_round.place is None and the_round.installation.major < 15:
        return
    if the_round.chance.random() < 0.5:
        with the_round.server.connect() as connection:
            change(connection)
    _during_backup(the_round, change)


def _during_backup(the_round: Round, change: Callable[[psycopg.Connection[tuple[object, ...]]], None]) -> None:
    command = the_round.chance.choice(["full", "incremental", "backup"]) if the_round.archive.backups else "full"
    with the_round.no_database_copied():
        process = the_round.start_backup(command, the_round.server, *SLOWLY)
        time.sleep(the_round.chance.uniform(0.0, 0.5))
        with the_round.server.connect() as connection:
            while process.poll() is None:
                change(connection)
        outcome = finish(process)
    the_round.count_backup(command, outcome)
