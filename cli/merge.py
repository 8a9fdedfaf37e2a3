"""``pgwal merge``: make a full backup of an incremental one, within the repository."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.named_backup import backup_id
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar
from pgwal_cli.rebuilding import Jobs

if TYPE_CHECKING:
    from pgwal_cli.documents import MergeDocument


def merge(
    repo: options.Repo,
    backup: Annotated[
        str, typer.Argument(metavar="[ID|latest]", help="The backup; the newest by default.", show_default=False)
    ] = options.LATEST,
    jobs: Jobs = None,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Make a full backup of an incremental one and what it builds on, within the repository; expire removes these."""
    from pgwal.engine.merge import MergeRequest, merge_backup

    with progress_bar("merging", progress) as on_progress:
        report = merge_backup(MergeRequest(repo, backup_id(repo, backup), jobs), on_progress)
    if json:
        document: MergeDocument = {
            "version": 1,
            "id": report.entry.backup_id,
            "backup": report.merged.backup_id,
            "backup_count": report.chain_length,
            "file_count": report.file_count,
            "size_bytes": report.entry.totals.size_bytes,
            "read_bytes": report.bytes_read,
            "written_bytes": report.bytes_written,
        }
        print_json(document)
    else:
        print(
            f"merged {report.chain_length} backups into {report.entry.backup_id}, a full backup as of"
            f" {report.merged.backup_id}: {size_text(report.entry.totals.size_bytes)} in {report.file_count} files, of"
            f" which {size_text(report.bytes_written)} were written"
        )
