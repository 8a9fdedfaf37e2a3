"""The scanner against what was built, against the construct decoder, and its two forms against each other."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import google_crc32c
import pytest
import strategies
from core.wal_builder import (
    LONG_HEADER,
    PAGE_SIZE,
    RM_BTREE,
    RM_DBASE,
    RM_HEAP,
    RM_HEAP2,
    RM_SMGR,
    RM_XACT,
    RM_XLOG,
    SHORT_HEADER,
    XLOG_OVERWRITE_CONTRECORD,
    BlockSpec,
    BuiltRecord,
    ImageSpec,
    RecordSpec,
    WalBuilder,
    overwrite_contrecord_flag,
    references,
    with_recycled_tail,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from module_forms import interpreted

import pgwal.wal.scan
from pgwal.errors import ErrorFacts, FormatError, PgwalError, UnknownRecord, UnsupportedVersion
from pgwal.lsn import Lsn
from pgwal.wal import page_magic
from pgwal.wal.decoder import NEED_DATA as DECODER_NEEDS_DATA
from pgwal.wal.decoder import WalDecoder
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record import EndOfWal, EndReason
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, SPECIAL, STOP

SEGMENT_SIZE = 1 << 20


INTERPRETED = interpreted("pgwal.wal.scan")
FORMS = {"interpreted": INTERPRETED}
if pgwal.wal.scan.COMPILED:
    FORMS["compiled"] = pgwal.wal.scan

forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())

# What is built may be large, and the interpreted form takes its time.
many = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def test_compiled_form_is_there_when_it_is_required() -> None:
    is_required = os.environ.get("PGWAL_REQUIRE_COMPILED", "") not in ("", "0")
    if is_required and os.environ.get("PGWAL_SCAN") != "interpreted":
        assert pgwal.wal.scan.COMPILED
    assert not INTERPRETED.COMPILED


# --- what a scan gives, as plain values -------------------------------------------------------------------

Blocks = dict[tuple[int, int, int, int], set[int]]


@dataclass
class Outcome:
    """All that a scanner says of some WAL."""

    result: int = NEED_DATA
    error: tuple[str, str, ErrorFacts] | None = None
    end_reason: int = 0
    position: int = 0
    timeline_id: int = 0
    record_count: int = 0
    reference_count: int = 0
    last_record_lsn: int = 0
    first_record_lsn: int = 0
    first_prev_lsn: int = 0
    blocks: Blocks | None = None
    derived: Blocks | None = None
    specials: list[tuple[object, ...]] | None = None


def collect(blocks: Blocks, taken: list[tuple[tuple[int, int, int, int], array[int]]]) -> None:
    for relation, numbers in taken:
        assert numbers.typecode == "I"
        assert len(numbers) > 0
        blocks.setdefault(relation, set()).update(numbers)


class Reader:
    """Feeds a scanner and notes what it says."""

    def __init__(self, form: ModuleType, start_lsn: int, *, stop_lsn: int | None = None, **options: int) -> None:
        self.scanner = form.WalScanner(SEGMENT_SIZE, start_lsn, **options)
        if stop_lsn is not None:
            self.scanner.stop_lsn = stop_lsn
        self.blocks: Blocks = {}
        self.derived: Blocks = {}
        self.specials: list[tuple[object, ...]] = []
        self.result = NEED_DATA
        self.error: tuple[str, str, ErrorFacts] | None = None

    def feed(self, chunk: bytes) -> None:
        self.scanner.feed(chunk)
        self.go_on()

    def go_on(self) -> None:
        if self.error is not None:
            return
        try:
            while (result := self.scanner.scan()) == SPECIAL:
                self._note_special()
        except PgwalError as error:
            self.error = type(error).__name__, str(error), error.facts
            return
        self.result = result
        collect(self.blocks, self.scanner.take_blocks())

    def _note_special(self) -> None:
        s = self.scanner
        collect(self.blocks, s.take_blocks())
        lsns = (s.special_lsn, s.special_end_lsn, s.special_prev_lsn)
        seen = {relation: frozenset(numbers) for relation, numbers in self.blocks.items()}
        self.specials.append((*lsns, s.special_xid, s.special_rmid, s.special_info, s.special_main, seen))

    def outcome(self) -> Outcome:
        collect(self.derived, self.scanner.take_derived_blocks())
        s = self.scanner
        reason = s.end_reason
        assert reason is None or isinstance(reason, EndReason)
        return Outcome(
            self.result,
            self.error,
            int(reason or 0),
            s.position,
            s.timeline_id,
            s.record_count,
            s.block_reference_count,
            s.last_record_lsn,
            s.first_record_lsn,
            s.first_prev_lsn,
            self.blocks,
            self.derived,
            self.specials,
        )


def scan_as(
    form: ModuleType, wal: bytes, start_lsn: int, *, chunks: list[int] | None = None, **options: int
) -> Outcome:
    """Scan WAL by one form, fed in chunks of these sizes."""
    reader = Reader(form, start_lsn, **options)
    at = 0
    for size in chunks or [len(wal)]:
        reader.feed(wal[at : at + size])
        at += size
    assert at == len(wal)
    return reader.outcome()


def scan_all(wal: bytes, start_lsn: int, *, chunks: list[int] | None = None, **options: int) -> Outcome:
    """Scan WAL by each form, whole and in chunks, and return what all of them say."""
    first, *others = (
        scan_as(form, wal, start_lsn, chunks=sizes, **options)
        for form in FORMS.values()
        for sizes in ([None, chunks] if chunks else [None])
    )
    assert all(other == first for other in others)
    return first


# --- the model: what the formats' tables say of a record ---------------------------------------------------


def is_special(spec: RecordSpec) -> bool:
    operation = spec.info & 0xF0
    if spec.rmid == RM_XLOG:
        return operation in (0x00, 0x10, 0x60, 0x80, 0x90, 0xE0)
    if spec.rmid == RM_XACT and operation in (0x80, 0xA0, 0xB0, 0xC0):
        xinfo = spec.main_data[8:12]
        return len(xinfo) < 4 or bool(int.from_bytes(xinfo, "little") & 0x004)
    return spec.rmid in (RM_SMGR, RM_DBASE)


# (rmid, info & 0x70): offset of the flags, {bit: ids of the block references of which the first that is there counts}
MAP_CLEARING = {
    (RM_HEAP, 0x00): (2, {0x01: (0,)}),
    (RM_HEAP, 0x10): (7, {0x01: (0,)}),
    (RM_HEAP, 0x20): (7, {0x02: (0,), 0x01: (1, 0)}),
    (RM_HEAP, 0x40): (7, {0x02: (0,), 0x01: (1, 0)}),
    (RM_HEAP, 0x60): (7, {0x01: (0,)}),
    (RM_HEAP2, 0x50): (0, {0x01: (0,)}),
    (RM_HEAP2, 0x60): (7, {0x01: (0,)}),
}


def derived_blocks(records: list[BuiltRecord], major: int) -> Blocks:
    derived: Blocks = {}
    if major >= 19:
        # Its records refer to the map's blocks.
        return derived
    for spec in (record.spec for record in records):
        offset, bits = MAP_CLEARING.get((spec.rmid, spec.info & 0x70), (0, {}))
        flags = spec.main_data[offset] if offset < len(spec.main_data) else 0
        by_id = {block.block_id: block for block in spec.blocks}
        for bit, ids in bits.items():
            there = [by_id[block_id] for block_id in ids if block_id in by_id]
            if flags & bit and there:
                derived.setdefault((*there[0].locator, 2), set()).add(there[0].block_no // 32672)
    return derived


def blocks_of(records: list[BuiltRecord]) -> Blocks:
    blocks: Blocks = {}
    for relation, number in references(records):
        blocks.setdefault(relation, set()).add(number)
    return blocks


def specials_of(reported: list[BuiltRecord]) -> list[tuple[object, ...]]:
    specials: list[tuple[object, ...]] = []
    for index, record in enumerate(reported):
        spec = record.spec
        if is_special(spec):
            seen = {relation: frozenset(numbers) for relation, numbers in blocks_of(reported[:index]).items()}
            lsns = (record.lsn, record.end_lsn, record.prev_lsn)
            specials.append((*lsns, spec.xid, spec.rmid, spec.info, spec.main_data, seen))
    return specials


def position_after(record: BuiltRecord) -> int:
    if (record.spec.rmid, record.spec.info & 0xF0) == (RM_XLOG, 0x40):
        return -(-record.end_lsn // SEGMENT_SIZE) * SEGMENT_SIZE
    return record.end_lsn


def assert_is(outcome: Outcome, records: list[BuiltRecord], major: int = 17) -> None:
    """Hold an outcome to the records that it should have reported."""
    assert outcome.error is None
    assert outcome.record_count == len(records)
    assert outcome.reference_count == len(references(records))
    assert outcome.blocks == blocks_of(records)
    assert outcome.derived == derived_blocks(records, major)
    assert outcome.specials == specials_of(records)
    first = (records[0].lsn, records[0].prev_lsn) if records else (0, 0)
    assert (outcome.first_record_lsn, outcome.first_prev_lsn) == first
    if records:
        assert outcome.last_record_lsn == records[-1].lsn


# --- any WAL -----------------------------------------------------------------------------------------------


@many
@given(data=st.data(), builder=strategies.wal_builders())
def test_reports_what_was_written_however_it_is_cut(data: st.DataObject, builder: WalBuilder) -> None:
    wal = builder.wal()
    outcome = scan_all(wal, builder.start_lsn, chunks=data.draw(strategies.chunkings(len(wal))))
    assert outcome.result == NEED_DATA
    assert_is(outcome, builder.records, builder.major)
    assert outcome.position == builder.end_lsn


@settings(many, max_examples=20)
@given(builder=strategies.wal_builders(max_steps=6))
def test_byte_by_byte_is_as_good_as_whole(builder: WalBuilder) -> None:
    wal = builder.wal()[: 4 * PAGE_SIZE]
    whole = scan_all(wal, builder.start_lsn)
    assert scan_all(wal, builder.start_lsn, chunks=[1] * len(wal)) == whole


@many
@given(data=st.data(), builder=strategies.wal_builders())
def test_prefix_gives_the_records_that_are_whole(data: st.DataObject, builder: WalBuilder) -> None:
    wal = builder.wal()
    size = data.draw(st.integers(0, len(wal)))
    outcome = scan_all(wal[:size], builder.start_lsn)
    whole = [record for record in builder.records if record.end_lsn <= builder.start_lsn + size]
    assert outcome.result == NEED_DATA
    assert_is(outcome, whole, builder.major)


@settings(many, max_examples=30)
@given(builder=strategies.wal_builders(small=True, max_steps=4))
def test_every_prefix_of_a_few_records(builder: WalBuilder) -> None:
    wal = builder.wal()
    for size in range(len(wal)):
        whole = [record for record in builder.records if record.end_lsn <= builder.start_lsn + size]
        assert_is(scan_all(wal[:size], builder.start_lsn), whole, builder.major)


@many
@given(data=st.data(), builder=strategies.wal_builders())
def test_starts_at_any_position(data: st.DataObject, builder: WalBuilder) -> None:
    start = data.draw(st.integers(builder.start_lsn, builder.end_lsn - 1))
    switches = [record for record in builder.records if record.spec.info == 0x40 and record.spec.rmid == RM_XLOG]
    if any(record.end_lsn - 8 < start - start % PAGE_SIZE + PAGE_SIZE <= position_after(record) for record in switches):
        # Pages behind a switch are zeros: there is no walk from there.
        return
    wal = builder.wal_from(start)
    outcome = scan_all(wal, start, chunks=data.draw(strategies.chunkings(len(wal))))
    assert_is(outcome, [record for record in builder.records if record.lsn >= start], builder.major)


@forms
@many
@given(data=st.data(), builder=strategies.wal_builders())
def test_stops_before_a_record_and_goes_on(form: ModuleType, data: st.DataObject, builder: WalBuilder) -> None:
    start = builder.start_lsn
    near = [record.lsn + by for record in builder.records for by in (-8, -1, 0, 1, 8)]
    stops = data.draw(st.lists(st.one_of(st.sampled_from(near), st.integers(start, builder.end_lsn)), max_size=4))
    wal = builder.wal()
    chunks = data.draw(strategies.chunkings(len(wal)))
    reader = Reader(form, start, stop_lsn=0)
    feeds = iter([wal[sum(chunks[:index]) : sum(chunks[: index + 1])] for index in range(len(chunks))])
    for stop in [*sorted(stops), (1 << 64) - 1]:
        reader.scanner.stop_lsn = stop
        reader.go_on()
        for chunk in feeds:
            if reader.result == STOP:
                reader.scanner.feed(chunk)
                break
            reader.feed(chunk)
        before = [record for record in builder.records if record.lsn < stop]
        if reader.result == STOP:
            assert reader.scanner.record_count == len(before)
            assert reader.blocks == blocks_of(before)
        reader.go_on()
        assert reader.scanner.record_count <= len(before)
    for chunk in feeds:
        reader.feed(chunk)
    assert_is(reader.outcome(), builder.records, builder.major)


@many
@given(data=st.data(), builder=strategies.wal_builders(max_steps=10))
def test_stop_is_seen_with_the_last_byte_of_the_record_before(data: st.DataObject, builder: WalBuilder) -> None:
    index = data.draw(st.integers(0, len(builder.records) - 1))
    last = builder.records[index]
    fed = builder.wal()[: last.end_lsn - builder.start_lsn]
    following = builder.records[index + 1].lsn if index + 1 < len(builder.records) else builder.next_lsn
    stop = data.draw(st.sampled_from([last.lsn + 1, last.end_lsn, position_after(last), following]))
    if last.lsn < stop <= position_after(last) or stop == following == builder.next_lsn:
        assert scan_all(fed, builder.start_lsn, stop_lsn=stop).result == STOP
        assert scan_all(fed, builder.start_lsn, stop_lsn=stop).position == position_after(last)
    # One byte less and the record is not whole.
    assert scan_all(fed[:-1], builder.start_lsn, stop_lsn=stop).result == NEED_DATA


@many
@given(data=st.data(), builder=strategies.wal_builders(max_steps=8))
def test_no_changed_bit_passes(data: st.DataObject, builder: WalBuilder) -> None:
    wal = bytearray(builder.wal())
    record_index = data.draw(st.integers(0, len(builder.records) - 1))
    record = builder.records[record_index]
    at = data.draw(st.sampled_from(_covered_bytes(builder, record)))
    wal[at] ^= 1 << data.draw(st.integers(0, 7))
    outcome = scan_all(bytes(wal), builder.start_lsn)
    if outcome.error is not None:
        # A length that became too large ran into the page that discards another record.
        assert "overwrites another record" in outcome.error[1]
        assert outcome.record_count == record_index
        return
    if outcome.result == NEED_DATA:
        # A length that is too large waits for pages that never come.
        assert outcome.record_count == record_index
    assert_is(outcome, builder.records[:record_index], builder.major)


def _covered_bytes(builder: WalBuilder, record: BuiltRecord) -> list[int]:
    """Offsets in the WAL of a record's bytes, without page headers and padding, no more than a few hundred."""
    at, left, offsets = record.lsn - builder.start_lsn, record.total_length, []
    while left:
        lsn = builder.start_lsn + at
        if lsn % PAGE_SIZE == 0:
            at += LONG_HEADER if lsn % SEGMENT_SIZE == 0 else SHORT_HEADER
        offsets.append(at)
        at += 1
        left -= 1
    return offsets if len(offsets) < 400 else offsets[:200] + offsets[-200:]


