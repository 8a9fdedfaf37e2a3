"""Summarise recorded WAL, against pg_waldump -q, which reads the same records and makes no map."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.recording import DDL, LOADS, recorded_wal

_TARGET = 1 / 1.5
_DDL_TARGET = 1.0
"""Of one worker; two are to take 0.7."""


def run(context: Context) -> list[Comparison]:
    """Compare on WAL of transactions, of bulk loads, of small records, and full of DDL."""
    comparisons = []
    for load in LOADS:
        wal = recorded_wal(load, context.scratch)
        segments = sorted(path.name for path in wal.iterdir())
        size = sum(path.stat().st_size for path in wal.iterdir())
        waldump = partial(context.run_tool, "pg_waldump", "-q", "-p", wal, segments[0], segments[-1])
        sides = [
            Side("pg_waldump -q", waldump),
            *(Side(f"pgwal summarize -j {jobs}", partial(_summarize, context, wal, jobs)) for jobs in (1, 2)),
        ]
        title = f"scan, {load.name} WAL"
        target = _DDL_TARGET if load is DDL else _TARGET
        comparisons.append(compare(title, sides, context.rounds, bytes_processed=size, target=target))
    return comparisons


def _summarize(context: Context, wal: Path, jobs: int) -> Measurement:
    output = context.scratch / "summaries"
    shutil.rmtree(output, ignore_errors=True)
    return context.run_pgwal("summarize", wal, "-o", output, "-j", str(jobs))
