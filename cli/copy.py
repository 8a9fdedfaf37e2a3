"""``pgwal copy``: a second repository, and what is missing there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.repository.place import Place
from pgwal_cli import options
from pgwal_cli.executor import Executor, opened_fleet
from pgwal_cli.exit_codes import VERIFICATION_FAILED
from pgwal_cli.named_backup import backup_id
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar
from pgwal_cli.rebuilding import Jobs

if TYPE_CHECKING:
    from pgwal.engine.copy_repository import CopyReport
    from pgwal_cli.documents import CopyDocument


def copy(
    repo: options.Repo,
    to: Annotated[
        Place,
        typer.Option(
            "--to",
            parser=options.parse_place,
            metavar="PATH",
            help="The other repository, made where there is none: a directory, or s3://BUCKET/PREFIX, gs:// or az://.",
            show_default=False,
        ),
    ],
    backups: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID|latest]...",
            help="Backups, with what they build on; all that are missing there by default.",
            show_default=False,
        ),
    ] = None,
    with_wal: Annotated[
        bool,
        typer.Option(
            "--with-wal", help="Copy all WAL since the first copied backup started, not only what each backup needs."
        ),
    ] = False,
    recipient: Annotated[
        list[str] | None,
        typer.Option(
            "--recipient",
            metavar="AGE_PUBLIC_KEY",
            help="Encrypt the copy for this public key of age and others; by default for those of the repository.",
        ),
    ] = None,
    jobs: Jobs = None,
    executor: Executor = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be copied; copy nothing.")] = False,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Copy backups to a second repository, and the WAL that they need: what is missing there, checked by digest.

    Run it again to go on after an interruption, and to copy what is new. Each side expires backups by its own rules.
    Exit code 5 when something could not be copied.
    """
    from pgwal.engine.copy_repository import CopyRequest, copy_repository

    names = [backup_id(repo, name) for name in backups or ()]
    with opened_fleet(executor, repo, to) as fleet, progress_bar("copying", progress) as on_progress:
        request = CopyRequest(repo, to, names, with_wal, recipient or (), jobs, dry_run, fleet)
        report = copy_repository(request, on_progress)
    if json:
        print_json(_document(report, dry_run))
    else:
        print("\n".join(_lines(report, to, dry_run)))
    if report.problems:
        raise typer.Exit(VERIFICATION_FAILED)


def _lines(report: CopyReport, to: Place, dry_run: bool) -> list[str]:
    verb = "would copy" if dry_run else "copied"
    lines = [f"{verb} backup {entry.backup_id}" for entry in report.backups]
    lines += [f"left out {entry.backup_id}, which was copied before, and is gone there" for entry in report.expired]
    lines += [f"{problem.path}: {problem.message}" for problem in report.problems]
    if not (report.backups or report.wal_bytes or report.summary_count or report.backup_bytes):
        return [*lines, f"nothing that could be copied is missing in {to}" if report.problems else f"{to} has it all"]
    lines.append(
        f"{verb} {len(report.backups)} backups, {size_text(report.backup_bytes)}, and {report.segment_count} WAL"
        f" segments, {size_text(report.wal_bytes)}, to {to}"
    )
    if not report.opens_files and not dry_run:
        lines.append("without an identity, encrypted WAL was copied as it is stored: pgwal verify --identity opens it")
    if report.requests is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.requests.items())
        lines.append(f"{sum(report.requests.values())} requests to stores: {kinds}")
    return lines


def _document(report: CopyReport, dry_run: bool) -> CopyDocument:
    return {
        "version": 1,
        "dry_run": dry_run,
        "copied_backups": [entry.backup_id for entry in report.backups],
        "left_out_backups": [entry.backup_id for entry in report.expired],
        "pack_count": report.pack_count,
        "backup_bytes": report.backup_bytes,
        "segment_count": report.segment_count,
        "wal_bytes": report.wal_bytes,
        "summary_count": report.summary_count,
        "opens_files": report.opens_files,
        "problems": [
            {"backup": problem.backup_id, "path": problem.path, "message": problem.message}
            for problem in report.problems
        ],
        "requests": report.requests,
    }
