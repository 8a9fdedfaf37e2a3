"""Simulated changes of large databases, as summary files."""

from __future__ import annotations

import random
from pathlib import Path

from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import BLOCK_SIZE
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.codec import encode_summary, summary_file_name
from pgwal.summary.link import Link

_SEED = 1
_SEGMENT_SIZE = 16 << 20
_MAX_RELATION_BYTES = 1 << 40
_DEFAULT_TABLESPACE = 1663
_DATABASE = 5
_FIRST_RELATION = 16384


def write_summary(
    directory: Path, database_bytes: int, changed_blocks: int, relations: int | None = None, *, is_linked: bool = False
) -> Path:
    """Write the summary of a range in which blocks changed at random all over a database; return its path.

    ``relations`` is how many the database has, as few as can be by default: one for each terabyte.
    With ``is_linked`` it counts for what a receiver wrote: without, it is one of the server's, or of an older pgwal.
    """
    chosen = random.Random(_SEED)
    relation_count = relations or -(-database_bytes // _MAX_RELATION_BYTES)
    blocks_each = database_bytes // relation_count // BLOCK_SIZE
    counts = [changed_blocks // relation_count] * relation_count
    for at in range(changed_blocks % relation_count):
        counts[at] += 1
    changes = BlockMap()
    for number, own in enumerate(counts):
        key = RelationFork(_DEFAULT_TABLESPACE, _DATABASE, _FIRST_RELATION + number, 0)
        changes.mark(key, chosen.sample(range(blocks_each), own))
    summary_range = LsnRange(1, Lsn(_SEGMENT_SIZE), Lsn(2 * _SEGMENT_SIZE))
    path = directory / summary_file_name(summary_range)
    link = Link(Lsn(summary_range.start - 64), Lsn(summary_range.end - 64)) if is_linked else None
    path.write_bytes(encode_summary(changes, link))
    return path