@many
@given(data=st.data(), builder=strategies.wal_builders())
def test_forms_and_decoder_agree_on_damaged_wal(data: st.DataObject, builder: WalBuilder) -> None:
    wal = bytearray(builder.wal_to_segment_end())
    end = len(builder.wal())
    for _ in range(data.draw(st.integers(0, 3))):
        page_head = data.draw(st.integers(0, (end - 1) // PAGE_SIZE)) * PAGE_SIZE
        anywhere = st.one_of(st.integers(0, 63).map(lambda by, head=page_head: head + by), st.integers(0, end - 1))
        at = min(data.draw(anywhere), len(wal) - 1)
        wal[at] = data.draw(st.one_of(st.integers(0, 255), st.just(wal[at] ^ 1 << data.draw(st.integers(0, 7)))))
    start = data.draw(st.integers(builder.start_lsn, builder.start_lsn + 2 * PAGE_SIZE))
    fed = bytes(wal[start - start % PAGE_SIZE - builder.start_lsn :])
    magic = data.draw(st.sampled_from([0, builder.wal_format.magic]))
    assert_all_agree(fed, start, magic=magic, chunks=data.draw(strategies.chunkings(len(fed))))


bodies = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.one_of(
            st.integers(0, 32).map(lambda block_id: bytes([block_id])),
            st.sampled_from([b"\xff", b"\xfe", b"\xfd", b"\xfc", b"\x00\x00\x00", b"\x10", b"\x20", b"\x80", b"\x01"]),
            st.binary(max_size=30),
        ),
        max_size=12,
    ).map(b"".join),
)


