"""Restore a full and an incremental backup, against pg_combinebackup on the same chain with the same copy method."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from benchmarks.backup import change_blocks
from benchmarks.context import Context
from benchmarks.measure import CommandFailed, Comparison, Measurement, Side, compare
from benchmarks.repository import BenchmarkedRepository

_SCALE = 200
_METHODS = ("--copy", "--clone", "--copy-file-range", "--link")


def run(context: Context) -> list[Comparison]:
    """Compare with each copy method that the file system has."""
    with context.server("restore") as server:
        repository = BenchmarkedRepository(context, server, context.scratch / "repository")
        with repository.receiving():
            server.run_tool("pgbench", "-i", "-q", "-s", str(_SCALE))
            full = repository.keep("full")
            change_blocks(server, 10)
            incremental = repository.keep("incremental", "--since", full)
    chain = [repository.path / "backups" / backup_id / "data" for backup_id in (full, incremental)]
    size = sum(path.stat().st_size for path in chain[0].rglob("*") if path.is_file())
    comparisons = []
    for method in _METHODS:
        sides = [
            Side("pg_combinebackup", partial(_combine, context, chain, method)),
            Side("pgwal restore", partial(_restore, context, repository.path, incremental, method)),
        ]
        try:
            comparisons.append(compare(f"restore {method}", sides, context.rounds, bytes_processed=size, target=0.7))
        except CommandFailed as failure:
            print(f"\nrestore {method}: not measured: {failure}")
    return comparisons


def _combine(context: Context, chain: list[Path], method: str) -> Measurement:
    target = _emptied(context)
    return context.run_tool("pg_combinebackup", *chain, "-o", target, method)


def _restore(context: Context, repository: Path, backup_id: str, method: str) -> Measurement:
    target = _emptied(context)
    return context.run_pgwal("restore", backup_id, "--repo", repository, "-D", target, method)


def _emptied(context: Context) -> Path:
    target = context.scratch / "restored"
    shutil.rmtree(target, ignore_errors=True)
    return target
