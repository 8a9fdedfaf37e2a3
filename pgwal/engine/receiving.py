"""WAL for a backup: wait for the receiver that runs, or run one for as long as the backup takes."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgwal.budget import (
    LISTED_EVERY,
    LONGEST_REMOTE_POLL_S,
    LONGEST_SEALED_POLL_S,
    PROOF_AFTER_S,
    PROOF_INTERVAL_S,
    RECEIVED_POLL_S,
    REMOTE_POLL_S,
    REMOTE_PROOF_AFTER_S,
    REMOTE_PROOF_INTERVAL_S,
    STALLED_S,
)
from pgwal.engine.stop import StopRequest
from pgwal.errors import PgwalError, RepositoryLocked, WalGap, WalRemoved
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.repository import ReceiverState, Repository

if TYPE_CHECKING:
    from pgwal.engine.stream import Receiver

logger = logging.getLogger(__name__)


class ReceivedWal:
    """What arrives in a repository while a receiver runs, be it in this process or another."""

    def __init__(
        self, repository: Repository, thread: _ReceiverThread | None, parameters: ConnectionParameters
    ) -> None:
        self._repository = repository
        self._thread = thread
        self._parameters = parameters
        self._seen: ReceiverState | None = None

    def receiver_state(self) -> ReceiverState | None:
        """Return what the receiver says now."""
        self._seen = self._repository.receiver_state()
        return self._seen

    def wait_until_written(self, timeline_id: int, lsn: Lsn) -> None:
        """Return when WAL of a timeline can be read up to ``lsn``.

        Raises the receiver's own error, TimelineMismatch when a receiver that runs elsewhere brings WAL of another
        server, or WalGap when nothing arrives for STALLED_S seconds.
        """
        self._wait(timeline_id, lsn, complete=False)

    def wait_until_safe(self, timeline_id: int, lsn: Lsn, *, whole_segment: bool) -> None:
        """Return when WAL of a timeline is durable up to ``lsn``, and its last segment whole where asked for."""
        self._wait(timeline_id, lsn, complete=whole_segment)

    def check(self) -> None:
        """Raise the receiver's own error if it has ended, WalGap where that is about WAL which the server has removed.

        A backup whose receiver has failed is none, even if all that it needs seems to be there: it may be what an
        earlier life of the server left.
        """
        if self._thread is None:
            return
        try:
            self._thread.check()
        except WalRemoved as error:
            raise WalGap(
                f"the backup is not published, for WAL was lost while it was taken: {error}",
                hint="Take it again. With a slot (-S), which a receiver that runs should have too, the server keeps WAL"
                " until it is received.",
            ) from error

    def _wait(self, timeline_id: int, lsn: Lsn, *, complete: bool) -> None:
        last_position, last_progress_s = Lsn(0), time.monotonic()
        waits_since = time.time()
        place = self._repository.place
        is_remote = place.is_remote and place.directory is None
        poll_s, proof_after_s, proof_interval_s = RECEIVED_POLL_S, PROOF_AFTER_S, PROOF_INTERVAL_S
        if is_remote:
            poll_s, proof_after_s, proof_interval_s = REMOTE_POLL_S, REMOTE_PROOF_AFTER_S, REMOTE_PROOF_INTERVAL_S
        proven_at_s = last_progress_s + proof_after_s - proof_interval_s
        geometry = self._repository.geometry
        wanted = geometry.segment_start(geometry.last_segment_no(lsn) + 1) if complete else lsn
        waited_s = 0.0
        self.check()
        if is_remote and not complete and _has(self._seen, timeline_id, wanted):
            # What is flushed stays so.
            return
        for look in itertools.count():
            if is_remote:
                # What is not known to be there has only just been written.
                time.sleep(poll_s)
                waited_s += poll_s
                poll_s = min(waited_s, LONGEST_REMOTE_POLL_S)
            state = self.receiver_state()
            has_all = _has(state, timeline_id, wanted)
            if has_all and not complete:
                return
            is_said = is_remote and state is not None and state.timeline_id == timeline_id and not has_all
            if (not is_said or look % LISTED_EVERY == LISTED_EVERY - 1) and self._is_whole(timeline_id, lsn):
                return
            position = state.written_lsn if state is not None else Lsn(0)
            if position != last_position and state is not None and state.timeline_id <= timeline_id:
                last_position, last_progress_s = position, time.monotonic()
            self.check()
            self._check_stalled(lsn, position, last_progress_s)
            if self._thread is None and time.monotonic() - proven_at_s > proof_interval_s:
                self._require_servers_wal(waits_since)
                proven_at_s = time.monotonic()
            if not is_remote:
                time.sleep(poll_s)
                if place.is_remote:
                    poll_s = min(2 * poll_s, LONGEST_SEALED_POLL_S)

    def _require_servers_wal(self, waits_since: float) -> None:
        # Not above: few backups wait that long.
        from pgwal.engine.whose_wal import require_servers_wal

        require_servers_wal(self._repository, self._parameters, waits_since)

    def _is_whole(self, timeline_id: int, lsn: Lsn) -> bool:
        """Tell whether there is the whole segment that ends at, or behind, a position."""
        return self._repository.wal.is_complete(timeline_id, self._repository.geometry.last_segment_no(lsn))

    def _check_stalled(self, lsn: Lsn, position: Lsn, last_progress_s: float) -> None:
        if time.monotonic() - last_progress_s <= STALLED_S:
            return
        running = self._repository.receiver_is_running()
        raise WalGap(
            f"WAL up to {lsn} has not arrived: the receiver has got to {position}"
            + ("" if running else ", and no longer runs"),
            hint="Check the messages of pgwal stream, and whether it is connected to this server.",
        )


def _has(state: ReceiverState | None, timeline_id: int, lsn: Lsn) -> bool:
    return state is not None and state.timeline_id == timeline_id and state.flushed_lsn >= lsn


class _ReceiverThread(threading.Thread):
    def __init__(self, receiver: Receiver, on_failure: Callable[[], None]) -> None:
        super().__init__(name="pgwal-receiver", daemon=True)
        self._receiver = receiver
        self._on_failure = on_failure
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._receiver.run()
        except BaseException as error:  # raised again where the backup waits for WAL
            self._error = error
            if not self.came_too_late:
                self._on_failure()

    @property
    def came_too_late(self) -> bool:
        """Whether another receiver has begun meanwhile, so that this one ended at once."""
        return isinstance(self._error, RepositoryLocked)

    def check(self) -> None:
        """Raise what ended the receiver, if it has ended."""
        if self._error is not None:
            raise self._error
        if not self.is_alive():
            raise PgwalError("the receiver ended before the backup did")


@contextmanager
def receiving(
    repository: Repository,
    parameters: ConnectionParameters,
    slot: str | None,
    *,
    skip_removed: bool,
    from_restart_point: bool = False,
    on_failure: Callable[[], None] = lambda: None,
) -> Iterator[ReceivedWal]:
    """Have WAL received into the repository while the context lasts.

    With ``skip_removed``, WAL that the server has removed before that is given up, with a warning.  With
    ``from_restart_point``, for a server in recovery, an empty archive begins at its last restart point.
    ``on_failure`` is called, in another thread, when the receiver fails that was begun here.
    """
    if repository.receiver_is_running():
        yield ReceivedWal(repository, None, parameters)
        return
    # Not above: it takes a tenth of a second to import, and most backups find a receiver that runs.
    from pgwal.engine.stream import Receiver
    from pgwal.engine.stream_options import StreamOptions

    stop = StopRequest()
    # Without any slot, a checkpoint during the backup, even its own, could remove WAL that is still on its way.
    options = StreamOptions(
        slot=slot,
        temporary_slot=slot is None,
        skip_removed=skip_removed,
        from_restart_point=from_restart_point,
        for_backup=True,
    )
    receiver = Receiver(repository.place, parameters, options, stop)
    thread = _ReceiverThread(receiver, on_failure)
    logger.info("no receiver is running: receiving WAL for as long as the backup takes")
    thread.start()
    try:
        # A new temporary slot keeps WAL from the last checkpoint on. What is older must be here before the next one.
        while not receiver.progress.level.wait(RECEIVED_POLL_S) and not thread.came_too_late:
            thread.check()
        yield ReceivedWal(repository, None if thread.came_too_late else thread, parameters)
    finally:
        stop.set()
        thread.join()
        stop.close()
