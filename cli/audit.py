"""``pgwal audit``: has every change since a backup been noticed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.budget import DEFAULT_JOBS
from pgwal_cli import options
from pgwal_cli.audit_text import missed_document, tally_document, tally_text
from pgwal_cli.exit_codes import VERIFICATION_FAILED
from pgwal_cli.output import print_json, range_documents, size_text
from pgwal_cli.progress import progress_bar

if TYPE_CHECKING:
    from pgwal.engine.audit import AuditReport
    from pgwal.postgres.connection import ConnectionParameters
    from pgwal_cli.wal_documents import AuditDocument

DEFAULT_PERCENT = 1.0

Since = Annotated[
    str,
    typer.Option(
        metavar="LSN|ID|latest",
        help="Where the window starts: with a backup, the newest one, or the newest that started at or before an LSN.",
    ),
]
Percent = Annotated[
    float,
    typer.Option(
        "--percent", parser=options.parse_percent, metavar="PERCENT", help="Percentage of the unchanged blocks to read."
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, metavar="N", help="Draw the sample of an earlier audit again.")
]
Jobs = Annotated[
    int,
    typer.Option("-j", "--jobs", min=1, max=64, metavar="N", help="Files read at a time, over as many connections."),
]


@options.with_groups
def audit(
    repo: options.Repo,
    pgdata: options.Pgdata = None,
    since: Since = options.LATEST,
    percent: Percent = DEFAULT_PERCENT,
    seed: Seed = None,
    jobs: Jobs = DEFAULT_JOBS,
    slot: options.Slot = None,
    progress: options.Progress = False,
    json: options.Json = False,
    *,
    connection: options.ConnectionOptions,
) -> None:
    """Read blocks that WAL says have not changed since a backup; exit code 5 when a page says that it has."""
    from pgwal.engine.audit import audit
    from pgwal.engine.audit_sample import AuditSample
    from pgwal.engine.backup_request import BackupRequest

    sample = AuditSample.drawn(percent) if seed is None else AuditSample(percent, seed)
    first = options.parse_lsn(since) if "/" in since else since

    def act(connect_to: ConnectionParameters) -> AuditReport:
        request = BackupRequest(repo, connect_to, pgdata, first, slot=slot, jobs=jobs, audit=sample)
        with progress_bar("auditing", progress) as on_progress:
            return audit(request, on_progress)

    report = connection.connecting(act)
    if json:
        print_json(_document(report))
    else:
        print("\n".join(_lines(report)))
    if report.tally.missed_count:
        raise typer.Exit(VERIFICATION_FAILED)


def _lines(report: AuditReport) -> list[str]:
    from pgwal.wal.page_magic import wal_format_of_major

    tally = report.tally
    rate = size_text(tally.bytes_read / report.seconds) if report.seconds else "-"
    ranges = ", ".join(str(part) for part in report.window)
    lines = [
        f"audited what has changed since backup {report.prior.backup_id} started: {ranges}",
        f"  {tally_text(tally)}",
        f"  {report.seconds:.1f} s, {rate} a second",
        f"  the server's files hold all changes before {report.flushed_until}, of later ones those that it has written",
    ]
    wal_format = wal_format_of_major(report.prior.major)
    lines += [f"missed: {block.text(wal_format)}" for block in tally.missed]
    if not tally.missed_count:
        return [*lines, "no change was missed"]
    return [
        *lines,
        f"{tally.missed_count} block{'s' * (tally.missed_count > 1)} missed: run pgwal verify, delete a summary that it"
        " finds fault with, and audit again; else take a full backup, and report this",
    ]


def _document(report: AuditReport) -> AuditDocument:
    from pgwal.wal.page_magic import wal_format_of_major

    wal_format = wal_format_of_major(report.prior.major)
    return {
        "version": 1,
        "prior": report.prior.backup_id,
        "window": range_documents(report.window),
        "flushed_lsn": str(report.flushed_until),
        **tally_document(report.tally),
        "seconds": round(report.seconds, 3),
        "missed_blocks": [missed_document(block, wal_format) for block in report.tally.missed],
    }
