"""Where each part of a file lies in a chain of backups: pure decisions for restore.

The walk is that of src/bin/pg_combinebackup/reconstruct.c, PostgreSQL 17 to 19, with one difference: what an
older incremental file says about its length is believed.  Blocks at or beyond its truncation block length that it
does not hold are zero, never those of a still older backup.  In chains that pgwal writes, no such blocks exist and
the results are the same.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter, lt
from typing import NamedTuple

from pyroaring import BitMap

from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.errors import BrokenInvariant, ChainError, MissingPriorBackup
from pgwal.relation import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class StoredWhole:
    """A backup holds the file whole, ``size_bytes`` long."""

    size_bytes: int


class Run(NamedTuple):
    """A part of the output: ``length`` bytes at ``offset``.

    They are those at ``source_offset`` of what source number ``source`` stores, or zeros when it is None.
    """

    offset: int
    length: int
    source: int | None
    source_offset: int


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How to make a file: its size, and runs that cover each byte of it once, ascending."""

    size_bytes: int
    runs: tuple[Run, ...]


def reconstruct_file(sources: Sequence[IncrementalHeader | StoredWhole]) -> Reconstruction:
    """Decide where each block of a file comes from.

    ``sources`` is what each backup of the chain stores of the file, newest first, down to the first whole copy (what
    follows it is not looked at).  Raises MissingPriorBackup when there is no whole copy, ChainError when the whole
    copy cannot be what incremental copies were built on.
    """
    whole_at = next((at for at, source in enumerate(sources) if isinstance(source, StoredWhole)), None)
    if whole_at is None:
        raise MissingPriorBackup(
            "no backup of the chain holds the file whole", hint="Restore another backup, or take a full backup."
        )
    whole = sources[whole_at]
    assert isinstance(whole, StoredWhole)
    incrementals = [source for source in sources[:whole_at] if isinstance(source, IncrementalHeader)]
    if not incrementals:
        runs = (Run(0, whole.size_bytes, whole_at, 0),) if whole.size_bytes else ()
        return Reconstruction(whole.size_bytes, runs)
    if whole.size_bytes % BLOCK_SIZE:
        raise ChainError(
            f"the whole copy that incremental copies build on has {whole.size_bytes} bytes, not a whole number of"
            " blocks"
        )
    whole_block_count = whole.size_bytes // BLOCK_SIZE
    if all(not header.block_numbers and header.truncation_block_length == whole_block_count for header in incrementals):
        # Unchanged throughout, as most files are.
        return Reconstruction(whole.size_bytes, (Run(0, whole.size_bytes, whole_at, 0),) if whole.size_bytes else ())
    return _reconstruct_blocks(incrementals, whole_block_count)


def _reconstruct_blocks(incrementals: list[IncrementalHeader], whole_block_count: int) -> Reconstruction:
    block_count = incrementals[0].reconstructed_block_count
    wanted, zeros = _block_range(0, block_count), BitMap()
    runs: list[Run] = []
    for source, header in enumerate(incrementals):
        held = BitMap(header.block_numbers)
        runs += _incremental_runs(source, header, wanted & held)
        wanted -= held
        beyond = wanted & _block_range(header.truncation_block_length, block_count)
        zeros |= beyond
        wanted -= beyond
    beyond = wanted & _block_range(whole_block_count, block_count)
    zeros |= beyond
    wanted -= beyond
    whole_at = len(incrementals)
    for _, first, count in _consecutive(wanted.to_array()):
        runs.append(Run(first * BLOCK_SIZE, count * BLOCK_SIZE, whole_at, first * BLOCK_SIZE))
    for _, first, count in _consecutive(zeros.to_array()):
        runs.append(Run(first * BLOCK_SIZE, count * BLOCK_SIZE, None, 0))
    runs.sort(key=itemgetter(0))
    if sum(map(itemgetter(1), runs)) != block_count * BLOCK_SIZE:
        raise BrokenInvariant("a file is not reconstructed whole")
    return Reconstruction(block_count * BLOCK_SIZE, tuple(runs))


def _block_range(start: int, stop: int) -> BitMap:
    blocks = BitMap()
    if start < stop:
        blocks.add_range(start, stop)
    return blocks


def _incremental_runs(source: int, header: IncrementalHeader, taken: BitMap) -> Iterator[Run]:
    """Yield runs for the blocks that are taken from one incremental file."""
    numbers = header.block_numbers
    if not _is_ascending(numbers):
        yield from _runs_of_disorder(source, header, taken)
        return
    for _, first, count in _consecutive(taken.to_array()):
        # Consecutive numbers are neighbours in an ascending list.
        at = bisect_left(numbers, first)
        yield Run(first * BLOCK_SIZE, count * BLOCK_SIZE, source, header.header_size + at * BLOCK_SIZE)


def _runs_of_disorder(source: int, header: IncrementalHeader, taken: BitMap) -> Iterator[Run]:
    """Yield runs of one block each: the format allows any order, though no known writer uses that."""
    for at, block in enumerate(header.block_numbers):
        if block in taken:
            yield Run(block * BLOCK_SIZE, BLOCK_SIZE, source, header.header_size + at * BLOCK_SIZE)


def _is_ascending(numbers: array[int]) -> bool:
    return all(map(lt, numbers, numbers[1:]))


def _consecutive(numbers: array[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (index, first number, count) of each maximal run of consecutive numbers in an ascending list.

    The end of a run is found by doubling and halving steps: a large run costs no more than a few looks.
    """
    at, end = 0, len(numbers)
    while at < end:
        first = numbers[at]
        # Invariant: numbers[at + low] continues the run, at + high does not (or is past the end).
        low, high = 0, 1
        while at + high < end and numbers[at + high] == first + high:
            low, high = high, high * 2
        high = min(high, end - at)
        while high - low > 1:
            middle = (low + high) // 2
            if numbers[at + middle] == first + middle:
                low = middle
            else:
                high = middle
        yield at, first, high
        at += high
