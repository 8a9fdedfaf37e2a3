"""Rewrite packs of which little is needed: what is goes as it is into new packs, with tables that say so.

Nothing changes for whoever reads: frames are found in the old packs until these are removed, and by the tables then.
A new pack of which there is no table, as a crash leaves it, is one that nothing needs.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from xxhash import xxh3_128_digest

from pgwal.backup.moved_frames import MovedFrames, Origin
from pgwal.backup.pack_table import Frame
from pgwal.backup.pack_use import WornPack
from pgwal.budget import FRAMES_MOVED, PACK_SIZE, REWRITTEN_READ_BYTES
from pgwal.repository.frame_tables import store_table
from pgwal.repository.pack_pool import begin_pack, pack_object
from pgwal.repository.place import Place
from pgwal.repository.store import ByteRange, ObjectStore

logger = logging.getLogger(__name__)


class _Part(NamedTuple):
    """Frames of one pack that go into the same new one."""

    pack_name: str
    frames: Sequence[Frame]

    @property
    def stored_bytes(self) -> int:
        return sum(frame.stored_size_bytes for frame in self.frames)


class _DamagedFrame(Exception):
    def __init__(self, pack_name: str) -> None:
        super().__init__(pack_name)
        self.pack_name = pack_name


def rewrite_packs(place: Place, worn: Sequence[WornPack], on_stored: Callable[[int], None]) -> list[WornPack]:
    """Store what is needed of packs anew, durably, and return those that can go; only under the lock for backups.

    One with a frame that is not what was stored stays, with a warning.  ``on_stored`` is told of bytes.
    """
    damaged = set[str]()
    for parts in _new_packs(worn):
        left = parts
        while left:
            try:
                moved = _store_pack(place.store, left, on_stored)
            except _DamagedFrame as error:
                logger.warning(
                    "%s is not rewritten, for a frame of it is damaged: pgwal verify tells what needs it",
                    place.store.locate(pack_object(error.pack_name)),
                )
                damaged.add(error.pack_name)
                left = [part for part in left if part.pack_name != error.pack_name]
                continue
            # Whoever took the lock over has removed what no table told of.
            place.leases.confirm()
            store_table(place.store, moved)
            break
    return [pack for pack in worn if pack.name not in damaged]


def _new_packs(worn: Sequence[WornPack]) -> Iterator[list[_Part]]:
    """Yield what is to go into each new pack."""
    found: list[_Part] = []
    for pack in worn:
        for start in range(0, len(pack.frames), FRAMES_MOVED):
            part = _Part(pack.name, pack.frames[start : start + FRAMES_MOVED])
            is_full = sum(each.stored_bytes for each in found) >= PACK_SIZE
            if found and (is_full or sum(len(each.frames) for each in (*found, part)) > FRAMES_MOVED):
                yield found
                found = []
            found.append(part)
    if found:
        yield found


def _store_pack(store: ObjectStore, parts: Sequence[_Part], on_stored: Callable[[int], None]) -> MovedFrames:
    pack, seal = begin_pack(store)

    def pieces() -> Iterator[bytes]:
        yield pack.header
        for part in parts:
            for frame, stored in _read(store, part):
                pack.add(frame._replace(offset=pack.size_bytes))
                pack.size_bytes += len(stored)
                yield stored
                on_stored(len(stored))
        if seal is not None:
            trailer = seal.trailer(len(pack))
            pack.end_with(trailer)
            yield trailer

    store.put(pack_object(pack.name), pieces())
    return MovedFrames(
        pack, [Origin(part.pack_name, array("Q", (frame.offset for frame in part.frames))) for part in parts]
    )


def _read(store: ObjectStore, part: _Part) -> Iterator[tuple[Frame, bytes]]:
    """Yield frames, and what is stored of them, which is what entries say; raises _DamagedFrame."""
    for frames in _read_together(part.frames):
        ranges = [ByteRange(frame.offset, frame.offset + frame.stored_size_bytes) for frame in frames]
        for frame, stored in zip(frames, store.get_ranges(pack_object(part.pack_name), ranges), strict=True):
            if xxh3_128_digest(stored) != frame.digest:
                raise _DamagedFrame(part.pack_name)
            yield frame, stored


def _read_together(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    found: list[Frame] = []
    size_bytes = 0
    for frame in frames:
        if found and size_bytes + frame.stored_size_bytes > REWRITTEN_READ_BYTES:
            yield found
            found, size_bytes = [], 0
        found.append(frame)
        size_bytes += frame.stored_size_bytes
    yield found
