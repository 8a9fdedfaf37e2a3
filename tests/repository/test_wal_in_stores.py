"""WAL is the same wherever it is stored, though an object store is asked for less of it."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random

import pytest
from core.wal_builder import RM_HEAP, BlockSpec, RecordSpec, WalBuilder
from repository.places import cloud_memory, local

from pgwal.engine.recovery_gap import is_in_gap
from pgwal.errors import FormatError
from pgwal.lsn import Lsn
from pgwal.repository.memory import MemoryStore
from pgwal.repository.store import ByteRange
from pgwal.repository.wal_archive import WalArchive
from pgwal.segment import WalGeometry

SIZE = 1 << 20
GEOMETRY = WalGeometry(SIZE)
NUMBERS = range(0xFE, 0x103)
"""On both sides of where the names of segments change in more than their last two digits."""
SWITCH = Lsn(0x100 * SIZE + 3 * 8192)


def objects(random: Random) -> dict[str, bytes]:
    """Return some WAL of two timelines, of which the second leaves the first within a segment."""
    found = {"00000002.history": f"1\t{SWITCH}\tpromoted\n".encode()} if random.random() < 0.8 else {}
    for timeline_id, number in product((1, 2), NUMBERS):
        if (timeline_id == 1) != (number <= 0x100) and random.random() < 0.8:
            continue
        name, content = GEOMETRY.file_name(timeline_id, number), bytes([timeline_id, number & 0xFF]) * (SIZE // 2)
        fate = random.random()
        if fate < 0.65:
            found[name] = content
        elif fate < 0.85:
            found[f"{name}.partial"] = content[: random.randrange(1, SIZE)]
    return found


@pytest.mark.parametrize("seed", range(12))
def test_an_archive_is_the_same_in_a_directory_and_in_a_store(tmp_path: Path, seed: int) -> None:
    places = local(tmp_path), cloud_memory(tmp_path)
    for name, content in objects(Random(seed)).items():
        for place in places:
            place.store.put(f"wal/{name}", content)
    here, there = (WalArchive(place.store, GEOMETRY) for place in places)
    assert here.segments() == there.segments()
    for timeline_id, first, last in product((1, 2), NUMBERS, NUMBERS):
        numbers = range(first, last + 1)
        if not numbers:
            continue
        for whole in (range(0), numbers[:-1], numbers):
            # Not what is known from the last time.
            anew = WalArchive(places[1].store, GEOMETRY)
            expected = here.first_missing(timeline_id, numbers, whole=whole)
            assert anew.first_missing(timeline_id, numbers, whole=whole) == expected
            assert there.first_missing(timeline_id, numbers, whole=whole) == expected
    for key in product((1, 2), NUMBERS):
        expected_gap = is_in_gap(here.segments(), here.histories(), GEOMETRY, *key)
        assert is_in_gap(*there.behind(*key), GEOMETRY, *key) == expected_gap
    for timeline_id, number in product((1, 2), NUMBERS):
        start = Lsn(number * SIZE + 5 * 8192)
        with there.reading_again():
            for _ in range(2):
                assert b"".join(there.read(timeline_id, start)) == b"".join(here.read(timeline_id, start))


class GrowingStore(MemoryStore):
    """Has the open segment under another name after each of the first reads, as a receiver stores it that is quick."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content
        self.changes = 0
        self.put(self.name, content)

    @property
    def name(self) -> str:
        return f"wal/{GEOMETRY.file_name(1, 1)}.{self.changes:016X}.partial"

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        found = super().get_ranges(name, ranges)
        if self.changes < 6:
            self.delete(self.name)
            self.changes += 1
            self.put(self.name, self.content)
        return found


@pytest.mark.parametrize("reading", ["records", "bytes"])
def test_a_segment_that_is_stored_anew_between_reads_is_read_to_its_end(reading: str) -> None:
    wal = WalBuilder(18, start_lsn=SIZE)
    for number in range(200):
        wal.append(RecordSpec(RM_HEAP, 0, 700, (BlockSpec(0, block_no=number, data=bytes(3000)),), b""))
    content = wal.wal_to_segment_end()[:SIZE]
    store = GrowingStore(content)
    archive = WalArchive(store, GEOMETRY)
    (segment,) = archive.segments()
    if reading == "bytes":
        assert b"".join(archive.read(1, Lsn(SIZE))) == content
    else:
        end, _ = archive.end_of_records(segment)
        assert end > Lsn(SIZE + 500_000)
    assert store.changes == 6


def test_two_forms_of_a_segment_that_differ_are_an_error_in_a_store_too(tmp_path: Path) -> None:
    place = cloud_memory(tmp_path)
    name = GEOMETRY.file_name(1, NUMBERS[0])
    place.store.put(f"wal/{name}", bytes(SIZE))
    place.store.put(f"wal/{name}.gz", gzip.compress(bytes(SIZE - 1) + b"\1"))
    archive = WalArchive(place.store, GEOMETRY)
    assert archive.first_missing(1, NUMBERS[:1]) is None
    with pytest.raises(FormatError, match="hold different WAL"):
        b"".join(archive.read(1, Lsn(NUMBERS[0] * SIZE)))
