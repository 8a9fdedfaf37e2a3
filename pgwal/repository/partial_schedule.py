"""When the segment that is being received is to be stored as far as it is: now and then, and when somebody waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from pgwal.budget import PARTIAL_ASK_S, PARTIAL_NEAR_ASK_S, PARTIAL_NEAR_SHARE


class PartialSchedule:
    """For two threads: whoever stores, and whoever receives.

    ``is_awaited`` may ask the store, but not where it is near.
    """

    def __init__(self, interval_s: float, is_awaited: Callable[[], bool], *, is_near: bool) -> None:
        self._interval_s = interval_s
        self._is_awaited = is_awaited
        self._is_near = is_near
        self._ask_s = PARTIAL_NEAR_ASK_S if is_near else PARTIAL_ASK_S
        self._stored_at_s = self._asked_at_s = time.monotonic() - interval_s
        self._was_awaited = False
        self.hurries = False
        """Whether all is to be stored now."""

    def is_due(self) -> bool:
        """Tell whether what has come since more was stored last is to be stored."""
        now = time.monotonic()
        if self.hurries or now - self._stored_at_s >= self._interval_s:
            return True
        if now - self._stored_at_s < self._ask_s:
            return False
        if now - self._asked_at_s >= self._ask_s:
            self._asked_at_s, self._was_awaited = now, self._is_awaited()
        return self._was_awaited

    def note_stored(self, seconds: float | None = None) -> None:
        """Note that more is stored by now; of a segment that is not whole, how long that took."""
        self._stored_at_s = time.monotonic()
        if self._is_near and seconds is not None:
            self._ask_s = min(PARTIAL_ASK_S, max(PARTIAL_NEAR_ASK_S, PARTIAL_NEAR_SHARE * seconds))