@many
@given(
    major=strategies.majors,
    body=bodies,
    rmid=st.one_of(st.integers(0, 25), st.integers(126, 255)),
    info=st.integers(0, 255),
)
@example(major=17, body=b"\xff\x00", rmid=RM_XLOG, info=XLOG_OVERWRITE_CONTRECORD)
def test_forms_and_decoder_agree_on_records_that_do_not_parse(major: int, body: bytes, rmid: int, info: int) -> None:
    builder = WalBuilder(major)
    builder.append(RecordSpec())
    builder.append(RecordSpec(rmid, info, body=body))
    builder.append(RecordSpec())
    assert_all_agree(builder.wal(), builder.start_lsn, magic=0)


@many
@given(data=st.data(), major=strategies.majors)
def test_forms_and_decoder_agree_on_damaged_bodies(data: st.DataObject, major: int) -> None:
    spec = data.draw(strategies.record_specs(major))
    body = bytearray(spec.encode_body(wal_format_of_major(major)))
    for _ in range(data.draw(st.integers(1, 3)) if body else 0):
        # In the headers, which come first; damaged payloads are as good as others.
        at = data.draw(st.integers(0, min(len(body) - 1, 60)))
        body[at] = data.draw(st.one_of(st.integers(0, 255), st.just(body[at] ^ 1 << data.draw(st.integers(0, 7)))))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body))) :]
    builder = WalBuilder(major)
    builder.append(replace(spec, body=bytes(body)))
    assert_all_agree(builder.wal(), builder.start_lsn, magic=0)


