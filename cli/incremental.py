"""``pgwal incremental``: take an incremental backup."""

from __future__ import annotations

from typing import Annotated

import typer

from pgwal_cli import options
from pgwal_cli.taking import run_backup


def incremental(
    repo: options.Repo,
    pgdata: options.Pgdata = None,
    since: Annotated[
        str,
        typer.Option(
            metavar="LSN|ID|latest",
            help="What to build on: a backup, the newest one, or the newest that started at or before an LSN.",
        ),
    ] = options.LATEST,
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
    """Take an incremental backup: only the blocks that changed, by WAL, since an earlier backup started."""
    wanted = options.parse_lsn(since) if "/" in since else since
    run_backup(
        wanted, repo, pgdata, checkpoint, label, manifest_checksums, slot, progress, json,
        options.connection_parameters(dbname, host, port, username, password), no_password,
    )  # fmt: skip
