"""``pgwal list``: the backups of a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal_cli import options
from pgwal_cli.output import print_json, size_text, table_lines

if TYPE_CHECKING:
    from pgwal.backup.entry import BackupEntry

_HEADER = ("ID", "KIND", "BUILDS ON", "START LSN", "STOP LSN", "TLI", "SIZE", "STORED", "FINISHED")


def list_backups(repo: options.Repo, json: options.Json = False) -> None:
    """List the backups of a repository, oldest first."""
    from pgwal.repository.repository import Repository

    entries = Repository.open(repo).catalogue.entries()
    if json:
        print_json([_document(entry) for entry in entries])
    elif not entries:
        print("no backups")
    else:
        print("\n".join(table_lines(_HEADER, map(_row, entries))))


def _row(entry: BackupEntry) -> tuple[str, ...]:
    return (
        entry.backup_id,
        entry.kind.value,
        entry.prior_id or "-",
        str(entry.start_lsn),
        str(entry.stop_lsn),
        str(entry.start_timeline_id),
        size_text(entry.totals.size_bytes),
        size_text(entry.totals.stored_size_bytes),
        entry.finished_at,
    )


def _document(entry: BackupEntry) -> dict[str, object]:
    return {
        "id": entry.backup_id,
        "kind": entry.kind.value,
        "prior": entry.prior_id,
        "start_lsn": str(entry.start_lsn),
        "stop_lsn": str(entry.stop_lsn),
        "timeline": entry.start_timeline_id,
        "label": entry.label,
        "started": entry.started_at,
        "finished": entry.finished_at,
        "files": entry.totals.file_count,
        "incremental_files": entry.totals.incremental_file_count,
        "size": entry.totals.size_bytes,
        "stored_size": entry.totals.stored_size_bytes,
    }