@many
@given(data=st.data(), builder=strategies.wal_builders())
def test_forms_and_decoder_agree_on_prefixes(data: st.DataObject, builder: WalBuilder) -> None:
    wal = builder.wal()
    wal = wal[: data.draw(st.integers(0, len(wal)))]
    assert_all_agree(wal, builder.start_lsn, magic=0)


def assert_all_agree(wal: bytes, start_lsn: int, *, magic: int, chunks: list[int] | None = None) -> None:
    outcome = scan_all(wal, start_lsn, magic=magic, chunks=chunks)
    assert_decoder_agrees(wal, start_lsn, magic, outcome)


def assert_decoder_agrees(wal: bytes, start_lsn: int, magic: int, outcome: Outcome) -> None:
    decoder = WalDecoder(SEGMENT_SIZE, start_lsn, wal_format=page_magic.WAL_FORMATS[magic] if magic else None)
    decoder.feed(wal)
    count = reference_count = 0
    first_record = (0, 0)
    blocks: Blocks = {}
    error = None
    event: object = None
    while True:
        try:
            event = decoder.next_record()
        except FormatError as caught:
            error = type(caught).__name__
            break
        if isinstance(event, EndOfWal) or event is DECODER_NEEDS_DATA:
            break
        if count == 0:
            first_record = (event.lsn, event.prev_lsn)
        count += 1
        for block in event.blocks:
            reference_count += 1
            blocks.setdefault((*block.locator, int(block.fork)), set()).add(block.block_no)
    assert (outcome.error[0] if outcome.error is not None else None) == error
    assert (outcome.first_record_lsn, outcome.first_prev_lsn) == first_record
    if error is not None:
        # The scanner's blocks are not taken after an error, and the bad record does not count.
        assert outcome.record_count == count
        return
    assert (outcome.record_count, outcome.reference_count) == (count, reference_count)
    assert outcome.blocks == blocks
    if isinstance(event, EndOfWal):
        assert (outcome.result, outcome.position, outcome.end_reason) == (END_OF_WAL, event.lsn, event.reason)
    else:
        assert outcome.result == NEED_DATA
    assert outcome.timeline_id == decoder.timeline_id


# --- where WAL ends ----------------------------------------------------------------------------------------


def three_pages(major: int = 17, start_lsn: int = 1 << 20) -> WalBuilder:
    """A record, one that continues on the second and third page, one behind it."""
    builder = WalBuilder(major, start_lsn=start_lsn)
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=1),), main_data=bytes(3)))
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=2),), main_data=bytes(2 * PAGE_SIZE)))
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=3),), main_data=bytes(3)))
    return builder


def put(wal: bytes, at: int, layout: str, *values: int) -> bytes:
    return wal[:at] + struct.pack(layout, *values) + wal[at + struct.calcsize(layout) :]


def ends(
    wal: bytes, start_lsn: int = 1 << 20, *, chunks: list[int] | None = None, **options: int
) -> tuple[int, int, int]:
    """Return (records, position, reason) of WAL that ends."""
    outcome = scan_all(wal, start_lsn, chunks=chunks, **options)
    assert outcome.result == END_OF_WAL
    return outcome.record_count, outcome.position, outcome.end_reason


@pytest.mark.parametrize(
    ("at", "layout", "value", "reason"),
    [
        (PAGE_SIZE, "<H", 0xD101, EndReason.PAGE_MAGIC),
        (PAGE_SIZE, "<H", 0, EndReason.PAGE_MAGIC),
        (PAGE_SIZE + 2, "<H", 0x0011, EndReason.PAGE_FLAGS),
        (PAGE_SIZE + 2, "<H", 0x0003, EndReason.PAGE_LONG_HEADER),
        (PAGE_SIZE + 8, "<Q", 0, EndReason.PAGE_ADDRESS),
        (PAGE_SIZE + 4, "<I", 0, EndReason.PAGE_TIMELINE),
        (PAGE_SIZE + 2, "<H", 0x0000, EndReason.CONTRECORD),
        (PAGE_SIZE + 16, "<I", 9000, EndReason.CONTRECORD),
        (PAGE_SIZE + 16, "<I", 0, EndReason.CONTRECORD),
    ],
)
def test_bad_page_ends_wal_at_the_record_that_it_continues(at: int, layout: str, value: int, reason: EndReason) -> None:
    builder = three_pages()
    wal = put(builder.wal(), at, layout, value)
    assert ends(wal) == (1, builder.records[1].lsn, reason)


@pytest.mark.parametrize(
    ("at", "layout", "value", "reason"),
    [
        (0, "<H", 0, EndReason.PAGE_MAGIC),
        (2, "<H", 0x0012, EndReason.PAGE_FLAGS),
        (2, "<H", 0x0000, EndReason.PAGE_LONG_HEADER),
        (32, "<I", 1 << 24, EndReason.PAGE_LONG_HEADER),
        (36, "<I", 4096, EndReason.PAGE_LONG_HEADER),
        (8, "<Q", 0, EndReason.PAGE_ADDRESS),
    ],
)
def test_bad_first_page_ends_wal_at_the_page(at: int, layout: str, value: int, reason: EndReason) -> None:
    assert ends(put(three_pages().wal(), at, layout, value)) == (0, 1 << 20, reason)


