"""What ``pgwal full``, ``incremental`` and ``backup`` have in common: run the backup and report it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from pgwal.errors import ChainError, SettingRequired
from pgwal.lsn import Lsn
from pgwal_cli import options
from pgwal_cli.allocator import keep_freed_memory
from pgwal_cli.audit_text import tally_document, tally_text
from pgwal_cli.forecast_text import print_forecast
from pgwal_cli.output import print_json, range_documents, size_text
from pgwal_cli.progress import progress_bar

if TYPE_CHECKING:
    from pgwal.engine.backup_report import BackupReport
    from pgwal.postgres.connection import ConnectionParameters
    from pgwal_cli.documents import BackupDocument

_Result = TypeVar("_Result")


def run_backup(
    since: Lsn | str | None,
    wanted: options.BackupOptions,
    connection: options.ConnectionOptions,
    *,
    or_full: bool = False,
    dry_run: bool = False,
    audit_percent: float | None = None,
) -> None:
    """Take a backup as the options say, and print what it did; with ``dry_run``, print what it would copy.

    With ``or_full``, a full backup is taken, and said to be, where an incremental one cannot be right.  So much as
    ``audit_percent`` says of what is not copied is read as well.
    """
    if dry_run and audit_percent is not None:
        raise typer.BadParameter("--dry-run reads nothing, and so audits nothing")
    from pgwal.engine.audit_sample import AuditSample
    from pgwal.engine.backup import take_backup
    from pgwal.engine.backup_request import BackupRequest

    def act(connect_to: ConnectionParameters, action: Callable[[BackupRequest], _Result]) -> _Result:
        request = BackupRequest(
            place=wanted.repo,
            parameters=connect_to,
            data_directory=wanted.pgdata,
            since=since,
            label=wanted.label,
            fast=wanted.checkpoint is options.CheckpointMode.FAST,
            manifest_checksums=wanted.manifest_checksums.value,
            slot=wanted.slot,
            jobs=wanted.jobs,
            max_rate_bytes_per_s=wanted.max_rate,
            fails_on_bad_page=wanted.checksum_failure is options.ChecksumFailure.ERROR,
            audit=None if audit_percent is None else AuditSample.drawn(audit_percent),
        )
        try:
            return action(request)
        except (ChainError, SettingRequired) as error:
            # What keeps a full backup from being taken as well is said again.
            if not or_full:
                raise
            print(f"pgwal: no incremental backup is possible: {error}", file=sys.stderr)
            print(f"pgwal: {'this would be' if dry_run else 'taking'} a full backup", file=sys.stderr)
            return action(request._replace(since=None))

    def take(request: BackupRequest) -> BackupReport:
        keep_freed_memory()
        with progress_bar("copying", wanted.progress) as on_progress:
            return take_backup(request, on_progress)

    if dry_run:
        from pgwal.engine.forecast import forecast_backup

        print_forecast(connection.connecting(lambda to: act(to, forecast_backup)), wanted.json)
        return
    report = connection.connecting(lambda to: act(to, take))
    if wanted.json:
        print_json(_document(report))
    else:
        _print_report(report)


def _print_report(report: BackupReport) -> None:
    entry = report.entry
    print(f"{entry.kind} backup {entry.backup_id}")
    if entry.prior_id is not None:
        ranges = ", ".join(str(part) for part in report.window)
        print(f"  builds on {entry.prior_id}; {report.changed_block_count} blocks changed from {ranges}")
    print(f"  from {entry.start_lsn} to {entry.stop_lsn} on timeline {entry.start_timeline_id}")
    print(
        f"  {report.copied_block_count} of {report.block_count} blocks copied;"
        f" {size_text(report.bytes_read)} read, {size_text(report.bytes_written)} written"
    )
    if report.audit is not None:
        print(f"  audit: {tally_text(report.audit)}; none was missed")
    print(f"  {', '.join(f'{name} {seconds:.2f} s' for name, seconds in report.seconds.items())}")
    if report.requests is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.requests.items())
        print(f"  {sum(report.requests.values())} requests to the store: {kinds}")


def _document(report: BackupReport) -> BackupDocument:
    entry = report.entry
    return {
        "version": 1,
        "id": entry.backup_id,
        "kind": entry.kind.value,
        "prior": entry.prior_id,
        "start_lsn": str(entry.start_lsn),
        "stop_lsn": str(entry.stop_lsn),
        "timeline": entry.start_timeline_id,
        "window": range_documents(report.window),
        "changed_block_count": report.changed_block_count,
        "copied_block_count": report.copied_block_count,
        "block_count": report.block_count,
        "read_bytes": report.bytes_read,
        "written_bytes": report.bytes_written,
        "checksum_failure_count": entry.checksum_failures,
        "audit": None if report.audit is None else tally_document(report.audit),
        "phase_seconds": {name: round(seconds, 3) for name, seconds in report.seconds.items()},
        "requests": report.requests,
    }
