"""A repository of a real server in which much has gone wrong, and some on purpose."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pgwal_process import succeed
from test_main_job import wait_until_promoted

from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer

TABLES = ("orders", "payment", 'odd "name" </script><b>')


@dataclass(frozen=True)
class Reported:
    """What was made: backups by what they are, and the range of WAL that is missing, as text."""

    repo: Path
    server: ThrowawayServer
    ids: dict[str, str]
    hole: tuple[str, str]


def build_reported(server: ThrowawayServer, repo: Path, rounds: int = 1) -> Reported:
    """Take backups before and after a promotion, with a segment lost between two, and backups that failed.

    ``rounds`` is how often an incremental is taken at a time.  The server must have small WAL segments.
    """
    where: list[str | Path] = ["--repo", repo, "-d", server.conninfo]
    slot = ("--slot", "pgwal", "--create-slot", "--if-not-exists")
    ids: dict[str, str] = {}

    def take(name: str, *command: str) -> None:
        # Ids have the second in which a backup starts.
        _wait_for_next_second()
        args = [*where, "-c", "fast", "--slot", "pgwal", "--json"]
        ids[name] = json.loads(succeed(*command, *args))["id"]

    with server.connect() as connection:
        for name in TABLES:
            quoted = name.replace('"', '""')
            connection.execute(f'CREATE TABLE "{quoted}" (id int PRIMARY KEY, filler text)')
            connection.execute(
                f"INSERT INTO \"{quoted}\" SELECT i, repeat('x', 300) FROM generate_series(1, 2000) AS i"
            )
    succeed("stream", *where, *slot, "--once")
    take("pinned", "full", "-l", "before </script> all")
    succeed("pin", ids["pinned"], "--repo", repo)
    for number in range(rounds):
        _change(server, number)
        take("merged from", "incremental")
    merged = json.loads(succeed("merge", ids["merged from"], "--repo", repo, "--json"))
    ids["merged"] = merged["id"] if "id" in merged else str(merged)
    _promote(server)
    take("after", "full")
    _change(server, 7)
    succeed("stream", *where, "--slot", "pgwal", "--once")
    hole = _lose_segment(repo, ids["after"])
    take("newest", "full")
    for number in range(rounds):
        _change(server, number + 8)
        take("incremental", "incremental")
    _change(server, 5)
    succeed("stream", *where, "--slot", "pgwal", "--once")
    _fail_backups(repo, ids)
    return Reported(repo, server, ids, hole)


def _wait_for_next_second() -> None:
    began = int(time.time())
    while int(time.time()) == began:
        time.sleep(0.01)


def _change(server: ThrowawayServer, step: int) -> None:
    with server.connect() as connection:
        connection.execute("UPDATE orders SET filler = %s WHERE id %% 3 = 0", ["y" * (100 + step)])
        connection.execute("UPDATE payment SET filler = %s WHERE id < 200", ["z" * (100 + step)])
        connection.execute("SELECT pg_switch_wal()")
    with server.connect() as connection:
        connection.execute("UPDATE orders SET filler = %s WHERE id = 5", [str(step)])


def _promote(server: ThrowawayServer) -> None:
    server.stop()
    (server.data_directory / "standby.signal").touch()
    server.start()
    server.promote()
    wait_until_promoted(server)


def _lose_segment(repo: Path, backup_id: str) -> tuple[str, str]:
    """Remove the first segment that a backup does not need itself, and what is known of it; return what is missing."""
    repository = Repository.open(repo)
    stop_lsn = repository.catalogue.entry(backup_id).stop_lsn
    whole = sorted(segment.segment_no for segment in repository.wal.segments() if segment.complete)
    lost = next(number for number in whole if repository.geometry.segment_start(number) >= stop_lsn)
    start, end = (repository.geometry.segment_start(lost + more) for more in (0, 1))
    name = repository.geometry.file_name(2, lost)
    for path in (repo / "wal").glob(f"{name}*"):
        path.unlink()
    for part in repository.summaries.ranges():
        if part.start < end and start < part.end:
            repository.summaries.delete(part)
    return str(start), str(end)


def _fail_backups(repo: Path, ids: dict[str, str]) -> None:
    """Leave a backup as a kill leaves it, and one whose entry is damaged."""
    backups = repo / "backups"
    ids["unfinished"] = "20261101T000000Z_full"
    (backups / f"{ids['unfinished']}.unfinished" / "data").mkdir(parents=True)
    ids["unreadable"] = "20261102T000000Z_full"
    shutil.copytree(backups / ids["newest"], backups / ids["unreadable"])
    entry = backups / ids["unreadable"] / "backup.json"
    entry.write_bytes(entry.read_bytes()[:50])
