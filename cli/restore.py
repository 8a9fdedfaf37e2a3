"""``pgwal restore``: rebuild a data directory."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pgwal_cli import options
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar


def fetch_wal_words(repository_path: Path) -> list[str]:
    """Return the command that fetches WAL from a repository, without the file's name and its destination."""
    return [sys.executable, "-P", "-m", "pgwal_cli", "fetch-wal", "--repo", str(repository_path.absolute())]


def restore_command(repository_path: Path) -> str:
    """Return the restore_command with which a server gets its WAL from a repository."""
    return shlex.join(fetch_wal_words(repository_path)).replace("%", "%%") + ' "%f" "%p"'


def restore(
    backup: Annotated[str, typer.Argument(metavar="ID|latest", help="The backup.")],
    repo: options.Repo,
    pgdata: Annotated[
        Path,
        typer.Option(
            "-D", "--pgdata", metavar="DIR", help="Directory to restore into; absent or empty.", readable=False
        ),
    ],
    tablespace_mapping: Annotated[
        list[str] | None, typer.Option("-T", "--tablespace-mapping", metavar="OLD=NEW", help="Move a tablespace.")
    ] = None,
    command: Annotated[
        str | None,
        typer.Option("--restore-command", metavar="CMD", help="restore_command to set instead of pgwal fetch-wal."),
    ] = None,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Rebuild a data directory from a backup and those it builds on, ready to replay all WAL received since."""
    from pgwal.engine.restore import RestoreRequest, restore_backup

    request = RestoreRequest(
        repo, backup, pgdata, command or restore_command(repo), _tablespaces(tablespace_mapping or [])
    )
    with progress_bar("restoring", progress) as on_progress:
        report = restore_backup(request, on_progress)
    if json:
        print_json(
            {
                "backup": report.entry.backup_id,
                "chain_length": report.chain_length,
                "files": report.file_count,
                "bytes_read": report.bytes_read,
                "bytes_written": report.bytes_written,
            }
        )
    else:
        print(
            f"restored {report.entry.backup_id} into {pgdata}: {report.file_count} files,"
            f" {size_text(report.bytes_written)}, from {report.chain_length} backups"
        )
        print("Start the server there: it replays WAL from the repository, and then accepts connections.")


def _tablespaces(mappings: list[str]) -> dict[str, str]:
    result = {}
    for mapping in mappings:
        old, _, new = mapping.partition("=")
        if not old.startswith("/") or not new.startswith("/"):
            raise typer.BadParameter(f"{mapping!r} is not OLD=NEW with absolute paths", param_hint="-T")
        result[old] = new
    return result
