"""Receive WAL continuously, keep it, and summarise it as it arrives: connecting, and where to begin.

The stream of one timeline is in ``pgwal.engine.timeline_stream``, what the server says in
``pgwal.engine.streamed_server``, and beginning again in ``pgwal.engine.reconnection``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from pgwal.budget import TICK_S
from pgwal.engine.delivering import deliver, deliver_left
from pgwal.engine.receiver_progress import ReceiverProgress
from pgwal.engine.reconnection import reconnecting
from pgwal.engine.set_aside import set_aside
from pgwal.engine.start_point import StreamStart, abandoned_wal, new_start, segment_start, starts_behind, stream_starts
from pgwal.engine.stop import StopRequest
from pgwal.engine.stream_options import StreamOptions
from pgwal.engine.streamed_server import ServerPosition, StreamedServer
from pgwal.engine.timeline_stream import StreamTask, TimelineStream
from pgwal.errors import (
    BrokenInvariant,
    ConnectionFailed,
    HistoryMismatch,
    NoAnswer,
    OlderTimeline,
    PgwalError,
    WalRemoved,
)
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters, connect_replication
from pgwal.postgres.walsender import WalSender
from pgwal.repository.delivery import Delivery
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.wal.page_magic import wal_format_of_major

logger = logging.getLogger(__name__)


def open_sender(parameters: ConnectionParameters, wake_fd: int) -> WalSender:
    """Connect to the server; ``wake_fd`` is as of WalSender."""
    return WalSender(connect_replication(parameters), wake_fd=wake_fd)


class _Connection(NamedTuple):
    """One connection, and what is received over it into which repository, up to ``target``."""

    sender: WalSender
    server: StreamedServer
    repository: Repository
    target: Lsn | None


class Receiver:
    """Receives the WAL of one cluster into one repository; at most one runs on a repository at a time.

    ``on_alive`` is called, about once a second, in the receiver's own thread: while it streams, and while it waits
    to connect again.  ``progress`` may be read by any thread.  ``opener`` makes each connection that WAL comes over.
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
        self._options = options
        self._stop = stop
        self._open_sender = opener
        self._opened: Repository | None = None
        """The repository as it is stored, whatever waits in a spool."""
        self._repository: Repository | None = None
        self._delivery: Delivery | None = None
        self._slot_ensured = False
        self._set_aside_from: set[tuple[int, Lsn]] = set()
        self.progress = ReceiverProgress(on_alive or (lambda: None))

    def run(self) -> None:
        """Receive until asked to stop, or until the end that the options name.

        An interrupted stream is taken up again, unless the options say otherwise; an error of the first
        connection is raised.  The end of a backup that receives WAL itself is waited for in any case.
        Raises RepositoryLocked, WrongCluster, WalRemoved, ServerError and its kinds.
        """
        with ExitStack() as held:
            try:
                while True:
                    try:
                        receive = partial(self._receive_once, held)
                        return reconnecting(receive, self._options, self._stop, self.progress)
                    except (HistoryMismatch, OlderTimeline) as error:
                        self._set_aside(error)
            except PgwalError as error:
                if isinstance(error, ConnectionFailed) and self._repository is None and not self._options.for_backup:
                    deliver_left(self._place, self._options)
                if not (error.is_transient and self._stop.is_set()):
                    raise
                if isinstance(error, NoAnswer):
                    logger.warning("%s; stopped without it", error)

    def _set_aside(self, error: HistoryMismatch | OlderTimeline) -> None:
        """Move aside what stands against the server's history, where that was asked for; else raise the error."""
        if not self._options.accept_new_history or self._repository is None or self._delivery is None:
            raise error
        lsn = Lsn(error.lsn) if isinstance(error, HistoryMismatch) else Lsn(0)
        # What stands against the server again, when that has been moved, is not understood.
        if (error.timeline_id, lsn) in self._set_aside_from:
            raise error
        self._set_aside_from.add((error.timeline_id, lsn))
        logger.warning("%s", error)
        with self._delivery.paused():
            moved = set_aside(self._repository, error.timeline_id, lsn)
        if not moved:
            raise error

    def _receive_once(self, held: ExitStack) -> None:
        # Whoever connects and does not read keeps a server from shutting down.
        while self._delivery is not None and not self._delivery.has_room() and not self._stop.is_set():
            self._stop.wait(TICK_S)
            self.progress.alive()
        with self._stop.outlast(lambda: self._open_sender(self._parameters, self._stop.fd)) as sender:
            self._receive_from(sender, held)

    def _receive_from(self, sender: WalSender, held: ExitStack) -> None:
        server = StreamedServer(sender, self._parameters, self._options, self._stop)
        identity = server.identity()
        wal_format_of_major(identity.major)
        if self._repository is None:
            server.check_slot()
        repository = self._hold_repository(identity, held)
        # Again: until the repository was held, another receiver may have written more than the server had then.
        system = sender.identify_system()
        position = server.position(repository.wal, system)
        self._ensure_slot(server)
        self.progress.level_lsn = system.flush_lsn
        target = system.flush_lsn if self._options.once else self._options.end_lsn
        connection = _Connection(sender, server, repository, target)
        starts = self._starts(connection, position)
        ended: set[tuple[int, Lsn]] = set()
        while True:
            timeline_id, end = self._stream(connection, position, starts)
            if end is None or self._stop.is_set():
                return
            # Anew, because a server that was promoted meanwhile has a history that was not known before.
            position = server.position(repository.wal, sender.identify_system())
            starts = starts_behind(timeline_id, end, position.history, repository.geometry, ended)
            logger.info("timeline %d ends at %s, timeline %d follows", timeline_id, end, starts[0].timeline_id)
            ended.add((timeline_id, end))

    def _stream(
        self, connection: _Connection, position: ServerPosition, starts: Sequence[StreamStart]
    ) -> tuple[int, Lsn | None]:
        """Stream from the first of some places for which the server still has WAL; return timeline and end of it."""
        repository = connection.repository
        tried: list[StreamStart] = []
        while (start := next((start for start in starts if start not in tried), None)) is not None:
            tried.append(start)
            logger.info("receiving WAL from %s on timeline %d", start.lsn, start.timeline_id)
            try:
                return start.timeline_id, self._stream_from(connection, position, start)
            except WalRemoved as error:
                removed = error
                # The error has ended the temporary slot.
                self._ensure_slot(connection.server)
            if start == starts[-1]:
                # What came before that was written: a later timeline may have the segment that is gone.
                segments = repository.wal.segments()
                starts = [*starts, *stream_starts(segments, position.history, repository.geometry, position.flush_lsn)]
        start = tried[-1]
        present = segment_start(repository.geometry, position.flush_lsn)
        if not self._options.skip_removed or self.progress.level.is_set() or start.lsn >= present:
            raise connection.server.missing(removed, start.lsn, present)
        logger.warning("%s; going on at %s, so that WAL from %s on is missing", removed, present, start.lsn)
        start = StreamStart(position.history.timeline_id, present)
        if self._options.from_restart_point:
            start = self._new_start(connection, position)
        return start.timeline_id, self._stream_from(connection, position, start)

    def _stream_from(self, connection: _Connection, position: ServerPosition, start: StreamStart) -> Lsn | None:
        sender, server, repository, target = connection
        delivery = self._delivery
        if delivery is None:
            raise BrokenInvariant("a stream belongs to a repository that is held")
        task = StreamTask(start, target, server.slot, server.reported_flush_lsn())
        try:
            return TimelineStream(
                task,
                sender,
                repository,
                delivery,
                position,
                self._options,
                self._stop,
                self.progress.metrics,
                self.progress,
            ).run()
        except HistoryMismatch as error:
            # Not above: it takes long to import, and hardly ever is it needed.
            from pgwal.engine.parting import parting_of

            raise parting_of(error, sender, repository.wal, position.history) from error

    def _hold_repository(self, identity: RepositoryIdentity, held: ExitStack) -> Repository:
        """Open the repository and take its receiver lock, once; check that the server is the same every time."""
        if self._repository is None:
            repository = Repository.open_or_create(self._place, identity)
            held.enter_context(repository.lock_receiver(for_backup=self._options.for_backup))
            before = repository.receiver_state()
            self._opened = repository
            self._repository, self._delivery = deliver(repository, self._options, held)
            self.progress.connected(self._delivery, before.level_at if before is not None else None)
        elif self._delivery is not None:
            self._delivery.look_again()
        self._repository.require(identity)
        return self._repository

    def _ensure_slot(self, server: StreamedServer) -> None:
        server.ensure_slot(may_exist=self._slot_ensured)
        self._slot_ensured = True

    def _starts(self, connection: _Connection, position: ServerPosition) -> list[StreamStart]:
        """Return where to receive from: what the archive has, else the slot, else the server."""
        archive, geometry, history = connection.repository.wal, connection.repository.geometry, position.history
        segments = self._segments_to_prove(archive)
        starts = stream_starts(segments, history, geometry, position.flush_lsn)
        abandoned = abandoned_wal(segments, history, geometry)
        if abandoned is not None:
            logger.warning(
                "this server never had all WAL of timeline %d that the repository has, up to segment %s at least:"
                " following timeline %d; the WAL of timeline %d is kept",
                abandoned.timeline_id,
                geometry.file_name(abandoned.timeline_id, abandoned.segment_no),
                history.timeline_id,
                abandoned.timeline_id,
            )
        if starts:
            from pgwal.engine.parting import proving_starts

            return proving_starts(archive, segments, history, starts, position.flush_lsn)
        return [self._new_start(connection, position)]

    def _segments_to_prove(self, archive: WalArchive) -> list[WalSegmentFile]:
        """Return the segments behind which to receive on.

        What an earlier receiver left in a spool is received again, as far as the server still has it, and compared,
        before any of it is stored: behind those that are stored.
        """
        repository = self._opened
        if repository is not None and repository.place.is_remote and self._delivery and not self._delivery.is_proven:
            stored = WalArchive(repository.store, archive.geometry).segments()
            if stored:
                return stored
        return archive.segments()

    def _new_start(self, connection: _Connection, position: ServerPosition) -> StreamStart:
        """Return where to begin when nothing goes on.

        A temporary slot, which begins at the last checkpoint, does not count on a primary: nobody waits for WAL that
        old.
        """
        counts = self._options.slot is not None or self._options.from_restart_point
        slot = connection.server.slot_position() if counts else None
        return new_start(position.history, connection.repository.geometry, position.flush_lsn, slot)