def test_page_of_another_cluster_ends_wal() -> None:
    wal = three_pages().wal()
    assert scan_all(wal, 1 << 20, system_identifier=WalBuilder().system_identifier).record_count == 3
    assert ends(wal, system_identifier=7) == (0, 1 << 20, EndReason.PAGE_LONG_HEADER)


def test_page_of_another_version_than_the_first_ends_wal() -> None:
    builder = three_pages(17)
    assert ends(put(builder.wal(), PAGE_SIZE, "<H", 0xD118))[2] == EndReason.PAGE_MAGIC
    assert ends(builder.wal(), magic=0xD118) == (0, 1 << 20, EndReason.PAGE_MAGIC)


def test_record_on_a_page_that_continues_another_ends_wal() -> None:
    builder = WalBuilder()
    builder.append_filler(0)
    builder.append(RecordSpec())
    wal = put(builder.wal(), PAGE_SIZE + 2, "<H", 0x0001)
    assert ends(wal) == (1, builder.start_lsn + PAGE_SIZE, EndReason.CONTRECORD)


@pytest.mark.parametrize(
    ("by", "layout", "value", "reason"),
    [
        (0, "<I", 0, EndReason.RECORD_LENGTH),
        (0, "<I", 23, EndReason.RECORD_LENGTH),
        (8, "<Q", 0, EndReason.RECORD_PREV_LINK),
        (4, "<I", 5, EndReason.RECORD_CRC),
        (16, "<B", 0x10, EndReason.RECORD_CRC),
        (30, "<B", 0x10, EndReason.RECORD_CRC),
    ],
)
def test_what_is_no_record_ends_wal(by: int, layout: str, value: int, reason: EndReason) -> None:
    for index in (1, 2):
        builder = three_pages()
        lsn = builder.records[index].lsn
        wal = put(builder.wal(), lsn - builder.start_lsn + by, layout, value)
        sevens = [min(7, len(wal) - at) for at in range(0, len(wal), 7)]
        assert ends(wal, chunks=sevens) == (index, lsn, reason)


def test_first_record_must_link_back() -> None:
    builder = three_pages()
    first = builder.records[0].lsn
    builder = WalBuilder(prev_lsn=first)
    builder.append(RecordSpec())
    assert ends(builder.wal()) == (0, first, EndReason.RECORD_PREV_LINK)


def test_prev_lsn_holds_the_first_reported_record_to_the_one_before() -> None:
    builder = three_pages()
    first, second, third = (record.lsn for record in builder.records)
    for start, prev in ((second, first), (third, second)):
        wal = builder.wal_from(start)
        expected = scan_all(wal, start)
        assert expected.record_count > 0
        assert scan_all(wal, start, prev_lsn=prev) == expected
        assert ends(wal, start, prev_lsn=prev - 8) == (0, start, EndReason.RECORD_PREV_LINK)


def test_records_before_the_start_are_checked_too() -> None:
    builder = WalBuilder()
    for _ in range(4):
        builder.append(RecordSpec())
    second, last = builder.records[1].lsn, builder.records[3].lsn
    wal = put(builder.wal(), second - builder.start_lsn + 8, "<Q", second - 8)
    assert ends(wal, last) == (0, second, EndReason.RECORD_PREV_LINK)
    builder = WalBuilder()
    builder.append(RecordSpec())
    broken = builder.append(RecordSpec(body=b"\x21"))
    start = builder.append(RecordSpec()).lsn
    error = scan_all(builder.wal(), start).error
    assert error is not None
    assert str(broken.lsn) in error[1]


def test_tail_of_a_file_ends_wal() -> None:
    builder = three_pages()
    assert ends(builder.wal_to_segment_end()) == (3, builder.end_lsn, EndReason.RECORD_LENGTH)
    count, position, reason = ends(with_recycled_tail(builder))
    assert (count, position) == (3, builder.end_lsn)
    assert reason in (
        EndReason.RECORD_LENGTH,
        EndReason.RECORD_PREV_LINK,
        EndReason.CONTRECORD,
        EndReason.PAGE_ADDRESS,
    )
    builder.append_filler(0)
    assert ends(with_recycled_tail(builder)) == (4, builder.end_lsn, EndReason.PAGE_ADDRESS)
    assert ends(builder.wal_to_segment_end()) == (4, builder.end_lsn, EndReason.PAGE_MAGIC)


@forms
def test_end_is_final(form: ModuleType) -> None:
    builder = three_pages()
    reader = Reader(form, builder.start_lsn)
    reader.feed(builder.wal() + bytes(24))
    before = reader.outcome()
    assert before.result == END_OF_WAL
    reader.feed(builder.wal())
    assert reader.outcome() == before


@forms
def test_unknown_magic_is_an_error_that_stays(form: ModuleType) -> None:
    wal = put(three_pages().wal(), 0, "<H", 0xD101)
    scanner = form.WalScanner(SEGMENT_SIZE, 1 << 20)
    scanner.feed(wal)
    for _ in range(2):
        with pytest.raises(UnsupportedVersion, match=r"0/100000.*0xd101"):
            scanner.scan()
    with pytest.raises(UnsupportedVersion):
        form.WalScanner(SEGMENT_SIZE, 1 << 20, magic=0xD101)


@forms
def test_invalid_segment_size_is_refused(form: ModuleType) -> None:
    with pytest.raises(FormatError, match="segment size"):
        form.WalScanner(1 << 20 | 8192, 1 << 20)


def test_length_is_not_believed_before_its_bytes_arrive() -> None:
    builder = WalBuilder()
    builder.append_filler(8)
    wal = builder.wal() + struct.pack("<II", 0xFFFFFFF0, 0)
    next_page = struct.pack("<HHIQI4x", builder.wal_format.magic, 1, 1, builder.end_lsn + 8, 0xFFFFFFF0 - 8)
    link = struct.pack("<Q", builder.prev_lsn)
    tracemalloc.start()
    outcome = scan_all(wal + next_page + link + bytes(PAGE_SIZE - 32), builder.start_lsn)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (outcome.result, outcome.record_count) == (NEED_DATA, 1)
    assert peak < 4 << 20


