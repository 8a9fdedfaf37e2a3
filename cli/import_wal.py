"""``pgwal import``: take over the WAL of another archive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.repository.place import Place
from pgwal_cli import options
from pgwal_cli.executor import Executor, opened_fleet
from pgwal_cli.exit_codes import FAILED
from pgwal_cli.output import print_json, table_lines
from pgwal_cli.progress import progress_bar

if TYPE_CHECKING:
    from pgwal.engine.import_wal import ImportReport
    from pgwal.segment import WalGeometry
    from pgwal_cli.wal_documents import ImportDocument


def import_wal(
    directory: Annotated[
        Place,
        typer.Argument(
            metavar="DIR",
            parser=options.parse_place,
            help="Directory of another archive, or s3://BUCKET/PREFIX, gs:// or az://.",
        ),
    ],
    repo: options.Repo,
    compress: options.Compress = "zstd",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be imported; import nothing.")] = False,
    executor: Executor = None,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Take WAL over that pg_receivewal, Barman (its wals directory) or an archive_command has kept.

    Takes what is of the repository's cluster and history, compressed or not, and says of every other file why it was
    not taken, and which WAL is missing.  Exit code 0, or 1 when a file of WAL was refused.
    """
    from pgwal.engine.import_wal import import_wal as take_over
    from pgwal.engine.imported_segments import Outcome
    from pgwal.repository.repository import Repository

    geometry = Repository.open(repo).geometry
    with opened_fleet(executor, repo, directory) as fleet, progress_bar("importing", progress) as on_progress:
        report = take_over(repo, directory, compress, dry_run=dry_run, fleet=fleet, on_progress=on_progress)
    if json:
        print_json(_document(report, geometry, dry_run=dry_run))
    else:
        _print(report, geometry, dry_run=dry_run)
    if report.count(Outcome.REFUSED):
        raise typer.Exit(FAILED)


def _document(report: ImportReport, geometry: WalGeometry, *, dry_run: bool) -> ImportDocument:
    return {
        "version": 1,
        "dry_run": dry_run,
        "files": [
            {"path": file.path, "outcome": file.outcome.value, "reason": file.reason or None} for file in report.files
        ],
        "gaps": [
            {
                "timeline": gap.timeline_id,
                "start_lsn": str(gap.start),
                "end_lsn": str(gap.end),
                "first_segment": geometry.file_name(gap.timeline_id, geometry.segment_no(gap.start)),
                "last_segment": geometry.file_name(gap.timeline_id, geometry.last_segment_no(gap.end)),
            }
            for gap in report.gaps
        ],
    }


def _print(report: ImportReport, geometry: WalGeometry, *, dry_run: bool) -> None:
    rows = [(file.path, "would be taken" if dry_run and file.outcome == "taken" else file.outcome.value, file.reason)
            for file in report.files]  # fmt: skip
    print("\n".join(table_lines(("FILE", "OUTCOME", "REASON"), rows)))
    for gap in report.gaps:
        first, last = geometry.segment_no(gap.start), geometry.last_segment_no(gap.end)
        names = " to ".join(dict.fromkeys(geometry.file_name(gap.timeline_id, number) for number in (first, last)))
        print(f"missing: {gap}, segment {names}")
