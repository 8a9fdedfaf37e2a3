"""``pgwal list``: the backups of a repository."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.backup.chain import prior_of
from pgwal_cli import options
from pgwal_cli.output import print_json, size_text, table_lines
from pgwal_cli.retention_options import RetentionOptions, why_document, why_text
from pgwal_cli.terminal import terminal

if TYPE_CHECKING:
    from rich.console import Console

    from pgwal.backup.entry import BackupEntry
    from pgwal.engine.coverage import RecoverableRange
    from pgwal.engine.expire_plan import ExpireReport
    from pgwal.lsn import Lsn
    from pgwal.repository.repository import Repository
    from pgwal_cli.documents import BackupMembers, ListDocument, ListedBackupDocument

_MOST_ENDS = 4
"""Of so many WAL is read: more there are where much is missing."""
_Listed = tuple["BackupEntry", int, "RecoverableRange | None", bool, float, str | None]

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
    "PINNED",
    "MERGED",
)


@options.with_groups
def list_backups(
    repo: options.Repo,
    rules: RetentionOptions,
    why: Annotated[
        bool, typer.Option("--why", help="Say which of these rules keeps each backup, and which would go.")
    ] = False,
    json: options.Json = False,
) -> None:
    """List the backups of a repository, oldest first, and from where to where every point can be recovered."""
    from pgwal.engine.coverage import read_recoverable_ranges
    from pgwal.repository.backup_marks import BackupMarks
    from pgwal.repository.repository import Repository
    from pgwal.repository.stored_sizes import stored_sizes

    given = rules.rules()
    if not why and (given.limits_backups or given.limits_wal):
        raise typer.BadParameter("rules are for --why: to remove what they do not keep is for pgwal expire")
    repository = Repository.open(repo)
    entries = repository.catalogue.entries()
    recoverable = read_recoverable_ranges(repository, entries)
    pinned_ids = BackupMarks(repository.store).pinned(entry.backup_id for entry in entries)
    stored = stored_sizes(repository, entries)
    decision = _decided(repository, rules) if why else None
    if json:
        print_json(
            _document(
                [
                    backup_members(
                        entry,
                        entries,
                        recoverable[entry.backup_id],
                        stored_bytes=stored[entry.backup_id],
                        is_pinned=entry.backup_id in pinned_ids,
                    )
                    for entry in entries
                ],
                decision,
            )
        )
    elif not entries:
        print("no backups")
    elif (console := terminal()) is not None:
        listed = [
            (entry, stored[entry.backup_id], recoverable[entry.backup_id], entry.backup_id in pinned_ids,
             duration_s(entry), None if decision is None else _why(decision, entry))
            for entry in entries
        ]  # fmt: skip
        _print_on_terminal(console, repository, listed)
    else:
        depths = _depths(entries)
        header = _HEADER if decision is None else (*_HEADER, "WHY (UTC)")
        rows = []
        for entry in entries:
            of_backup = depths[entry.backup_id], stored[entry.backup_id], recoverable[entry.backup_id]
            row = _row(entry, *of_backup, entry.backup_id in pinned_ids)
            rows.append(row if decision is None else (*row, _why(decision, entry)))
        print("\n".join(table_lines(header, rows)))


def _print_on_terminal(console: Console, repository: Repository, listed: list[_Listed]) -> None:
    from pgwal.engine.coverage import read_wal_coverage
    from pgwal_cli.list_table import ListedBackup, print_backups

    receiver = repository.receiver_state()
    known_times = _end_times(repository, [recoverable for _, _, recoverable, *_ in listed])
    if receiver is not None and receiver.updated_at is not None:
        known_times[receiver.timeline_id, receiver.flushed_lsn] = datetime.fromtimestamp(receiver.updated_at, UTC)
    coverage = read_wal_coverage(repository, [entry for entry, *_ in listed])
    print_backups(console, [ListedBackup(*each) for each in listed], coverage, known_times)


def _end_times(repository: Repository, ranges: list[RecoverableRange | None]) -> dict[tuple[int, Lsn], datetime]:
    """Return of the newest ends to which backups can be recovered of which time the last transaction is."""
    from pgwal.engine.recoverable_time import last_recoverable_time

    ends = {(each.timeline_id, each.end): each for each in ranges if each is not None and not each.is_long_term}
    newest = sorted(ends)[-_MOST_ENDS:]
    found = {end: last_recoverable_time(repository, ends[end]) for end in newest}
    return {end: moment for end, moment in found.items() if moment is not None}


def _decided(repository: Repository, rules: RetentionOptions) -> ExpireReport:
    from pgwal.engine.expire_plan import ExpirePlanner

    return ExpirePlanner(repository, rules.rules()).decide()


def _why(decision: ExpireReport, entry: BackupEntry) -> str:
    if entry.backup_id in {expired.backup_id for expired in decision.expired}:
        return "nothing keeps it"
    return why_text(decision, entry.backup_id)


def _document(backups: list[BackupMembers], decision: ExpireReport | None) -> ListDocument:
    listed: list[ListedBackupDocument] = [
        {**backup, "why": None if decision is None else why_document(decision, backup["id"])} for backup in backups
    ]
    return {"version": 1, "backups": listed}


def _depths(entries: list[BackupEntry]) -> dict[str, int]:
    """Return by how many backups each is apart from the full one; ids sort so that prior ones come first."""
    by_id = {entry.backup_id: entry for entry in entries}
    depths: dict[str, int] = {}
    for entry in entries:
        prior = prior_of(entry, by_id)
        depths[entry.backup_id] = 0 if prior is None else depths.get(prior.backup_id, 0) + 1
    return depths


def _row(
    entry: BackupEntry, depth: int, stored_bytes: int, recoverable: RecoverableRange | None, is_pinned: bool
) -> tuple[str, ...]:
    return (
        "  " * depth + entry.backup_id,
        entry.kind.value,
        entry.prior_id or "-",
        str(entry.start_lsn),
        str(entry.start_timeline_id),
        size_text(entry.totals.size_bytes),
        size_text(stored_bytes),
        f"{duration_s(entry):.0f}",
        entry.finished_at,
        *_reach(recoverable),
        "pinned" if is_pinned else "-",
        "-" if entry.merge_note is None else entry.merge_note.merged_at,
    )


def _reach(recoverable: RecoverableRange | None) -> tuple[str, str]:
    if recoverable is None:
        return "WAL is missing", "-"
    if recoverable.is_long_term:
        return str(recoverable.start), "that point alone"
    return str(recoverable.start), str(recoverable.end)


def duration_s(entry: BackupEntry) -> float:
    """Return how long a backup took, in seconds."""
    return (datetime.fromisoformat(entry.finished_at) - datetime.fromisoformat(entry.started_at)).total_seconds()


def backup_members(
    entry: BackupEntry,
    entries: list[BackupEntry],
    recoverable: RecoverableRange | None,
    *,
    stored_bytes: int,
    is_pinned: bool,
) -> BackupMembers:
    """Return what ``list`` and ``show`` print of a backup with --json."""
    by_id = {other.backup_id: other for other in entries}
    prior = prior_of(entry, by_id)
    return {
        "id": entry.backup_id,
        "kind": entry.kind.value,
        "prior": entry.prior_id,
        "chain": chain_ids(entry, by_id),
        "start_lsn": str(entry.start_lsn),
        "stop_lsn": str(entry.stop_lsn),
        "timeline": entry.start_timeline_id,
        "stop_timeline": entry.stop_timeline_id,
        "prior_timeline": None if prior is None else prior.start_timeline_id,
        "prior_lsn": None if prior is None else str(prior.start_lsn),
        "label": entry.label,
        "started_at": entry.started_at,
        "finished_at": entry.finished_at,
        "seconds": duration_s(entry),
        "file_count": entry.totals.file_count,
        "incremental_file_count": entry.totals.incremental_file_count,
        "size_bytes": entry.totals.size_bytes,
        "stored_bytes": stored_bytes,
        "format": "plain" if entry.packed_size_bytes is None else "packed",
        "pinned": is_pinned,
        "merged_at": None if entry.merge_note is None else entry.merge_note.merged_at,
        "merged_backups": [] if entry.merge_note is None else list(entry.merge_note.backup_ids),
        "recoverable": None
        if recoverable is None
        else {
            "timeline": recoverable.timeline_id,
            "start_lsn": str(recoverable.start),
            "start_at": entry.finished_at,
            "end_lsn": str(recoverable.end),
            "whole": recoverable.is_whole,
            "long_term": recoverable.is_long_term,
        },
    }


def chain_ids(entry: BackupEntry, by_id: Mapping[str, BackupEntry]) -> list[str]:
    """Return the ids of a backup and of what it builds on, newest first, as far as they are there."""
    found = [entry.backup_id]
    while (prior := prior_of(entry, by_id)) is not None and prior.backup_id not in found:
        entry = prior
        found.append(entry.backup_id)
    return found
