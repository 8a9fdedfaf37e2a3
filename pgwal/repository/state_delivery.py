"""Leave the receiver's state in the store, for others: soon when more is stored, else now and then.

Each time is a request, so that only what others wait for is told at once.
"""

from __future__ import annotations

import time

from pgwal.budget import STATE_CHANGED_S, STATE_LEAST_S, STATE_LOOK_S, STATE_MOST_S, STATE_NEAR_LEAST_S, STATE_TOLD_S
from pgwal.repository.layout import RECEIVER_STATE_NAME
from pgwal.repository.repository import ReceiverState
from pgwal.repository.spooled_store import SpooledStore


class StateDelivery:
    """Stores what a receiver has left in a spooled store's ``pending_state``; ``is_near`` where that is no request."""

    def __init__(self, store: SpooledStore, *, is_near: bool) -> None:
        self._store = store
        self._least_s = STATE_NEAR_LEAST_S if is_near else STATE_LEAST_S
        self._told: ReceiverState | None = None
        self._at_s = time.monotonic() - STATE_MOST_S
        self._stored_at_s = time.monotonic() - STATE_TOLD_S

    def note_stored(self) -> None:
        """Note that something was stored, of which the receiver is going to tell."""
        self._stored_at_s = time.monotonic()

    def look_s(self, usual_s: float) -> float:
        """Return after how long to look for a state to send, at the latest; usually after ``usual_s``."""
        return min(usual_s, STATE_LOOK_S) if time.monotonic() - self._stored_at_s < STATE_TOLD_S else usual_s

    def send(self, *, at_once: bool = False) -> None:
        """Store the state if that is due, or ``at_once``; raises RepositoryError."""
        content, now = self._store.pending_state, time.monotonic()
        if content is None or (now - self._at_s < self._least_s and not at_once):
            return
        state = ReceiverState.decode(content)._replace(updated_at=None, level_at=None)
        is_more = self._told is None or state.flushed_lsn != self._told.flushed_lsn
        if at_once or is_more or now - self._at_s > (STATE_CHANGED_S if state != self._told else STATE_MOST_S):
            self._store.pending_state = None
            self._store.remote.put(RECEIVER_STATE_NAME, content, replace=True, durable=False)
            self._told, self._at_s = state, now
