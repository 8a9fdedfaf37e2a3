"""``pgwal map``: which blocks changed between two LSNs."""

from __future__ import annotations

import json as json_codec
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pgwal.budget import MAP_LINES_AT_ONCE
from pgwal.lsn import Lsn
from pgwal.relation import INVALID_BLOCK_NUMBER, Fork
from pgwal.repository.place import Place
from pgwal_cli import options

if TYPE_CHECKING:
    from pyroaring import BitMap

    from pgwal.summary.block_map import BlockMap
    from pgwal_cli.wal_documents import ChangedForkDocument

Item = TypeVar("Item")


def map_blocks(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[SUMMARY]...", help="Summary files instead, the server's too.")
    ] = None,
    repo: Annotated[Place | None, options.RepoOption] = None,
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
    sys.stdout.writelines(json_of(block_map) if json else text_of(block_map, individual))


def _of_repository(place: Place, timeline: int | None, start: Lsn, end: Lsn, derived: bool) -> BlockMap:
    from pgwal.engine.summarize import read_changes, read_derived_changes, read_history
    from pgwal.errors import WalGap
    from pgwal.repository.repository import Repository

    repository = Repository.open(place)
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


def text_of(block_map: BlockMap, individual: bool) -> Iterator[str]:
    """Yield pg_walsummary's text (src/bin/pg_walsummary/pg_walsummary.c), many lines at a time."""
    for key, changes in block_map.entries():
        prefix = f"TS {key.spc_oid}, DB {key.db_oid}, REL {key.rel_number}, FORK {Fork(key.fork).name.lower()}:"
        if changes.limit_block != INVALID_BLOCK_NUMBER:
            yield f"{prefix} limit {changes.limit_block}\n"
        if individual:
            for blocks in _batches(changes.blocks):
                yield "".join([f"{prefix} block {block_no}\n" for block_no in blocks])
            continue
        for intervals in _batches(_intervals(changes.blocks)):
            yield "".join(
                [
                    f"{prefix} block {first}\n" if first == last else f"{prefix} blocks {first}..{last}\n"
                    for first, last in intervals
                ]
            )


def _intervals(blocks: BitMap) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each run of consecutive numbers."""
    return zip(blocks - blocks.shift(1), blocks - blocks.shift(-1), strict=True)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield items, of which there may be millions, as many as are worth a call."""
    rest = iter(items)
    while batch := list(islice(rest, MAP_LINES_AT_ONCE)):
        yield batch


def json_of(block_map: BlockMap) -> Iterator[str]:
    """Yield what print_json would print of the document of all entries, without having that in memory."""
    yield '{\n  "version": 1,\n  "forks": '
    is_empty = True
    for key, changes in block_map.entries():
        entry: ChangedForkDocument = {
            "tablespace_oid": key.spc_oid,
            "database_oid": key.db_oid,
            "relation_number": key.rel_number,
            "fork": Fork(key.fork).name.lower(),
            "limit_block_no": None if changes.limit_block == INVALID_BLOCK_NUMBER else changes.limit_block,
            "block_ranges": [],
        }
        opened = indent(json_codec.dumps(entry, indent=2), "    ").removesuffix("]\n    }")
        yield ("[\n" if is_empty else ",\n") + opened
        is_empty = False
        separator = ""
        for intervals in _batches(_intervals(changes.blocks)):
            yield separator + ",".join(
                [f"\n        [\n          {first},\n          {last}\n        ]" for first, last in intervals]
            )
            separator = ","
        yield "\n      ]\n    }" if separator else "]\n    }"
    yield "[]\n}\n" if is_empty else "\n  ]\n}\n"
