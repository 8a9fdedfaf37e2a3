"""WAL that is received again is held against the archive's: each byte that counts, and none that does not."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from core.wal_builder import PAGE_SIZE, RM_HEAP, RecordSpec, WalBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.engine.archive_comparison import ArchiveComparison
from pgwal.errors import HistoryMismatch
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.local import LocalStore
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_compressor import compress_segment
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory, TimelineSwitch

SIZE = 1 << 20
GEOMETRY = WalGeometry(SIZE)
KINDS = ("plain", "zstd", "lz4", "gzip")


def built(sizes: list[int], *, timeline_id: int = 1, filling: int = 1) -> WalBuilder:
    """Return WAL with records of such sizes, from the start of segment 1 on."""
    builder = WalBuilder(17, start_lsn=SIZE, timeline_id=timeline_id)
    for size in sizes:
        builder.append(RecordSpec(RM_HEAP, main_data=bytes([filling]) * size))
    return builder


def whole_before(builder: WalBuilder, lsn: int) -> Lsn:
    return max((record.end_lsn for record in builder.records if record.end_lsn <= lsn), default=Lsn(SIZE))


class StoredWal:
    """An archive of parts of some WAL."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.store = LocalStore(root)
        self.store.create_directory("wal")
        self.archive = WalArchive(self.store, GEOMETRY)

    def add_whole(self, builder: WalBuilder, timeline_id: int, number: int, kind: str = "plain") -> None:
        name = GEOMETRY.file_name(timeline_id, number)
        content = builder.wal_between(number * SIZE, (number + 1) * SIZE).ljust(SIZE, b"\0")
        (self._root / "wal" / name).write_bytes(content)
        if kind != "plain":
            compress_segment(self.store, GEOMETRY, name, Compression(CompressionMethod(kind), 1))

    def add_partial(
        self, builder: WalBuilder, timeline_id: int, end: int, rest: bytes = b"", *, is_short: bool = False
    ) -> None:
        number = GEOMETRY.last_segment_no(end)
        content = builder.wal_between(number * SIZE, end) + rest
        content = content[:SIZE] if is_short else content[:SIZE].ljust(SIZE, b"\0")
        (self._root / "wal" / f"{GEOMETRY.file_name(timeline_id, number)}.partial").write_bytes(content)

    def compare(
        self, history: TimelineHistory, timeline_id: int, received: bytes, cuts: list[int], start: int = SIZE
    ) -> ArchiveComparison:
        """Compare what was received from ``start`` on, in pieces, and return the comparison."""
        comparison = ArchiveComparison(self.archive, history, timeline_id, Lsn(start))
        places = sorted({0, len(received), *(cut % (len(received) + 1) for cut in cuts)})
        try:
            for begin, end in pairwise(places):
                comparison.compare(Lsn(start + begin), memoryview(received)[begin:end])
        finally:
            comparison.close()
        return comparison


@contextmanager
def stored_wal() -> Iterator[StoredWal]:
    with tempfile.TemporaryDirectory() as directory:
        yield StoredWal(Path(directory))


def changed(received: bytes, at: int) -> bytes:
    return received[:at] + bytes([received[at] ^ 1]) + received[at + 1 :]


record_sizes = st.lists(st.sampled_from([0, 20, 300, 3000, 60_000, 400_000, 1_300_000]), min_size=3, max_size=14)
cut_places = st.lists(st.integers(0, 1 << 32), max_size=6)
fractions = st.floats(0, 1, exclude_max=True)


