"""Of which time the last transaction is that can be recovered from a backup."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from pgwal.budget import RECOVERABLE_TIME_SEGMENTS
from pgwal.engine.coverage import RecoverableRange
from pgwal.engine.recovery_window import last_transaction_end
from pgwal.engine.summarize import read_history
from pgwal.errors import PgwalError
from pgwal.repository.repository import Repository
from pgwal.wal.scan import COMPILED


def last_recoverable_time(repository: Repository, recoverable: RecoverableRange) -> datetime | None:
    """Return when the last transaction ended that can be recovered, by the server's clock.

    None where none ended in the last two segments of the range, or they cannot be read: encrypted, and without a key;
    and where the scanner is not compiled, which would take seconds.
    """
    if not COMPILED:
        return None
    geometry = repository.geometry
    first_no = max(0, geometry.last_segment_no(recoverable.end) + 1 - RECOVERABLE_TIME_SEGMENTS)
    start = max(recoverable.start, geometry.segment_start(first_no))
    if start >= recoverable.end:
        return None
    with suppress(PgwalError):
        history = read_history(repository, recoverable.timeline_id)
        return last_transaction_end(repository, history, start, recoverable.end)
    return None
