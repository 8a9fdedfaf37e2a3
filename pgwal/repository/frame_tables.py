"""The tables of frames that were moved out of packs, and finding frames by them: see ``moved_frames``.

Whoever reads looks where the entry says, and asks the tables only when that pack is gone: so it may go at any time,
once the table is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

from pgwal.backup.moved_frames import (
    FrameMoves,
    FramePlace,
    MovedFrames,
    decode_moved_frames,
    encode_moved_frames,
)
from pgwal.backup.pack_table import Pack, is_pack_name
from pgwal.errors import FormatError, ObjectNotFound
from pgwal.repository.layout import MOVED_FRAMES_DIRECTORY
from pgwal.repository.pack_pool import pack_object, table_object
from pgwal.repository.store import ObjectStore, objects_in
from pgwal.repository.waiting_threads import ask_for_each


def store_table(store: ObjectStore, moved: MovedFrames) -> None:
    """Store a table, durably: from now on its frames are found in the new pack, which must be there."""
    store.put(table_object(moved.pack.name), b"".join(encode_moved_frames(moved)))


class FrameTables:
    """The tables of a repository, each of which is read once; those that are gone again do not matter."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._found: dict[str, MovedFrames | FormatError] = {}

    def names(self) -> list[str]:
        """Return the names of the packs that have tables."""
        return [name for name, _ in objects_in(self._store, MOVED_FRAMES_DIRECTORY) if is_pack_name(name)]

    def read(self) -> FrameMoves:
        """Return what all tables say; damaged ones, which ``damage`` has then, are passed over."""
        new = [name for name in self.names() if name not in self._found]
        for name, found in zip(new, ask_for_each(self._store, self._table, new), strict=True):
            if found is not None:
                self._found[name] = found
        return FrameMoves(each for each in self._found.values() if isinstance(each, MovedFrames))

    @property
    def damage(self) -> FormatError | None:
        """What is wrong with one of the tables that were read, None when nothing is with any."""
        return next((each for each in self._found.values() if isinstance(each, FormatError)), None)

    def _table(self, name: str) -> MovedFrames | FormatError | None:
        place = self._store.locate(table_object(name))
        try:
            moved = decode_moved_frames(self._store.get(table_object(name)))
            if moved.pack.name != name:
                raise FormatError(f"it is that of pack {moved.pack.name}")
        except ObjectNotFound:
            return None
        except FormatError as error:
            hint = "Bring it back from a copy of the repository."
            error.restate(f"{place} is damaged: {error}", hint=hint, path=place)
            return error
        return moved


class MovedPack(NamedTuple):
    """Where the frames of a pack are that is gone: the packs, and the names of the tables that lead to them."""

    packs: list[Pack]
    tables: set[str]


class FramePlaces:
    """Where frames are now, for any number of threads that read them while others may move them."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._tables = FrameTables(store)
        self._moves = FrameMoves()
        self._gone = set[str]()
        """Names of packs that were not there; they never come back."""
        self._lock = Lock()

    def of(self, pack_name: str, offset: int) -> Iterator[FramePlace]:
        """Yield places where a frame may be: whoever asks for the next has not found the pack of the one before.

        Raises FormatError at the end where a table is damaged, which might have told of another.
        """
        # Whether the tables were read after the last place was tried in vain: from there it may have been moved on.
        is_new = False
        while True:
            known, is_any = self._moves, False
            for place in known.places(pack_name, offset):
                if place.pack_name not in self._gone:
                    is_any = True
                    yield place
                    self._gone.add(place.pack_name)
            if is_new and not is_any:
                break
            is_new = self._read_again(known)
        if self._tables.damage is not None:
            raise self._tables.damage.with_traceback(None)

    def _read_again(self, known: FrameMoves) -> bool:
        """Read the tables; False when another thread just has, and there is more to look at than was known."""
        with self._lock:
            if self._moves is not known:
                return False
            self._moves = self._tables.read()
            return True

    def packs_of(self, pack: Pack) -> list[Pack]:
        """Return the packs that the frames of one were moved to which is gone.

        Raises ObjectNotFound where a frame is in none, FormatError as ``of``.
        """
        return self.moved(pack).packs

    def moved(self, pack: Pack) -> MovedPack:
        """Return the same with the tables that lead there; raises as ``packs_of``."""
        self._gone.add(pack.name)
        found: dict[str, Pack] = {}
        tables = set[str]()
        for frame in pack:
            for place in self.of(pack.name, frame.offset):
                moved = self._moves.pack(place.pack_name)
                if moved is not None and (moved.name in found or self._store.exists(pack_object(moved.name))):
                    found[moved.name] = moved
                    tables.update(place.tables)
                    break
            else:
                raise ObjectNotFound(f"{self._store.locate(pack_object(pack.name))} is missing")
        return MovedPack(list(found.values()), tables)
