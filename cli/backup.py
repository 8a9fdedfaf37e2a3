"""``pgwal backup``: take the backup that is due."""

from __future__ import annotations

from typing import Annotated

import typer

from pgwal_cli import options
from pgwal_cli.taking import run_backup


@options.with_groups
def backup(
    common: options.BackupOptions,
    require_incremental: Annotated[
        bool, typer.Option("--require-incremental", help="Fail with exit code 4 instead of taking a full backup.")
    ] = False,
    dry_run: options.DryRun = False,
    audit: options.AuditPercent = None,
    *,
    connection: options.ConnectionOptions,
) -> None:
    """Take an incremental backup on the latest one, or a full one, saying why, where there is nothing to build on."""
    run_backup(
        options.LATEST, common, connection, or_full=not require_incremental, dry_run=dry_run, audit_percent=audit
    )
