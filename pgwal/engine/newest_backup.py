"""Look now and then when the newest backup of a repository began, beside a receiver, for whoever scrapes metrics."""

from __future__ import annotations

import logging
import threading

from pgwal.backup.backup_id import parse_backup_id
from pgwal.budget import NEWEST_BACKUP_INTERVAL_S, UNKNOWN_BACKUP_INTERVAL_S
from pgwal.errors import PgwalError
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)


class NewestBackupWatch(threading.Thread):
    """Looks at a repository now and then: a store that is away keeps this thread waiting, and nobody else."""

    def __init__(self, place: Place, interval_s: float = NEWEST_BACKUP_INTERVAL_S) -> None:
        super().__init__(name="pgwal-newest-backup", daemon=True)
        self._place = place
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self.began_at: float | None = None
        """As Unix time, 0 where there is no backup, None where that cannot be found out."""

    def run(self) -> None:
        while not self._stopped.is_set():
            self.began_at = self._look()
            self._stopped.wait(UNKNOWN_BACKUP_INTERVAL_S if self.began_at is None else self._interval_s)

    def stop(self) -> None:
        """Ask it to end; it may be waiting for a store, so nobody waits for it."""
        self._stopped.set()

    def _look(self) -> float | None:
        try:
            ids = Repository.open(self._place).catalogue.ids()
        except PgwalError as error:
            # The receiver itself says what is wrong with its repository.
            logger.debug("the newest backup is not known: %s", error)
            return None
        return max((parse_backup_id(backup_id)[0].timestamp() for backup_id in ids), default=0.0)
