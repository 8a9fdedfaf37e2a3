"""``pgwal list``: the backups of a repository."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from pgwal_cli import options
from pgwal_cli.output import print_json, size_text, table_lines

if TYPE_CHECKING:
    from pgwal.backup.entry import BackupEntry
    from pgwal.engine.coverage import RecoverableRange

_HEADER = (
    "ID",
    "KIND",
    "BUILDS ON",
    "START LSN",
    "TLI",
    "SIZE",
    "STORED",
    "SECONDS",
    "FINISHED",
    "RECOVERABLE FROM",
    "TO",
)


def list_backups(repo: options.Repo, json: options.Json = False) -> None:
    """List the backups of a repository, oldest first, and from where to where every point can be recovered."""
    from pgwal.engine.coverage import read_recoverable_ranges
    from pgwal.repository.repository import Repository

    repository = Repository.open(repo)
    entries = repository.catalogue.entries()
    recoverable = read_recoverable_ranges(repository, entries)
    if json:
        print_json([backup_document(entry, entries, recoverable[entry.backup_id]) for entry in entries])
    elif not entries:
        print("no backups")
    else:
        depths = _depths(entries)
        rows = [_row(entry, depths[entry.backup_id], recoverable[entry.backup_id]) for entry in entries]
        print("\n".join(table_lines(_HEADER, rows)))


def _depths(entries: list[BackupEntry]) -> dict[str, int]:
    """Return by how many backups each is apart from the full one; ids sort so that prior ones come first."""
    depths: dict[str, int] = {}
    for entry in entries:
        depths[entry.backup_id] = 0 if entry.prior_id is None else depths.get(entry.prior_id, 0) + 1
    return depths


def _row(entry: BackupEntry, depth: int, recoverable: RecoverableRange | None) -> tuple[str, ...]:
    return (
        "  " * depth + entry.backup_id,
        entry.kind.value,
        entry.prior_id or "-",
        str(entry.start_lsn),
        str(entry.start_timeline_id),
        size_text(entry.totals.size_bytes),
        size_text(entry.repository_bytes),
        f"{duration_s(entry):.0f}",
        entry.finished_at,
        "WAL is missing" if recoverable is None else str(recoverable.start),
        "-" if recoverable is None else str(recoverable.end),
    )


def duration_s(entry: BackupEntry) -> float:
    """Return how long a backup took, in seconds."""
    return (datetime.fromisoformat(entry.finished_at) - datetime.fromisoformat(entry.started_at)).total_seconds()


def backup_document(
    entry: BackupEntry, entries: list[BackupEntry], recoverable: RecoverableRange | None
) -> dict[str, object]:
    """Return what ``list`` and ``show`` print of a backup with --json."""
    by_id = {other.backup_id: other for other in entries}
    prior = by_id.get(entry.prior_id) if entry.prior_id is not None else None
    return {
        "id": entry.backup_id,
        "kind": entry.kind.value,
        "prior": entry.prior_id,
        "chain": chain_ids(entry, by_id),
        "start_lsn": str(entry.start_lsn),
        "stop_lsn": str(entry.stop_lsn),
        "timeline": entry.start_timeline_id,
        "window": None
        if prior is None
        else {"timeline": prior.start_timeline_id, "start": str(prior.start_lsn), "end": str(entry.start_lsn)},
        "label": entry.label,
        "started": entry.started_at,
        "finished": entry.finished_at,
        "seconds": duration_s(entry),
        "files": entry.totals.file_count,
        "incremental_files": entry.totals.incremental_file_count,
        "size": entry.totals.size_bytes,
        "stored_size": entry.repository_bytes,
        "format": "plain" if entry.packed_size_bytes is None else "packed",
        "recoverable": None
        if recoverable is None
        else {
            "start_lsn": str(recoverable.start),
            "start_time": entry.finished_at,
            "end_lsn": str(recoverable.end),
            "timeline": recoverable.timeline_id,
            "whole": recoverable.is_whole,
        },
    }


def chain_ids(entry: BackupEntry, by_id: Mapping[str, BackupEntry]) -> list[str]:
    """Return the ids of a backup and of what it builds on, newest first, as far as they are there."""
    found = [entry.backup_id]
    while entry.prior_id is not None and entry.prior_id in by_id and entry.prior_id not in found:
        entry = by_id[entry.prior_id]
        found.append(entry.backup_id)
    return found
