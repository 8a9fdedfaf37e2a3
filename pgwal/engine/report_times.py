"""When the server was where: what backups, the receiver and commits in a few segments of WAL tell of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from pgwal.backup.entry import BackupEntry
from pgwal.budget import REPORTED_SEGMENTS
from pgwal.engine.replayed_wal import transaction_ends
from pgwal.errors import FormatError, RepositoryError, StoreUnavailable
from pgwal.lsn import Lsn, LsnRange
from pgwal.report.position_times import KnownTime
from pgwal.repository.repository import ReceiverState, Repository


def told_times(entries: Iterable[BackupEntry], receiver: ReceiverState | None) -> Iterator[KnownTime]:
    """Yield the times that cost no look at WAL."""
    for entry in entries:
        yield KnownTime(entry.start_lsn, unix_time(entry.started_at))
        yield KnownTime(entry.stop_lsn, unix_time(entry.finished_at))
    if receiver is not None:
        time_s = receiver.level_at or receiver.updated_at
        if time_s is not None:
            yield KnownTime(receiver.flushed_lsn, time_s)


def unix_time(text: str) -> float:
    """Return the Unix time of one in ISO 8601 with its offset."""
    return datetime.fromisoformat(text).timestamp()


class CommitTimes:
    """Looks up when transactions ended, in at most so many segments; ``problem`` says why there is no looking.

    What cannot be read tells nothing: WAL may be sealed for keys that are not here.  Raises StoreUnavailable.
    """

    def __init__(self, repository: Repository, most_segments: int = REPORTED_SEGMENTS) -> None:
        self._repository = repository
        self._left = most_segments
        self._there = {(segment.timeline_id, segment.segment_no) for segment in repository.wal.segments()}
        self._found: dict[LsnRange, list[KnownTime]] = {}
        self.problem: str | None = None

    def last_before(self, wanted: LsnRange) -> KnownTime | None:
        """Return the last transaction that ended in a range of WAL, None without one, or when that is not known."""
        for segment in self._segments(wanted, newest_first=True):
            found = self._ends(segment)
            if found:
                # Recovery replays all of them: the latest time is the one that it comes to.
                return KnownTime(found[-1].lsn, max(each.time_s for each in found))
        return None

    def first_after(self, wanted: LsnRange) -> KnownTime | None:
        """Return the first transaction that ended in the first segment of a range, None as above."""
        for segment in self._segments(wanted, newest_first=False):
            found = self._ends(segment)
            return found[0] if found else None
        return None

    def _segments(self, wanted: LsnRange, *, newest_first: bool) -> Iterator[LsnRange]:
        """Yield the parts of a range that segments hold which are there."""
        geometry = self._repository.geometry
        first, last = geometry.segment_no(wanted.start), geometry.last_segment_no(wanted.end)
        numbers = sorted(
            (number for timeline_id, number in self._there if timeline_id == wanted.timeline_id),
            reverse=newest_first,
        )
        for number in numbers:
            if not first <= number <= last:
                continue
            start, end = geometry.segment_start(number), geometry.segment_start(number + 1)
            yield LsnRange(wanted.timeline_id, Lsn(max(wanted.start, start)), Lsn(min(wanted.end, end)))

    def _ends(self, part: LsnRange) -> list[KnownTime]:
        if part in self._found:
            return self._found[part]
        if self._left <= 0 or self.problem is not None:
            return []
        self._left -= 1
        found: list[KnownTime] = []
        try:
            for lsn, time in transaction_ends(self._repository, part):
                found.append(KnownTime(lsn, time.timestamp()))
        except StoreUnavailable:
            raise
        except (FormatError, RepositoryError) as error:
            self.problem = str(error)
        self._found[part] = found
        return found
