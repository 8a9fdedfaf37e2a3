"""A place for a repository in which the operation of a given number fails, or the process dies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from support.fate import Died, Fate
from support.mortal_leases import mortal

from pgwal.encryption.key_sources import KeySources
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.place import Place
from pgwal.repository.place_wrapper import PlaceWrapper
from pgwal.repository.spool import Appender
from pgwal.repository.store import ObjectStore, StoreFeature, as_renaming
from pgwal.repository.store_wrapper import StoreWrapper


class FaultyStore(StoreWrapper):
    """Another store with a fate.  A change of names is an operation as well, where the other store can do it; what it
    offers besides is hidden.
    """

    def __init__(self, store: ObjectStore, fate: Fate) -> None:
        super().__init__(store)
        self._fate = fate
        if as_renaming(store) is not None:
            self.features = frozenset((StoreFeature.RENAMES,))

    def rename(self, old: str, new: str) -> None:
        self._before("rename", old)
        renaming = as_renaming(self._store)
        assert renaming is not None
        renaming.rename(old, new)

    def _before(self, operation: str, name: str) -> None:
        self._fate.meet(operation, name)

    def _passing(self, content: bytes | Iterable[bytes]) -> bytes | Iterable[bytes]:
        return _dying(content) if self._fate.is_dying else content


def _dying(content: bytes | Iterable[bytes]) -> Iterator[bytes]:
    for chunk in (content,) if isinstance(content, bytes) else content:
        yield chunk[: len(chunk) // 2]
        break
    raise Died


class FaultyAppender:
    """What is appended, with a fate."""

    def __init__(self, appender: Appender, fate: Fate) -> None:
        self._appender = appender
        self._fate = fate

    @property
    def is_held(self) -> bool:
        return self._appender.is_held

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._fate.meet("write", str(offset))
        self._appender.write(offset, data)

    def clear_behind(self, offset: int) -> None:
        self._fate.meet("clear_behind", str(offset))
        self._appender.clear_behind(offset)

    def sync(self) -> None:
        self._fate.meet("sync", "")
        self._appender.sync()

    def rename(self, name: str, *, is_read_soon: bool) -> None:
        self._fate.meet("name", name)
        self._appender.rename(name, is_read_soon=is_read_soon)

    def close(self) -> None:
        self._appender.close()


class FaultyPlace(PlaceWrapper):
    """Another place, whose store and spool have one fate; leases have none, and end with the process.

    Those in an object store are left by who dies; others find out that it has ended, as on the same machine.
    """

    directory: Path | None = None
    request_counts = None

    def __init__(self, place: Place, fate: Fate) -> None:
        if isinstance(place, CloudPlace):
            place = mortal(place, fate)
        super().__init__(place)
        self._fate = fate
        self.store = FaultyStore(place.store, fate)
        self.spool = self

    def with_keys(self, keys: KeySources) -> FaultyPlace:
        return FaultyPlace(self.place.with_keys(keys), self._fate)

    @property
    def is_remote(self) -> bool:
        return self.place.is_remote

    def make(self, folders: Iterable[str] = ()) -> None:
        names = list(folders)
        self._fate.meet("make", " ".join(names))
        self.place.make(names)

    # -- the spool ---------------------------------------------------------------------------------------------

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> FaultyAppender:
        self._fate.meet("preallocate", name)
        return FaultyAppender(self.place.spool.preallocate(name, size_bytes, zeroed=zeroed), self._fate)

    def holds(self, name: str, size_bytes: int, *, zeroed: bool = False) -> bool:
        return self.place.spool.holds(name, size_bytes, zeroed=zeroed)

    def settle(self, folder: str) -> None:
        self._fate.meet("settle", folder)
        self.place.spool.settle(folder)

    def create_notes(self, name: str) -> IO[bytes]:
        self._fate.meet("create_notes", name)
        return self.place.spool.create_notes(name)

    def drop_notes(self, name: str) -> None:
        self._fate.meet("drop_notes", name)
        self.place.spool.drop_notes(name)
