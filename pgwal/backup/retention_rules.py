"""The rules by which backups and WAL are kept, as people give them, and why a backup is kept.

The calendar is that of UTC, and the time of a backup that of the server's clock when it ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from pgwal.backup.entry import BackupEntry


class Period(StrEnum):
    """A part of the calendar of which one backup may be kept."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    YEARLY = "yearly"

    def containing(self, time: datetime) -> str:
        """Return the name of the one that holds a time, in UTC; weeks are those of ISO 8601."""
        return time.astimezone(UTC).strftime(_NAMES[self])


_NAMES = {
    Period.HOURLY: "%Y-%m-%d %H:00",
    Period.DAILY: "%Y-%m-%d",
    Period.WEEKLY: "%G-W%V",
    Period.MONTHLY: "%Y-%m",
    Period.YEARLY: "%Y",
}


class Reason(NamedTuple):
    """Why a backup is kept: the rule, and the period or the backup for whose sake it is."""

    rule: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.rule} {self.detail}".rstrip()


NO_RULE = Reason("no rule is given")
NEWEST = Reason("newest")
PINNED = Reason("pinned")
KEEP_FULL = Reason("keep-full")
KEEP_DAYS = Reason("keep-days")
OF_UNREADABLE = Reason("chain of a backup that cannot be read")
RETAINED = Reason("chain of a backup that the storage does not let go yet")


def needed_by(entry: BackupEntry) -> Reason:
    """Return the reason of what a backup builds on."""
    return Reason("needed by", entry.backup_id)


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """What is to be kept; None, or no number for a period, is no rule.

    ``keep_full`` is how many of the newest chains.  ``keep_since`` is the time from which on every point must be
    reachable.  Of each of the last so many ``periods`` that have backups, the newest is kept; while there are fewer
    such periods than that, the oldest backup is, too.

    ``keep_wal_since`` and ``keep_wal_for`` say for which backups, by time and by their number, all WAL since they
    started is kept; older ones keep that of their own, from start to stop.
    """

    keep_full: int | None = None
    keep_since: datetime | None = None
    periods: Mapping[Period, int] = field(default_factory=dict)
    keep_wal_since: datetime | None = None
    keep_wal_for: int | None = None

    @property
    def limits_backups(self) -> bool:
        return self.keep_full is not None or self.keep_since is not None or bool(self.periods)

    @property
    def limits_wal(self) -> bool:
        return self.keep_wal_since is not None or self.keep_wal_for is not None


def newest_of_periods(backups: Iterable[tuple[datetime, str]], period: Period, count: int) -> dict[str, Reason]:
    """Return which backups are kept by ``count`` of a period, and why; they are given as when they ended, and ids.

    Of backups that ended at the same time, the later one in the list counts as the newer one.
    """
    newest: dict[str, str] = {}
    ordered = sorted(backups, key=lambda backup: backup[0])
    for ended, backup_id in ordered:
        newest[period.containing(ended)] = backup_id
    # As restic and borg do: whoever begins with a rule for years has the first backup until there are years.
    found = {ordered[0][1]: Reason(period.value, "oldest")} if ordered and len(newest) < count else {}
    names = sorted(newest, reverse=True)[:count]
    return found | {newest[name]: Reason(period.value, name) for name in names}
