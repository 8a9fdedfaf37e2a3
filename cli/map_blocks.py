"""``pgwal map``: which blocks changed between two LSNs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.lsn import Lsn
from pgwal.relation import INVALID_BLOCK_NUMBER, Fork
from pgwal_cli import options
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal.summary.block_map import BlockMap


def map_blocks(
    repo: options.Repo,
    start: Annotated[
        Lsn, typer.Option("--from", parser=options.parse_lsn, metavar="LSN", help="Start of the range, inclusive.")
    ],
    end: Annotated[
        Lsn, typer.Option("--to", parser=options.parse_lsn, metavar="LSN", help="End of the range, exclusive.")
    ],
    timeline: Annotated[
        int | None, typer.Option("--timeline", metavar="TLI", help="Timeline of both ends; the newest by default.")
    ] = None,
    individual: Annotated[bool, typer.Option("-i", "--individual", help="One block a line.")] = False,
    json: options.Json = False,
) -> None:
    """Print which blocks changed between two LSNs, exactly, as pg_walsummary does."""
    from pgwal.engine.summarize import read_changes
    from pgwal.errors import WalGap
    from pgwal.lsn import LsnRange
    from pgwal.repository.repository import Repository

    if start > end:
        raise typer.BadParameter("--from lies after --to")
    repository = Repository.open(repo)
    if timeline is None:
        segments = repository.wal.segments()
        if not segments:
            raise WalGap("the repository holds no WAL", hint="Run pgwal stream.")
        timeline = max(segment.timeline_id for segment in segments)
    block_map = read_changes(repository, [LsnRange(timeline, start, end)])
    if json:
        print_json(_document(block_map))
    else:
        sys.stdout.writelines(f"{line}\n" for line in _lines(block_map, individual))


def _lines(block_map: BlockMap, individual: bool) -> Iterator[str]:
    """Yield pg_walsummary's text (src/bin/pg_walsummary/pg_walsummary.c)."""
    for key, changes in block_map.entries():
        prefix = f"TS {key.spc_oid}, DB {key.db_oid}, REL {key.rel_number}, FORK {Fork(key.fork).name.lower()}:"
        if changes.limit_block != INVALID_BLOCK_NUMBER:
            yield f"{prefix} limit {changes.limit_block}"
        for first, last in _intervals(changes.blocks.to_array()):
            if individual:
                yield from (f"{prefix} block {block_no}" for block_no in range(first, last + 1))
            elif first == last:
                yield f"{prefix} block {first}"
            else:
                yield f"{prefix} blocks {first}..{last}"


def _intervals(block_numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each run of consecutive numbers."""
    if not block_numbers:
        return
    first = block_numbers[0]
    for left, right in pairwise(block_numbers):
        if right != left + 1:
            yield first, left
            first = right
    yield first, block_numbers[-1]


def _document(block_map: BlockMap) -> list[dict[str, object]]:
    return [
        {
            "tablespace": key.spc_oid,
            "database": key.db_oid,
            "relation": key.rel_number,
            "fork": Fork(key.fork).name.lower(),
            "limit_block": None if changes.limit_block == INVALID_BLOCK_NUMBER else changes.limit_block,
            "blocks": [list(interval) for interval in _intervals(changes.blocks.to_array())],
        }
        for key, changes in block_map.entries()
    ]
