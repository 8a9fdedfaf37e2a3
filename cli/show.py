"""``pgwal show``: all that is known of one backup."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pgwal.backup.chain import prior_of
from pgwal.backup.stored_path import encode_path
from pgwal_cli import options
from pgwal_cli.list_backups import backup_members, chain_ids, duration_s
from pgwal_cli.named_backup import Backup, backup_id
from pgwal_cli.output import print_json, size_text
from pgwal_cli.terminal import (
    BAD,
    FAINT,
    GOOD,
    NOTE,
    age_text,
    fields_of,
    moment_text,
    parsed_time,
    printable,
    styled,
    terminal,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pgwal.backup.entry import BackupEntry
    from pgwal.engine.coverage import RecoverableRange, TimelineCoverage
    from pgwal.repository.repository import Repository
    from pgwal_cli.documents import BackupMembers, ShowDocument


def show(
    backup: Backup,
    repo: options.Repo,
    json: options.Json = False,
) -> None:
    """Show one backup: what it builds on and what on it, window, sizes, times, and what can be recovered from it."""
    from pgwal.engine.coverage import read_recoverable_ranges
    from pgwal.errors import ObjectNotFound
    from pgwal.repository.backup_marks import BackupMarks
    from pgwal.repository.repository import Repository
    from pgwal.repository.stored_sizes import stored_sizes

    backup = backup_id(repo, backup)
    repository = Repository.open(repo)
    entries = repository.catalogue.entries(backup)
    entry = next((entry for entry in entries if entry.backup_id == backup), None)
    if entry is None:
        raise ObjectNotFound(f"there is no backup {backup}", hint="List the backups with pgwal list.")
    recoverable = read_recoverable_ranges(repository, [entry])[backup]
    stored_bytes = stored_sizes(repository, entries)[backup]
    is_pinned = bool(BackupMarks(repository.store).pinned([backup]))
    if json:
        print_json(
            _document(
                backup_members(entry, entries, recoverable, stored_bytes=stored_bytes, is_pinned=is_pinned),
                entry,
                _built_on_it(entry, entries),
            )
        )
    else:
        fields = _fields(entry, entries, recoverable, stored_bytes)
        if is_pinned:
            fields.append(("pinned", "yes: it is never expired"))
        console = terminal()
        if console is None:
            print("\n".join(f"{name:<16} {value}" for name, value in fields))
        else:
            from pgwal.engine.coverage import read_wal_coverage

            coverage = read_wal_coverage(repository, entries)
            _print_on_terminal(console, fields, entry, repository, recoverable, coverage)


def _print_on_terminal(
    console: Console,
    fields: list[tuple[str, str]],
    entry: BackupEntry,
    repository: Repository,
    recoverable: RecoverableRange | None,
    coverage: list[TimelineCoverage],
) -> None:
    from pgwal_cli.coverage_strip import print_coverage

    styles = {"recoverable": BAD if recoverable is None else GOOD if recoverable.is_whole else NOTE, "pinned": NOTE}
    ages = {"from": age_text(parsed_time(entry.started_at)), "to": age_text(parsed_time(entry.finished_at))}
    rows = []
    for name, value in fields:
        age = f", {ages[name]}" if name in ages else ""
        rows.append((name, styled((printable(value), styles.get(name, "")), (age, FAINT))))
        if name == "recoverable":
            rows += _last_transaction(repository, recoverable)
    console.print(fields_of(rows))
    print_coverage(console, coverage, with_summaries=False)


def _last_transaction(repository: Repository, recoverable: RecoverableRange | None) -> list[tuple[str, Text]]:
    """Return of which time the last transaction is that can be recovered, where that is known."""
    from pgwal.engine.recoverable_time import last_recoverable_time

    if recoverable is None or recoverable.is_long_term:
        return []
    last = last_recoverable_time(repository, recoverable)
    return [] if last is None else [("last transaction", styled(moment_text(last), (f", {age_text(last)}", FAINT)))]


def _document(members: BackupMembers, entry: BackupEntry, built_on_it: list[str]) -> ShowDocument:
    return {
        "version": 1,
        **members,
        "built_on_it": built_on_it,
        "system_identifier": str(entry.system_identifier),
        "major": entry.major,
        "data_checksums": entry.data_checksums,
        "checksum_failure_count": entry.checksum_failures,
        "wal_segment_bytes": entry.wal_segment_size,
        "tablespaces": [{"tablespace_oid": oid, "path": path} for oid, path in sorted(entry.tablespaces.items())],
    }


def _built_on_it(entry: BackupEntry, entries: list[BackupEntry]) -> list[str]:
    by_id = {other.backup_id: other for other in entries}
    return [other.backup_id for other in entries if prior_of(other, by_id) is entry]


def _fields(
    entry: BackupEntry, entries: list[BackupEntry], recoverable: RecoverableRange | None, stored_bytes: int
) -> list[tuple[str, str]]:
    by_id = {other.backup_id: other for other in entries}
    prior = prior_of(entry, by_id)
    totals = entry.totals
    fields = [
        ("backup", f"{entry.backup_id}, {entry.kind.value}"),
        ("label", entry.label.replace("\n", " ")),
        ("chain", ", ".join(chain_ids(entry, by_id))),
        ("built on it", ", ".join(_built_on_it(entry, entries)) or "nothing"),
        ("cluster", f"PostgreSQL {entry.major}, system identifier {entry.system_identifier}"),
        ("data checksums", _checksums_text(entry)),
        ("from", f"{entry.start_lsn} on timeline {entry.start_timeline_id}, {entry.started_at}"),
        ("to", f"{entry.stop_lsn} on timeline {entry.stop_timeline_id}, {entry.finished_at}"),
        ("took", f"{duration_s(entry):.0f} s"),
        ("size", f"{size_text(totals.size_bytes)} in {totals.file_count} files"),
        ("stored", _stored_text(entry, stored_bytes)),
        ("recoverable", _recoverable_text(entry, recoverable)),
    ]
    if entry.merge_note is not None:
        note = entry.merge_note
        fields.insert(3, ("merged", f"{note.merged_at}, of {', '.join(note.backup_ids)}"))
    if prior is not None:
        fields.insert(6, ("window", f"{prior.start_lsn} on timeline {prior.start_timeline_id} to {entry.start_lsn}"))
    fields += [
        ("tablespace", f"{oid} at {os.fsdecode(encode_path(path))}") for oid, path in sorted(entry.tablespaces.items())
    ]
    return fields


def _stored_text(entry: BackupEntry, stored_bytes: int) -> str:
    totals = entry.totals
    text = f"{size_text(totals.stored_size_bytes)}, {totals.incremental_file_count} files by their blocks"
    return text if entry.packed_size_bytes is None else f"{text}, in packs of {size_text(stored_bytes)}"


def _checksums_text(entry: BackupEntry) -> str:
    if not entry.data_checksums:
        return "off"
    return f"on, {entry.checksum_failures} pages differed from theirs" if entry.checksum_failures else "on"


def _recoverable_text(entry: BackupEntry, recoverable: RecoverableRange | None) -> str:
    if recoverable is None:
        return "no: WAL that it needs is missing"
    if recoverable.is_long_term:
        return f"to {recoverable.start} alone ({entry.finished_at}), with --target-immediate: a long-term backup"
    text = f"every point from {recoverable.start} ({entry.finished_at}) to {recoverable.end}"
    text += f" on timeline {recoverable.timeline_id}"
    return text if recoverable.is_whole else f"{text}, where WAL is missing"
