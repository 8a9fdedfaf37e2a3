"""What ``pgwal expire --dry-run`` would keep and remove, as a table on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from pgwal_cli.output import size_text
from pgwal_cli.retention_options import why_text
from pgwal_cli.terminal import (
    BAD,
    FAINT,
    GOOD,
    NOTE,
    Column,
    age_text,
    moment_text,
    parsed_time,
    print_first_that_fits,
    stacked,
    styled,
    table_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from pgwal.backup.entry import BackupEntry
    from pgwal.engine.expire_plan import ExpireReport

_WIDE = (
    Column("BACKUP"),
    Column("FINISHED"),
    Column("SIZE", is_right=True),
    Column("KEPT"),
    Column("BY (HOURS TO YEARS ARE OF UTC)", wraps=True, width=40),
    Column("WAL", wraps=True, width=24),
)
_NARROW = (
    Column("BACKUP"),
    Column("FINISHED"),
    Column("KEPT"),
    Column("BY (OF UTC), WITH WHICH WAL", wraps=True, width=26),
)


def print_decision(console: Console, report: ExpireReport) -> None:
    """Print of every backup whether it is kept, by which rules, and with which WAL."""
    long_term_ids = {entry.backup_id for entry in report.long_term}
    wide, narrow = [], []
    for entry in sorted((*report.kept, *report.expired, *report.broken), key=lambda entry: entry.backup_id):
        kept, why, wal = _judged(report, entry, is_long_term=entry.backup_id in long_term_ids)
        finished = parsed_time(entry.finished_at)
        moment, age = moment_text(finished), age_text(finished)
        size = size_text(entry.repository_bytes)
        name = Text(entry.backup_id)
        wide.append([name, styled(moment, (f" {age}", FAINT)), Text(size), kept, Text(why), Text(wal)])
        narrow.append([name, styled(moment, (f"\n{age}, {size}", FAINT)), kept, _narrow(why, wal)])
    for backup in report.unreadable:
        cells = Text(backup.backup_id), Text("-")
        problem = styled(("its entry cannot be read", BAD))
        wide.append([*cells, Text("-"), styled(("yes", NOTE)), problem, Text("all since")])
        narrow.append([*cells, styled(("yes", NOTE)), problem])
    print_first_that_fits(console, *_tables(wide, narrow))


def _tables(wide: Sequence[Sequence[Text]], narrow: Sequence[Sequence[Text]]) -> tuple[Table, ...]:
    return table_of(_WIDE, wide), table_of(_NARROW, narrow), stacked(_NARROW, narrow)


def _judged(report: ExpireReport, entry: BackupEntry, *, is_long_term: bool) -> tuple[Text, str, str]:
    if entry in report.kept:
        wal = f"up to {entry.stop_lsn}" if is_long_term else "all since"
        return styled(("yes", GOOD)), why_text(report, entry.backup_id), wal
    if entry in report.broken:
        return styled(("yes", NOTE)), "broken: left to a person", "none"
    return styled(("no", BAD)), "nothing keeps it", "-"


def _narrow(why: str, wal: str) -> Text:
    return Text(why) if wal == "-" else Text(f"{why}\nWAL {wal}")
