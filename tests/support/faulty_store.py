"""A store whose operation of a given number fails, or whose process dies in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pgwal.errors import RepositoryError
from pgwal.repository.store import ObjectStore, StoreFeature, as_renaming
from pgwal.repository.store_wrapper import StoreWrapper


class Died(BaseException):
    """The process is gone; no ``except Exception`` of its own sees it."""


class FaultyStore(StoreWrapper):
    """Another store, whose operation number ``fails_at`` raises RepositoryError; ``dies_at`` and all later raise Died.

    A put that dies has taken a part of what is to be stored.  A change of names is an operation as well, where the
    other store can do it; what it offers besides is hidden.
    """

    def __init__(self, store: ObjectStore, *, fails_at: int | None = None, dies_at: int | None = None) -> None:
        super().__init__(store)
        self.operations: list[str] = []
        self._fails_at = fails_at
        self._dies_at = dies_at
        if as_renaming(store) is not None:
            self.features = frozenset((StoreFeature.RENAMES,))

    @property
    def _number(self) -> int:
        return len(self.operations) - 1

    def rename(self, old: str, new: str) -> None:
        self._before("rename", old)
        renaming = as_renaming(self._store)
        assert renaming is not None
        renaming.rename(old, new)

    def _before(self, operation: str, name: str) -> None:
        self.operations.append(f"{operation} {name}")
        if self._dies_at is not None and self._number >= self._dies_at and operation != "put":
            raise Died
        if self._number == self._fails_at:
            raise RepositoryError(f"cannot {operation} {name}: a test wants it so")

    def _passing(self, content: bytes | Iterable[bytes]) -> bytes | Iterable[bytes]:
        if self._dies_at is None or self._number < self._dies_at:
            return content
        return _dying(content)


def _dying(content: bytes | Iterable[bytes]) -> Iterator[bytes]:
    for chunk in (content,) if isinstance(content, bytes) else content:
        yield chunk[: len(chunk) // 2]
        break
    raise Died
