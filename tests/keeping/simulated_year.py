"""A year of daily backups of a real server, whose clock alone is made up: how large two repositories become.

One has a full backup each week and incremental ones between, and expires them; the other has incremental backups for
ever, and merges.  ``python tests/keeping/simulated_year.py -o year.json`` plays it, for benchmarks/draw_year.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest
from fix_servers import BASE_SETTINGS, find_installation

from pgwal.backup.entry_document import decode_packs
from pgwal.backup.retention_rules import Period, RetentionRules
from pgwal.engine import backup
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.initialise import initialise
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.layout import MOVED_FRAMES_DIRECTORY, PACK_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT
from pgwal_cli.server_installation import make_reachable
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

GFS = {Period.DAILY: 7, Period.WEEKLY: 4, Period.MONTHLY: 12}
BEGIN = datetime(2026, 1, 1, 2, tzinfo=UTC)
"""Backups are taken at two in the morning, by the server's clock."""
ROWS = 30_000


class Sizes(NamedTuple):
    """What a repository holds after a day, in bytes: of packs, what entries need of these, WAL, and all of it."""

    packs: int
    needed: int
    wal: int
    total: int
    backups: int


class Kept(NamedTuple):
    """A repository, and how its backups are taken and expired."""

    place: LocalPlace
    merge: bool

    def wants_full(self, day: int) -> bool:
        return day == 0 or (not self.merge and (BEGIN + timedelta(days=day)).weekday() == 6)


class SimulatedYear:
    """A server under a load that lets it neither grow nor shrink, and its two repositories."""

    def __init__(self, server: ThrowawayServer, directory: Path, periods: dict[Period, int], seed: int = 1) -> None:
        self.chains = Kept(LocalPlace(directory / "chains"), merge=False)
        self.merged = Kept(LocalPlace(directory / "merged"), merge=True)
        self.rules = RetentionRules(periods=periods, keep_wal_for=7)
        self.taken_bytes = 0
        """What all incremental backups, and their WAL, have taken: so large it would be if nothing ever went."""
        self._server = server
        self._random = Random(seed)
        self._next_id = ROWS
        for kept in (self.chains, self.merged):
            kept.place.make()
            initialise(kept.place, DEFAULT_PACKED_FORMAT)
        with server.connect() as connection:
            connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance int, filler text)")
            connection.execute("CREATE TABLE report (id int, text text)")
            connection.execute(f"INSERT INTO account SELECT i, 0, md5(i::text) FROM generate_series(1, {ROWS}) AS i")

    def play(self, days: int) -> Iterator[tuple[Sizes, Sizes]]:
        """Yield how large the repositories are after each day."""
        for day in range(days):
            self._work(day)
            with _clock(BEGIN + timedelta(days=day)):
                yield self._keep(self.chains, day), self._keep(self.merged, day)

    def _work(self, day: int) -> None:
        """Change one row in a hundred, put new ones in the place of the oldest, and make a report now and then."""
        chosen = [self._random.randrange(self._next_id - ROWS, self._next_id) for _ in range(ROWS // 100)]
        with self._server.connect() as connection:
            connection.execute("UPDATE account SET balance = balance + 1 WHERE id = ANY(%s)", [chosen])
            connection.execute("DELETE FROM account WHERE id <= %s", [self._next_id - ROWS + 100])
            rows = f"generate_series({self._next_id + 1}, {self._next_id + 100})"
            connection.execute(f"INSERT INTO account SELECT i, 0, md5(i::text) FROM {rows} AS i".encode())
            self._next_id += 100
            connection.execute("VACUUM account")
            if day % 10 == 5:
                connection.execute("TRUNCATE report")
                connection.execute("INSERT INTO report SELECT id, filler FROM account WHERE id % 5 = 0")

    def _keep(self, kept: Kept, day: int) -> Sizes:
        parameters = ConnectionParameters(self._server.conninfo)
        since = None if kept.wants_full(day) else "latest"
        request = BackupRequest(kept.place, parameters, self._server.data_directory, since, fast=True)
        before = _total(kept.place)
        backup.take_backup(request)
        if kept.merge:
            self.taken_bytes += _total(kept.place) - before
        expire(ExpireRequest(kept.place, self.rules, merge=kept.merge))
        return sizes_of(kept.place)


@contextmanager
def _clock(time: datetime) -> Iterator[None]:
    """Have the server's clock tell a time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backup, "read_clock", lambda _: time)
        yield


def _total(place: LocalPlace) -> int:
    return sum(size_bytes for _, size_bytes in place.store.list())


def sizes_of(place: LocalPlace) -> Sizes:
    repository = Repository.open(place)
    stored = dict(place.store.list())

    def below(folder: str) -> int:
        return sum(size_bytes for name, size_bytes in stored.items() if name.startswith(f"{folder}/"))

    ids, needed = repository.catalogue.ids(), dict[tuple[str, int], int]()
    for backup_id in ids:
        for pack in decode_packs(place.store.get(f"backups/{backup_id}/backup.json").splitlines(keepends=True)):
            needed |= {(pack.name, frame.offset): frame.stored_size_bytes for frame in pack}
    packs = below(PACK_DIRECTORY) + below(MOVED_FRAMES_DIRECTORY)
    return Sizes(packs, sum(needed.values()), below(WAL_DIRECTORY), sum(stored.values()), len(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="where the sizes go, as JSON")
    parser.add_argument("--days", type=int, default=365)
    arguments = parser.parse_args()
    installation = find_installation(18).installation
    assert installation is not None
    with tempfile.TemporaryDirectory(prefix="pgwal-year-") as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        give_to_server(directory)
        with ThrowawayServer(make_reachable(installation, directory), directory / "server") as server:
            server.initdb("-k", "--wal-segsize=1")
            server.configure(**BASE_SETTINGS | {"autovacuum": False, "wal_keep_size": "256MB"})
            server.start()
            year = SimulatedYear(server, directory, GFS)
            rows = []
            for chains, merged in year.play(arguments.days):
                everything = {"total": year.taken_bytes}
                rows.append({"all": everything, "chains": chains._asdict(), "merged": merged._asdict()})
                print(len(rows), chains, merged, flush=True)
    arguments.output.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
