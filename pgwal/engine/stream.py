"""Receive WAL continuously, keep it, and summarise it as it arrives: connecting, where to begin, and beginning again.

The stream of one timeline is in ``pgwal.engine.timeline_stream``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

import tenacity

from pgwal.engine.parting import parting_of, proving_starts
from pgwal.engine.receiver_metrics import ReceiverMetrics
from pgwal.engine.set_aside import set_aside
from pgwal.engine.start_point import StreamStart, abandoned_wal, agreed_history, starts_in_segment, stream_starts
from pgwal.engine.stop import StopRequest
from pgwal.engine.stream_options import StreamOptions
from pgwal.engine.timeline_stream import TICK_S, ServerPosition, TimelineStream
from pgwal.errors import (
    HistoryMismatch,
    NoAnswer,
    OlderTimeline,
    PgwalError,
    ReceivedByBackup,
    ReplicationInterrupted,
    ServerError,
    SlotInUse,
    SlotUnavailable,
    StandbyBehind,
    StorageFull,
    TimelineMismatch,
    WalRemoved,
)
from pgwal.lsn import Lsn
from pgwal.postgres.connection import Connection, ConnectionParameters, connect_replication, connect_sql
from pgwal.postgres.server import read_server_facts, read_slot
from pgwal.postgres.walsender import SlotPosition, SystemIdentity, WalSender
from pgwal.postgres_version import version_of_server
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.wal_compressor import SegmentCompressor
from pgwal.segment import WalGeometry, parse_segment_size
from pgwal.timeline import TimelineHistory
from pgwal.wal.page_magic import wal_format_of_major

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_RETRY_MIN_S, _RETRY_MAX_S = 0.1, 5.0


def open_sender(parameters: ConnectionParameters, wake_fd: int) -> WalSender:
    """Connect to the server; ``wake_fd`` is as of WalSender."""
    return WalSender(connect_replication(parameters), wake_fd=wake_fd)


class Receiver:
    """Receives the WAL of one cluster into one repository; at most one runs on a repository at a time.

    ``on_alive`` is called, about once a second, in the receiver's own thread: while it streams, and while it waits
    to connect again.  ``metrics`` may be read by any thread.  ``opener`` makes each connection that WAL comes over.
    """

    def __init__(
        self,
        place: Place,
        parameters: ConnectionParameters,
        options: StreamOptions,
        stop: StopRequest,
        *,
        on_alive: Callable[[], None] | None = None,
        opener: Callable[[ConnectionParameters, int], WalSender] = open_sender,
    ) -> None:
        self._place = place
        self._parameters = parameters
        self.options = options
        self.stop = stop
        self._on_alive = on_alive or (lambda: None)
        self._open_sender = opener
        self._last_alive_s = 0.0
        self._compressor: SegmentCompressor | None = None
        self.metrics = ReceiverMetrics()
        self._repository: Repository | None = None
        self._slot_ensured = False
        self._set_aside_from: set[tuple[int, Lsn]] = set()
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
            stop=lambda _: self.stop.is_set(),
            sleep=self._pause,
            before_sleep=self._note_interruption,
            reraise=True,
        )
        with ExitStack() as held:
            try:
                while True:
                    try:
                        return retrying(self._receive_once, held)
                    except (HistoryMismatch, OlderTimeline) as error:
                        self._set_aside(error)
            except PgwalError as error:
                if not (error.is_transient and self.stop.is_set()):
                    raise
                if isinstance(error, NoAnswer):
                    logger.warning("%s; stopped without it", error)

    def _set_aside(self, error: HistoryMismatch | OlderTimeline) -> None:
        """Move aside what stands against the server's history, where that was asked for; else raise the error."""
        if not self.options.accept_new_history or self._repository is None:
            raise error
        lsn = Lsn(error.lsn) if isinstance(error, HistoryMismatch) else Lsn(0)
        # What stands against the server again, when that has been moved, is not understood.
        if (error.timeline_id, lsn) in self._set_aside_from:
            raise error
        self._set_aside_from.add((error.timeline_id, lsn))
        logger.warning("%s", error)
        if not set_aside(self._repository, error.timeline_id, lsn):
            raise error

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
        if isinstance(error, StandbyBehind):
            self.waits_for = "waiting for the standby to replay what it had sent before"
            logger.warning("%s; waiting for it", error)
            return
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
        self.stop.wait(seconds)
        self.alive()

    def _is_worth_retrying(self, error: BaseException) -> bool:
        if not isinstance(error, PgwalError) or not error.is_transient:
            return False
        options, connected_before = self.options, self._repository is not None
        if isinstance(error, ReceivedByBackup):
            return not options.for_backup
        if isinstance(error, StandbyBehind):
            return options.reconnect and not options.for_backup
        if isinstance(error, StorageFull):
            return connected_before and options.wait_for_room
        if isinstance(error, SlotInUse) and not self.streaming.is_set():
            # Another receiver's: only after the connection broke may the server hold the slot for this one yet.
            return False
        return connected_before and options.reconnect

    def _receive_once(self, held: ExitStack) -> None:
        with self.stop.outlast(lambda: self._open_sender(self._parameters, self.stop.fd)) as sender:
            self._receive_from(sender, held)

    def _receive_from(self, sender: WalSender, held: ExitStack) -> None:
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
        # Again: until the repository was held, another receiver may have written more than the server had then.
        system = sender.identify_system()
        server = self._server_position(sender, repository, system)
        self._ensure_slot(sender)
        self.level_lsn = system.flush_lsn
        target = system.flush_lsn if self.options.once else self.options.end_lsn
        starts = self._starts(sender, repository, server)
        ended: set[tuple[int, Lsn]] = set()
        while True:
            timeline_id, end = self._stream(sender, repository, server, starts, target)
            if end is None or self.stop.is_set():
                return
            # Anew, because a server that was promoted meanwhile has a history that was not known before.
            server = self._server_position(sender, repository, sender.identify_system())
            following = server.history.timeline_at(end)
            logger.info("timeline %d ends at %s, timeline %d follows", timeline_id, end, following)
            if following <= timeline_id or (timeline_id, end) in ended:
                raise TimelineMismatch(
                    f"the server says that timeline {timeline_id} ends at {end}, but its history goes on with"
                    f" timeline {following} there",
                    hint="Look at the server's timeline history files.",
                )
            ended.add((timeline_id, end))
            starts = starts_in_segment(
                StreamStart(following, _segment_start(repository.geometry, end)), server.history, repository.geometry
            )

    def _stream(
        self,
        sender: WalSender,
        repository: Repository,
        server: ServerPosition,
        starts: Sequence[StreamStart],
        target: Lsn | None,
    ) -> tuple[int, Lsn | None]:
        """Stream from the first of some places for which the server still has WAL; return timeline and end of it."""
        tried: list[StreamStart] = []
        while (start := next((start for start in starts if start not in tried), None)) is not None:
            tried.append(start)
            logger.info("receiving WAL from %s on timeline %d", start.lsn, start.timeline_id)
            try:
                return start.timeline_id, self._stream_from(sender, repository, server, start, target)
            except WalRemoved as error:
                removed = error
                # The error has ended the temporary slot.
                self._ensure_slot(sender)
            if start == starts[-1]:
                # What came before that was written: a later timeline may have the segment that is gone.
                segments = repository.wal.segments()
                starts = [*starts, *stream_starts(segments, server.history, repository.geometry, server.flush_lsn)]
        start = tried[-1]
        present = _segment_start(repository.geometry, server.flush_lsn)
        if not self.options.skip_removed or self.level.is_set() or start.lsn >= present:
            raise self._missing(removed, sender, start.lsn, present)
        logger.warning("%s; going on at %s, so that WAL from %s on is missing", removed, present, start.lsn)
        start = StreamStart(server.history.timeline_id, present)
        if self.options.from_restart_point:
            start = self._new_start(sender, repository, server)
        return start.timeline_id, self._stream_from(sender, repository, server, start, target)

    def _stream_from(
        self,
        sender: WalSender,
        repository: Repository,
        server: ServerPosition,
        start: StreamStart,
        target: Lsn | None,
    ) -> Lsn | None:
        try:
            reported_flush_lsn = self._reported_flush_lsn(sender)
            return TimelineStream(self, sender, repository, server, start, target, reported_flush_lsn).run()
        except HistoryMismatch as error:
            raise parting_of(error, sender, repository.wal, server.history) from error

    def _server_position(self, sender: WalSender, repository: Repository, system: SystemIdentity) -> ServerPosition:
        """Ask for the server's history, hold it against the archive's, and keep what is new of it."""
        archive = repository.wal
        content = sender.timeline_history(system.timeline_id)
        stored = {timeline_id: archive.history_content(timeline_id) for timeline_id in archive.history_timelines()}
        history = agreed_history(system.timeline_id, content, stored, archive.segments())
        if not archive.has_history(system.timeline_id):
            archive.write_history(system.timeline_id, content)
        for timeline_id, _ in history.recorded:
            if not archive.has_history(timeline_id):
                self._keep_history(sender, repository, history, timeline_id)
        return ServerPosition(history, system.flush_lsn, lambda: self._is_standby(sender))

    def _keep_history(
        self, sender: WalSender, repository: Repository, history: TimelineHistory, timeline_id: int
    ) -> None:
        """Fetch an ancestor's history, which a server need not have that was restored without it."""
        try:
            content = sender.timeline_history(timeline_id)
        except ServerError as error:
            logger.info("the history of timeline %d is not to be had: %s", timeline_id, error)
            return
        if TimelineHistory.decode(timeline_id, content) != history.part_up_to(timeline_id):
            raise TimelineMismatch(
                f"the server's history of timeline {timeline_id} is not that of which timeline"
                f" {history.timeline_id} tells",
                hint="Look at the server's timeline history files.",
            )
        repository.wal.write_history(timeline_id, content)

    def _is_standby(self, sender: WalSender) -> bool:
        if version_of_server(sender.server_version).shows_in_hot_standby:
            return sender.show("in_hot_standby") == "on"
        return self._asked(lambda connection: read_server_facts(connection).in_recovery)

    def _missing(self, error: WalRemoved, sender: WalSender, start: Lsn, present: Lsn) -> WalRemoved:
        """Name the range that is known to be missing: up to where the server is, or holds WAL back by the slot."""
        position = self._slot_position(sender) if self.options.slot is not None else None
        end = position.restart_lsn if position is not None and position.restart_lsn is not None else present
        if end <= start:
            return error
        error.restate(f"{error}; missing is WAL from {start} on, up to {end} at most", lsn=start, end_lsn=end)
        return error

    def _hold_repository(self, identity: RepositoryIdentity, held: ExitStack) -> Repository:
        """Open the repository and take its receiver lock, once; check that the server is the same every time."""
        if self._repository is None:
            repository = Repository.open_or_create(self._place, identity)
            held.enter_context(repository.lock_receiver(for_backup=self.options.for_backup))
            self._repository = repository
            self._compressor = held.enter_context(
                SegmentCompressor(repository.store, repository.wal, self.options.compression)
            )
            before = repository.receiver_state()
            self.metrics.level_at = before.level_at if before is not None else None
        self._repository.require(identity)
        return self._repository

    # -- the slot and the start --------------------------------------------------------------------------------

    def _check_slot(self, sender: WalSender) -> None:
        """Refuse a slot that is missing, or one to create that exists, before anything is made."""
        slot = self.options.slot
        if slot is None:
            return
        exists = self._find_slot(sender, slot) is not None
        if exists and self.options.create_slot and not self.options.if_not_exists:
            raise SlotUnavailable(
                f'replication slot "{slot}" already exists',
                hint="Use it as it is: leave out --create-slot, or add --if-not-exists.",
                slot=slot,
            )
        if not exists and not self.options.create_slot:
            raise _slot_missing(slot)

    def _ensure_slot(self, sender: WalSender) -> None:
        slot = self.options.slot
        if slot is not None and self.options.create_slot:
            # Each time: after a failover, the new primary has not had it yet.
            may_exist = self.options.if_not_exists or self._slot_ensured
            if sender.create_physical_slot(slot, if_not_exists=may_exist):
                logger.info("created replication slot %s", slot)
            self._slot_ensured = True
        if slot is None and self.options.temporary_slot:
            self.slot = sender.create_temporary_slot()

    def _starts(self, sender: WalSender, repository: Repository, server: ServerPosition) -> list[StreamStart]:
        """Return where to receive from: what the archive has, else the slot, else the server."""
        geometry, segments = repository.geometry, repository.wal.segments()
        starts = stream_starts(segments, server.history, geometry, server.flush_lsn)
        abandoned = abandoned_wal(segments, server.history, geometry)
        if abandoned is not None:
            logger.warning(
                "this server never had all WAL that is here of timeline %d, up to segment %s at least: following"
                " timeline %d; what is here of timeline %d is kept",
                abandoned.timeline_id,
                geometry.file_name(abandoned.timeline_id, abandoned.segment_no),
                server.history.timeline_id,
                abandoned.timeline_id,
            )
        if starts:
            return proving_starts(repository.wal, segments, server.history, starts, server.flush_lsn)
        return [self._new_start(sender, repository, server)]

    def _new_start(self, sender: WalSender, repository: Repository, server: ServerPosition) -> StreamStart:
        """Return where to begin when nothing goes on: at the slot, else where the server is.

        A temporary slot, which begins at the last checkpoint, does not count on a primary: nobody waits for WAL that
        old.
        """
        timeline_id, lsn = server.history.timeline_id, server.flush_lsn
        counts = self.options.slot is not None or self.options.from_restart_point
        position = self._slot_position(sender) if counts else None
        if position is not None and position.restart_lsn is not None:
            timeline_id = position.restart_timeline_id or timeline_id
            lsn = position.restart_lsn
        return StreamStart(timeline_id, _segment_start(repository.geometry, lsn))

    def _slot_position(self, sender: WalSender) -> SlotPosition | None:
        """Return where the slot is, None without a slot; raises SlotUnavailable when it does not exist."""
        if self.slot is None:
            return None
        position = self._find_slot(sender, self.slot)
        if position is None and self.options.slot is None:
            raise ReplicationInterrupted("the connection has broken, and with it the temporary slot is gone")
        if position is None:
            raise _slot_missing(self.slot)
        return position

    def _find_slot(self, sender: WalSender, slot: str) -> SlotPosition | None:
        if version_of_server(sender.server_version).has_read_replication_slot:
            return sender.read_replication_slot(slot)
        facts = self._asked(lambda connection: read_slot(connection, slot))
        return SlotPosition(facts.restart_lsn, None) if facts is not None else None

    def _asked(self, ask: Callable[[Connection], _Answer]) -> _Answer:
        """Ask the server by SQL."""

        def run() -> _Answer:
            with connect_sql(self._parameters) as connection:
                return ask(connection)

        return self.stop.outlast(run)

    # -- as of StreamObserver ----------------------------------------------------------------------------------

    def started(self, start: Lsn) -> None:
        self.waits_for, self.waits_for_backup = None, False
        self.streaming.set()
        self.metrics.streaming = True
        self._note_position(start)
        self.alive(at_once=True)

    def progressed(self, flushed_lsn: Lsn) -> None:
        self._note_position(flushed_lsn)

    def alive(self, *, at_once: bool = False) -> None:
        """Show that the receiver works; to be called as often as one likes."""
        now = time.monotonic()
        if not at_once and now - self._last_alive_s < TICK_S:
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

    def _reported_flush_lsn(self, sender: WalSender) -> Lsn:
        """Return what the server's slot has been told already: less must not be reported again."""
        position = self._slot_position(sender)
        return position.restart_lsn or Lsn(0) if position is not None else Lsn(0)


def _segment_start(geometry: WalGeometry, lsn: Lsn) -> Lsn:
    return geometry.segment_start(geometry.segment_no(lsn))


def _slot_missing(slot: str) -> SlotUnavailable:
    return SlotUnavailable(
        f'replication slot "{slot}" does not exist',
        hint="Create it: run pgwal stream once with --create-slot.",
        slot=slot,
    )
