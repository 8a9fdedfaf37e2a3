"""Receive the WAL of one timeline over one connection.

The order is here, in one place: what was received is first held against the archive, then against the record before it;
only then it is written, synced, and reported to the server as flushed.  A summary is written when the WAL it speaks of
is durable.  Whenever the stream begins again, its last segment is received again from the start, so nothing is built on
what a failed write or sync has left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pgwal.engine.archive_comparison import ArchiveComparison, history_mismatch
from pgwal.engine.receiver_metrics import ReceiverMetrics
from pgwal.engine.start_point import StreamStart
from pgwal.engine.stream_options import DEFAULT_STATUS_INTERVAL_S, StreamOptions
from pgwal.errors import (
    BrokenInvariant,
    FormatError,
    LimitExceeded,
    PgwalError,
    ReplicationInterrupted,
    RepositoryError,
    StandbyBehind,
)
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.walsender import EndOfTimeline, WalSender
from pgwal.postgres_version import version_of_magic
from pgwal.replication.messages import WalData
from pgwal.replication.session import ReplicationSession
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.repository.wal_compressor import CompressionMethod
from pgwal.repository.wal_writer import WalObserver, WalWriter
from pgwal.segment import WAL_PAGE_SIZE
from pgwal.summary.summarizer import Summarizer, Summary
from pgwal.timeline import TimelineHistory
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record import EndOfWal, EndReason

if TYPE_CHECKING:
    from pgwal.engine.stop import StopRequest

logger = logging.getLogger(__name__)

# WAL that was received is synced when the server pauses, if the last sync is not too recent: backups wait for it.
# Without a pause it is synced after _SYNC_INTERVAL_S.
_PAUSE_S = 0.01
_MIN_SYNC_INTERVAL_S = 0.1
_SYNC_INTERVAL_S = 1.0
# A synchronous standby is waited for, however busy the server is otherwise.
_SYNCHRONOUS_INTERVAL_S = 0.05
# How often the receiver shows that it is alive, and how old the state that it leaves for others may get.
TICK_S = 1.0
_STATE_INTERVAL_S = 5.0
# A server that lives answers every second status; this many intervals of silence mean a dead connection.
_SILENT_INTERVALS = 6

# What follows is no WAL of this history, where a bad CRC or length may be damage of the server's.
_BREAKS = (
    EndReason.RECORD_PREV_LINK,
    EndReason.CONTRECORD,
    EndReason.PAGE_ADDRESS,
    EndReason.PAGE_TIMELINE,
    EndReason.PAGE_LONG_HEADER,
)


class StreamObserver(WalObserver, Protocol):
    """Who runs a stream, and wants to know what becomes of it."""

    options: StreamOptions
    stop: StopRequest
    metrics: ReceiverMetrics
    slot: str | None

    def started(self, start: Lsn) -> None:
        """Called when the server streams."""

    def progressed(self, flushed_lsn: Lsn) -> None:
        """Called when more has become durable, and now and then."""

    def alive(self) -> None:
        """Called as often as the stream looks at the time."""


class ServerPosition(NamedTuple):
    """What is known of the server when a stream begins.

    Its WAL reaches ``flush_lsn`` along ``history``.  ``is_standby`` asks it, before it streams: a standby may be
    behind what it had sent before it restarted.
    """

    history: TimelineHistory
    flush_lsn: Lsn
    is_standby: Callable[[], bool]


class TimelineStream:
    """The stream of one timeline over one connection, from ``start`` up to ``target`` or the timeline's end.

    ``reported_flush_lsn`` is what the server's slot has been told already: less must not be reported again.
    """

    def __init__(
        self,
        observer: StreamObserver,
        sender: WalSender,
        repository: Repository,
        server: ServerPosition,
        start: StreamStart,
        target: Lsn | None,
        reported_flush_lsn: Lsn,
    ) -> None:
        self._observer = observer
        self._sender = sender
        self._repository = repository
        self._timeline_id, self._start = start
        self._server = server
        self._target = target
        self._options = observer.options
        self._metrics = observer.metrics
        self._until = server.history.end_of(self._timeline_id)
        self._comparison = ArchiveComparison(repository.wal, server.history, *start)
        # From here on nothing is in the archive that the server could be held against.
        self._continued_from = max(self._comparison.first_missing, self._comparison.end)
        self._drop_summaries_ahead()
        self._summarizer: Summarizer | None = self._resumed_summarizer()
        self._summarised_lsn = self._start
        self._rest_is_cleared = False
        self._lost: Lsn | None = None
        self._writer = WalWriter(
            repository.place,
            repository.geometry,
            self._timeline_id,
            self._comparison.first_missing,
            observer,
            synchronous=self._options.synchronous,
            is_read_soon=self._options.compression.method is not CompressionMethod.NONE,
        )
        reports_flush = observer.slot is not None or self._options.synchronous
        # Without --synchronous too: commits wait for whoever is named and reports what is durable.
        self._is_synchronous = self._options.synchronous or (reports_flush and sender.is_named_synchronous())
        self._session = ReplicationSession(
            self._start,
            self._options.status_interval_s,
            report_flush=reports_flush,
            reported_flush_lsn=reported_flush_lsn,
            unix_time_offset_s=time.time() - time.monotonic(),
        )
        self._sync_interval_s = _SYNCHRONOUS_INTERVAL_S if self._is_synchronous else _SYNC_INTERVAL_S
        self._reported_lsn: Lsn | None = None
        self._last_sync_s = time.monotonic()
        self._last_state_s = time.monotonic()

    def run(self) -> Lsn | None:
        """Stream until the timeline ends, and return where; None when there is nothing more to do.

        Raises HistoryMismatch when the server's WAL is not that of the archive, StandbyBehind, WalRemoved, and other
        kinds of ServerError and RepositoryError.
        """
        try:
            end = self._stream()
        finally:
            self._writer.close()
            self._comparison.close()
        if end is not None and self._summarizer is not None:
            self._summarizer.finish(end)
            self._write_summaries(self._summarizer.take_finished())
        return end

    def _stream(self) -> Lsn | None:
        if self._until is not None and self._start >= self._until:
            return self._until
        self._lost = self._lost_from()
        self._require_more_than(self._start)
        ended = self._sender.start_replication(self._observer.slot, self._start, self._timeline_id)
        self._observer.started(self._start)
        try:
            while ended is None:
                if self._is_done() or self._has_left_the_history():
                    self._sync()
                    self._sender.send(self._session.status_now(time.monotonic()))
                    self._sender.finish()
                    return self._until if self._has_left_the_history() else None
                ended = self._step()
            self._sync()
        except PgwalError as error:
            # After an error of the storage it is not known what a sync would mean: see WalWriter.
            if not isinstance(error, RepositoryError):
                self._sync()
            raise
        return ended.switch_lsn

    def _is_done(self) -> bool:
        reached = self._target is not None and self._session.received_lsn >= self._target
        return reached or self._observer.stop.is_set()

    def _has_left_the_history(self) -> bool:
        """Tell whether all that belongs to the server's history is here, though the timeline itself goes on."""
        if self._until is None or self._session.received_lsn < self._until:
            return False
        # Where the timeline itself ends there, the server says so.
        recorded = dict(self._server.history.recorded)
        return self._until < recorded[self._timeline_id]

    def _step(self) -> EndOfTimeline | None:
        """Take one message, or the passing of time."""
        message = self._sender.receive(self._wait_s())
        now = time.monotonic()
        if isinstance(message, EndOfTimeline):
            return message
        if message is not None:
            event = self._session.receive(message, now)
            if isinstance(event, WalData):
                self._take(event)
        elif self._is_unsynced():
            self._sync()
        if self._session.reply_due or now - self._last_sync_s > self._sync_interval_s:
            self._sync()
        status = self._session.status_now(now) if self._is_awaited() else self._session.status_due(now)
        if status is not None:
            self._reported_lsn = self._session.flushed_lsn
            self._sender.send(status)
        self._check_silence(now)
        self._renew_state(now)
        self._observer.alive()
        return None

    def _wait_s(self) -> float:
        wait_s = self._session.status_wait_s(time.monotonic())
        if wait_s is None:
            wait_s = DEFAULT_STATUS_INTERVAL_S
        wait_s = min(wait_s, TICK_S)
        if self._is_unsynced():
            wait_s = min(wait_s, 0 if self._is_synchronous else self._pause_s())
        return wait_s

    def _pause_s(self) -> float:
        """Return after how much silence what was received is to be synced."""
        return max(_PAUSE_S, self._last_sync_s + _MIN_SYNC_INTERVAL_S - time.monotonic())

    def _is_awaited(self) -> bool:
        """Tell whether commits may wait to hear of what was synced since the last status.

        The server may have come to count this as a synchronous standby since the stream began.
        """
        return self._session.report_flush and self._session.flushed_lsn != self._reported_lsn

    # -- what arrives ------------------------------------------------------------------------------------------

    def _lost_from(self) -> Lsn | None:
        """Return where the server's WAL ends when the archive has more, and so the server has lost it; else None.

        Raises StandbyBehind for a standby that will have it again.
        """
        flush_lsn = self._server.flush_lsn
        if self._until is not None or flush_lsn >= self._comparison.end:
            return None
        if not self._server.is_standby():
            return flush_lsn
        if flush_lsn < self._start:
            raise StandbyBehind(
                f"the standby is at {flush_lsn}, behind {self._comparison.end}, up to where the repository has its WAL"
            )
        return None

    def _require_more_than(self, lsn: Lsn) -> None:
        """Raise HistoryMismatch when the server has lost what the archive has from ``lsn`` on, or from before it."""
        if self._lost is not None and lsn >= self._lost:
            raise history_mismatch(
                self._timeline_id, self._lost, f"the server has lost all from there up to {self._comparison.end}"
            )

    def _take(self, message: WalData) -> None:
        lsn, data = message.lsn, memoryview(message.data)
        if lsn == self._start:
            _require_known_format(lsn, data)
        if self._until is not None:
            data = data[: max(0, self._until - lsn)]
        if not self._comparison.is_over:
            self._comparison.compare(lsn, data)
            self._require_more_than(Lsn(lsn + len(data)))
        self._summarise(lsn, data)
        self._write(lsn, data)
        self._session.written(self._written_lsn)
        self._metrics.bytes_received += len(data)

    def _write(self, lsn: Lsn, data: memoryview) -> None:
        """Write what the archive does not have whole."""
        passed = max(0, self._comparison.first_missing - lsn)
        data = data[passed:]
        left = self._continued_from - (lsn + passed)
        if not self._rest_is_cleared and len(data) > left:
            self._writer.write(data[:left])
            self._writer.clear_rest()
            self._rest_is_cleared = True
            data = data[left:]
        if data:
            self._writer.write(data)

    @property
    def _written_lsn(self) -> Lsn:
        """Up to where the archive has what was received."""
        return min(self._writer.written_lsn, self._session.received_lsn)

    @property
    def _flushed_lsn(self) -> Lsn:
        return min(self._writer.flushed_lsn, self._session.received_lsn)

    def _summarise(self, lsn: Lsn, data: memoryview) -> None:
        """Feed the summariser; WAL that it cannot understand ends summaries, never the receiving of WAL.

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

    def _require_no_break(self, end: EndOfWal) -> None:
        """Tell WAL of another history from WAL that is damaged, on the server or here."""
        if end.reason in _BREAKS or self._start <= end.lsn < self._continued_from:
            timeline_id = self._comparison.history.timeline_at(end.lsn)
            raise history_mismatch(timeline_id, end.lsn, f"what was received does not continue the archive: {end}")

    def _is_unsynced(self) -> bool:
        """Tell whether something was received and is not noted as durable."""
        return self._session.flushed_lsn is None or self._session.flushed_lsn < self._session.received_lsn

    def _sync(self) -> None:
        """Make what was received durable, then note it, then write the summaries that it completes."""
        self._last_sync_s = time.monotonic()
        self._writer.sync()
        self._session.written(self._written_lsn)
        if self._session.flushed_lsn == self._flushed_lsn:
            return
        self._session.flushed(self._flushed_lsn)
        if self._summarizer is not None:
            self._summarised_lsn = self._summarizer.position
            self._write_summaries(self._summarizer.take_finished())
        self._note_state()

    def _note_state(self) -> None:
        """Say where the receiver is, to the metrics and to other processes."""
        metrics = self._metrics
        metrics.timeline_id = self._timeline_id
        metrics.written_lsn, metrics.flushed_lsn = self._written_lsn, self._flushed_lsn
        metrics.summarised_lsn, metrics.server_lsn = self._summarised_lsn, self._session.server_end_lsn
        if self._flushed_lsn >= max(self._session.server_end_lsn, self._server.flush_lsn):
            metrics.level_at = time.time() - self._session.silence_s(time.monotonic())
        state = ReceiverState(
            self._timeline_id,
            self._written_lsn,
            self._flushed_lsn,
            self._summarised_lsn,
            self._options.slot,
            updated_at=time.time(),
            level_at=metrics.level_at,
        )
        self._last_state_s = time.monotonic()
        # Advisory: where there is no room for it, there still is in the segment, which was made at full size.
        with suppress(RepositoryError):
            self._repository.write_receiver_state(state)
        self._observer.progressed(state.flushed_lsn)

    def _renew_state(self, now: float) -> None:
        """While nothing arrives, say now and then that nothing is missing."""
        if now - self._last_state_s > _STATE_INTERVAL_S:
            self._note_state()

    def _check_silence(self, now: float) -> None:
        interval_s = self._options.status_interval_s
        if interval_s and self._session.silence_s(now) > _SILENT_INTERVALS * interval_s:
            raise ReplicationInterrupted(f"the server has been silent for {self._session.silence_s(now):.0f} s")

    def _write_summaries(self, summaries: list[Summary]) -> None:
        for summary in summaries:
            try:
                self._repository.summaries.write(summary.range, summary.block_map, summary.link)
            except LimitExceeded as error:
                logger.error("%s; backups read the WAL of its range in its place", error)
                self._metrics.errors["summary"] += 1
            else:
                self._metrics.summaries_written += 1

    # -- where the summariser goes on --------------------------------------------------------------------------

    def _resumed_summarizer(self) -> Summarizer | None:
        """Return a summariser that goes on from the last summary, fed with the WAL that is here already."""
        begin, prev_lsn = self._summary_start()
        identity = self._repository.identity
        self._summarizer = Summarizer(
            self._timeline_id,
            wal_format_of_major(identity.major),
            self._repository.geometry,
            begin,
            prev_lsn=prev_lsn,
            system_identifier=identity.system_identifier,
        )
        position = Lsn(begin - begin % WAL_PAGE_SIZE)
        if position < self._start:
            logger.info("summarising WAL that is here, from %s to %s", begin, self._start)
            for data in self._repository.wal.read(self._timeline_id, begin):
                self._summarise(position, memoryview(data)[: self._start - position])
                position = Lsn(position + len(data))
                if position >= self._start or self._summarizer is None:
                    break
                self._write_summaries(self._summarizer.take_finished())
                self._observer.alive()
                if self._observer.stop.is_set():
                    # It has not seen all, so it must not come to finish what it has.
                    return None
        return self._summarizer

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
        switches = self._comparison.history.switches
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


def _require_known_format(lsn: Lsn, page: memoryview) -> None:
    """Raise UnsupportedVersion where the page that starts at ``lsn`` is whole and of no version that pgwal knows.

    A release candidate has the version number of its release, and may have other WAL.
    """
    page_lsn = int.from_bytes(page[8:16], "little")
    if page_lsn == lsn:
        version_of_magic(int.from_bytes(page[:2], "little"), f"the server's WAL at {lsn}")
