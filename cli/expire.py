"""``pgwal expire``: remove old backups, and the WAL that nothing needs any more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar

if TYPE_CHECKING:
    from pgwal.engine.expire import ExpireReport


def expire(
    repo: options.Repo,
    keep_full: Annotated[
        int | None, typer.Option("--keep-full", min=1, metavar="N", help="Keep the N newest chains.")
    ] = None,
    keep_days: Annotated[
        int | None,
        typer.Option(
            "--keep-days", min=1, max=36500, metavar="D", help="Keep what reaches every point of the last D days."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Remove old backups, whole chains at a time, and the WAL and summaries that nothing needs any more.

    With both rules, what either of them keeps is kept. The newest chain is never removed.
    """
    if keep_full is None and keep_days is None:
        raise typer.BadParameter("say what to keep: --keep-full N, --keep-days D, or both")
    from datetime import UTC, datetime, timedelta

    from pgwal.engine.expire import ExpireRequest, expire

    since = None if keep_days is None else datetime.now(UTC) - timedelta(days=keep_days)
    with progress_bar("removing", progress) as on_progress:
        report = expire(ExpireRequest(repo, keep_full, since, dry_run), on_progress)
    _warn(report)
    if json:
        print_json(_document(report, dry_run))
    else:
        print("\n".join(_lines(report, dry_run)))


def _warn(report: ExpireReport) -> None:
    """Name what is left alone because it cannot be judged."""
    for backup in report.unreadable:
        print(
            f"pgwal: warning: backup {backup.backup_id} is left in place, with all that it may need: {backup.error}",
            file=sys.stderr,
        )
    for entry in report.broken:
        # Of one that builds on a damaged entry, the WAL behind that is kept.
        no_wal = "" if report.unreadable else ", and no WAL is kept for it"
        print(
            f"pgwal: warning: backup {entry.backup_id} cannot be restored because a backup it depends on is missing or"
            f" damaged; it is left in place{no_wal}",
            file=sys.stderr,
        )


def _lines(report: ExpireReport, dry_run: bool) -> list[str]:
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} backup {entry.backup_id}, {size_text(entry.repository_bytes)}" for entry in report.expired]
    lines += [f"{verb} the rest of {name}" for name in report.unfinished]
    if report.packs:
        lines.append(f"{verb} {len(report.packs)} packs, {size_text(sum(pack.size_bytes for pack in report.packs))}")
    for what, files, size_bytes in (
        ("WAL files", report.wal, report.wal_bytes),
        ("summaries", report.summaries, report.summary_bytes),
    ):
        if files:
            lines.append(f"{verb} {len(files)} {what}, {size_text(size_bytes)}: {files[0].name} to {files[-1].name}")
    if not lines:
        lines = ["nothing to remove"]
    if report.wal_needed_from is None:
        return [*lines, "kept everything: there is no backup that can be restored"]
    return [*lines, f"kept {len(report.kept)} backups, and WAL from {report.wal_needed_from} on"]


def _document(report: ExpireReport, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "expired": [{"id": entry.backup_id, "stored_size": entry.repository_bytes} for entry in report.expired],
        "kept": [entry.backup_id for entry in report.kept],
        "broken": [entry.backup_id for entry in report.broken],
        "unreadable": [backup.backup_id for backup in report.unreadable],
        "unfinished": report.unfinished,
        "wal_needed_from": None if report.wal_needed_from is None else str(report.wal_needed_from),
        "packs": [{"name": pack.name, "size": pack.size_bytes} for pack in report.packs],
        "wal": [{"name": file.name, "size": file.size_bytes} for file in report.wal],
        "summaries": [{"name": file.name, "size": file.size_bytes} for file in report.summaries],
        "bytes": report.backup_bytes + report.wal_bytes + report.summary_bytes,
    }
