"""Receive WAL continuously, keep it, and summarise it as it arrives.

The order of durability is here, in one place: write to the segment, sync it, and only then report the position
to the server as flushed; a summary is written when the WAL it speaks of is durable.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import tenacity

from pgwal.engine.receiver_metrics import ReceiverMetrics
from pgwal.engine.stop import StopRequest
from pgwal.errors import (
    ConnectionFailed,
    FormatError,
    ReplicationInterrupted,
    RepositoryError,
    SlotInUse,
    SlotUnavailable,
    WalRemoved,
)
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters, connect_replication, connect_sql
from pgwal.postgres.server import read_slot
from pgwal.postgres.walsender import EndOfTimeline, SlotPosition, WalSender
from pgwal.replication.messages import WalData
from pgwal.replication.session import ReplicationSession
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.repository.wal_archive import WalWriter
from pgwal.repository.wal_compressor import DEFAULT_COMPRESSION, Compression, SegmentCompressor
from pgwal.segment import WAL_PAGE_SIZE, parse_segment_size
from pgwal.summary.summarizer import Summarizer, Summary
from pgwal.wal.page_magic import wal_format_of_major

logger = logging.getLogger(__name__)

DEFAULT_STATUS_INTERVAL_S = 10.0

# WAL that was written is synced when the server pauses for this long, or after SYNC_INTERVAL_S without a pause.
_IDLE_S = 0.1
_SYNC_INTERVAL_S = 1.0
_RECONNECT_MAX_S = 5.0
# How often the receiver shows that it is alive, and how old the state that it leaves for others may get.
_TICK_S = 1.0
_STATE_INTERVAL_S = 5.0
# A server that lives answers every second status; this many intervals of silence mean a dead connection.
_SILENT_INTERVALS = 6


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a receiver is to do; ``end_lsn`` is where to stop, ``once`` to stop when level with the server.

    Without a ``slot``, ``temporary_slot`` has one made that lasts as long as the connection.
    """

    slot: str | None = None
    temporary_slot: bool = False
    create_slot: bool = False
    if_not_exists: bool = False
    reconnect: bool = True
    status_interval_s: float = DEFAULT_STATUS_INTERVAL_S
    synchronous: bool = False
    end_lsn: Lsn | None = None
    once: bool = False
    skip_removed: bool = False
    compression: Compression = DEFAULT_COMPRESSION


