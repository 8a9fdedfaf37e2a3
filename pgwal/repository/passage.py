"""Pieces on their way from a thread that makes them to one that stores them, few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition

from pgwal.budget import PIECES_IN_PASSAGE


class Abandoned(Exception):
    """Whoever makes the pieces has given up, or whoever takes them has."""


class Passage:
    """Iterated over by the taker; neither waits for the other when that one has ended."""

    def __init__(self) -> None:
        self._pieces = deque[bytes]()
        self._condition = Condition()
        self._is_complete = False
        self._is_abandoned = False

    def push(self, piece: bytes) -> None:
        """Hand over a piece, once there is room; raises Abandoned when nobody takes it."""
        with self._condition:
            self._condition.wait_for(lambda: len(self._pieces) < PIECES_IN_PASSAGE or self._is_abandoned)
            if self._is_abandoned:
                raise Abandoned("what was stored was not taken to its end")
            self._pieces.append(piece)
            self._condition.notify_all()

    def complete(self) -> None:
        """Say that there are no more."""
        with self._condition:
            self._is_complete = True
            self._condition.notify_all()

    def abandon(self) -> None:
        """Say, from either side, that this comes to nothing."""
        with self._condition:
            self._is_abandoned = True
            self._condition.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces as they come; raises Abandoned when no more will."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._pieces or self._is_complete or self._is_abandoned)
                if self._is_abandoned:
                    raise Abandoned("what was to be stored was not made to its end")
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._condition.notify_all()
            yield piece
