"""Receive WAL continuously, keep it, and summarise it as it arrives.

The order of durability is here, in one place: write to the segment, sync it, and only then report the position
to the server as flushed; a summary is written when the WAL it speaks of is durable.  Whenever the stream begins again,
its last segment is received again from the start, so nothing is built on what a failed write or sync has left.
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
    PgwalError,
    ReceivedByBackup,
    ReplicationInterrupted,
    RepositoryError,
    ServerError,
    SlotInUse,
    SlotUnavailable,
    StorageFull,
    TimelineMismatch,
    WalRemoved,
)
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters, connect_replication, connect_sql
from pgwal.postgres.server import read_slot
from pgwal.postgres.walsender import EndOfTimeline, SlotPosition, SystemIdentity, WalSender
from pgwal.replication.messages import WalData
from pgwal.replication.session import ReplicationSession
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.repository.wal_compressor import DEFAULT_COMPRESSION, Compression, CompressionMethod, SegmentCompressor
from pgwal.repository.wal_writer import WalWriter
from pgwal.segment import WAL_PAGE_SIZE, parse_segment_size
from pgwal.summary.summarizer import Summarizer, Summary
from pgwal.timeline import TimelineHistory
from pgwal.wal.page_magic import wal_format_of_major

logger = logging.getLogger(__name__)

DEFAULT_STATUS_INTERVAL_S = 10.0

# WAL that was received is synced when the server pauses, if the last sync is not too recent: backups wait for it.
# Without a pause it is synced after _SYNC_INTERVAL_S.
_PAUSE_S = 0.01
_MIN_SYNC_INTERVAL_S = 0.1
_SYNC_INTERVAL_S = 1.0
# With --synchronous somebody waits for it, however busy the server is otherwise.
_SYNCHRONOUS_INTERVAL_S = 0.05
_RETRY_MIN_S, _RETRY_MAX_S = 0.1, 5.0
# How often the receiver shows that it is alive, and how old the state that it leaves for others may get.
_TICK_S = 1.0
_STATE_INTERVAL_S = 5.0
# A server that lives answers every second status; this many intervals of silence mean a dead connection.
_SILENT_INTERVALS = 6


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a receiver is to do; ``end_lsn`` is where to stop, ``once`` to stop when level with the server.

    Without a ``slot``, ``temporary_slot`` has one made that lasts as long as the connection.  ``reconnect`` takes up
    an interrupted stream again, ``wait_for_room`` also one that a full disk has ended.  ``for_backup`` is the receiver
    that a backup command runs itself: any other one waits for it to end.
    """

    slot: str | None = None
    temporary_slot: bool = False
    create_slot: bool = False
    if_not_exists: bool = False
    reconnect: bool = True
    wait_for_room: bool = False
    for_backup: bool = False
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
        self._failures = 0
        self._furthest_lsn = Lsn(0)
        self.waits_for: str | None = None
        """What it waits for, in words, while nothing is received."""
        self.waits_for_backup = False
        """Whether that is the end of a backup, whose receiver does the work."""
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
        connection is raised.  The end of a backup that receives WAL itself is waited for in any case.
        Raises RepositoryLocked, WrongCluster, WalRemoved, ServerError and its kinds.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_worth_retrying),
            wait=self._wait_s,
            stop=lambda _: self._stop.is_set(),
            sleep=self._pause,
            before_sleep=self._note_interruption,
            reraise=True,
        )
        with ExitStack() as held:
            try:
                retrying(self._receive_once, held)
            except (ConnectionFailed, ReplicationInterrupted, SlotInUse, ReceivedByBackup, StorageFull):
                if not self._stop.is_set():
                    raise

    def _wait_s(self, _: tenacity.RetryCallState) -> float:
        """Return how long to wait: longer with each attempt since the last one that received something new."""
        self._failures += 1
        return float(min(_RETRY_MAX_S, _RETRY_MIN_S * 2 ** min(self._failures, 10)))

    def _note_interruption(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self.metrics.streaming = False
        if isinstance(error, ReceivedByBackup):
            if not self.waits_for_backup:
                logger.warning("%s: waiting for the backup, which receives WAL itself, to end", error)
            self.waits_for_backup, self.waits_for = True, "waiting for a backup that receives WAL itself"
            return
        self.metrics.reconnects += 1
        if isinstance(error, StorageFull):
            self.waits_for = "waiting for room in the repository"
            self.metrics.errors["storage"] += 1
            logger.error("%s; receiving pauses until there is room", error)
            return
        self.waits_for = "connecting to the server"
        self.metrics.errors["stream"] += 1
        logger.warning("%s; trying again", error)

    def _pause(self, seconds: float) -> None:
        self.alive()
        self._stop.wait(seconds)
        self.alive()

    def _is_worth_retrying(self, error: BaseException) -> bool:
        connected_before = self._repository is not None
        transient = isinstance(error, (ConnectionFailed, ReplicationInterrupted))
        # After the connection broke, the server may take a while to notice, and hold the slot for it.
        transient = transient or (isinstance(error, SlotInUse) and self.streaming.is_set())
        if isinstance(error, ReceivedByBackup):
            return not self._options.for_backup
        if isinstance(error, StorageFull):
            return connected_before and self._options.wait_for_room
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
            timeline_id, start = self._start_point(sender, repository, system)
            while True:
                logger.info("receiving WAL from %s on timeline %d", start, timeline_id)
                stream = _TimelineStream(self, sender, repository, timeline_id, start, target)
                try:
                    end = stream.run()
                except WalRemoved as error:
                    present = repository.geometry.segment_start(repository.geometry.segment_no(system.flush_lsn))
                    if not self._options.skip_removed or start >= present:
                        raise self._missing(error, sender, start, present) from error
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

    def _missing(self, error: WalRemoved, sender: WalSender, start: Lsn, present: Lsn) -> WalRemoved:
        """Name the range that is known to be missing: up to where the server is, or holds WAL back by the slot."""
        position = self._slot_position(sender) if self._options.slot is not None else None
        end = position.restart_lsn if position is not None and position.restart_lsn is not None else present
        if end <= start:
            return error
        return WalRemoved(f"{error}; missing is WAL from {start} on, up to {end} at most", hint=error.hint)

    def _hold_repository(self, identity: RepositoryIdentity, held: ExitStack) -> Repository:
        """Open the repository and take its receiver lock, once; check that the server is the same every time."""
        if self._repository is None:
            repository = Repository.open_or_create(self._repository_path, identity)
            held.enter_context(repository.lock_receiver(for_backup=self._options.for_backup))
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
        if slot is not None and self._options.create_slot:
            # Each time: after a failover, the new primary has not had it yet.
            may_exist = self._options.if_not_exists or self._slot_ensured
            if sender.create_physical_slot(slot, if_not_exists=may_exist):
                logger.info("created replication slot %s", slot)
            self._slot_ensured = True
        if slot is None and self._options.temporary_slot:
            self.slot = sender.create_temporary_slot()

    def _start_point(self, sender: WalSender, repository: Repository, system: SystemIdentity) -> tuple[int, Lsn]:
        """Return (timeline, segment start) to receive from: what the archive has, else the slot, else the server.

        A temporary slot, which begins at the last checkpoint, does not count: nobody waits for WAL that old.
        """
        resume = repository.wal.resume_point()
        if resume is not None:
            return self._on_servers_history(resume, sender, repository, system.timeline_id)
        timeline_id, flush_lsn = system.timeline_id, system.flush_lsn
        position = self._slot_position(sender) if self._options.slot is not None else None
        if position is not None and position.restart_lsn is not None:
            timeline_id = position.restart_timeline_id or timeline_id
            flush_lsn = position.restart_lsn
        return timeline_id, repository.geometry.segment_start(repository.geometry.segment_no(flush_lsn))

    def _on_servers_history(
        self, resume: tuple[int, Lsn], sender: WalSender, repository: Repository, timeline_id: int
    ) -> tuple[int, Lsn]:
        """Return where to receive on from a server that may be on another timeline than the archive's newest WAL.

        A server that was promoted need not have all that is here of the timeline it left: it is followed from where
        it left.  Nothing is removed or overwritten by that, for the files of another timeline have other names.
        """
        resume_timeline_id, position = resume
        if resume_timeline_id == timeline_id:
            return resume
        if resume_timeline_id > timeline_id:
            raise ServerError(
                f"the repository holds WAL of timeline {resume_timeline_id}, this server is still on timeline"
                f" {timeline_id}",
                hint="It looks like the primary from before a failover, or a standby that lags behind: connect to the"
                " present primary, or use another repository.",
            )
        history = TimelineHistory.decode(timeline_id, sender.timeline_history(timeline_id))
        found = repository.wal.resume_point(history)
        if found is None:
            raise TimelineMismatch(
                f"none of the WAL in the repository is in the history of timeline {timeline_id}, which this server"
                " is on",
                hint="Check the connection; if it is the right server, use another repository for it, and take a full"
                " backup.",
            )
        if found[0] != resume_timeline_id or found[1] < position:
            logger.warning(
                "this server never had all WAL that is here of timeline %d, up to segment %s at least: following"
                " timeline %d, and receiving from %s of timeline %d on; what is here of timeline %d is kept",
                resume_timeline_id,
                repository.geometry.file_name(resume_timeline_id, repository.geometry.last_segment_no(position)),
                timeline_id,
                found[1],
                found[0],
                resume_timeline_id,
            )
        return found

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
        self.waits_for, self.waits_for_backup = None, False
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
        if flushed_lsn > self._furthest_lsn:
            self._furthest_lsn = flushed_lsn
            self._failures = 0
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
        self._writer = WalWriter(
            repository.store,
            repository.geometry,
            timeline_id,
            start,
            receiver,
            synchronous=self._options.synchronous,
            is_read_soon=self._options.compression.method is not CompressionMethod.NONE,
        )
        self._session = ReplicationSession(
            start,
            self._options.status_interval_s,
            report_flush=receiver.slot is not None or self._options.synchronous,
            reported_flush_lsn=receiver.reported_flush_lsn(sender),
            unix_time_offset_s=time.time() - time.monotonic(),
        )
        self._sync_interval_s = _SYNCHRONOUS_INTERVAL_S if self._options.synchronous else _SYNC_INTERVAL_S
        self._reported_lsn: Lsn | None = None
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
            self._sync()
        except PgwalError as error:
            # After an error of the storage it is not known what a sync would mean: see WalWriter.
            if not isinstance(error, RepositoryError):
                self._sync()
            raise
        finally:
            self._writer.close()
        if self._summarizer is not None:
            self._summarizer.finish(end.switch_lsn)
            self._write_summaries(self._summarizer.take_finished())
        return end

    def _is_done(self) -> bool:
        reached = self._target is not None and self._session.received_lsn >= self._target
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
        if self._session.reply_due or now - self._last_sync_s > self._sync_interval_s:
            self._sync()
        status = self._session.status_now(now) if self._is_awaited() else self._session.status_due(now)
        if status is not None:
            self._reported_lsn = self._session.flushed_lsn
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
            wait_s = min(wait_s, 0 if self._options.synchronous else self._pause_s())
        return wait_s

    def _pause_s(self) -> float:
        """Return after how much silence what was received is to be synced."""
        return max(_PAUSE_S, self._last_sync_s + _MIN_SYNC_INTERVAL_S - time.monotonic())

    def _is_awaited(self) -> bool:
        """Tell whether commits may wait to hear of what was synced since the last status."""
        return self._options.synchronous and self._session.flushed_lsn != self._reported_lsn

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
        """Tell whether something was received and is not noted as durable."""
        return self._session.flushed_lsn is None or self._session.flushed_lsn < self._session.received_lsn

    def _sync(self) -> None:
        """Make what was received durable, then note it, then write the summaries that it completes."""
        self._last_sync_s = time.monotonic()
        self._writer.sync()
        self._session.written(self._writer.written_lsn)
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
        # Advisory: where there is no room for it, there still is in the segment, which was made at full size.
        with suppress(RepositoryError):
            self._repository.write_receiver_state(state)
        self._receiver.progressed(state)

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
            logger.info("summarising WAL that is here, from %s to %s", begin, self._start)
            for data in self._repository.wal.read(self._timeline_id, begin):
                self._summarise(position, data[: self._start - position])
                position = Lsn(position + len(data))
                if position >= self._start or self._summarizer is None:
                    break
                self._write_summaries(self._summarizer.take_finished())
                self._receiver.alive()
                if self._receiver.stop.is_set():
                    # It has not seen all, so it must not come to finish what it has.
                    return None
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