class Receiver:
    """Receives the WAL of one cluster into one repository; at most one runs on a repository at a time.

    ``on_alive`` is called, about once a second, in the receiver's own thread: while it streams, and while it waits
    to connect again.  ``metrics`` may be read by any thread.
    """

    def __init__(
        self,
        repository_path: Path,
        parameters: ConnectionParameters,
        options: StreamOptions,
        stop: StopRequest,
        *,
        on_alive: Callable[[], None] | None = None,
    ) -> None:
        self._repository_path = repository_path
        self._parameters = parameters
        self._options = options
        self._stop = stop
        self._on_alive = on_alive or (lambda: None)
        self._last_alive_s = 0.0
        self._compressor: SegmentCompressor | None = None
        self.metrics = ReceiverMetrics()
        self._repository: Repository | None = None
        self._slot_ensured = False
        self.slot = options.slot
        """The slot that holds back WAL at present."""
        self.streaming = threading.Event()
        """Set once the server streams."""
        self.level = threading.Event()
        """Set once everything is here that was on the server when the stream began."""
        self.level_lsn = Lsn(0)
        """Up to where the server had WAL when the connection was made."""

    def run(self) -> None:
        """Receive until asked to stop, or until the end that the options name.

        An interrupted stream is taken up again, unless the options say otherwise; an error of the first
        connection is raised.  Raises RepositoryLocked, WrongCluster, WalRemoved, ServerError and its kinds.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_worth_retrying),
            wait=tenacity.wait_exponential(multiplier=0.1, max=_RECONNECT_MAX_S),
            stop=lambda _: self._stop.is_set(),
            sleep=self._pause,
            before_sleep=self._note_interruption,
            reraise=True,
        )
        with ExitStack() as held:
            try:
                retrying(self._receive_once, held)
            except (ConnectionFailed, ReplicationInterrupted, SlotInUse):
                if not self._stop.is_set():
                    raise

    def _note_interruption(self, state: tenacity.RetryCallState) -> None:
        self.metrics.streaming = False
        self.metrics.reconnects += 1
        self.metrics.errors["stream"] += 1
        logger.warning("%s; trying again", state.outcome.exception() if state.outcome else "interrupted")

    def _pause(self, seconds: float) -> None:
        self.alive()
        self._stop.wait(seconds)
        self.alive()

    def _is_worth_retrying(self, error: BaseException) -> bool:
        connected_before = self._repository is not None
        transient = isinstance(error, (ConnectionFailed, ReplicationInterrupted))
        # After the connection broke, the server may take a while to notice, and hold the slot for it.
        transient = transient or (isinstance(error, SlotInUse) and self.streaming.is_set())
        return transient and connected_before and self._options.reconnect

    def _receive_once(self, held: ExitStack) -> None:
        connection = connect_replication(self._parameters)
        with WalSender(connection, wake_fd=self._stop.fd) as sender:
            system = sender.identify_system()
            identity = RepositoryIdentity(
                system.system_identifier,
                parse_segment_size(sender.show("wal_segment_size")),
                sender.server_version // 10000,
            )
            wal_format_of_major(identity.major)
            if self._repository is None:
                self._check_slot(sender)
            repository = self._hold_repository(identity, held)
            self._ensure_slot(sender)
            self.level_lsn = system.flush_lsn
            target = system.flush_lsn if self._options.once else self._options.end_lsn
            timeline_id, start = self._start_point(sender, repository, system.timeline_id, system.flush_lsn)
            while True:
                logger.info("receiving WAL from %s on timeline %d", start, timeline_id)
                stream = _TimelineStream(self, sender, repository, timeline_id, start, target)
                try:
                    end = stream.run()
                except WalRemoved as error:
                    present = repository.geometry.segment_start(repository.geometry.segment_no(system.flush_lsn))
                    if not self._options.skip_removed or start >= present:
                        raise
                    logger.warning("%s; going on at %s, so that WAL from %s on is missing", error, present, start)
                    timeline_id, start = system.timeline_id, present
                    # The error has ended the temporary slot.
                    self._ensure_slot(sender)
                    continue
                if end is None:
                    return
                logger.info(
                    "timeline %d ends at %s, timeline %d follows", timeline_id, end.switch_lsn, end.next_timeline_id
                )
                timeline_id = end.next_timeline_id
                start = repository.geometry.segment_start(repository.geometry.segment_no(end.switch_lsn))

    def _hold_repository(self, identity: RepositoryIdentity, held: ExitStack) -> Repository:
        """Open the repository and take its receiver lock, once; check that the server is the same every time."""
        if self._repository is None:
            repository = Repository.open_or_create(self._repository_path, identity)
            held.enter_context(repository.lock_receiver())
            self._repository = repository
            self._compressor = held.enter_context(
                SegmentCompressor(repository.store, repository.wal, self._options.compression)
            )
            before = repository.receiver_state()
            self.metrics.level_at = before.level_at if before is not None else None
        self._repository.require(identity)
        return self._repository

    # -- the slot and the start --------------------------------------------------------------------------------

    def _check_slot(self, sender: WalSender) -> None:
        """Refuse a slot that is missing, or one to create that exists, before anything is made."""
        slot = self._options.slot
        if slot is None:
            return
        exists = self._find_slot(sender, slot) is not None
        if exists and self._options.create_slot and not self._options.if_not_exists:
            raise SlotUnavailable(
                f'replication slot "{slot}" already exists',
                hint="Use it as it is: leave out --create-slot, or add --if-not-exists.",
            )
        if not exists and not self._options.create_slot:
            raise _slot_missing(slot)

    def _ensure_slot(self, sender: WalSender) -> None:
        slot = self._options.slot
        if slot is not None and self._options.create_slot and not self._slot_ensured:
            if sender.create_physical_slot(slot, if_not_exists=self._options.if_not_exists):
                logger.info("created replication slot %s", slot)
            self._slot_ensured = True
        if slot is None and self._options.temporary_slot:
            self.slot = sender.create_temporary_slot()

    def _start_point(
        self, sender: WalSender, repository: Repository, timeline_id: int, flush_lsn: Lsn
    ) -> tuple[int, Lsn]:
        """Return (timeline, segment start) to receive from: what the archive has, else the slot, else the server.

        A temporary slot, which begins at the last checkpoint, does not count: nobody waits for WAL that old.
        """
        resume = repository.wal.resume_point()
        if resume is not None:
            return resume
        position = self._slot_position(sender) if self._options.slot is not None else None
        if position is not None and position.restart_lsn is not None:
            timeline_id = position.restart_timeline_id or timeline_id
            flush_lsn = position.restart_lsn
        return timeline_id, repository.geometry.segment_start(repository.geometry.segment_no(flush_lsn))

    def _slot_position(self, sender: WalSender) -> SlotPosition | None:
        """Return where the slot is, None without a slot; raises SlotUnavailable when it does not exist."""
        if self.slot is None:
            return None
        position = self._find_slot(sender, self.slot)
        if position is None:
            raise _slot_missing(self.slot)
        return position

    def _find_slot(self, sender: WalSender, slot: str) -> SlotPosition | None:
        if sender.server_version >= 150000:
            return sender.read_replication_slot(slot)
        with connect_sql(self._parameters) as connection:
            facts = read_slot(connection, slot)
        return SlotPosition(facts.restart_lsn, None) if facts is not None else None

    # -- for _TimelineStream -----------------------------------------------------------------------------------

    @property
    def options(self) -> StreamOptions:
        return self._options

    @property
    def stop(self) -> StopRequest:
        return self._stop

    def started(self, start: Lsn) -> None:
        self.streaming.set()
        self.metrics.streaming = True
        self._note_position(start)
        self.alive(at_once=True)

    def progressed(self, state: ReceiverState) -> None:
        self._note_position(state.flushed_lsn)

    def alive(self, *, at_once: bool = False) -> None:
        """Show that the receiver works; to be called as often as one likes."""
        now = time.monotonic()
        if not at_once and now - self._last_alive_s < _TICK_S:
            return
        self._last_alive_s = now
        if self._compressor is not None:
            self.metrics.segments_compressed = self._compressor.compressed_count
            self.metrics.segments_uncompressed = self._compressor.waiting_count
            self.metrics.errors["compression"] = self._compressor.failed_count
        self._on_alive()

    def segment_completed(self, name: str) -> None:
        """As of WalObserver: the segment is handed to the compressor."""
        self.metrics.segments_completed += 1
        if self._compressor is not None:
            self._compressor.add(name)

    def wal_synced(self, seconds: float) -> None:
        """As of WalObserver."""
        self.metrics.sync.observe(seconds)

    def _note_position(self, flushed_lsn: Lsn) -> None:
        if flushed_lsn >= self.level_lsn:
            self.level.set()

    def reported_flush_lsn(self, sender: WalSender) -> Lsn:
        """Return what the server's slot has been told already: less must not be reported again."""
        position = self._slot_position(sender)
        return position.restart_lsn or Lsn(0) if position is not None else Lsn(0)


