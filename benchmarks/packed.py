"""Packed backups of PostgreSQL 15, against pg_basebackup's compressed tar and pgBackRest's bundles: time and size."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.backup import SCALE, SHARES, change_blocks
from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.pgbackrest import JOBS, PgBackRest, installed
from benchmarks.repository import BenchmarkedRepository
from pgwal_cli.throwaway_server import ThrowawayServer

_TARGET = 0.8

_THIRD = """
CREATE TABLE pgbench_accounts AS
SELECT g AS aid, 0 AS abalance, (
    SELECT string_agg(md5(random()::text || g || part) || 'sixteen letters.', '') FROM generate_series(1, 2) part
) AS filler
FROM generate_series(1, {rows}) g
"""
"""Sixteen bytes by chance in each forty-eight."""
_THIRD_ROWS = 61 * 100_000 * SCALE // 61 // 4 * 3


def run(context: Context) -> list[Comparison]:
    """Compare full backups, incremental ones, and restores, of pgbench's tables and of what compresses 3 : 1."""
    found = installed(context)
    if found is None:
        return []
    program, context = found
    comparisons = []
    for name, fill in (("pgbench", _fill_pgbench), ("3 : 1", _fill_third)):
        with context.server(f"packed-{len(comparisons)}") as server:
            fill(server)
            comparisons += _Packed(context, program, server, name).compare_all()
    return comparisons


def _fill_pgbench(server: ThrowawayServer) -> None:
    server.run_tool("pgbench", "-i", "-q", "-s", str(SCALE))


def _fill_third(server: ThrowawayServer) -> None:
    with server.connect() as connection:
        connection.execute(_THIRD.format(rows=_THIRD_ROWS).encode())
        connection.execute("VACUUM FREEZE pgbench_accounts")
        connection.execute("CHECKPOINT")


class _Packed:
    """The sides, over one server."""

    def __init__(self, context: Context, program: str, server: ThrowawayServer, data: str) -> None:
        self._context = context
        self._server = server
        self._data = data
        self._scratch = context.scratch / f"sides-{data.replace(' ', '')}"
        self._scratch.mkdir()
        self._pgbackrest = PgBackRest(program, self._scratch / "pgbackrest", server, "zst")
        self._repository = BenchmarkedRepository(context, server, self._scratch / "repository")
        self._local = ["--pgdata", server.data_directory, "-j", str(JOBS)]

    def compare_all(self) -> list[Comparison]:
        self._pgbackrest.create()
        # It does not remove the only full backup that it has.
        self._pgbackrest.keep("full")
        self._repository.initialise("--format", "packed")
        with self._repository.receiving():
            comparisons = [self._full()]
            prior = self._repository.keep("full", *self._local)
            # What builds on it must have a later name than all that there was.
            self._pgbackrest.keep("full")
            for percent in SHARES:
                change_blocks(self._server, percent)
                comparisons.append(self._incremental(percent, prior))
            newest = self._repository.keep("incremental", "--since", prior, *self._local)
            self._pgbackrest.keep("diff")
        comparisons.append(self._restore(newest))
        shutil.rmtree(self._scratch)
        return comparisons

    def _full(self) -> Comparison:
        size = sum(path.stat().st_size for path in (self._server.data_directory / "base").rglob("*") if path.is_file())
        return self._compare(
            "full backup",
            {
                "pg_basebackup -Ft --compress=client-zstd:1": self._basebackup,
                "pgbackrest --type=full, zst, bundle, block": partial(self._pgbackrest.backup, "full"),
                "pgwal full, packed": self._full_backup,
            },
            bytes_processed=size,
        )

    def _incremental(self, percent: int, prior: str) -> Comparison:
        return self._compare(
            f"incremental backup, {percent} % changed",
            {
                "pgbackrest --type=diff, zst, bundle, block": partial(self._pgbackrest.backup, "diff"),
                "pgwal incremental, packed": partial(self._incremental_backup, prior),
            },
        )

    def _restore(self, newest: str) -> Comparison:
        return self._compare(
            "restore of full and incremental",
            {
                "pgbackrest restore": lambda: self._pgbackrest.restore(self._emptied()),
                "pgwal restore": lambda: self._context.run_pgwal(
                    "restore", newest, "--repo", self._repository.path, "-D", self._emptied(), "-j", str(JOBS)
                ),
            },
        )

    def _compare(
        self, title: str, sides: dict[str, Callable[[], Measurement]], *, bytes_processed: int = 0
    ) -> Comparison:
        named = [Side(name, run) for name, run in sides.items()]
        title = f"{title} of PostgreSQL 15, local, {self._data}"
        return compare(title, named, self._context.rounds, bytes_processed=bytes_processed, target=_TARGET)

    def _basebackup(self) -> Measurement:
        target = self._emptied()
        measured = self._context.run_tool(
            "pg_basebackup",
            *("-d", self._server.conninfo, "-D", target, "-Ft", "--compress=client-zstd:1"),
            *("-X", "none", "-c", "fast", "--no-slot"),
        )
        return measured._replace(stored_bytes=_size(target))

    def _full_backup(self) -> Measurement:
        measured = self._repository.backup("full", *self._local)
        measured = measured._replace(stored_bytes=_size(self._repository.path / "packs"))
        self._repository.drop_all()
        return measured

    def _incremental_backup(self, prior: str) -> Measurement:
        before = _size(self._repository.path / "packs")
        measured = self._repository.backup("incremental", "--since", prior, *self._local)
        return measured._replace(stored_bytes=_size(self._repository.path / "packs") - before)

    def _emptied(self) -> Path:
        target = self._scratch / "target"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o700)
        return target


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
