"""``pgwal export``: one backup in the server's plain format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.allocator import share_freed_memory
from pgwal_cli.named_backup import Backup, backup_id
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar
from pgwal_cli.rebuilding import Jobs, NoSync

if TYPE_CHECKING:
    from pgwal_cli.documents import ExportDocument


def export(
    backup: Backup,
    repo: options.Repo,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Output directory; absent or empty.", readable=False),
    ],
    jobs: Jobs = None,
    no_sync: NoSync = False,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Copy a backup, as it is, out of the repository: what pg_verifybackup -n and pg_combinebackup read."""
    from pgwal.engine.export import ExportRequest, export_backup

    request = ExportRequest(repo, backup_id(repo, backup), output, jobs, sync=not no_sync)
    share_freed_memory()
    with progress_bar("exporting", progress) as on_progress:
        report = export_backup(request, on_progress)
    if json:
        document: ExportDocument = {
            "version": 1,
            "backup": report.entry.backup_id,
            "kind": report.entry.kind.value,
            "file_count": report.file_count,
            "written_bytes": report.bytes_written,
        }
        print_json(document)
    else:
        print(
            f"exported {report.entry.kind} backup {report.entry.backup_id} to {output}: {report.file_count} files,"
            f" {size_text(report.bytes_written)}"
        )