def _slot_missing(slot: str) -> SlotUnavailable:
    return SlotUnavailable(
        f'replication slot "{slot}" does not exist', hint="Create it: run pgwal stream once with --create-slot."
    )


class _TimelineStream:
    """The stream of one timeline over one connection."""

    def __init__(
        self,
        receiver: Receiver,
        sender: WalSender,
        repository: Repository,
        timeline_id: int,
        start: Lsn,
        target: Lsn | None,
    ) -> None:
        self._receiver = receiver
        self._sender = sender
        self._repository = repository
        self._timeline_id = timeline_id
        self._start = start
        self._target = target
        self._options = receiver.options
        self._metrics = receiver.metrics
        self._fetch_history()
        self._summarizer: Summarizer | None = self._resumed_summarizer()
        self._summarised_lsn = start
        self._writer = WalWriter(repository.store, repository.geometry, timeline_id, start, receiver)
        self._session = ReplicationSession(
            start,
            self._options.status_interval_s,
            report_flush=receiver.slot is not None or self._options.synchronous,
            reported_flush_lsn=receiver.reported_flush_lsn(sender),
            unix_time_offset_s=time.time() - time.monotonic(),
        )
        self._last_sync_s = time.monotonic()
        self._last_state_s = time.monotonic()

    def run(self) -> EndOfTimeline | None:
        """Stream until the timeline ends; None when there is nothing more to do."""
        end = self._sender.start_replication(self._receiver.slot, self._start, self._timeline_id)
        self._receiver.started(self._start)
        try:
            while end is None:
                if self._is_done():
                    self._sync()
                    self._sender.send(self._session.status_now(time.monotonic()))
                    self._sender.finish()
                    return None
                end = self._step()
        finally:
            self._sync()
            self._writer.close()
        if self._summarizer is not None:
            self._summarizer.finish(end.switch_lsn)
            self._write_summaries(self._summarizer.take_finished())
        return end

    def _is_done(self) -> bool:
        reached = self._target is not None and self._writer.written_lsn >= self._target
        return reached or self._receiver.stop.is_set()

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
            self._report_if_synchronous(now)
        if self._session.reply_due or now - self._last_sync_s > _SYNC_INTERVAL_S:
            self._sync()
        status = self._session.status_due(now)
        if status is not None:
            self._sender.send(status)
        self._check_silence(now)
        self._renew_state(now)
        self._receiver.alive()
        return None

    def _wait_s(self) -> float:
        wait_s = self._session.status_wait_s(time.monotonic())
        if wait_s is None:
            wait_s = DEFAULT_STATUS_INTERVAL_S
        wait_s = min(wait_s, _TICK_S)
        if self._is_unsynced():
            wait_s = min(wait_s, 0 if self._options.synchronous else _IDLE_S)
        return wait_s

    def _take(self, data: WalData) -> None:
        self._writer.write(data.data)
        self._session.written(self._writer.written_lsn)
        self._metrics.bytes_received += len(data.data)
        self._summarise(data.lsn, data.data)

    def _summarise(self, lsn: Lsn, data: bytes | memoryview) -> None:
        """Feed the summariser; WAL that it cannot understand ends summaries, never the receiving of WAL."""
        summarizer = self._summarizer
        if summarizer is None or lsn + len(data) <= summarizer.feed_lsn:
            return
        try:
            assert lsn <= summarizer.feed_lsn
            summarizer.feed(data[summarizer.feed_lsn - lsn :])
            if summarizer.end_of_wal is not None:
                raise FormatError(f"{summarizer.end_of_wal}, but more was received")
        except FormatError as error:
            logger.error("%s; WAL is received on, but no longer summarised", error)
            self._metrics.errors["summary"] += 1
            self._summarizer = None

    def _is_unsynced(self) -> bool:
        """Tell whether something was written and is not noted as durable; a full segment is synced, but not noted."""
        return self._session.flushed_lsn is None or self._session.flushed_lsn < self._writer.written_lsn

    def _sync(self) -> None:
        """Make what was written durable, then note it, then write the summaries that it completes."""
        self._last_sync_s = time.monotonic()
        self._writer.sync()
        if self._session.flushed_lsn == self._writer.flushed_lsn:
            return
        self._session.flushed(self._writer.flushed_lsn)
        if self._summarizer is not None:
            self._summarised_lsn = self._summarizer.position
            self._write_summaries(self._summarizer.take_finished())
        self._note_state()

    def _note_state(self) -> None:
        """Say where the receiver is, to the metrics and to other processes."""
        metrics, writer = self._metrics, self._writer
        metrics.timeline_id = self._timeline_id
        metrics.written_lsn, metrics.flushed_lsn = writer.written_lsn, writer.flushed_lsn
        metrics.summarised_lsn, metrics.server_lsn = self._summarised_lsn, self._session.server_end_lsn
        if writer.flushed_lsn >= max(self._session.server_end_lsn, self._receiver.level_lsn):
            metrics.level_at = time.time() - self._session.silence_s(time.monotonic())
        state = ReceiverState(
            self._timeline_id,
            writer.written_lsn,
            writer.flushed_lsn,
            self._summarised_lsn,
            self._options.slot,
            updated_at=time.time(),
            level_at=metrics.level_at,
        )
        self._last_state_s = time.monotonic()
        self._repository.write_receiver_state(state)
        self._receiver.progressed(state)

    def _renew_state(self, now: float) -> None:
        """While nothing arrives, say now and then that nothing is missing."""
        if now - self._last_state_s > _STATE_INTERVAL_S:
            # Nobody loses anything if it cannot be written.
            with suppress(RepositoryError):
                self._note_state()

    def _report_if_synchronous(self, now: float) -> None:
        if self._options.synchronous:
            self._sender.send(self._session.status_now(now))

    def _check_silence(self, now: float) -> None:
        interval_s = self._options.status_interval_s
        if interval_s and self._session.silence_s(now) > _SILENT_INTERVALS * interval_s:
            raise ReplicationInterrupted(f"the server has been silent for {self._session.silence_s(now):.0f} s")

    def _write_summaries(self, summaries: list[Summary]) -> None:
        for summary in summaries:
            self._repository.summaries.write(summary.range, summary.block_map)
            self._metrics.summaries_written += 1

    def _fetch_history(self) -> None:
        if not self._repository.wal.has_history(self._timeline_id):
            content = self._sender.timeline_history(self._timeline_id)
            self._repository.wal.write_history(self._timeline_id, content)

    # -- where the summariser goes on --------------------------------------------------------------------------

    def _resumed_summarizer(self) -> Summarizer | None:
        """Return a summariser that goes on from the last summary, fed with the WAL that is here already."""
        begin = self._summary_start()
        identity = self._repository.identity
        self._summarizer = Summarizer(
            self._timeline_id,
            wal_format_of_major(identity.major),
            self._repository.geometry,
            begin,
            system_identifier=identity.system_identifier,
        )
        position = Lsn(begin - begin % WAL_PAGE_SIZE)
        if position < self._start:
            for data in self._repository.wal.read(self._timeline_id, begin):
                self._summarise(position, data[: self._start - position])
                position = Lsn(position + len(data))
                if position >= self._start or self._summarizer is None:
                    break
                self._write_summaries(self._summarizer.take_finished())
                self._receiver.alive()
        return self._summarizer

    def _summary_start(self) -> Lsn:
        """Return the end of the last summary, or else the oldest position from which WAL is here without a hole."""
        oldest = self._oldest_contiguous_lsn()
        ends = [r.end for r in self._repository.summaries.ranges() if r.timeline_id == self._timeline_id]
        if ends and max(ends) >= oldest:
            return max(ends)
        if self._timeline_id > 1:
            history = self._repository.wal.history(self._timeline_id)
            return max(oldest, history.switches[-1].switch_lsn)
        return oldest

    def _oldest_contiguous_lsn(self) -> Lsn:
        geometry = self._repository.geometry
        complete = {
            s.segment_no for s in self._repository.wal.segments() if s.complete and s.timeline_id == self._timeline_id
        }
        segment_no = geometry.segment_no(self._start)
        while segment_no - 1 in complete:
            segment_no -= 1
        return geometry.segment_start(segment_no)
