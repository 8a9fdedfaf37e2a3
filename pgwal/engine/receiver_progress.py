"""What becomes of a receiver: what its streams and its waiting tell, and others may look at."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pgwal.budget import TICK_S
from pgwal.engine.receiver_metrics import ReceiverMetrics
from pgwal.errors import ReceivedByBackup, StandbyBehind, StorageFull
from pgwal.lsn import Lsn
from pgwal.repository.delivery import Delivery

logger = logging.getLogger(__name__)


class ReceiverProgress:
    """Takes the events of streams, one after the other, and of what lies between them.

    Other threads may read ``metrics`` and what is public.  ``on_alive`` is called about once a second, in the
    receiver's thread.
    """

    def __init__(self, on_alive: Callable[[], None]) -> None:
        self._on_alive = on_alive
        self._last_alive_s = 0.0
        self._delivery: Delivery | None = None
        self._furthest_lsn = Lsn(0)
        self.metrics = ReceiverMetrics()
        self.is_connected = False
        """Whether a server has been found to be the repository's, which is held from then on."""
        self.failures = 0
        """How many attempts there were since the last one that received something new."""
        self.waits_for: str | None = None
        """What it waits for, in words, while nothing is received."""
        self.waits_for_backup = False
        """Whether that is the end of a backup, whose receiver does the work."""
        self.streaming = threading.Event()
        """Set once the server streams."""
        self.level = threading.Event()
        """Set once everything is here that was on the server when the stream began."""
        self.level_lsn = Lsn(0)
        """Up to where the server had WAL when the connection was made."""

    def connected(self, delivery: Delivery, level_at: float | None) -> None:
        """Note that the repository is held, whose last receiver was level at a time."""
        self._delivery = delivery
        self.metrics.level_at = level_at
        self.is_connected = True

    def interrupted(self, error: BaseException | None) -> None:
        """Note why another attempt is needed, and say so."""
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

    # -- StreamEvents ------------------------------------------------------------------------------------------

    def started(self, start: Lsn) -> None:
        self.waits_for, self.waits_for_backup = None, False
        self.streaming.set()
        self.metrics.streaming = True
        self.progressed(start)
        self._show_alive(time.monotonic())

    def progressed(self, flushed_lsn: Lsn) -> None:
        if flushed_lsn > self._furthest_lsn:
            self._furthest_lsn = flushed_lsn
            self.failures = 0
        if flushed_lsn >= self.level_lsn:
            self.level.set()

    def alive(self) -> None:
        now = time.monotonic()
        if now - self._last_alive_s >= TICK_S:
            self._show_alive(now)

    def segment_completed(self, name: str) -> None:
        self.metrics.segments_completed += 1
        if self._delivery is not None:
            self._delivery.add(name)

    def wal_synced(self, seconds: float) -> None:
        self.metrics.sync.observe(seconds)

    def _show_alive(self, now: float) -> None:
        self._last_alive_s = now
        if self._delivery is not None:
            self._show_delivery(self._delivery)
        self._on_alive()

    def _show_delivery(self, delivery: Delivery) -> None:
        metrics = self.metrics
        metrics.spooled_bytes = delivery.spooled_bytes
        if metrics.spooled_bytes is None:
            metrics.segments_compressed = delivery.done_count
            metrics.segments_uncompressed = delivery.waiting_count
            metrics.errors["compression"] = delivery.failed_count
            return
        metrics.segments_uploaded = delivery.done_count
        metrics.segments_waiting = delivery.waiting_count
        metrics.errors["upload"] = delivery.failed_count
        if delivery.is_away != metrics.store_is_away:
            if delivery.is_away:
                why = delivery.trouble or "the store does not answer"
                logger.warning("%s; WAL is received on into the spool", why)
            else:
                logger.info("the store takes WAL again")
        metrics.store_is_away = delivery.is_away
