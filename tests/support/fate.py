"""What a process meets that fails, or dies, at the operation of a given number."""

from __future__ import annotations

from pgwal.errors import RepositoryError


class Died(BaseException):
    """The process is gone; no ``except Exception`` of its own sees it."""


_READS = ("get", "get_ranges", "size", "exists", "list", "children")


class Fate:
    """Operations that change something, counted from 0: number ``fails_at`` raises RepositoryError, ``dies_at`` Died.

    All raise Died that come later; to die before something is read is to die after the last change.
    """

    def __init__(self, *, fails_at: int | None = None, dies_at: int | None = None) -> None:
        self.operations: list[str] = []
        self.fails_at = fails_at
        self.dies_at = dies_at

    @property
    def is_dying(self) -> bool:
        return self.dies_at is not None and len(self.operations) > self.dies_at

    def meet(self, operation: str, name: str) -> None:
        if operation in _READS:
            if self.is_dying:
                raise Died
            return
        self.operations.append(f"{operation} {name}")
        # A put dies when a part of it has been taken.
        if self.is_dying and operation != "put":
            raise Died
        if len(self.operations) - 1 == self.fails_at:
            raise RepositoryError(f"cannot {operation} {name}: a test wants it so")
