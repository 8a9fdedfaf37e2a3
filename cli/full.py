"""``pgwal full``: take a full backup."""

from __future__ import annotations

from pgwal_cli import options
from pgwal_cli.taking import run_backup


@options.with_groups
def full(common: options.BackupOptions, connection: options.ConnectionOptions) -> None:
    """Take a full backup: every file of the data directory, whole."""
    run_backup(None, common, connection)
