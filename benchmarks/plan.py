"""The block list of a window: from summary files on disk to the numbers of all changed blocks, whatever the size.

The databases are simulated: what is measured depends on their changes alone, and shows it.
"""

from __future__ import annotations

import resource
import time
from functools import partial
from pathlib import Path

from benchmarks.changes import write_summary
from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from pgwal.engine.recorded import read_summary_files
from pgwal.relation import BLOCK_SIZE

_CHANGED_BLOCKS = 1_000_000
_SIZES = {"1 GB": 1 << 30, "16 GB": 16 << 30, "1 TB": 1 << 40, "32 TB": 32 << 40, "1 PB": 1 << 50}
LIMIT_SECONDS = 0.1


def run(context: Context) -> list[Comparison]:
    """Take the block list of a million changed blocks, or of all that there are, in databases of all sizes."""
    sides = []
    for name, size in _SIZES.items():
        directory = context.scratch / f"changes-{name.replace(' ', '')}"
        directory.mkdir()
        changed_blocks = min(_CHANGED_BLOCKS, size // BLOCK_SIZE)
        summary = write_summary(directory, size, changed_blocks)
        sides.append(Side(f"database of {name}", partial(_block_list, summary, changed_blocks)))
    return [compare("block list of a million changed blocks, target 0.1 s", sides, context.rounds)]


def _block_list(summary: Path, changed_blocks: int) -> Measurement:
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    changes, _ = read_summary_files([summary], None, None)
    listed = sum(len(fork_changes.blocks.to_array()) for _, fork_changes in changes.entries())
    seconds, cpu_seconds = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    assert listed == changed_blocks
    return Measurement(seconds, cpu_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
