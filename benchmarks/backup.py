"""Full and incremental backups, local and over SQL, against pg_basebackup, and what becomes of them in a restore."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.repository import BenchmarkedRepository
from pgwal_cli.throwaway_server import ThrowawayServer

SCALE = 200
"""Of pgbench: some 3 GB."""

SHARES = (1, 10)
"""Percent of the blocks that change before an incremental."""


def run(context: Context) -> list[Comparison]:
    """Compare full backups, then incremental ones after one and after ten percent of the blocks have changed."""
    with context.server("backup") as server, _receiving(context, server) as repository:
        server.run_tool("pgbench", "-i", "-q", "-s", str(SCALE))
        comparisons = _full(context, server, repository)
        for percent in SHARES:
            comparisons += _incremental(context, server, repository, percent)
        return comparisons


@contextmanager
def _receiving(context: Context, server: ThrowawayServer) -> Iterator[BenchmarkedRepository]:
    repository = BenchmarkedRepository(context, server, context.scratch / "repository")
    with repository.receiving():
        yield repository


def _full(context: Context, server: ThrowawayServer, repository: BenchmarkedRepository) -> list[Comparison]:
    target = context.scratch / "basebackup"

    def full(*options: str | Path) -> Measurement:
        measured = repository.backup("full", *options)
        repository.drop(repository.backup_ids()[-1])
        return measured

    def basebackup() -> Measurement:
        shutil.rmtree(target, ignore_errors=True)
        return _basebackup(context, server, target)

    peer = Side("pg_basebackup -X none", basebackup)
    size = sum(path.stat().st_size for path in (server.data_directory / "base").rglob("*") if path.is_file())
    return [
        compare(
            f"full backup, {name}",
            [peer, Side("pgwal full", partial(full, *options))],
            context.rounds,
            bytes_processed=size,
            target=limit,
        )
        for name, options, limit in (("local", ["--pgdata", server.data_directory], 0.9), ("over SQL", [], 1.1))
    ]


def _incremental(
    context: Context, server: ThrowawayServer, repository: BenchmarkedRepository, percent: int
) -> list[Comparison]:
    """Compare incremental backups, of which none is removed meanwhile: ext4 is slow to use an inode again."""
    prior = repository.keep("full")
    scratch = context.scratch / f"incremental-{percent}"
    scratch.mkdir()
    _basebackup(context, server, scratch / "prior")
    manifest = scratch / "prior" / "backup_manifest"
    change_blocks(server, percent)
    numbers = count()

    def basebackup() -> Measurement:
        return _basebackup(context, server, scratch / str(next(numbers)), f"--incremental={manifest}")

    peer = Side("pg_basebackup --incremental", basebackup)
    comparisons = [
        compare(
            f"incremental backup, {name}, {percent} % changed",
            [peer, Side("pgwal incremental", partial(repository.backup, "incremental", "--since", prior, *options))],
            context.rounds,
            target=limit,
        )
        for name, options, limit in (("local", ["--pgdata", server.data_directory], 0.7), ("over SQL", [], 1.0))
    ]
    shutil.rmtree(scratch)
    for backup_id in repository.backup_ids():
        repository.drop(backup_id)
    return comparisons


def change_blocks(server: ThrowawayServer, percent: int) -> None:
    """Update one row in each of some evenly spread blocks of the largest table, which has 61 rows a block."""
    with server.connect() as connection:
        connection.execute(
            "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid %% %s = 0", [61 * 100 // percent]
        )
        connection.execute("CHECKPOINT")


def _basebackup(context: Context, server: ThrowawayServer, target: Path, *options: str) -> Measurement:
    return context.run_tool(
        "pg_basebackup", "-d", server.conninfo, "-D", target, "-X", "none", "-c", "fast", "--no-slot", *options
    )
