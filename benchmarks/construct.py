"""The walk by the construct declarations, which is the specification, over one segment: a curiosity."""

from __future__ import annotations

from functools import partial

from benchmarks.context import Context
from benchmarks.measure import Comparison, Side, compare
from benchmarks.recording import LOADS, recorded_wal


def run(context: Context) -> list[Comparison]:
    """Compare on one segment of WAL of transactions."""
    segment = min(recorded_wal(LOADS[0], context.scratch).iterdir())
    sides = [
        Side("pg_waldump -q", partial(context.run_tool, "pg_waldump", "-q", segment)),
        Side("pgwal inspect --stats", partial(context.run_pgwal, "inspect", segment, "--stats")),
    ]
    return [compare("construct walk, one segment", sides, 1, bytes_processed=segment.stat().st_size)]
