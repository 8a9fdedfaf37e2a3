"""Ask the server now and then how it and the slot stand, beside a receiver that may be busy, or waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pgwal.budget import UNSTREAMED_INTERVAL_S, WATCH_INTERVAL_S
from pgwal.engine.receiver_metrics import ReceiverMetrics
from pgwal.engine.status import ServerStatus, read_server_status
from pgwal.errors import PgwalError
from pgwal.postgres.connection import ConnectionParameters

logger = logging.getLogger(__name__)


class ServerWatch(threading.Thread):
    """Asks the server now and then; ``on_status`` is called, in this thread, with each answer.

    ``metrics`` returns those of the receiver that runs.
    """

    def __init__(
        self,
        metrics: Callable[[], ReceiverMetrics],
        parameters: ConnectionParameters,
        slot: str | None,
        on_status: Callable[[ServerStatus], None] | None = None,
    ) -> None:
        super().__init__(name="pgwal-server-watch", daemon=True)
        self._metrics = metrics
        self._parameters = parameters
        self._slot = slot
        self._on_status = on_status
        self._stopped = threading.Event()
        self.status: ServerStatus | None = None
        """What the server said last; None when it could not be asked."""

    def run(self) -> None:
        while not self._stopped.is_set():
            is_streaming = self._metrics().streaming
            try:
                self.status = read_server_status(self._parameters, self._slot, system_identifier=None)
                if self._on_status is not None:
                    self._on_status(self.status)
            except PgwalError as error:
                # The receiver itself says what is wrong, and goes on trying.
                logger.debug("the server's status is not known: %s", error)
                self.status = None
            self._stopped.wait(WATCH_INTERVAL_S if is_streaming else UNSTREAMED_INTERVAL_S)

    def stop(self) -> None:
        """Ask it to end; it may be connecting, so nobody waits for it."""
        self._stopped.set()
