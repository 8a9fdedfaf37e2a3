"""``pgwal full``: take a full backup."""

from __future__ import annotations

from pgwal_cli import options
from pgwal_cli.taking import run_backup


def full(
    repo: options.Repo,
    pgdata: options.Pgdata = None,
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
    """Take a full backup: every file of the data directory, whole."""
    run_backup(
        None, repo, pgdata, checkpoint, label, manifest_checksums, slot, progress, json,
        options.connection_parameters(dbname, host, port, username, password), no_password,
    )  # fmt: skip