@settings(max_examples=60)
@given(record_sizes, st.data(), cut_places, fractions, st.integers(0, 1 << 16).map(Random))
def test_each_byte_that_counts(
    sizes: list[int], data: st.DataObject, cuts: list[int], place: float, random: Random
) -> None:
    builder, history = built([*sizes, 900_000, 20]), TimelineHistory(1)
    # Records end at multiples of 8.
    end = 8 * data.draw(st.integers(SIZE // 8 + 1, builder.end_lsn // 8))
    last = GEOMETRY.last_segment_no(end)
    counting = whole_before(builder, end)
    with stored_wal() as stored:
        for number in range(1, last):
            stored.add_whole(builder, 1, number, data.draw(st.sampled_from(KINDS)))
        # Behind what counts lies anything: half a record, what a lost page held, or nothing.
        rest = random.randbytes(data.draw(st.sampled_from([0, 0, 3000])))
        stored.add_partial(builder, 1, end, rest, is_short=data.draw(st.booleans()))
        received = builder.wal()
        comparison = stored.compare(history, 1, received, cuts)
        # A page's header is WAL too, and the start of a segment of which nothing counts.
        place_of = GEOMETRY.first_record_position
        assert counting <= comparison.end <= max(place_of(counting), last * SIZE)
        counting = comparison.end
        assert comparison.first_missing == last * SIZE
        # Whole segments count to their ends, in the middle of a record too.
        counting = max(counting, Lsn(last * SIZE))
        if counting > SIZE:
            at = int(place * (counting - SIZE))
            with pytest.raises(HistoryMismatch, match="nothing was overwritten") as raised:
                stored.compare(history, 1, changed(received, at), cuts)
            assert (raised.value.timeline_id, raised.value.lsn) == (1, SIZE + at)
        if counting < builder.end_lsn:
            at = counting - SIZE + int(place * (builder.end_lsn - counting))
            stored.compare(history, 1, changed(received, at), cuts)


@settings(max_examples=60)
@given(record_sizes, st.data(), cut_places, fractions)
def test_ancestors_copies_count_up_to_the_switch(
    sizes: list[int], data: st.DataObject, cuts: list[int], place: float
) -> None:
    """Timeline 2 begins with a copy of timeline 1's segment, up to where it left that."""
    first = built(sizes)
    switch = data.draw(st.sampled_from([record.end_lsn for record in first.records]))
    second = first.cut(switch, 2)
    for _ in range(3):
        second.append(RecordSpec(RM_HEAP, main_data=b"2" * 4000))
    first.append(RecordSpec(RM_HEAP, main_data=b"1" * 4000))
    number, history = GEOMETRY.last_segment_no(switch), TimelineHistory(2, (TimelineSwitch(1, switch),))
    start = number * SIZE
    with stored_wal() as stored:
        for before in range(1, number):
            stored.add_whole(first, 1, before)
        stored.add_partial(first, 1, min(first.end_lsn, start + SIZE))
        received = second.wal_between(start, start + SIZE)
        stored.compare(history, 2, received, cuts, start)
        # A record that crosses into the segment counts when it is whole.
        at = int(place * (switch - start))
        with pytest.raises(HistoryMismatch) as raised:
            stored.compare(history, 2, changed(received, at), cuts, start)
        # What is not the same is timeline 1, which the server has as part of timeline 2's segment.
        assert (raised.value.timeline_id, raised.value.lsn) == (1, start + at)
        if len(received) > switch - start:
            stored.compare(history, 2, changed(received, switch - start), cuts, start)


@pytest.mark.parametrize("is_in_front", [True, False])
def test_a_record_that_reaches_into_the_open_segment_counts_when_it_is_whole(is_in_front: bool) -> None:
    """A power cut has left its last page, and the record behind it, but not all between."""
    builder = built([300, 1_200_000, 20, 20])
    history, received = TimelineHistory(1), builder.wal_between(2 * SIZE, 3 * SIZE)
    first_behind = builder.records[2].lsn
    with stored_wal() as stored:
        if is_in_front:
            stored.add_whole(builder, 1, 1)
        stored.add_partial(builder, 1, builder.end_lsn)
        path = stored.store.path(f"wal/{GEOMETRY.file_name(1, 2)}.partial")
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[2 * PAGE_SIZE - 4096 : 2 * PAGE_SIZE] = bytes(4096)
        path.write_bytes(damaged)
        comparison = stored.compare(history, 1, received, [], 2 * SIZE)
        # Nothing behind it was reported; and of one that begins before the archive does nobody needs the rest.
        assert comparison.end == (2 * SIZE if is_in_front else builder.end_lsn)
        behind = changed(received, first_behind - 2 * SIZE + 30)
        if not is_in_front:
            # Nor may it be written over by one that ends elsewhere, and hides what is behind it.
            for other in (behind, changed(received, 16)):
                with pytest.raises(HistoryMismatch):
                    stored.compare(history, 1, other, [7, 45], 2 * SIZE)
        path.write_bytes(whole)
        if is_in_front:
            for at in (100, PAGE_SIZE + 100, first_behind - 2 * SIZE + 30):
                with pytest.raises(HistoryMismatch) as raised:
                    stored.compare(history, 1, changed(received, at), [], 2 * SIZE)
                assert raised.value.lsn == 2 * SIZE + at


def test_a_record_over_several_segments_counts_when_it_is_whole() -> None:
    builder, history = built([300, 3_500_000, 20]), TimelineHistory(1)
    number = GEOMETRY.last_segment_no(builder.end_lsn)
    assert number == 4
    with stored_wal() as stored:
        for before in range(1, number):
            stored.add_whole(builder, 1, before, "zstd")
        stored.add_partial(builder, 1, builder.end_lsn)
        received = builder.wal_between(number * SIZE, builder.end_lsn)
        assert stored.compare(history, 1, received, [], number * SIZE).end == builder.end_lsn
        with pytest.raises(HistoryMismatch) as raised:
            stored.compare(history, 1, changed(received, 200), [], number * SIZE)
        assert raised.value.lsn == number * SIZE + 200
        path = stored.store.path(f"wal/{GEOMETRY.file_name(1, number)}.partial")
        path.write_bytes(changed(path.read_bytes(), 200))
        assert stored.compare(history, 1, received, [], number * SIZE).end == number * SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_what_was_received(kind: str) -> None:
    builder = built([300_000] * 12)
    received = memoryview(builder.wal())
    with stored_wal() as stored:
        for number in (1, 2, 3):
            stored.add_whole(builder, 1, number, kind)
        comparison = ArchiveComparison(stored.archive, TimelineHistory(1), 1, Lsn(SIZE))
        comparison.compare(Lsn(SIZE), received[:PAGE_SIZE])
        tracemalloc.start()
        try:
            for at in range(PAGE_SIZE, 3 * SIZE, PAGE_SIZE):
                comparison.compare(Lsn(SIZE + at), received[at : at + PAGE_SIZE])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            comparison.close()
    assert peak < SIZE // 2


def test_zeros_behind_a_switch_count_where_the_file_is_short() -> None:
    builder = built([300, 20])
    end = builder.end_lsn
    builder.append_switch()
    received = builder.wal()
    with stored_wal() as stored:
        stored.add_partial(builder, 1, end + 24, is_short=True)
        stored.compare(TimelineHistory(1), 1, received, [1000])
        with pytest.raises(HistoryMismatch) as raised:
            stored.compare(TimelineHistory(1), 1, changed(received, SIZE - 5), [1000])
        assert raised.value.lsn == 2 * SIZE - 5


def test_a_first_page_that_is_none() -> None:
    """Nothing counts of an open segment then, and a whole one is damaged."""
    builder, history = built([300] * 20), TimelineHistory(1)
    with stored_wal() as stored:
        stored.add_partial(builder, 1, builder.end_lsn)
        path = stored.store.path(f"wal/{GEOMETRY.file_name(1, 1)}.partial")
        path.write_bytes(b"\1" * PAGE_SIZE + path.read_bytes()[PAGE_SIZE:])
        comparison = stored.compare(history, 1, builder.wal(), [])
        assert comparison.end == SIZE
        path.rename(path.with_suffix(""))
        comparison = ArchiveComparison(stored.archive, history, 1, Lsn(SIZE))
        assert comparison.is_damaged_before(Lsn(SIZE + 8)) == GEOMETRY.file_name(1, 1)


@given(st.integers(0, 1_000_000))
def test_where_the_record_before_ends(more: int) -> None:
    builder = built([SIZE - 200 + more, 20])
    size = builder.records[0].total_length - GEOMETRY.record_bytes_per_segment
    if size > 0:
        assert GEOMETRY.position_behind(2, size) == builder.records[1].lsn
