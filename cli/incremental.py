"""``pgwal incremental``: take an incremental backup."""

from __future__ import annotations

from typing import Annotated

import typer

from pgwal_cli import options
from pgwal_cli.taking import run_backup


@options.with_groups
def incremental(
    common: options.BackupOptions,
    since: Annotated[
        str,
        typer.Option(
            metavar="LSN|ID|latest",
            help="What to build on: a backup, the newest one, or the newest that started at or before an LSN.",
        ),
    ] = options.LATEST,
    dry_run: options.DryRun = False,
    audit: options.AuditPercent = None,
    *,
    connection: options.ConnectionOptions,
) -> None:
    """Take an incremental backup: only the blocks that changed, by WAL, since an earlier backup started."""
    run_backup(
        options.parse_lsn(since) if "/" in since else since, common, connection, dry_run=dry_run, audit_percent=audit
    )
