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

from pgwal.engine.archive_comparison import ArchiveComparison
from pgwal.engine.recovery_gap import is_in_gap
from pgwal.errors import FormatError, ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.repository.memory import MemoryStore
from pgwal.repository.store import ByteRange
from pgwal.repository.wal_archive import WalArchive
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory

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

    def __init__(self, content: bytes, timeline_id: int = 1) -> None:
        super().__init__()
        self.content = content
        self.changes = 0
        self.timeline_id = timeline_id
        self.put(self.name, content)

    @property
    def name(self) -> str:
        return f"wal/{GEOMETRY.file_name(self.timeline_id, 1)}.{self.changes:016X}.partial"

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        found = super().get_ranges(name, ranges)
        if self.changes < 6:
            self.change()
        return found

    def change(self) -> None:
        self.delete(self.name)
        self.changes += 1
        self.put(self.name, self.content)


@pytest.mark.parametrize("reading", ["records", "bytes", "comparison", "copy"])
def test_a_segment_that_is_stored_anew_between_reads_is_read_to_its_end(reading: str) -> None:
    wal = WalBuilder(18, start_lsn=SIZE)
    for number in range(200):
        wal.append(RecordSpec(RM_HEAP, 0, 700, (BlockSpec(0, block_no=number, data=bytes(3000)),), b""))
    content = wal.wal_to_segment_end()[:SIZE]
    store = GrowingStore(content, timeline_id=2 if reading == "copy" else 1)
    archive = WalArchive(store, GEOMETRY)
    (segment,) = archive.segments()
    if reading == "bytes":
        assert b"".join(archive.read(1, Lsn(SIZE))) == content
    elif reading == "copy":
        # Of what the first timeline had of it, the second one begins with the same.
        switch = Lsn(2 * SIZE - 8192)
        archive.write_history(2, f"1\t{switch}\tpromoted\n".encode())
        assert b"".join(archive.read(1, Lsn(SIZE))) == content[: switch - SIZE].ljust(SIZE, b"\0")
    elif reading == "comparison":
        comparison = ArchiveComparison(archive, TimelineHistory(1), 1, Lsn(SIZE))
        for at in range(0, 600_000, 8192):
            comparison.compare(Lsn(SIZE + at), content[at : at + 8192])
            store.change()
        comparison.close()
        return
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


def test_a_segment_is_completed_between_a_listing_and_a_look_at_its_first_page(tmp_path: Path) -> None:
    """As in an archive of pg_receivewal, which is listed before its segments are told from recycled ones."""
    wal = WalBuilder(18, start_lsn=SIZE)
    wal.append(RecordSpec(RM_HEAP, 0, 700, (), bytes(100)))
    content = wal.wal_to_segment_end()[:SIZE]
    for place in (local(tmp_path), cloud_memory(tmp_path)):
        store, name = place.store, f"wal/{GEOMETRY.file_name(1, 1)}"
        store.put(f"{name}.partial", content)
        archive = WalArchive(store, GEOMETRY)
        (segment,) = archive.segments()
        store.put(name, content)
        store.delete(f"{name}.partial")
        assert archive.first_page_timeline(segment) == 1
        assert archive.continued_size(segment) == 0
        store.delete(name)
        with pytest.raises(ObjectNotFound, match="is not in wal"):
            archive.first_page_timeline(segment)
