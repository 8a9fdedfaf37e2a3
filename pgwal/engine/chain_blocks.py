"""Some blocks of a file of a chain, each from the newest backup that has it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from pgwal.backup.reconstruct import Run, reconstruct_file
from pgwal.engine.chain_pieces import grouped_pieces, read_pieces
from pgwal.engine.chain_source import ChainSource
from pgwal.relation import BLOCK_SIZE


def read_blocks(
    sources: Sequence[ChainSource], blocks: array[int] | None, buffer: memoryview
) -> Iterator[tuple[int, memoryview]]:
    """Yield parts of a file with their offsets: those blocks, which ascend, or all of it where ``blocks`` is None.

    A part is in the buffer until the next one.  Raises as ``reconstruct_file`` and ``read_pieces`` do.
    """
    plan = reconstruct_file([source.header for source in sources])
    wanted = [(0, plan.size_bytes)] if blocks is None else _ranges(blocks)
    for runs in _runs_within(plan.runs, wanted):
        for _, pieces in grouped_pieces(runs, len(buffer)):
            yield pieces[0].offset, read_pieces(pieces, sources, buffer)


def _ranges(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield where blocks that follow each other begin and end, in bytes."""
    start = end = -1
    for block in blocks:
        if block != end:
            if end > start:
                yield start * BLOCK_SIZE, end * BLOCK_SIZE
            start = block
        end = block + 1
    if end > start:
        yield start * BLOCK_SIZE, end * BLOCK_SIZE


def _runs_within(runs: Sequence[Run], ranges: Iterable[tuple[int, int]]) -> Iterator[list[Run]]:
    """Yield, for each range, the parts of runs in it; both ascend."""
    at = 0
    for start, end in ranges:
        within = []
        while at < len(runs) and runs[at].offset < end:
            run = runs[at]
            first, last = max(run.offset, start), min(run.offset + run.length, end)
            if first < last:
                within.append(Run(first, last - first, run.source, run.source_offset + first - run.offset))
            if run.offset + run.length > end:
                break
            at += 1
        if within:
            yield within
