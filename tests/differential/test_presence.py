"""What must be in a backup: tablespaces and databases that come, go or are not mounted, and relations that are gone.

Backups are taken in this process where something must happen at a certain moment of theirs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from differential.test_timelines import Pair, insert_lsn, one_value, pair, replays, wait_for  # noqa: F401
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.restored_server import Scene, assert_sound, checksums

import pgwal.engine.backup as engine
from pgwal.backup.entry import BackupEntry
from pgwal.engine.backup import take_backup
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.copied_file import Item
from pgwal.engine.copy import Copy
from pgwal.errors import DataAbsent
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal_cli.exit_codes import FAILED
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

SETTINGS: dict[str, str | int | bool] = {"autovacuum": False, "wal_keep_size": "1GB"}
ROWS = "SELECT i AS id, repeat('x', 200) AS filler FROM generate_series(1, 2000) AS i"
SOURCES = ("local", "sql")


class Site:
    """A server and the repository of its backups."""

    def __init__(self, make_server: ServerFactory, scratch: Path) -> None:
        self.server: ThrowawayServer = make_server(initdb_args=("--wal-segsize=1",), settings=SETTINGS)
        self.scene = Scene(scratch / "repo", make_server)
        self.scratch = scratch

    @property
    def repo(self) -> Path:
        return self.scene.repo

    def run(self, *statements: str, dbname: str = "postgres") -> None:
        with self.server.connect(dbname=dbname) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def value(self, query: str, dbname: str = "postgres") -> Any:
        with self.server.connect(dbname=dbname) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def location(self, name: str) -> Path:
        """Make a directory for a tablespace."""
        location = self.scratch / name
        location.mkdir(mode=0o700)
        give_to_server(location)
        return location

    def taking(self, command: str, source: str) -> list[str | Path]:
        local: list[str | Path] = ["--pgdata", self.server.data_directory] if source == "local" else []
        return [command, "--repo", self.repo, "-d", self.server.conninfo, "-c", "fast", "--json", *local]

    def back_up(self, command: str, source: str) -> str:
        return str(json.loads(succeed(*self.taking(command, source)))["id"])

    def take_here(self, since: str | None, source: str) -> BackupEntry:
        """Take a backup in this process, one file after the other."""
        parameters = ConnectionParameters(self.server.conninfo)
        directory = self.server.data_directory if source == "local" else None
        return take_backup(BackupRequest(LocalPlace(self.repo), parameters, directory, since=since, fast=True)).entry

    def paths(self, backup_id: str) -> list[str]:
        return [file.path for file in Repository.open(self.repo).catalogue.files(backup_id)]

    def assert_restores(self, *locations: Path) -> None:
        """Restore the latest backup, tablespaces where they were, and compare what recovery makes of it."""
        verified = run_pgwal("verify", "--repo", self.repo)
        assert verified.code == 0, verified.stdout
        succeed("stream", "--once", "--repo", self.repo, "-d", self.server.conninfo)
        expected = checksums(self.server)
        names = databases(self.server)
        self.server.stop()
        for location in locations:
            # Only what is restored, or made by WAL, may be found there.
            shutil.rmtree(location)
            location.mkdir(mode=0o700)
            give_to_server(location)
        target = self.scene.restore(self.scratch / "restored", "latest", "--allow-tablespaces-in-place")
        for location in locations:
            give_to_server(location)
        with self.scene.started(target) as server:
            assert checksums(server) == expected
            assert_sound(server)
            assert databases(server) == names
            for name in names:
                server.connect(dbname=name).close()


def databases(server: ThrowawayServer) -> list[str]:
    with server.connect() as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1").fetchall()
    return [name for (name,) in rows]


@pytest.fixture
def site(make_server: ServerFactory, scratch: Path) -> Site:
    return Site(make_server, scratch)


def do_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, action: Callable[[], None]) -> None:
    """Have ``action`` done once, right before a function is called."""
    original, todo = getattr(owner, name), [action]

    def call(*args: Any, **kwargs: Any) -> Any:
        if todo:
            todo.pop()()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def do_before_reading(monkeypatch: pytest.MonkeyPatch, actions: dict[str, Callable[[], None]]) -> None:
    """Have an action done once when files below its directory, or at its path, are listed and not yet read."""
    original = Copy._copy_files

    def copy_files(self: Copy, source: Any, items: Sequence[Item]) -> Any:
        for place in [place for place in actions if any(i.file.path.startswith(place) for i in items)]:
            actions.pop(place)()
        return original(self, source, items)

    monkeypatch.setattr(Copy, "_copy_files", copy_files)


# ---- tablespaces


@pytest.mark.postgres
@pytest.mark.parametrize(("moment", "source"), [("checkpoint", "sql"), ("list", "local")])
def test_tablespace_created_while_the_backup_is_taken(
    site: Site, monkeypatch: pytest.MonkeyPatch, moment: str, source: str
) -> None:
    """WAL makes it: after the list it is neither in the entry nor among the files, before it WAL makes it again."""
    location = site.location("late")
    site.run(f"CREATE TABLE before AS {ROWS}")

    def create() -> None:
        site.run(
            f"CREATE TABLESPACE late LOCATION '{location}'",
            f"CREATE TABLE inside TABLESPACE late AS {ROWS}",
            "CREATE DATABASE within TABLESPACE late",
            "CHECKPOINT",
        )

    if moment == "checkpoint":
        # The one after the checkpoint, and before the list.
        do_before(monkeypatch, engine._Backup, "_check_directory", create)
    else:
        do_before(monkeypatch, engine._Backup, "_changes_until", create)
    entry = site.take_here(None, source)
    monkeypatch.undo()
    oid = site.value("SELECT oid::int FROM pg_tablespace WHERE spcname = 'late'")
    listed = {oid: str(location)} if moment == "checkpoint" else {}
    assert entry.tablespaces == listed
    found = [path for path in site.paths(entry.backup_id) if path.startswith("pg_tblspc/")]
    assert bool(found) == bool(listed)
    assert (site.repo / "backups" / entry.backup_id / "data" / "pg_tblspc" / str(oid)).exists() == bool(listed)
    site.run("INSERT INTO inside SELECT * FROM before", "DELETE FROM before WHERE id % 2 = 0")
    site.assert_restores(location)


@pytest.mark.postgres(13, 18, 19)
def test_tablespace_whose_disk_is_not_mounted(site: Site) -> None:
    location, other = site.location("side"), site.location("other")
    site.run(
        f"CREATE TABLESPACE side LOCATION '{location}'",
        f"CREATE TABLESPACE empty LOCATION '{other}'",
        f"CREATE TABLE inside TABLESPACE side AS {ROWS}",
    )
    site.back_up("full", "local")
    (version_directory,) = location.iterdir()
    away = site.scratch / "unmounted"
    version_directory.rename(away)
    for command, source in (("incremental", "local"), ("incremental", "sql"), ("backup", "local"), ("full", "sql")):
        refused = run_pgwal(*site.taking(command, source))
        pattern = f"tablespace [0-9]+ has no directory {version_directory.name} at {location}"
        assert_failed(refused, FAILED, pattern, "whether its disk is mounted")
    # The directory is there, and empty: only the prior backup knows what it held.
    version_directory.mkdir(mode=0o700)
    give_to_server(version_directory)
    refused = run_pgwal(*site.taking("incremental", "local"))
    assert_failed(refused, FAILED, "missing from the data directory: pg_tblspc/.*; WAL does not say why", "not mounted")
    version_directory.rmdir()
    away.rename(version_directory)
    assert len(Repository.open(site.repo).catalogue.entries()) == 1
    site.run("UPDATE inside SET filler = 'y' WHERE id = 1")
    site.back_up("incremental", "sql")
    site.assert_restores(location, other)


# ---- databases and relations


@pytest.mark.postgres(13, 18, 19)
def test_files_that_are_gone_without_a_word(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.run(f"CREATE TABLE lost AS {ROWS}", "CREATE DATABASE other", "CREATE DATABASE emptied", "CHECKPOINT")
    first = site.back_up("full", "local")
    lost = site.server.data_directory / site.value("SELECT pg_relation_filepath('lost')")
    relative, away = str(lost.relative_to(site.server.data_directory)), site.scratch / "away"
    lost.rename(away)
    for command, source in (("incremental", "local"), ("incremental", "sql"), ("backup", "sql")):
        refused = run_pgwal(*site.taking(command, source))
        assert_failed(refused, FAILED, f"missing from the data directory: {relative}; WAL does not say why", "by hand")
    away.rename(lost)
    # Listed, and gone when it was to be read; a full backup too.
    do_before_reading(monkeypatch, {relative: lambda: (lost.rename(away), None)[1]})
    with pytest.raises(DataAbsent, match=relative):
        site.take_here(None, "sql")
    monkeypatch.undo()
    away.rename(lost)
    directory = (
        site.server.data_directory / "base" / str(site.value("SELECT oid FROM pg_database WHERE datname = 'other'"))
    )
    directory.rename(away)
    for command, source in (("full", "local"), ("full", "sql"), ("incremental", "local")):
        refused = run_pgwal(*site.taking(command, source))
        assert_failed(refused, FAILED, f"database {directory.name} has no files in base/", "not mounted")
    away.rename(directory)
    assert [entry.backup_id for entry in Repository.open(site.repo).catalogue.entries()] == [first]
    site.back_up("incremental", "sql")
    site.assert_restores()


@pytest.mark.postgres
@pytest.mark.parametrize("source", SOURCES)
def test_nothing_that_was_dropped_is_missed(site: Site, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Relations, databases, tablespaces that are dropped, moved or rewritten, before the backup and while it runs."""
    spaces = {name: site.location(name) for name in ("kept", "early", "late")}
    for name, location in spaces.items():
        site.run(f"CREATE TABLESPACE {name} LOCATION '{location}'")
    site.run("CREATE TABLE constant AS SELECT 1 AS id")
    for moment in ("early", "late"):
        site.run(
            f"CREATE DATABASE dropped_{moment}",
            f"CREATE DATABASE moved_{moment}",
            f"CREATE DATABASE within_{moment} TABLESPACE {moment}",
            *(f"CREATE TABLE {name}_{moment} AS {ROWS}" for name in ("gone", "cut", "rewritten", "emptied", "steady")),
            f"CREATE TABLE inside_{moment} TABLESPACE {moment} AS {ROWS}",
            f"CREATE UNLOGGED TABLE unlogged_{moment} AS {ROWS}",
            f"CREATE INDEX ON rewritten_{moment} (id)",
        )
    site.run("CHECKPOINT")
    site.take_here(None, source)

    def change(moment: str) -> None:
        site.run(
            f"DROP TABLE gone_{moment}, inside_{moment}, unlogged_{moment}",
            f"DELETE FROM cut_{moment} WHERE id > 100",
            f"VACUUM cut_{moment}",
            f"VACUUM FULL rewritten_{moment}",
            f"TRUNCATE emptied_{moment}",
            f"ALTER TABLE steady_{moment} SET UNLOGGED",
            f"ALTER TABLE steady_{moment} SET LOGGED",
            f"CREATE UNLOGGED TABLE fresh_{moment} AS {ROWS}",
            f"DROP DATABASE dropped_{moment}",
            f"ALTER DATABASE moved_{moment} SET TABLESPACE kept",
            f"DROP DATABASE within_{moment}",
            f"DROP TABLESPACE {moment}",
            "VACUUM FULL pg_class",
            "CHECKPOINT",
        )

    change("early")
    # Of a file with no changes nothing would be read.
    site.run("UPDATE gone_late SET filler = 'z' WHERE id = 1")
    # What is dropped late has been listed for the backup, or the prior one had it.
    doomed = site.value("SELECT pg_relation_filepath('gone_late')")
    do_before_reading(monkeypatch, {doomed: lambda: change("late")})
    entry = site.take_here("latest", source)
    monkeypatch.undo()
    assert doomed not in site.paths(entry.backup_id)
    # Unlogged tables are empty after recovery, and of a database that is moved while the backup runs, recovery may not
    # find the files to move any more: so it is with every base backup.
    site.run("DROP TABLE fresh_early, fresh_late", "DROP DATABASE moved_late")
    site.assert_restores(*spaces.values())


@pytest.mark.postgres(13, 18, 19)
def test_what_a_standby_replays_as_dropped_is_not_missed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The backup of a standby ends where its recovery must go at least, and that is behind what it has dropped."""

    def run(*statements: str) -> None:
        with pair.primary.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())
        position = insert_lsn(pair.primary)
        wait_for(lambda: replays(pair.standby, position), "the standby")

    run(f"CREATE TABLE kept AS {ROWS}", f"CREATE TABLE gone AS {ROWS}", "CREATE DATABASE dropped", "CHECKPOINT")
    doomed = one_value(pair.primary, "SELECT pg_relation_filepath('gone')")
    drop = ("DROP TABLE gone", "DROP DATABASE dropped", "UPDATE kept SET filler = 'y'")
    do_before_reading(monkeypatch, {doomed: lambda: run(*drop)})
    parameters = ConnectionParameters(pair.standby.conninfo)
    entry = take_backup(BackupRequest(LocalPlace(pair.repo), parameters, pair.standby.data_directory, fast=True)).entry
    monkeypatch.undo()
    assert doomed not in [file.path for file in Repository.open(pair.repo).catalogue.files(entry.backup_id)]
    succeed("verify", "--repo", pair.repo)
