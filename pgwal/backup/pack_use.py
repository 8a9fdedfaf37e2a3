"""What is needed of the packs of a repository, whose frames some backups share: pure decisions for expire."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pgwal.backup.moved_frames import FrameMoves, FramePlace
from pgwal.backup.pack_table import Frame, Pack
from pgwal.budget import WORN_SHARE


@dataclass(frozen=True, slots=True)
class WornPack:
    """A pack that is better rewritten, and the frames that are needed of it, in the order in which they lie there."""

    name: str
    size_bytes: int
    frames: Sequence[Frame] = field(repr=False)

    @property
    def needed_bytes(self) -> int:
        return sum(frame.stored_size_bytes for frame in self.frames)


@dataclass(frozen=True, slots=True)
class PackUse:
    """Names: of the packs that are needed, and of those whose tables are; and the worn ones, of which least is needed
    first."""

    needed: Collection[str]
    needed_tables: Collection[str]
    worn: Sequence[WornPack]

    def rewritten(self, most_bytes: int) -> list[WornPack]:
        """Return the worn packs that may be rewritten, when that is to store at most so many bytes."""
        found = []
        for worn in self.worn:
            most_bytes -= worn.needed_bytes
            if most_bytes < 0:
                break
            found.append(worn)
        return found


class PackUsers:
    """Finds out what is needed of packs: to be told of those of each backup, and once more of the ``doubtful`` ones.

    So what is held in memory are the frames of packs of which little is needed, and of those that some were moved from.
    """

    def __init__(self, sizes: Mapping[str, int], moves: FrameMoves) -> None:
        """``sizes`` are those of the packs that are there, by name."""
        self._sizes = sizes
        self._moves = moves
        self._most_needed: dict[str, int] = {}
        """What one backup alone needs of packs, by name."""
        self._frames: dict[str, dict[int, Frame]] = {}

    def see(self, packs: Iterable[Pack]) -> None:
        """Take the packs of a backup."""
        for pack in packs:
            needed = sum(frame.stored_size_bytes for frame in pack)
            self._most_needed[pack.name] = max(needed, self._most_needed.get(pack.name, 0))

    def doubtful(self) -> set[str]:
        """Return the names of the packs of which it matters which frames are needed; all backups must be seen."""
        return {
            name
            for name, needed in self._most_needed.items()
            if self._moves.is_moved(name) or _is_worn(needed, self._sizes.get(name, 0))
        }

    def see_frames(self, packs: Iterable[Pack], doubtful: Collection[str]) -> None:
        """Take the packs of a backup once more."""
        for pack in packs:
            if pack.name in doubtful:
                self._frames.setdefault(pack.name, {}).update((frame.offset, frame) for frame in pack)

    def use(self) -> PackUse:
        """Return what was found; all backups must be seen twice, if any pack is doubtful."""
        needed = self._most_needed.keys() - self._frames.keys()
        tables = set[str]()
        frames: dict[str, dict[int, Frame]] = {}
        for name, of_pack in self._frames.items():
            for offset, frame in of_pack.items():
                place = last_place(self._moves, self._sizes, name, offset)
                if place is not None:
                    frames.setdefault(place.pack_name, {})[place.offset] = frame
                    tables.update(place.tables)
        worn = [
            WornPack(name, self._sizes[name], [of_pack[offset]._replace(offset=offset) for offset in sorted(of_pack)])
            for name, of_pack in frames.items()
            if name not in needed
        ]
        worn = [pack for pack in worn if _is_worn(pack.needed_bytes, pack.size_bytes)]
        return PackUse(needed | frames.keys(), tables, sorted(worn, key=lambda pack: (pack.needed_bytes, pack.name)))


def last_place(moves: FrameMoves, sizes: Mapping[str, int], pack_name: str, offset: int) -> FramePlace | None:
    """Return where a frame was moved to last, as far as the packs are there, by ``sizes``, that tables tell of."""
    found = None
    for place in moves.places(pack_name, offset):
        moved, size_bytes = moves.pack(place.pack_name), sizes.get(place.pack_name)
        if size_bytes is not None and (moved is None or moved.size_bytes == size_bytes):
            found = place
    return found


def _is_worn(needed_bytes: int, size_bytes: int) -> bool:
    return needed_bytes * WORN_SHARE < size_bytes
