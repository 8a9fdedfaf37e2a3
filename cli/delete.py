"""``pgwal delete``: remove one backup that is named."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.named_backup import Backup, backup_id
from pgwal_cli.output import print_json, size_text

if TYPE_CHECKING:
    from pgwal.engine.delete import DeleteReport
    from pgwal_cli.documents import DeleteDocument


def delete(
    backup: Backup,
    repo: options.Repo,
    cascade: Annotated[bool, typer.Option("--cascade", help="Delete all backups that build on it, too.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete it even if no other can be restored, without asking.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    json: options.Json = False,
) -> None:
    """Delete one backup, now, whatever the rules say: not a pinned one, and none that others need.

    WAL and summaries stay for the next expire to judge.
    """
    from dataclasses import replace

    from pgwal.engine.delete import DeleteRequest, delete_backup

    request = DeleteRequest(repo, backup_id(repo, backup), cascade, yes, dry_run)
    if not (yes or dry_run) and sys.stdin.isatty() and delete_backup(replace(request, dry_run=True)).is_last:
        question = f"Without {request.backup_id} no backup is left that can be restored. Delete it?"
        # Whoever says no is told what a program is told.
        request = replace(request, may_be_last=typer.confirm(question, err=True))
    report = delete_backup(request)
    if json:
        print_json(_document(report, dry_run))
    else:
        print("\n".join(_lines(report, dry_run)))


def _lines(report: DeleteReport, dry_run: bool) -> list[str]:
    verb = "would delete" if dry_run else "deleted"
    lines = [f"{verb} backup {entry.backup_id}, {size_text(entry.repository_bytes)}" for entry in report.deleted]
    if report.packs:
        size = size_text(sum(pack.size_bytes for pack in report.packs))
        lines.append(f"{'would remove' if dry_run else 'removed'} {len(report.packs)} packs, {size}")
    if report.is_last:
        lines.append("no backup would be left that can be restored" if dry_run else "no backup is left to restore")
    return lines


def _document(report: DeleteReport, dry_run: bool) -> DeleteDocument:
    return {
        "version": 1,
        "dry_run": dry_run,
        "deleted_backups": [
            {"id": entry.backup_id, "stored_bytes": entry.repository_bytes} for entry in report.deleted
        ],
        "none_restorable": report.is_last,
        "removed_packs": [{"name": pack.name, "stored_bytes": pack.size_bytes} for pack in report.packs],
        "removed_bytes": report.size_bytes,
    }
