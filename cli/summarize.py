"""``pgwal summarize``: summaries of recorded WAL, in a directory or a repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.lsn import Lsn
from pgwal.repository.place import Place
from pgwal_cli import options
from pgwal_cli.executor import Executor, ExecutorAddress, opened_fleet
from pgwal_cli.output import print_json, range_documents, table_lines
from pgwal_cli.progress import progress_bar

if TYPE_CHECKING:
    from pgwal.engine.recorded import WrittenSummary
    from pgwal_cli.wal_documents import SummarizeDocument

_HEADER = ("TIMELINE", "START", "END", "BLOCKS", "FILE")


def summarize(
    wal_dir: Annotated[
        Path | None, typer.Argument(metavar="[WAL_DIR]", help="Directory of WAL segments.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where the summary files go.", show_default=False),
    ] = None,
    repo: Annotated[Place | None, options.RepoOption] = None,
    start: Annotated[
        Lsn | None, typer.Option("--from", parser=options.parse_lsn, metavar="LSN", help="Start, inclusive.")
    ] = None,
    end: Annotated[
        Lsn | None, typer.Option("--to", parser=options.parse_lsn, metavar="LSN", help="End, exclusive.")
    ] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, metavar="N", help="Threads that read WAL.")] = 1,
    executor: Executor = None,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Write summary files, in PostgreSQL's format, of WAL recorded by anyone: pg_receivewal or an archive_command.

    Takes compressed (.gz, .lz4, .zst) and partial segments, of all timelines in the directory.  Without a directory,
    writes the summaries that the repository lacks, into it, as of WAL that was imported.
    """
    options.require_order(start, end)
    if wal_dir is None:
        if repo is None:
            raise typer.BadParameter("WAL_DIR or --repo is needed")
        if output is not None or start is not None or end is not None:
            raise typer.BadParameter("-o, --from and --to are for WAL_DIR")
        written = _in_repository(repo, jobs, executor, progress)
    else:
        if output is None:
            raise typer.BadParameter("WAL_DIR takes -o")
        if executor is not None:
            raise typer.BadParameter("--executor is for a repository: workers read WAL there, and write summaries")
        from pgwal.engine.recorded import summarize_wal

        with progress_bar("summarizing", progress) as on_progress:
            written = summarize_wal(wal_dir, output, start=start, end=end, jobs=jobs, on_progress=on_progress)
    rows = [
        (str(w.range.timeline_id), str(w.range.start), str(w.range.end), str(w.block_count), w.name) for w in written
    ]
    if json:
        document: SummarizeDocument = {
            "version": 1,
            "summaries": [
                {**of_range, "block_count": summary.block_count, "name": summary.name}
                for of_range, summary in zip(range_documents(w.range for w in written), written, strict=True)
            ],
        }
        print_json(document)
    else:
        print("\n".join(table_lines(_HEADER, rows)))


def _in_repository(
    place: Place, jobs: int, executor: ExecutorAddress | None, progress: bool
) -> Sequence[WrittenSummary]:
    from pgwal.engine.missing_summaries import write_missing_summaries

    with opened_fleet(executor, place) as fleet, progress_bar("summarizing", progress) as on_progress:
        return write_missing_summaries(place, jobs=jobs, fleet=fleet, on_progress=on_progress)
