"""``pgwal inspect``: the records of recorded WAL."""

from __future__ import annotations

import json as json_codec
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.lsn import Lsn
from pgwal.relation import Fork, RelFileLocator
from pgwal_cli import options
from pgwal_cli.output import print_json, table_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgwal.wal.page_magic import WalFormat
    from pgwal.wal.record import WalRecord
    from pgwal_cli.wal_documents import RecordStatisticsDocument, RecordTypeDocument

_STATS_HEADER = ("TYPE", "N", "(%)", "RECORD SIZE", "(%)", "FPI SIZE", "(%)", "COMBINED SIZE", "(%)")


def _parse_relation(text: str) -> RelFileLocator:
    parts = text.split("/")
    if len(parts) != 3 or not all(re.fullmatch("[0-9]{1,10}", part) for part in parts):
        raise typer.BadParameter(f"{text!r} is not TABLESPACE/DATABASE/RELATION")
    return RelFileLocator(*map(int, parts))


def inspect_wal(
    path: Annotated[Path, typer.Argument(metavar="WAL_DIR|SEGMENT", help="Recorded WAL, compressed or partial too.")],
    start: Annotated[
        Lsn | None,
        typer.Option("--from", parser=options.parse_lsn, metavar="LSN", help="Start of the range, inclusive."),
    ] = None,
    end: Annotated[
        Lsn | None, typer.Option("--to", parser=options.parse_lsn, metavar="LSN", help="End of the range, exclusive.")
    ] = None,
    timeline: Annotated[
        int | None,
        typer.Option("--timeline", metavar="TLI", parser=options.parse_timeline, help="The newest by default."),
    ] = None,
    rmgr: Annotated[str | None, typer.Option("--rmgr", metavar="NAME", help="Records of a resource manager.")] = None,
    relation: Annotated[
        RelFileLocator | None,
        typer.Option("--relation", parser=_parse_relation, metavar="TS/DB/REL", help="Records that name a relation."),
    ] = None,
    fork: Annotated[str | None, typer.Option("--fork", metavar="NAME", help="main, fsm, vm or init.")] = None,
    block: Annotated[int | None, typer.Option("--block", metavar="N", help="Records that name a block.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print sums per record type instead.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, one record a line.")] = False,
) -> None:
    """Print the records of a directory of WAL segments, or of one segment, in about the form of pg_waldump."""
    from pgwal.engine.inspect import RecordedWal, RecordFilter
    from pgwal.wal.names import RMGR_NAMES

    known = {name.lower() for name in RMGR_NAMES}
    if rmgr is not None and rmgr.lower() not in known and not rmgr.lower().startswith("custom"):
        raise typer.BadParameter(f"{rmgr!r} is no resource manager; there are {', '.join(RMGR_NAMES)}")
    if fork is not None and fork.upper() not in Fork.__members__:
        raise typer.BadParameter(f"{fork!r} is no fork; there are main, fsm, vm and init")
    wanted = RecordFilter(start, end, rmgr, relation, Fork[fork.upper()] if fork else None, block)
    wal = RecordedWal(path, timeline)
    if stats:
        _print_stats(wal.wal_format, wal.records(wanted), json)
    else:
        _print_records(wal.wal_format, wal.records(wanted), json)
    if wal.end is not None:
        print(f"pgwal: {wal.end}", file=sys.stderr)


def _print_records(wal_format: WalFormat, records: Iterable[WalRecord], json: bool) -> None:
    from pgwal.wal.describe import record_document, record_line

    for record in records:
        if json:
            json_codec.dump({"version": 1, **record_document(wal_format, record)}, sys.stdout)
            sys.stdout.write("\n")
        else:
            sys.stdout.write(record_line(wal_format, record) + "\n")


def _print_stats(wal_format: WalFormat, records: Iterable[WalRecord], json: bool) -> None:
    """Print counts and sizes in bytes per record type, as pg_waldump --stats=record does."""
    from pgwal.wal.describe import image_length
    from pgwal.wal.names import record_name, rmgr_name

    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    images: Counter[str] = Counter()
    for record in records:
        name = f"{rmgr_name(record.rmid)}/{record_name(wal_format, record.rmid, record.info)}"
        counts[name] += 1
        images[name] += image_length(record)
        sizes[name] += record.total_length - image_length(record)
    if json:
        print_json(_statistics_document(counts, sizes, images))
        return
    totals = (counts.total(), sizes.total(), images.total(), sizes.total() + images.total())
    rows = [
        _stats_row(name, (counts[name], sizes[name], images[name], sizes[name] + images[name]), totals)
        for name in sorted(counts)
    ]
    print("\n".join(table_lines(_STATS_HEADER, [*rows, _stats_row("Total", totals, totals)])))


def _statistics_document(counts: Counter[str], sizes: Counter[str], images: Counter[str]) -> RecordStatisticsDocument:
    types: list[RecordTypeDocument] = []
    for name in sorted(counts):
        rmgr, _, record_type = name.partition("/")
        types.append(
            {
                "rmgr": rmgr,
                "record_type": record_type,
                "record_count": counts[name],
                "record_bytes": sizes[name],
                "image_bytes": images[name],
            }
        )
    return {"version": 1, "record_types": types}


def _stats_row(name: str, values: tuple[int, ...], totals: tuple[int, ...]) -> tuple[str, ...]:
    cells = [name]
    for value, total in zip(values, totals, strict=True):
        cells += [str(value), f"{100 * value / total:.2f}" if total else "0.00"]
    return tuple(cells)
