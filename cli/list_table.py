"""``pgwal list`` on a terminal: a table as wide as the terminal lets it be, and strips of the WAL that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from rich.text import Text

from pgwal_cli.coverage_strip import print_coverage
from pgwal_cli.output import size_text
from pgwal_cli.terminal import (
    BAD,
    FAINT,
    NOTE,
    Column,
    age_text,
    duration_text,
    moment_text,
    parsed_time,
    print_first_that_fits,
    stacked,
    styled,
    table_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from pgwal.backup.entry import BackupEntry
    from pgwal.engine.coverage import RecoverableRange, TimelineCoverage
    from pgwal.lsn import Lsn

_ID_WIDTH = 23
"""Of an ID, and the sign of what builds on another one."""
_WIDE = (
    Column("BACKUP"),
    Column("FINISHED"),
    Column("START LSN"),
    Column("TLI", is_right=True),
    Column("SIZE", is_right=True),
    Column("STORED", is_right=True),
    Column("TOOK", is_right=True),
    Column("BUILDS ON"),
    Column("RECOVERABLE FROM"),
    Column("TO"),
    Column("NOTES", wraps=True, width=12),
)
_NARROW = (
    Column("BACKUP", wraps=True, width=_ID_WIDTH),
    Column("FINISHED"),
    Column("SIZE\nSTORED", is_right=True),
    Column("RECOVERABLE"),
)


@dataclass(frozen=True, slots=True)
class ListedBackup:
    """A backup, and what is told of it beside its entry; ``why`` is None where that was not asked."""

    entry: BackupEntry
    stored_bytes: int
    recoverable: RecoverableRange | None
    is_pinned: bool
    seconds: float
    why: str | None


def print_backups(
    console: Console,
    backups: Sequence[ListedBackup],
    coverage: Sequence[TimelineCoverage],
    known_times: Mapping[tuple[int, Lsn], datetime],
) -> None:
    """Print the table; ``known_times`` are when WAL was at some LSN of a timeline."""
    narrow = [_narrow_row(backup, known_times) for backup in backups]
    wide = [_wide_row(backup, known_times) for backup in backups]
    print_first_that_fits(console, table_of(_WIDE, wide), table_of(_NARROW, narrow), stacked(_NARROW, narrow))
    print_coverage(console, coverage, with_summaries=False)


def _name(entry: BackupEntry) -> str:
    return entry.backup_id if entry.prior_id is None else f"+ {entry.backup_id}"


def _notes(backup: ListedBackup) -> Text:
    parts = [styled(("pinned", NOTE))] if backup.is_pinned else []
    note = backup.entry.merge_note
    if note is not None:
        parts.append(Text(f"merged of {len(note.backup_ids)} {moment_text(parsed_time(note.merged_at))}"))
    if backup.why is not None:
        parts.append(Text(f"kept: {backup.why}" if backup.why != "nothing keeps it" else backup.why))
    return Text(", ").join(parts)


def _wide_row(backup: ListedBackup, known_times: Mapping[tuple[int, Lsn], datetime]) -> list[Text]:
    entry = backup.entry
    finished = parsed_time(entry.finished_at)
    first, *rest = _reach(backup.recoverable, known_times)
    return [
        Text(_name(entry)),
        styled(moment_text(finished), (f" {age_text(finished)}", FAINT)),
        Text(str(entry.start_lsn)),
        Text(str(entry.start_timeline_id)),
        Text(size_text(entry.totals.size_bytes)),
        Text(size_text(backup.stored_bytes)),
        Text(duration_text(backup.seconds)),
        Text(entry.prior_id or "-"),
        first,
        Text(" ").join(rest),
        _notes(backup),
    ]


def _narrow_row(backup: ListedBackup, known_times: Mapping[tuple[int, Lsn], datetime]) -> list[Text]:
    entry = backup.entry
    finished = parsed_time(entry.finished_at)
    first, *rest = _reach(backup.recoverable, known_times)
    if backup.recoverable is not None:
        first = Text("from ") + first
        if not backup.recoverable.is_long_term:
            rest[0] = Text("to   ") + rest[0]
    notes = _notes(backup)
    return [
        Text("\n  ").join([Text(_name(entry)), notes] if notes else [Text(_name(entry))]),
        styled(moment_text(finished), (f"\n{age_text(finished)}", FAINT)),
        Text(f"{size_text(entry.totals.size_bytes)}\n{size_text(backup.stored_bytes)}"),
        Text("\n").join([first, *rest]),
    ]


def _reach(recoverable: RecoverableRange | None, known_times: Mapping[tuple[int, Lsn], datetime]) -> tuple[Text, ...]:
    """Return from where to where it can be recovered, with the age of the end where it is known."""
    if recoverable is None:
        return (styled(("WAL is missing", BAD)),)
    start = Text(str(recoverable.start))
    if recoverable.is_long_term:
        return start, styled(("that point alone", NOTE))
    moment = known_times.get((recoverable.timeline_id, recoverable.end))
    end = Text(str(recoverable.end))
    return (start, end) if moment is None else (start, end, styled((age_text(moment), FAINT)))
