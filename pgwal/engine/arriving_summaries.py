"""Summarize one timeline's WAL while it arrives, going on where the last summary ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pgwal.engine.archive_comparison import history_mismatch
from pgwal.engine.receiver_metrics import ReceiverMetrics
from pgwal.engine.start_point import StreamStart
from pgwal.errors import BrokenInvariant, FormatError, LimitExceeded
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.repository import Repository
from pgwal.repository.wal_directory import WalDirectory
from pgwal.segment import WAL_PAGE_SIZE
from pgwal.summary.summarizer import Summarizer
from pgwal.timeline import TimelineHistory
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record import EndOfWal, EndReason

if TYPE_CHECKING:
    from pgwal.engine.stop import StopRequest

logger = logging.getLogger(__name__)

# What follows is no WAL of this history, where a bad CRC or length may be damage of the server's.
_BREAKS = (
    EndReason.RECORD_PREV_LINK,
    EndReason.CONTRECORD,
    EndReason.PAGE_ADDRESS,
    EndReason.PAGE_TIMELINE,
    EndReason.PAGE_LONG_HEADER,
)


class ArrivingSummaries:
    """The summaries of WAL that is received from ``start`` on.

    ``history`` is that of the timeline which is received, ``until`` where the server's history leaves it.  From
    ``continued_from`` on nothing is in the archive yet.  WAL that cannot be understood ends the summaries, never
    the receiving of WAL.  Whoever takes a summary finds its WAL durable: ``write_finished`` is called behind a sync.
    """

    def __init__(
        self,
        repository: Repository,
        history: TimelineHistory,
        until: Lsn | None,
        start: StreamStart,
        continued_from: Lsn,
        metrics: ReceiverMetrics,
    ) -> None:
        self._repository = repository
        self._history = history
        self._until = until
        self._timeline_id, self._start = start
        self._continued_from = continued_from
        self._metrics = metrics
        self._summarizer: Summarizer | None = None
        self.position = self._start
        """Up to where WAL was summarized when the finished summaries were written last."""

    def catch_up(self, stop: StopRequest, alive: Callable[[], None]) -> None:
        """Go on from the last summary, and read the WAL behind it that is here already; drop summaries of other WAL.

        ``alive`` is called now and then meanwhile.  Raises HistoryMismatch, as ``take`` does.
        """
        self._drop_summaries_ahead()
        if self._repository.place.is_remote:
            self._catch_up_ancestors(stop, alive)
        begin, prev_lsn = self._summary_start()
        self._summarizer = self._new_summarizer(self._timeline_id, begin, prev_lsn)
        position = Lsn(begin - begin % WAL_PAGE_SIZE)
        if position >= self._start:
            return
        logger.info("summarising WAL that is here, from %s to %s", begin, self._start)
        for data in self._repository.wal.read(self._timeline_id, begin):
            self.take(position, memoryview(data)[: self._start - position])
            position = Lsn(position + len(data))
            if position >= self._start or self._summarizer is None:
                return
            self._write(self._summarizer)
            alive()
            if stop.is_set():
                # It has not seen all, so it must not come to finish what it has.
                self._summarizer = None
                return

    def _new_summarizer(self, timeline_id: int, begin: Lsn, prev_lsn: Lsn | None) -> Summarizer:
        identity = self._repository.identity
        return Summarizer(
            timeline_id,
            wal_format_of_major(identity.major),
            self._repository.geometry,
            begin,
            prev_lsn=prev_lsn,
            system_identifier=identity.system_identifier,
        )

    def _catch_up_ancestors(self, stop: StopRequest, alive: Callable[[], None]) -> None:
        """Write the last summaries of timelines that have ended, where they are not here and their WAL is.

        They waited in a spool, from which the next receiver takes WAL alone.  Where that cannot be read the hole stays,
        and backups say what they miss.
        """
        begin, place = Lsn(0), self._repository.geometry.first_record_position
        for timeline_id, end in self._history.switches:
            ranges = [part for part in self._repository.summaries.ranges() if part.timeline_id == timeline_id]
            newest = max(ranges, key=lambda part: part.end, default=None)
            start = begin if newest is None else newest.end
            if start > 0 and begin <= start and place(start) < place(end):
                try:
                    self._summarize_ancestor(LsnRange(timeline_id, start, end), newest, stop, alive)
                except FormatError as error:
                    logger.info("%s; the last WAL of timeline %d is not summarised", error, timeline_id)
            begin = end

    def _summarize_ancestor(
        self, missing: LsnRange, newest: LsnRange | None, stop: StopRequest, alive: Callable[[], None]
    ) -> None:
        logger.info("summarising what is here of %s", missing)
        link = None if newest is None else self._repository.summaries.link(newest)
        summarizer = self._new_summarizer(missing.timeline_id, missing.start, None if link is None else link.last_lsn)
        position = Lsn(missing.start - missing.start % WAL_PAGE_SIZE)
        # Not from copies in segments of later timelines, which may be moved aside without this one.
        own = WalDirectory(self._repository.store, WAL_DIRECTORY, self._repository.geometry)
        for data in own.read(missing.timeline_id, missing.start):
            summarizer.feed(data[: missing.end - position])
            position = Lsn(position + len(data))
            self._write(summarizer)
            alive()
            if position >= missing.end or stop.is_set():
                break
        if position >= missing.end and summarizer.end_of_wal is None:
            summarizer.finish(missing.end)
            self._write(summarizer)

    def take(self, lsn: Lsn, data: memoryview) -> None:
        """Take WAL that follows what was taken before, or is part of it.

        Raises HistoryMismatch for WAL that does not continue that before it.
        """
        summarizer = self._summarizer
        if summarizer is None or lsn + len(data) <= summarizer.feed_lsn:
            return
        try:
            if lsn > summarizer.feed_lsn:
                raise BrokenInvariant("WAL is summarised without a hole")
            summarizer.feed(data[summarizer.feed_lsn - lsn :])
            if summarizer.end_of_wal is not None:
                self._require_no_break(summarizer.end_of_wal)
                raise FormatError(f"{summarizer.end_of_wal}, but more was received")
        except FormatError as error:
            logger.error("%s; WAL is received on, but no longer summarised", error)
            self._metrics.errors["summary"] += 1
            self._summarizer = None

    @property
    def has_finished(self) -> bool:
        """Whether there are summaries to be written."""
        return self._summarizer is not None and self._summarizer.has_finished

    def write_finished(self, durable_lsn: Lsn) -> None:
        """Write the summaries that are whole, all of WAL that is durable."""
        if self._summarizer is not None:
            self.position = min(self._summarizer.position, durable_lsn)
            self._write(self._summarizer)

    def finish(self, end: Lsn) -> None:
        """Write the rest, where the timeline ends."""
        if self._summarizer is not None:
            self._summarizer.finish(end)
            self._write(self._summarizer)

    def _write(self, summarizer: Summarizer) -> None:
        for summary in summarizer.take_finished():
            try:
                self._repository.summaries.write(summary.range, summary.block_map, summary.link)
            except LimitExceeded as error:
                logger.error("%s; backups read the WAL of its range in its place", error)
                self._metrics.errors["summary"] += 1
            else:
                self._metrics.summaries_written += 1

    def _require_no_break(self, end: EndOfWal) -> None:
        """Tell WAL of another history from WAL that is damaged, on the server or here."""
        if end.reason in _BREAKS or self._start <= end.lsn < self._continued_from:
            timeline_id = self._history.timeline_at(end.lsn)
            raise history_mismatch(timeline_id, end.lsn, f"what was received does not continue the archive: {end}")

    # -- where they go on --------------------------------------------------------------------------------------

    def _summary_start(self) -> tuple[Lsn, Lsn | None]:
        """Return the end of the last summary, or else the oldest position from which WAL is here without a hole.

        And where the record before it starts, None when that is not known.
        """
        oldest = self._oldest_contiguous_lsn()
        summaries = self._repository.summaries
        ends = {r.end: r for r in summaries.ranges() if r.timeline_id == self._timeline_id}
        newest = max((end for end in ends if end <= self._continued_from), default=Lsn(0))
        if newest and newest >= oldest:
            with suppress(FormatError):
                link = summaries.link(ends[newest])
                return newest, link.last_lsn if link is not None else None
            return newest, None
        switches = self._history.switches
        return max(oldest, switches[-1].switch_lsn) if switches else oldest, None

    def _drop_summaries_ahead(self) -> None:
        """Remove summaries of WAL that is not here (any more): it is received again, and may be other WAL."""
        for summary_range in self._repository.summaries.ranges():
            is_ahead = self._continued_from < summary_range.end
            if summary_range.timeline_id == self._timeline_id and is_ahead and not self._is_left_behind(summary_range):
                logger.warning("removing the summary of %s: that WAL is not here", summary_range)
                self._repository.summaries.delete(summary_range)

    def _is_left_behind(self, summary_range: LsnRange) -> bool:
        """Tell whether a summary reaches beyond where the server's history leaves the timeline."""
        return self._until is not None and summary_range.end > self._until

    def _oldest_contiguous_lsn(self) -> Lsn:
        geometry = self._repository.geometry
        complete = {
            s.segment_no for s in self._repository.wal.segments() if s.complete and s.timeline_id == self._timeline_id
        }
        segment_no = geometry.segment_no(self._start)
        while segment_no - 1 in complete:
            segment_no -= 1
        return geometry.segment_start(segment_no)