# --- switches and cut-off records --------------------------------------------------------------------------


def test_switch_leads_to_the_next_segment() -> None:
    builder = three_pages()
    switch = builder.append_switch()
    behind = builder.append(RecordSpec())
    wal = builder.wal()
    to_switch = wal[: switch.end_lsn - builder.start_lsn]
    assert scan_all(to_switch, builder.start_lsn).position == 2 << 20
    assert scan_all(wal, builder.start_lsn).record_count == 5
    # Unread: it could be anything.
    noise = random.Random(1).randbytes((2 << 20) - switch.end_lsn)
    assert scan_all(to_switch + noise + wal[1 << 20 :], builder.start_lsn).record_count == 5
    # Nothing is left before a stop anywhere up to the next record.
    for stop in (switch.end_lsn, (1 << 20) + 5 * PAGE_SIZE, 2 << 20, behind.lsn):
        assert scan_all(to_switch, builder.start_lsn, stop_lsn=stop).result == STOP
    assert scan_all(to_switch, builder.start_lsn, stop_lsn=behind.lsn + 1).result == NEED_DATA


@pytest.mark.parametrize("left", range(0, 40, 8))
def test_switch_at_a_page_end(left: int) -> None:
    builder = WalBuilder()
    builder.append_filler(left)
    builder.append_switch()
    builder.append(RecordSpec())
    outcome = scan_all(builder.wal(), builder.start_lsn)
    assert_is(outcome, builder.records, builder.major)


def test_switch_in_the_last_bytes_of_a_segment_skips_nothing() -> None:
    builder = WalBuilder(start_lsn=(2 << 20) - PAGE_SIZE)
    builder.append_filler(24)
    switch = builder.append_switch()
    assert switch.end_lsn == 2 << 20
    builder.append(RecordSpec())
    assert_is(scan_all(builder.wal(), builder.start_lsn), builder.records, builder.major)


@pytest.mark.parametrize("pages", [1, 2, 3])
@pytest.mark.parametrize("left", [8, 16, 24, 4000])
def test_record_that_was_cut_off_never_happened(pages: int, left: int) -> None:
    builder = WalBuilder()
    builder.append_filler(left)
    lost = RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=99),), main_data=bytes(4 * PAGE_SIZE))
    builder.append_cut_off(lost, pages)
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=1),), main_data=bytes(3)))
    outcome = scan_all(builder.wal(), builder.start_lsn)
    assert_is(outcome, builder.records, builder.major)
    assert outcome.blocks == {(1663, 5, 16384, 0): {1}}


def test_position_moves_to_the_page_that_discards() -> None:
    builder = three_pages()
    builder.append_cut_off(RecordSpec(main_data=bytes(PAGE_SIZE)))
    boundary = builder.end_lsn
    builder.append(RecordSpec())
    wal = builder.wal()[: boundary - builder.start_lsn + SHORT_HEADER]
    assert scan_all(wal, builder.start_lsn).position == boundary
    assert scan_all(wal[:-1], builder.start_lsn).position == builder.records[2].end_lsn
    assert scan_all(wal, builder.start_lsn, stop_lsn=boundary).result == STOP


def test_overwriting_another_record_is_an_error() -> None:
    builder = WalBuilder()
    lsn = builder.append_cut_off(RecordSpec(main_data=bytes(PAGE_SIZE)))
    builder._overwritten_lsn = Lsn(lsn + 8)
    builder.append(RecordSpec())
    outcome = scan_all(builder.wal(), builder.start_lsn)
    assert outcome.error is not None
    assert outcome.error[0] == "FormatError"
    assert f"{Lsn(lsn + PAGE_SIZE - LONG_HEADER + SHORT_HEADER)}" in outcome.error[1]


def test_overwrite_flag_on_a_first_page_is_nothing_special() -> None:
    builder = WalBuilder()
    lost = builder.append_cut_off(RecordSpec(main_data=bytes(PAGE_SIZE)))
    builder.append(RecordSpec())
    start = lost - lost % PAGE_SIZE + PAGE_SIZE
    wal = builder.wal_from(start)
    assert struct.unpack_from("<H", wal, 2)[0] & overwrite_contrecord_flag(builder.major)
    assert_is(scan_all(wal, start), builder.records)


# --- single records ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("major", strategies.MAJORS)
def test_images_of_every_kind(major: int) -> None:
    images = [ImageSpec(), ImageSpec.with_hole(100, 5000), ImageSpec(300, compression="pglz")]
    images += [
        ImageSpec(300, 60, 4000, compression) for compression in ["pglz", "lz4", "zstd"][: 1 if major < 15 else 3]
    ]
    builder = WalBuilder(major)
    for image in images:
        blocks = (BlockSpec(0, block_no=5, image=image, data=b"x"), BlockSpec(2, block_no=6, image=image))
        builder.append(RecordSpec(RM_BTREE, 0, blocks=blocks, main_data=b"main"))
    assert_is(scan_all(builder.wal(), builder.start_lsn), builder.records, builder.major)


def block_header(
    block_id: int = 0, flags: int = 0, length: int = 0, image: bytes = b"", *, locator: bool = True
) -> bytes:
    """A block header as it stands, right or wrong."""
    header = struct.pack("<BBH", block_id, flags, length) + image
    return header + (struct.pack("<III", 1663, 5, 16384) if locator else b"") + struct.pack("<I", 1)


