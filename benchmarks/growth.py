"""How time and memory grow with WAL, changed blocks, relations and the length of a chain: by 10 and by 100."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from benchmarks.backup import change_blocks
from benchmarks.changes import write_summary
from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.recording import LOADS, recorded_wal
from benchmarks.repository import BenchmarkedRepository

_FACTORS = (1, 10, 100)


def run(context: Context) -> list[Comparison]:
    """Measure each kind of growth; ratios are those to the smallest."""
    return [_wal(context), _changed_blocks(context), _relations(context), _chain(context)]


def _wal(context: Context) -> Comparison:
    recorded = sorted(recorded_wal(LOADS[0], context.scratch).iterdir())
    sides = []
    for factor in _FACTORS:
        segments = recorded[: max(1, len(recorded) * factor // _FACTORS[-1])]
        directory = context.scratch / f"wal-{factor}"
        directory.mkdir()
        for segment in segments:
            shutil.copyfile(segment, directory / segment.name)
        output = context.scratch / "grown-summaries"
        size = sum(segment.stat().st_size for segment in segments)
        command = partial(context.run_pgwal, "summarize", directory, "-o", output)
        sides.append(Side(f"summarize {size >> 20} MB", command))
    return compare("growth of WAL", sides, context.rounds)


def _changed_blocks(context: Context) -> Comparison:
    sides = []
    for factor in _FACTORS:
        directory = context.scratch / f"blocks-{factor}"
        directory.mkdir()
        summary = write_summary(directory, 1 << 40, 10_000 * factor)
        sides.append(Side(f"map of {10_000 * factor} blocks", partial(context.run_pgwal, "map", summary)))
    return compare("growth of changed blocks", sides, context.rounds)


def _relations(context: Context) -> Comparison:
    sides = []
    for factor in _FACTORS:
        directory = context.scratch / f"relations-{factor}"
        directory.mkdir()
        summary = write_summary(directory, 1 << 40, 1_000_000, 1_000 * factor)
        sides.append(Side(f"map of {1_000 * factor} relations", partial(context.run_pgwal, "map", summary)))
    return compare("growth of relations, a million changed blocks", sides, context.rounds)


def _chain(context: Context) -> Comparison:
    with context.server("chain") as server:
        repository = BenchmarkedRepository(context, server, context.scratch / "chain-repository")
        with repository.receiving():
            server.run_tool("pgbench", "-i", "-q", "-s", "5")
            ids = [repository.keep("full")]
            for _ in range(_FACTORS[-1]):
                change_blocks(server, 1)
                ids.append(repository.keep("incremental", "--since", "latest"))
    sides = [
        Side(f"restore of full + {factor}", partial(_restore, context, repository.path, ids[factor]))
        for factor in _FACTORS
    ]
    return compare("growth of a chain", sides, context.rounds)


def _restore(context: Context, repository: Path, backup_id: str) -> Measurement:
    target = context.scratch / f"restored-{os.getpid()}"
    shutil.rmtree(target, ignore_errors=True)
    return context.run_pgwal("restore", backup_id, "--repo", repository, "-D", target)
