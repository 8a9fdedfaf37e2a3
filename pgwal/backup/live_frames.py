"""Which frames of packs a backup needs: that of a backup which refers to packs of others are but some."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from pgwal.backup.pack_table import Extent, Pack


class LiveFrames:
    """Notes the frames in which extents lie, and leaves out the others, with packs of which none is left."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self._packs = packs
        self._used = [bytearray(len(pack)) for pack in packs]
        self._pack_numbers: list[int] = []
        self._frame_numbers: list[array[int]] = []

    def use(self, extents: Iterable[Extent]) -> None:
        for number, first, offset, length in extents:
            pack = self._packs[number]
            last, _ = pack.find(pack.position(first) + offset + length - 1)
            self._used[number][first : last + 1] = b"\1" * (last + 1 - first)

    def packs(self) -> list[Pack]:
        """Return the packs that are left, with the frames that are; to be called once, when all extents are noted."""
        found: list[Pack] = []
        for pack, used in zip(self._packs, self._used, strict=True):
            left = Pack(pack.name, pack.size_bytes, pack.sealed)
            numbers = array("I", bytes(4 * len(used)))
            for number, is_used in enumerate(used):
                numbers[number] = len(left)
                if is_used:
                    left.add(pack[number])
            self._pack_numbers.append(len(found))
            self._frame_numbers.append(numbers)
            if len(left):
                found.append(left)
        return found

    def renumbered(self, extents: Iterable[Extent]) -> tuple[Extent, ...]:
        """Return extents by the numbers that packs and frames have now."""
        return tuple(
            Extent(self._pack_numbers[pack], self._frame_numbers[pack][frame], offset, length)
            for pack, frame, offset, length in extents
        )


def slice_extents(extents: Iterable[Extent], packs: Sequence[Pack], offset: int, length: int) -> list[Extent]:
    """Return where some bytes of a file lie, from ``offset`` on, in extents of the same packs."""
    found: list[Extent] = []
    end, at = offset + length, 0
    for extent in extents:
        begin, stop = max(offset, at), min(end, at + extent.length)
        if begin < stop:
            pack = packs[extent.pack]
            frame, in_frame = pack.find(pack.position(extent.frame) + extent.offset + begin - at)
            found.append(Extent(extent.pack, frame, in_frame, stop - begin))
        at += extent.length
    return found
