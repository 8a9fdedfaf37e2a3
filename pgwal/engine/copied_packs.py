"""Copy packs of one repository to another as they are stored, each once, and every byte proven by the digest that an
entry has of it.

What is encrypted is not opened.  A pack is stored whole or not at all, under its own name, which no other one has: what
is there of it need not be copied again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import NamedTuple

from pgwal.backup.pack_table import Frame, Pack
from pgwal.budget import COPIED_PACK_READ_BYTES
from pgwal.engine.fleet import Crew, Room, Tell
from pgwal.errors import ChecksumMismatch, FormatError, ObjectExists, ObjectNotFound
from pgwal.repository.frame_codec import FrameDecoder
from pgwal.repository.frame_tables import FramePlaces
from pgwal.repository.layout import PACK_DIRECTORY
from pgwal.repository.pack_pool import pack_object, table_object
from pgwal.repository.place import address_of
from pgwal.repository.repository import Repository
from pgwal.repository.store import ByteRange, ObjectStore


class PackCopier:
    """Copies packs from ``source`` to ``target``."""

    def __init__(self, source: Repository, target: Repository) -> None:
        self._source = source
        self._target = target
        self._places = FramePlaces(source.store)
        self.count = 0
        self.bytes_copied = 0

    @cached_property
    def _there(self) -> dict[str, int]:
        return _sizes(self._target.store)

    @cached_property
    def _stored(self) -> dict[str, int]:
        return _sizes(self._source.store)

    def missing(self, packs: Iterable[Pack]) -> list[Pack]:
        """Return the packs that are not there; raises FormatError for one that is, and is another."""
        found = []
        for pack in packs:
            size_bytes = self._there.get(pack.name)
            if size_bytes is None:
                found.append(pack)
            elif size_bytes != pack.size_bytes:
                place = self._target.store.locate(pack_object(pack.name))
                raise FormatError(
                    f"{place} has {size_bytes} bytes, the pack of its name has {pack.size_bytes}",
                    hint="It is damaged: move it away, and copy again.",
                    path=place,
                )
        return found

    def note(self, packs: Iterable[Pack]) -> None:
        """Take note of packs that were stored there by somebody else."""
        self._there.update((pack.name, pack.size_bytes) for pack in packs)

    def copy(self, packs: Iterable[Pack], workers: Crew) -> None:
        """Copy those packs that are not there; raises FormatError or ChecksumMismatch for damage of the source."""
        wanted, tables = self.missing(packs), set[str]()
        while wanted:
            found, new_tables = self._found(wanted)
            tables |= new_tables
            wanted = self._copy_stored(found, workers)
        for name in sorted(tables):
            # As all that is behind the packs: they are there when it tells of them.
            with suppress(ObjectExists):
                self._target.store.put(table_object(name), self._source.store.get(table_object(name)))

    def _copy_stored(self, packs: Sequence[Pack], workers: Crew) -> list[Pack]:
        """Copy packs, and return those that somebody has rewritten meanwhile: what is needed of them is elsewhere."""
        to = address_of(self._target.place)
        pieces = [PackToCopy(to, pack, self._stored.get(pack.name)) for pack in self._fully_known(packs)]
        gone = []
        with closing(workers.map(copy_pack, pieces)) as copied:
            for piece, size_bytes in zip(pieces, copied, strict=True):
                if size_bytes is None:
                    del self._stored[piece.pack.name]
                    gone.append(piece.pack)
                    continue
                self._there[piece.pack.name] = size_bytes
                self.count += 1
                self.bytes_copied += size_bytes
        return gone

    def _found(self, packs: Iterable[Pack]) -> tuple[list[Pack], set[str]]:
        """Return packs, those in the place of others that frames were moved to, and the tables that lead there."""
        found: dict[str, Pack] = {}
        tables = set[str]()
        for pack in packs:
            if pack.name in self._stored:
                found[pack.name] = pack
                continue
            try:
                moved = self._places.moved(pack)
            except ObjectNotFound:
                # It is said when it is read.
                found[pack.name] = pack
                continue
            found.update((each.name, each) for each in self.missing(moved.packs))
            tables |= moved.tables
            if any(each.name not in self._stored for each in moved.packs):
                # They have come since the others were listed.
                self._stored.update(_sizes(self._source.store))
        return list(found.values()), tables

    def _fully_known(self, packs: Sequence[Pack]) -> list[Pack]:
        """Return packs with all of their frames that anybody may ever ask for.

        Another backup may need others than the one that is copied now, and find the pack there.
        """
        partly = {pack.name for pack in packs if not pack.is_all_frames}
        if not partly:
            return list(packs)
        try:
            known = self._source.catalogue.frames_named(partly)
        except FormatError as error:
            error.restate(
                f"packs are not copied of which only an entry that cannot be read tells what is in them: {error}",
                hint=error.hint,
            )
            raise
        return [known.get(pack.name, pack) for pack in packs]


class PackToCopy(NamedTuple):
    """A pack, the address of the repository to copy it to, and the size that it has in the source, None for none."""

    to: str
    pack: Pack
    stored_size_bytes: int | None


def copy_pack(room: Room, tell: Tell, piece: PackToCopy) -> int | None:
    """Copy a pack, and return its size, None when it has gone meanwhile: work for a crew.

    Raises FormatError or ChecksumMismatch for damage of it.
    """
    pack, source, target = piece.pack, room.repository.store, room.target(piece.to).store
    name = pack_object(pack.name)
    try:
        target.put(name, _proven_pieces(source, piece, tell))
    except ObjectNotFound:
        if source.exists(name):
            raise
        return None
    except ObjectExists:
        # Somebody else copies, too, or did when this one stood still.
        if target.size(name) != pack.size_bytes:
            raise
    return pack.size_bytes


def _proven_pieces(source: ObjectStore, piece: PackToCopy, tell: Tell) -> Iterator[bytes]:
    pack, size_bytes = piece.pack, piece.stored_size_bytes
    name = pack_object(pack.name)
    place = source.locate(name)
    if size_bytes != pack.size_bytes:
        what = "is missing" if size_bytes is None else f"has {size_bytes} bytes, {pack.size_bytes} were stored"
        raise FormatError(f"{place} {what}", hint="Run pgwal verify on the repository.", path=place)
    decoder = FrameDecoder()
    for window in _windows(pack):
        (content,) = source.get_ranges(name, [ByteRange(window.start, window.end)])
        _require_stored(decoder, pack, window, content, place)
        tell(len(content))
        yield content


def _require_stored(decoder: FrameDecoder, pack: Pack, window: _Window, content: bytes, place: str) -> None:
    view = memoryview(content)
    if len(content) != window.end - window.start:
        raise FormatError(f"{place} ends before byte {window.end}", path=place)
    if window.start == 0 and view[: len(pack.header)] != pack.header:
        raise ChecksumMismatch(f"{place} does not begin as the pack of its name does", path=place)
    if window.end == pack.size_bytes and pack.sealed is not None and not content.endswith(pack.sealed.trailer):
        raise ChecksumMismatch(f"{place} does not end as the pack of its name does", path=place)
    for number, frame in window.frames:
        start = frame.offset - window.start
        stored = bytes(view[start : start + frame.stored_size_bytes])
        decoder.require_digest(stored, frame, number, place)


class _Window(NamedTuple):
    """Bytes of a pack that are read at once, with the frames that lie in them, and their numbers."""

    start: int
    end: int
    frames: list[tuple[int, Frame]]


def _windows(pack: Pack) -> Iterator[_Window]:
    start, frames = 0, list[tuple[int, Frame]]()
    for number, frame in enumerate(pack):
        # Between frames, and behind them, there may be some that nobody needs.
        while frame.offset - start >= COPIED_PACK_READ_BYTES:
            yield _Window(start, start + COPIED_PACK_READ_BYTES, frames)
            start, frames = start + COPIED_PACK_READ_BYTES, []
        frames.append((number, frame))
        end = frame.offset + frame.stored_size_bytes
        if end - start >= COPIED_PACK_READ_BYTES:
            yield _Window(start, end, frames)
            start, frames = end, []
    while pack.size_bytes - start > 2 * COPIED_PACK_READ_BYTES:
        yield _Window(start, start + COPIED_PACK_READ_BYTES, frames)
        start, frames = start + COPIED_PACK_READ_BYTES, []
    if start < pack.size_bytes:
        yield _Window(start, pack.size_bytes, frames)


def _sizes(store: ObjectStore) -> dict[str, int]:
    """Return the sizes of all packs by name, in a request for a thousand of them."""
    return {name.rpartition("/")[2]: size_bytes for name, size_bytes in store.list(f"{PACK_DIRECTORY}/")}
