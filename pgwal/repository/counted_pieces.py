"""Pieces of an object on their way, counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class CountedPieces:
    """Pieces, and how many bytes they had together, ``size_bytes``, as far as they were taken."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.size_bytes += len(piece)
            yield piece
