"""``pgwal summarize``: summaries of recorded WAL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgwal.lsn import Lsn
from pgwal_cli import options
from pgwal_cli.output import print_json, table_lines
from pgwal_cli.progress import progress_bar

_HEADER = ("TIMELINE", "START", "END", "BLOCKS", "FILE")


def summarize(
    wal_dir: Annotated[Path, typer.Argument(metavar="WAL_DIR", help="Directory of WAL segments.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Directory for the summary files.")],
    start: Annotated[
        Lsn | None, typer.Option("--from", parser=options.parse_lsn, metavar="LSN", help="Start, inclusive.")
    ] = None,
    end: Annotated[
        Lsn | None, typer.Option("--to", parser=options.parse_lsn, metavar="LSN", help="End, exclusive.")
    ] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, metavar="N", help="Threads that read WAL.")] = 1,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Write summary files, in PostgreSQL's format, of WAL recorded by anyone: pg_receivewal or an archive_command.

    Takes compressed (.gz, .lz4, .zst) and partial segments, of all timelines in the directory.
    """
    from pgwal.engine.recorded import summarize_wal

    options.require_order(start, end)
    with progress_bar("summarizing", progress) as on_progress:
        written = summarize_wal(wal_dir, output, start=start, end=end, jobs=jobs, on_progress=on_progress)
    rows = [
        (str(w.range.timeline_id), str(w.range.start), str(w.range.end), str(w.block_count), w.name) for w in written
    ]
    if json:
        print_json([dict(zip((name.lower() for name in _HEADER), row, strict=True)) for row in rows])
    else:
        print("\n".join(table_lines(_HEADER, rows)))
