"""Leave the receiver's state in the store, for others: soon when more is stored, else now and then.

Each time is a request, so that only what others wait for is told at once.
"""

from __future__ import annotations

import time

from pgwal.repository.layout import RECEIVER_STATE_NAME
from pgwal.repository.repository import ReceiverState
from pgwal.repository.spooled_store import SpooledStore

_LEAST_S, _NEAR_LEAST_S, _CHANGED_S, _MOST_S = 0.2, 0.02, 5.0, 60.0
"""How old the state that others see may get when more is stored, where that is no request, when other things have
changed, and when only time has passed."""

_TOLD_S, _LOOK_S = 0.5, 0.05
"""How long after something was stored the receiver may have that to tell, and how often it is looked for."""


class StateDelivery:
    """Stores what a receiver has left in a spooled store's ``pending_state``; ``is_near`` where that is no request."""

    def __init__(self, store: SpooledStore, *, is_near: bool) -> None:
        self._store = store
        self._least_s = _NEAR_LEAST_S if is_near else _LEAST_S
        self._told: ReceiverState | None = None
        self._at_s = time.monotonic() - _MOST_S
        self._stored_at_s = time.monotonic() - _TOLD_S

    def note_stored(self) -> None:
        """Note that something was stored, of which the receiver is going to tell."""
        self._stored_at_s = time.monotonic()

    def look_s(self, usual_s: float) -> float:
        """Return after how long to look for a state to send, at the latest; usually after ``usual_s``."""
        return min(usual_s, _LOOK_S) if time.monotonic() - self._stored_at_s < _TOLD_S else usual_s

    def send(self, *, at_once: bool = False) -> None:
        """Store the state if that is due, or ``at_once``; raises RepositoryError."""
        content, now = self._store.pending_state, time.monotonic()
        if content is None or (now - self._at_s < self._least_s and not at_once):
            return
        state = ReceiverState.decode(content)._replace(updated_at=None, level_at=None)
        is_more = self._told is None or state.flushed_lsn != self._told.flushed_lsn
        if at_once or is_more or now - self._at_s > (_CHANGED_S if state != self._told else _MOST_S):
            self._store.pending_state = None
            self._store.remote.put(RECEIVER_STATE_NAME, content, replace=True, durable=False)
            self._told, self._at_s = state, now
