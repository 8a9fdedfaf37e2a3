"""Receive the WAL of one timeline over one connection.

The order is here, in one place: what was received is first held against the archive, then against the record before it;
only then it is written, synced, and reported to the server as flushed.  A summary is written when the WAL it speaks of
is durable.  Whenever the stream begins again, its last segment is received again from the start, so nothing is built on
what a failed write or sync has left.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pgwal.budget import (
    DELIVERED_LOOK_S,
    DELIVERY_S,
    FULL_SPOOL_S,
    MIN_SYNC_INTERVAL_S,
    SILENT_INTERVALS,
    STATE_INTERVAL_S,
    SYNC_INTERVAL_S,
    SYNC_PAUSE_S,
    SYNCHRONOUS_INTERVAL_S,
    TICK_S,
)
from pgwal.engine.archive_comparison import ArchiveComparison, history_mismatch, require_known_format
from pgwal.engine.arriving_summaries import ArrivingSummaries
from pgwal.engine.receiver_metrics import ReceiverMetrics
from pgwal.engine.start_point import StreamStart
from pgwal.engine.stream_events import StreamEvents
from pgwal.engine.stream_options import StreamOptions
from pgwal.engine.streamed_server import ServerPosition
from pgwal.errors import PgwalError, ReplicationInterrupted, RepositoryError, StandbyBehind
from pgwal.lsn import Lsn
from pgwal.postgres.replication_answer import EndOfTimeline
from pgwal.postgres.walsender import WalSender
from pgwal.replication.messages import WalData
from pgwal.replication.session import ReplicationSession
from pgwal.repository.compression import CompressionMethod
from pgwal.repository.delivery import Delivery
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.repository.wal_writer import WalWriter

if TYPE_CHECKING:
    from pgwal.engine.stop import StopRequest

logger = logging.getLogger(__name__)


class StreamTask(NamedTuple):
    """What to receive: from ``start`` up to ``target`` or the timeline's end, by ``slot`` if there is one.

    ``reported_flush_lsn`` is what the server's slot has been told already: less must not be reported again.
    """

    start: StreamStart
    target: Lsn | None
    slot: str | None
    reported_flush_lsn: Lsn


class TimelineStream:
    """The stream of one timeline over one connection; it ends early when ``stop`` is set.

    What becomes of it goes to ``metrics``, which it alone writes while it runs, and to ``events``.
    """

    def __init__(
        self,
        task: StreamTask,
        sender: WalSender,
        repository: Repository,
        delivery: Delivery,
        server: ServerPosition,
        options: StreamOptions,
        stop: StopRequest,
        metrics: ReceiverMetrics,
        events: StreamEvents,
    ) -> None:
        self._events = events
        self._sender = sender
        self._repository = repository
        self._delivery = delivery
        self._timeline_id, self._start = task.start
        self._server = server
        self._target = task.target
        self._slot = task.slot
        self._options = options
        self._stop = stop
        self._metrics = metrics
        self._until = server.history.end_of(self._timeline_id)
        self._comparison = ArchiveComparison(repository.wal, server.history, *task.start)
        # From here on nothing is in the archive that the server could be held against.
        self._continued_from = max(self._comparison.first_missing, self._comparison.end)
        self._summaries = ArrivingSummaries(
            repository, self._comparison.history, self._until, task.start, self._continued_from, metrics
        )
        delivery.begin(self._timeline_id)
        self._summaries.catch_up(stop, events.alive)
        self._rest_is_cleared = self._is_level = False
        self._full_s = 0.0
        self._lost: Lsn | None = None
        self._writer = WalWriter(
            repository.place,
            repository.geometry,
            self._timeline_id,
            self._comparison.first_missing,
            events,
            synchronous=self._options.synchronous,
            is_read_soon=repository.place.is_remote or self._options.compression.method is not CompressionMethod.NONE,
        )
        reports_flush = task.slot is not None or self._options.synchronous
        # Without --synchronous too: commits wait for whoever is named and reports what is durable.
        self._is_synchronous = self._options.synchronous or (reports_flush and sender.is_named_synchronous())
        self._session = ReplicationSession(
            self._start,
            self._options.status_interval_s,
            report_flush=reports_flush,
            reported_flush_lsn=task.reported_flush_lsn,
            unix_time_offset_s=time.time() - time.monotonic(),
        )
        self._sync_interval_s = SYNCHRONOUS_INTERVAL_S if self._is_synchronous else SYNC_INTERVAL_S
        self._noted: tuple[Lsn, Lsn] | None = None
        self._last_sync_s = self._last_state_s = time.monotonic()

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
        if end is not None:
            self._summaries.finish(end)
        return end

    def _stream(self) -> Lsn | None:
        if self._until is not None and self._start >= self._until:
            return self._until
        self._lost = self._lost_from()
        self._require_more_than(self._start)
        ended = self._sender.start_replication(self._slot, self._start, self._timeline_id)
        self._events.started(self._start)
        try:
            while ended is None:
                if self._is_done() or self._has_left_the_history():
                    self._sync()
                    self._deliver_rest()
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
        return reached or self._stop.is_set()

    def _has_left_the_history(self) -> bool:
        """Tell whether all that belongs to the server's history is here, though the timeline itself goes on."""
        if self._until is None or self._session.received_lsn < self._until:
            return False
        # Where the timeline itself ends there, the server says so.
        recorded = dict(self._server.history.recorded)
        return self._until < recorded[self._timeline_id]

    def _step(self) -> EndOfTimeline | None:
        """Take one message, or the passing of time."""
        if not self._delivery.has_room():
            self._pause(TICK_S)
            self._full_s += TICK_S
            if self._full_s > FULL_SPOOL_S and self._options.reconnect:
                raise ReplicationInterrupted("the spool is full: the connection is closed until the store takes more")
            return None
        self._full_s, self._metrics.spool_is_full = 0.0, False
        message = self._sender.receive(self._wait_s())
        now = time.monotonic()
        if isinstance(message, EndOfTimeline):
            return message
        if message is not None:
            event = self._session.receive(message, now)
            if isinstance(event, WalData):
                self._take(event)
        elif self._is_unsynced() or self._delivery.is_behind or self._has_delivered():
            self._sync(may_hold=True)
        if self._session.reply_due or now - self._last_sync_s > self._sync_interval_s:
            self._sync(may_hold=not self._session.reply_due)
        if self._session.reply_due:
            # A server that shuts down waits until all is reported as flushed.
            self._delivery.hurry()
        # Commits may wait to hear of it: the server may have come to count this as a synchronous standby.
        is_awaited = self._session.has_flush_to_tell
        status = self._session.status_now(now) if is_awaited else self._session.status_due(now)
        if status is not None:
            self._sender.send(status)
        self._check_silence(now)
        self._renew_state(now)
        self._events.alive()
        return None

    def _wait_s(self) -> float:
        wait_s = self._session.status_wait_s(time.monotonic())
        wait_s = TICK_S if wait_s is None else min(wait_s, TICK_S)
        if self._is_unsynced():
            wait_s = min(wait_s, 0 if self._is_synchronous else self._pause_s())
        elif self._delivery.is_behind:
            wait_s = min(wait_s, DELIVERED_LOOK_S)
        return wait_s

    def _pause_s(self) -> float:
        """Return after how much silence what was received is to be synced."""
        return max(SYNC_PAUSE_S, self._last_sync_s + MIN_SYNC_INTERVAL_S - time.monotonic())

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
            require_known_format(lsn, data)
        if self._until is not None:
            data = data[: max(0, self._until - lsn)]
        if not self._comparison.is_over:
            self._comparison.compare(lsn, data)
            self._require_more_than(Lsn(lsn + len(data)))
        self._summaries.take(lsn, data)
        self._write(lsn, data)
        self._session.written(self._written_lsn)
        self._metrics.bytes_received += len(data)
        if not (self._is_level or self._delivery.is_proven) and self._session.received_lsn >= self._continued_from:
            # At once: what follows need not wait behind what an earlier receiver left.
            self._is_level = True
            self._sync(may_hold=True)

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

    def _is_unsynced(self) -> bool:
        """Tell whether something was received and is not noted as durable."""
        return self._noted is None or self._noted[0] < self._session.received_lsn

    def _has_delivered(self) -> bool:
        """Tell whether more is where it belongs than was noted: nothing else happens when the last of it gets there."""
        return self._noted is not None and self._noted[1] < self._safe_lsn

    def _sync(self, *, may_hold: bool = False) -> None:
        """Make what was received durable, then note it, then write the summaries that it completes.

        What the server may forget is what outlives this machine, or with --synchronous what is durable on it.  What is
        held in memory ``may_hold`` on there, unless somebody waits for it.
        """
        self._last_sync_s = time.monotonic()
        is_wanted = self._is_synchronous or self._summaries.has_finished or self._delivery.wants_open_segment
        self._writer.sync(may_hold=may_hold and not is_wanted)
        self._session.written(self._written_lsn)
        flushed_lsn = self._flushed_lsn
        self._delivery.grow(self._timeline_id, flushed_lsn)
        if self._comparison.is_over:
            self._delivery.compared()
        received_lsn = self._session.received_lsn
        is_all = received_lsn >= self._continued_from
        self._delivery.prove(self._timeline_id, self._start, received_lsn, is_all=is_all)
        safe_lsn = self._delivery.safe_lsn(self._timeline_id, flushed_lsn)
        # While the store is away, a server that shuts down need not wait for it: its slot keeps what it has.
        self._session.withholds_flush = self._delivery.is_away and not self._options.synchronous
        if self._noted == (flushed_lsn, safe_lsn):
            return
        self._noted = flushed_lsn, safe_lsn
        self._session.flushed(flushed_lsn if self._options.synchronous else safe_lsn)
        self._summaries.write_finished(flushed_lsn)
        self._note_state()

    def _pause(self, seconds: float) -> None:
        """Read nothing for a while, and keep the connection: the server takes silence for its end."""
        is_full = not self._delivery.has_room()
        if is_full and not self._metrics.spool_is_full:
            logger.warning("the spool is full: receiving pauses until the store takes more")
        self._metrics.spool_is_full = is_full
        self._sync()
        self._stop.wait(seconds)
        now = time.monotonic()
        self._session.passed_over(now)
        if (status := self._session.status_due(now)) is not None:
            self._sender.send(status)
        self._renew_state(now)
        self._events.alive()

    def _deliver_rest(self) -> None:
        """Wait until all that was received is delivered; after a request to stop, not for long."""
        self._delivery.hurry()
        until_s = time.monotonic() + DELIVERY_S
        while self._delivery.is_behind:
            trouble = self._delivery.trouble
            if self._stop.is_set():
                if trouble is not None or time.monotonic() > until_s:
                    logger.warning("WAL from %s on is in the spool only: the next receiver stores it", self._safe_lsn)
                    return
            elif trouble is not None:
                raise trouble
            self._pause(DELIVERED_LOOK_S)
        self._sync()

    @property
    def _safe_lsn(self) -> Lsn:
        return self._delivery.safe_lsn(self._timeline_id, self._flushed_lsn)

    def _note_state(self) -> None:
        """Say where the receiver is, to the metrics and to other processes."""
        metrics = self._metrics
        metrics.timeline_id = self._timeline_id
        safe_lsn = self._safe_lsn
        metrics.written_lsn, metrics.flushed_lsn = self._written_lsn, safe_lsn
        metrics.summarised_lsn, metrics.server_lsn = self._summaries.position, self._session.server_end_lsn
        if safe_lsn >= max(self._session.server_end_lsn, self._server.flush_lsn):
            metrics.level_at = time.time() - self._session.silence_s(time.monotonic())
        state = ReceiverState(
            self._timeline_id,
            self._written_lsn,
            safe_lsn,
            self._summaries.position,
            self._options.slot,
            updated_at=time.time(),
            level_at=metrics.level_at,
            spooled_bytes=self._delivery.spooled_bytes,
        )
        self._last_state_s = time.monotonic()
        # Advisory: where there is no room for it, there still is in the segment, which was made at full size.
        with suppress(RepositoryError):
            self._repository.write_receiver_state(state)
        self._events.progressed(state.flushed_lsn)

    def _renew_state(self, now: float) -> None:
        """While nothing arrives, say now and then that nothing is missing."""
        if now - self._last_state_s > STATE_INTERVAL_S:
            self._note_state()

    def _check_silence(self, now: float) -> None:
        interval_s = self._options.status_interval_s
        if interval_s and self._session.silence_s(now) > SILENT_INTERVALS * interval_s:
            raise ReplicationInterrupted(f"the server has been silent for {self._session.silence_s(now):.0f} s")
