"""What is needed of packs, held against a plain model: random backups that share packs, and frames that were moved."""

from __future__ import annotations

from array import array
from random import Random

import pytest

from pgwal.backup.moved_frames import FrameMoves, MovedFrames, Origin
from pgwal.backup.pack_table import Frame, Pack
from pgwal.backup.pack_use import PackUse, PackUsers
from pgwal.budget import WORN_SHARE

Needed = dict[str, dict[int, Frame]]


class Model:
    """Packs with all their frames, what each backup needs, and where each frame is."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.sizes: dict[str, int] = {}
        self.tables: list[MovedFrames] = []
        self.backups: list[Needed] = []
        self.frames: Needed = {}
        self.at: dict[tuple[str, int], tuple[str, int]] = {}
        """Where frames of packs that entries name are now."""
        for number in range(random.randrange(1, 7)):
            pack = self.new_pack([random.randrange(1, 100) for _ in range(random.randrange(1, 40))], number)
            self.frames[pack.name] = {frame.offset: frame for frame in pack}
            self.at |= {(pack.name, offset): (pack.name, offset) for offset in self.frames[pack.name]}
        for _ in range(random.randrange(0, 5)):
            self.backups.append(self.some())

    def new_pack(self, stored_sizes: list[int], number: int) -> Pack:
        pack = Pack(f"{number:032x}")
        for size in stored_sizes:
            pack.add(Frame(pack.size_bytes, size, size, self.random.randbytes(16)))
            pack.size_bytes += size
        self.sizes[pack.name] = pack.size_bytes
        return pack

    def some(self) -> Needed:
        found: Needed = {}
        for name, frames in self.frames.items():
            share = self.random.choice([0, 0, 0.02, 0.1, 0.3, 1])
            chosen = {offset: frame for offset, frame in frames.items() if self.random.random() < share}
            if chosen:
                found[name] = chosen
        return found

    def needed_at(self) -> dict[str, dict[int, int]]:
        """Return the sizes of the frames that are needed, by where they are."""
        found: dict[str, dict[int, int]] = {}
        for backup in self.backups:
            for name, frames in backup.items():
                for offset, frame in frames.items():
                    place, there = self.at[name, offset]
                    found.setdefault(place, {})[there] = frame.stored_size_bytes
        return found

    def use(self) -> PackUse:
        users = PackUsers(self.sizes, FrameMoves(self.tables))
        backups = [[_pack(name, frames, self) for name, frames in backup.items()] for backup in self.backups]
        for backup in backups:
            users.see(backup)
        doubtful = users.doubtful()
        for backup in backups:
            users.see_frames(backup, doubtful)
        return users.use()

    def rewrite(self, use: PackUse, number: int, *, keeping: bool) -> None:
        """Move what is needed of the worn packs into a new one; the old ones may be kept."""
        frames = [frame for worn in use.worn for frame in worn.frames]
        pack = self.new_pack([frame.stored_size_bytes for frame in frames], number)
        origins = [Origin(worn.name, array("Q", [frame.offset for frame in worn.frames])) for worn in use.worn]
        self.tables.append(MovedFrames(pack, origins))
        moved = [(worn.name, frame.offset) for worn in use.worn for frame in worn.frames]
        there = {old: (pack.name, new.offset) for old, new in zip(moved, pack, strict=True)}
        self.at = {named: there.get(place, place) for named, place in self.at.items()}
        for worn in use.worn:
            if not keeping:
                del self.sizes[worn.name]


def _pack(name: str, frames: dict[int, Frame], model: Model) -> Pack:
    pack = Pack(name, max(model.sizes.get(name, 0), 1 << 20))
    for offset in sorted(frames):
        pack.add(frames[offset])
    return pack


@pytest.mark.parametrize("seed", range(60))
def test_what_is_needed_is_what_a_plain_model_says(seed: int) -> None:
    random = Random(seed)
    model = Model(random)
    for number in range(100, 104):
        use, needed = model.use(), model.needed_at()
        assert set(use.needed) == needed.keys()
        sums = {name: sum(sizes.values()) for name, sizes in needed.items()}
        worn = {name for name, size in sums.items() if size * WORN_SHARE < model.sizes[name]}
        assert {pack.name: pack.needed_bytes for pack in use.worn} == {name: sums[name] for name in worn}
        for pack in use.worn:
            assert [frame.offset for frame in pack.frames] == sorted(needed[pack.name])
        on_the_way = {
            table.pack.name
            for table in model.tables
            for origin in table.origins
            for backup in model.backups
            for name, frames in backup.items()
            for offset in frames
            if any(table.pack.name in place.tables for place in FrameMoves(model.tables).places(name, offset))
        }
        assert set(use.needed_tables) == on_the_way
        most_bytes = random.choice([0, 50, 200, 10_000])
        rewritten = use.rewritten(most_bytes)
        assert sum(pack.needed_bytes for pack in rewritten) <= most_bytes
        assert rewritten == list(use.worn[: len(rewritten)])
        assert [pack.needed_bytes for pack in use.worn] == sorted(pack.needed_bytes for pack in use.worn)
        if use.worn:
            # With object lock in force they stay for some time, and are not needed all the same.
            model.rewrite(use, number, keeping=random.random() < 0.3)
        if model.backups and random.random() < 0.7:
            model.backups.remove(random.choice(model.backups))
        if random.random() < 0.7:
            # A merge refers to what others need.
            source = random.choice(model.backups) if model.backups else {}
            model.backups.append(
                {name: dict(random.sample(sorted(frames.items()), 1)) for name, frames in source.items()}
            )


def test_a_table_whose_pack_is_not_there_moves_nothing() -> None:
    """Its pack was taken for garbage before it was there, or is cut: what lies in the old one is needed."""
    pack = Pack("a" * 32)
    for number in range(9):
        pack.add(Frame(pack.size_bytes, 100, 100, bytes([number]) * 16))
        pack.size_bytes += 100
    new = Pack("b" * 32)
    new.add(pack[3]._replace(offset=new.size_bytes))
    new.size_bytes += 100
    needed = Pack(pack.name, pack.size_bytes)
    needed.add(pack[3])
    table = MovedFrames(new, [Origin(pack.name, array("Q", [pack[3].offset]))])
    for sizes, found, tables in (
        ({pack.name: pack.size_bytes, new.name: new.size_bytes}, {new.name}, {new.name}),
        ({new.name: new.size_bytes}, {new.name}, {new.name}),
        ({pack.name: pack.size_bytes}, {pack.name}, set()),
        ({pack.name: pack.size_bytes, new.name: new.size_bytes - 1}, {pack.name}, set()),
    ):
        users = PackUsers(sizes, FrameMoves([table]))
        users.see([needed])
        users.see_frames([needed], users.doubtful())
        use = users.use()
        assert (set(use.needed), set(use.needed_tables)) == (found, tables)