WHOLE = struct.pack("<HHB", 8192, 0, 0x02)
HOLE_AT_ZERO = struct.pack("<HHB", 8000, 0, 0x03)
HOLE_OF_NOTHING = struct.pack("<HHB", 8192, 100, 0x03)
OFFSET_WITHOUT_HOLE = struct.pack("<HHB", 8192, 100, 0x02)
SHORT_WITHOUT_HOLE = struct.pack("<HHB", 8000, 0, 0x02)
LONGER_THAN_A_BLOCK = struct.pack("<HHB", 8193, 100, 0x03)
COMPRESSED_TO_A_BLOCK = struct.pack("<HHB", 8192, 0, 0x06)
COMPRESSED_HOLE_OF_NOTHING = struct.pack("<HHBH", 100, 100, 0x07, 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xff", "headers end early"),
        (b"\xfe\x00\x00\x00", "headers end early"),
        (b"\xfd\x00", "headers end early"),
        (b"\xfc\x00\x00\x00", "headers end early"),
        (block_header()[:3], "headers end early"),
        (block_header()[:12], "headers end early"),
        (block_header()[:19], "headers end early"),
        (block_header(flags=0x10, image=WHOLE)[:8], "headers end early"),
        (block_header(flags=0x10, image=WHOLE)[:24], "headers end early"),
        (block_header() + block_header(1, 0x90, image=WHOLE, locator=False)[:12], "headers end early"),
        (b"\x21", "no such block or data id"),
        (b"\xfb", "no such block or data id"),
        (block_header(3) + block_header(3), "out of order"),
        (block_header(3) + block_header(2), "out of order"),
        (block_header(flags=0x20), "data length"),
        (block_header(length=1) + b"x", "data length"),
        (block_header(flags=0x80, locator=False), "names no relation"),
        (block_header(flags=0x04), "no known fork"),
        (block_header(flags=0x10, image=HOLE_AT_ZERO) + bytes(8000), "image header"),
        (block_header(flags=0x10, image=HOLE_OF_NOTHING) + bytes(8192), "image header"),
        (block_header(flags=0x10, image=OFFSET_WITHOUT_HOLE) + bytes(8192), "image header"),
        (block_header(flags=0x10, image=SHORT_WITHOUT_HOLE) + bytes(8000), "image header"),
        (block_header(flags=0x10, image=LONGER_THAN_A_BLOCK) + bytes(8193), "image header"),
        (block_header(flags=0x10, image=COMPRESSED_TO_A_BLOCK) + bytes(8192), "image header"),
        (block_header(flags=0x10, image=COMPRESSED_HOLE_OF_NOTHING) + bytes(100), "image header"),
        (block_header(flags=0x20, length=5) + bytes(4), "do not add up"),
        (block_header() + b"\xff\x03ab", "do not add up"),
        (b"\xff\x01ab", "do not add up"),
        (b"\xfe\xff\xff\xff\xffab", "do not add up"),
    ],
)
def test_body_that_does_not_parse_is_an_error(body: bytes, why: str) -> None:
    builder = WalBuilder(17)
    builder.append(RecordSpec())
    broken = builder.append(RecordSpec(RM_BTREE, 0x00, body=body))
    builder.append(RecordSpec())
    outcome = scan_all(builder.wal(), builder.start_lsn)
    assert outcome.error is not None
    assert outcome.error[0] == "FormatError"
    assert f"record at {broken.lsn}: its CRC is right, but" in outcome.error[1]
    assert why in outcome.error[1]
    assert outcome.error[2] == {"lsn": broken.lsn}
    assert (outcome.record_count, outcome.position) == (1, broken.lsn)
    assert_decoder_agrees(builder.wal(), builder.start_lsn, 0, outcome)


@pytest.mark.parametrize(("major", "reads"), [(13, False), (14, True), (18, True)])
def test_top_level_xid_exists_from_14_on(major: int, reads: bool) -> None:
    builder = WalBuilder(major)
    builder.append(RecordSpec(body=struct.pack("<BI", 252, 7)))
    assert (scan_all(builder.wal(), builder.start_lsn).error is None) == reads


@forms
@pytest.mark.parametrize(
    ("major", "rmid", "info", "known"),
    [
        (13, 21, 0x00, True),
        (13, 22, 0x00, False),
        (18, 22, 0x00, False),
        (18, 127, 0x00, False),
        (14, 128, 0x00, False),
        (15, 128, 0x00, True),
        (18, 255, 0xF0, True),
        (18, 255, 0xF1, False),
        (17, RM_HEAP, 0x01, False),
        (17, RM_XLOG, 0x21, False),
        (17, RM_XACT, 0x81, True),
        (17, RM_SMGR, 0x21, True),
        (17, RM_DBASE, 0x01, True),
    ],
)
def test_record_that_announces_the_unknown_is_an_error(
    form: ModuleType, major: int, rmid: int, info: int, known: bool
) -> None:
    builder = WalBuilder(major)
    builder.append(RecordSpec())
    unknown = builder.append(RecordSpec(rmid, info, main_data=bytes(16)))
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn)
    scanner.feed(builder.wal())
    if known:
        assert scanner.scan() in (NEED_DATA, SPECIAL)
        return
    for _ in range(2):
        with pytest.raises(UnknownRecord) as caught:
            scanner.scan()
    assert f"record at {unknown.lsn}: rmgr {rmid}, info {info:#04x}" in str(caught.value)
    assert str(major) in str(caught.value)
    assert scanner.record_count == 1


@forms
def test_special_record_gives_its_references_afterwards(form: ModuleType) -> None:
    builder = WalBuilder()
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=1),), main_data=bytes(3)))
    special = RecordSpec(RM_SMGR, 0x21, 77, (BlockSpec(0, (9, 9, 9), block_no=2),), bytes(range(20)))
    built = builder.append(special)
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=3),), main_data=bytes(3)))
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn)
    scanner.feed(builder.wal())
    assert scanner.scan() == SPECIAL
    assert (scanner.special_lsn, scanner.special_end_lsn, scanner.special_prev_lsn) == (
        built.lsn,
        built.end_lsn,
        built.prev_lsn,
    )
    assert (scanner.special_xid, scanner.special_rmid, scanner.special_info) == (77, RM_SMGR, 0x21)
    assert scanner.special_main == bytes(range(20))
    assert scanner.position == built.end_lsn
    assert scanner.take_blocks() == [((1663, 5, 16384, 0), array("I", [1]))]
    assert scanner.scan() == NEED_DATA
    assert sorted(scanner.take_blocks()) == [((9, 9, 9, 0), array("I", [2])), ((1663, 5, 16384, 0), array("I", [3]))]


