"""``pgwal map``: which blocks changed between two LSNs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.lsn import Lsn
from pgwal.relation import INVALID_BLOCK_NUMBER, Fork
from pgwal_cli import options
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal.summary.block_map import BlockMap


def map_blocks(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[SUMMARY]...", help="Summary files instead, the server's too.")
    ] = None,
    repo: Annotated[
        Path | None,
        typer.Option("--repo", envvar="PGWAL_REPO", metavar="PATH", help="The repository.", readable=False),
    ] = None,
    wal: Annotated[
        Path | None, typer.Option("--wal", metavar="DIR", help="Recorded WAL instead of a repository.")
    ] = None,
    start: Annotated[
        Lsn | None, typer.Option("--from", parser=options.parse_lsn, metavar="LSN", help="Start, inclusive.")
    ] = None,
    end: Annotated[
        Lsn | None, typer.Option("--to", parser=options.parse_lsn, metavar="LSN", help="End, exclusive.")
    ] = None,
    timeline: Annotated[
        int | None,
        typer.Option(
            "--timeline",
            metavar="TLI",
            parser=options.parse_timeline,
            help="Timeline of the end; the newest by default.",
        ),
    ] = None,
    derived: Annotated[
        bool,
        typer.Option("--derived", help="Instead: visibility-map blocks that WAL changes without naming them."),
    ] = False,
    individual: Annotated[bool, typer.Option("-i", "--individual", help="One block a line.")] = False,
    json: options.Json = False,
) -> None:
    """Print which blocks changed between two LSNs, exactly, as pg_walsummary does."""
    options.require_order(start, end)
    if files:
        if wal is not None:
            raise typer.BadParameter("summary files and --wal do not go together")
        if derived:
            raise typer.BadParameter("summary files hold no derived blocks; name --wal or --repo")
        block_map = _of_files(files, start, end)
    elif start is None or end is None:
        raise typer.BadParameter("--from and --to are needed, or summary files")
    elif wal is not None:
        from pgwal.engine.recorded import read_recorded_changes

        block_map = read_recorded_changes(wal, timeline, start, end)[1 if derived else 0]
    elif repo is not None:
        block_map = _of_repository(repo, timeline, start, end, derived)
    else:
        raise typer.BadParameter("--repo, --wal or summary files are needed")
    if json:
        print_json(_document(block_map))
    else:
        sys.stdout.writelines(f"{line}\n" for line in _lines(block_map, individual))


def _of_repository(path: Path, timeline: int | None, start: Lsn, end: Lsn, derived: bool) -> BlockMap:
    from pgwal.engine.summarize import read_changes, read_derived_changes, read_history
    from pgwal.errors import WalGap
    from pgwal.repository.repository import Repository

    repository = Repository.open(path)
    if timeline is None:
        segments = repository.wal.segments()
        if not segments:
            raise WalGap("the repository holds no WAL", hint="Run pgwal stream.")
        timeline = max(segment.timeline_id for segment in segments)
    ranges = read_history(repository, timeline).ranges_between(start, end)
    return read_derived_changes(repository, ranges) if derived else read_changes(repository, ranges)


def _of_files(paths: list[Path], start: Lsn | None, end: Lsn | None) -> BlockMap:
    """Merge summary files in LSN order, or in the order given where names do not tell."""
    from pgwal.engine.recorded import read_summary_files

    block_map, exceeds_range = read_summary_files(paths, start, end)
    if exceeds_range:
        print("pgwal: warning: the summary files reach beyond the range; they are shown whole", file=sys.stderr)
    return block_map


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
