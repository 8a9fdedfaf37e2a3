"""``pgwal backup``: take the backup that is due."""

from __future__ import annotations

from typing import Annotated

import typer

from pgwal_cli import options
from pgwal_cli.taking import run_backup


def backup(
    repo: options.Repo,
    pgdata: options.Pgdata = None,
    require_incremental: Annotated[
        bool, typer.Option("--require-incremental", help="Fail with exit code 4 instead of taking a full backup.")
    ] = False,
    checkpoint: options.Checkpoint = options.CheckpointMode.SPREAD,
    label: options.Label = options.DEFAULT_LABEL,
    manifest_checksums: options.ManifestChecksums = options.ChecksumAlgorithm.CRC32C,
    slot: options.Slot = None,
    progress: options.Progress = False,
    json: options.Json = False,
    dbname: options.Dbname = None,
    host: options.Host = None,
    port: options.Port = None,
    username: options.Username = None,
    no_password: options.NoPassword = False,
    password: options.Password = False,
) -> None:
    """Take an incremental backup on the latest one, or a full one, saying why, where there is nothing to build on."""
    run_backup(
        options.LATEST, repo, pgdata, checkpoint, label, manifest_checksums, slot, progress, json,
        options.connection_parameters(dbname, host, port, username, password), no_password,
        or_full=not require_incremental,
    )  # fmt: skip