@forms
def test_map_blocks_of_an_update_across_pages(form: ModuleType) -> None:
    builder = WalBuilder()
    blocks = (BlockSpec(0, block_no=32672), BlockSpec(1, block_no=3 * 32672 - 1))
    builder.append(RecordSpec(RM_HEAP, 0x20, blocks=blocks, main_data=bytes(7) + b"\x03" + bytes(6)))
    outcome = scan_all(builder.wal(), builder.start_lsn)
    assert outcome.derived == {(1663, 5, 16384, 2): {1, 2}}
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn, derive_map_blocks=False)
    scanner.feed(builder.wal())
    assert scanner.scan() == NEED_DATA
    assert scanner.take_derived_blocks() == []


@forms
def test_taking_forgets_and_suppression_begins_anew(form: ModuleType) -> None:
    builder = WalBuilder()
    spec = RecordSpec(RM_HEAP, 0x10, blocks=(BlockSpec(0, block_no=5),), main_data=bytes(7) + b"\x01")
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn)
    for _ in range(3):
        at = len(builder.wal())
        builder.append(spec)
        builder.append(spec)
        scanner.feed(builder.wal()[at:])
        assert scanner.scan() == NEED_DATA
        assert scanner.take_blocks() == [((1663, 5, 16384, 0), array("I", [5]))]
        assert scanner.take_blocks() == []
        assert scanner.take_derived_blocks() == [((1663, 5, 16384, 2), array("I", [0]))]
        assert scanner.take_derived_blocks() == []
    assert scanner.block_reference_count == 6


def test_tables_grow_with_what_is_not_taken() -> None:
    builder = WalBuilder()
    heap_data = bytes(7) + b"\x01"
    for number in range(2500):
        blocks = tuple(
            BlockSpec(block_id, (1663, 5, number), block_no=block_id * 32672 + number) for block_id in range(33)
        )
        builder.append(RecordSpec(RM_HEAP, 0x10, blocks=blocks, main_data=heap_data))
    assert_is(scan_all(builder.wal(), builder.start_lsn), builder.records, builder.major)


@forms
def test_memory_of_a_large_record_is_given_back(form: ModuleType) -> None:
    builder = WalBuilder()
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=5),), main_data=bytes(6 << 20)))
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=6),), main_data=bytes(PAGE_SIZE)))
    wal = builder.wal()
    first = builder.records[0].end_lsn - builder.start_lsn
    tracemalloc.start()
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn)
    before = tracemalloc.get_traced_memory()[0]
    scanner.feed(memoryview(wal)[:first])
    assert scanner.scan() == NEED_DATA
    assert tracemalloc.get_traced_memory()[0] > before + (6 << 20)
    assert scanner.take_blocks() == [((1663, 5, 16384, 0), array("I", [5]))]
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after < before + (1 << 20)
    scanner.feed(memoryview(wal)[first:])
    assert scanner.scan() == NEED_DATA
    assert scanner.take_blocks() == [((1663, 5, 16384, 0), array("I", [6]))]


@forms
def test_chunks_may_pile_up_before_a_scan(form: ModuleType) -> None:
    builder = three_pages()
    wal = builder.wal()
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn)
    for at in range(0, len(wal), 7):
        scanner.feed(memoryview(wal)[at : at + 7])
    assert scanner.feed_lsn == builder.end_lsn
    assert scanner.scan() == NEED_DATA
    assert scanner.record_count == 3


@forms
def test_no_chunk_is_held_when_all_is_read(form: ModuleType) -> None:
    builder = three_pages()
    chunk = bytearray(builder.wal())
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn)
    scanner.feed(chunk)
    assert scanner.scan() == NEED_DATA
    # A bytearray cannot change its size while anything looks at its bytes.
    chunk.clear()
    assert scanner.record_count == 3


def test_record_larger_than_the_buffer_is_put_together() -> None:
    builder = WalBuilder()
    main_data = random.Random(1).randbytes(3 << 20)
    builder.append(RecordSpec(RM_DBASE, 0x01, main_data=main_data))
    builder.append(RecordSpec())
    assert_is(scan_all(builder.wal(), builder.start_lsn), builder.records, builder.major)


# --- checksums ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["table", "sse4.2", "avx512", "armv8"])
def crc_way(request: pytest.FixtureRequest) -> Iterator[None]:
    name: str = request.param
    try:
        if pgwal.wal.scan.choose_crc32c(name) != name:
            pytest.skip(f"not on this processor, or not compiled: {name}")
        yield
    finally:
        pgwal.wal.scan.choose_crc32c()


@pytest.mark.usefixtures("crc_way")
def test_each_way_gives_the_crcs_of_google_crc32c() -> None:
    assert_crcs_are_right(pgwal.wal.scan)


@forms
def test_crcs_are_those_of_google_crc32c(form: ModuleType) -> None:
    assert_crcs_are_right(form)


def assert_crcs_are_right(form: ModuleType) -> None:
    noise = random.Random(7).randbytes(70_000)
    lengths = [*range(24, 1200), 3072 + 23, 3072 + 24, 3072 + 25, 6143 + 24, 6144 + 24, 8168, 8192, 70_000]
    for length in lengths:
        record = noise[:length]
        assert form.record_crc(record) == google_crc32c.extend(google_crc32c.value(record[24:]), record[:20])
    for length in [*range(1200), 8168, 70_000]:
        data, target = noise[70_000 - length :], bytearray(b"\xaa" * 70_008)
        before = google_crc32c.value(noise[:length])
        assert form.copied_crc(target, data, before) == google_crc32c.extend(before, data)
        assert target == data + b"\xaa" * (70_008 - length)
