"""The search for one record: what it finds is what decoding all WAL finds."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial

import pytest
import strategies
from core.wal_builder import PAGE_SIZE, RM_HEAP, RM_XACT, RM_XLOG, RecordSpec, WalBuilder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgwal.lsn import Lsn, LsnRange
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record_search import SoughtRecord, decode_records, find_record, restore_point, transaction_end

COMMIT, ABORT, COMMIT_PREPARED, ABORT_PREPARED = 0x00, 0x20, 0x30, 0x40
HAS_INFO, SPECIAL_REL_UPDATE = 0x80, 0x01
RESTORE_POINT = 0x70

XIDS = (745, 0xFF000103, 0x010030FC, 0x5D5B2D5C)
"""The last ones are made of bytes that the pattern ends with, and of such as mean something in one."""

NAMES = (b"a", b"before (the) [change]", b"aa", b"\xff" * 63)


def transaction_end_spec(
    operation: int, xid: int, *, major: int = 17, dropped: int = 0, subxacts: int = 0, long_main_data: bool = False
) -> RecordSpec:
    """Return what XactLogCommitRecord and XactLogAbortRecord write; the end of a prepared one has no xid of its own."""
    is_prepared = operation in (COMMIT_PREPARED, ABORT_PREPARED)
    xinfo = (1 | 0x10 | 0x80 if is_prepared else 0) | (2 if subxacts else 0) | (4 if dropped else 0)
    xinfo |= 0x100 if dropped and major >= 15 else 0
    data = struct.pack("<q", 817_000_000_000_000)
    data += struct.pack("<I", xinfo) if xinfo else b""
    data += struct.pack("<II", 5, 1663) if xinfo & 1 else b""
    data += struct.pack(f"<i{subxacts}I", subxacts, *range(subxacts)) if subxacts else b""
    data += struct.pack("<i", dropped) + bytes(12 * dropped) if dropped else b""
    if xinfo & 0x100:
        data += struct.pack("<i", dropped) + bytes((16 if major >= 18 else 12) * dropped)
    data += struct.pack("<I", xid) + b"gid\0" if is_prepared else b""
    info = operation | (HAS_INFO if xinfo else 0) | (SPECIAL_REL_UPDATE if dropped else 0)
    return RecordSpec(RM_XACT, info, 0 if is_prepared else xid, main_data=data, long_main_data=long_main_data)


def restore_point_spec(name: bytes) -> RecordSpec:
    return RecordSpec(RM_XLOG, RESTORE_POINT, main_data=struct.pack("<q", 0) + name.ljust(64, b"\0"))


def look_alike(xid: int, cut: int) -> RecordSpec:
    """Return a record whose data ends with what looks like a transaction's end, or with a beginning of that."""
    text = struct.pack("<I8xBBHI", xid, COMMIT, RM_XACT, 0, 0) + b"\xff"
    return RecordSpec(RM_HEAP, 0x60, main_data=NAMES[1] + b"\0" + text[:cut])


@st.composite
def ends_of_transactions(draw: st.DrawFn, major: int) -> RecordSpec:
    return transaction_end_spec(
        draw(st.sampled_from([COMMIT, ABORT, COMMIT_PREPARED, ABORT_PREPARED])),
        draw(st.sampled_from(XIDS)),
        major=major,
        dropped=draw(st.integers(0, 2)),
        # Of that many, a record goes over several pages.
        subxacts=draw(st.sampled_from([0, 0, 1, 64, 3000])),
        long_main_data=draw(st.booleans()),
    )


@st.composite
def searched_wal(draw: st.DrawFn) -> WalBuilder:
    major = draw(strategies.majors)
    builder = draw(strategies.wal_builders(major=major, max_steps=4))
    specs = st.one_of(
        ends_of_transactions(major),
        st.sampled_from(NAMES).map(restore_point_spec),
        st.builds(look_alike, st.sampled_from(XIDS), st.integers(1, 21)),
        strategies.record_specs(major),
        st.integers(0, 6),
        st.none(),
    )
    for spec in draw(st.lists(specs, min_size=1, max_size=12)):
        if spec is None:
            builder.append_switch()
        elif isinstance(spec, int):
            # What is sought starts on either side of the page's end, or has it in its header.
            builder.append_filler(8 * spec)
        else:
            builder.append(spec)
    return builder


def pieces(builder: WalBuilder, pages: int, position: Lsn) -> Iterator[bytes]:
    """Yield WAL as a repository does: from the start of a page on, in pieces of whole pages, with zeros at the end."""
    wal = builder.wal_from(position) + bytes(-builder.end_lsn % PAGE_SIZE)
    yield from (wal[at : at + pages * PAGE_SIZE] for at in range(0, len(wal), pages * PAGE_SIZE))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_what_is_found_is_what_the_decoder_finds(data: st.DataObject) -> None:
    builder = data.draw(searched_wal())
    begin, segment_size = Lsn(builder.start_lsn), builder.segment_size
    lsns = st.sampled_from([begin, *(record.lsn for record in builder.records), builder.end_lsn])
    part = LsnRange(1, *sorted((data.draw(lsns), data.draw(lsns))))
    read = partial(pieces, builder, data.draw(st.sampled_from([1, 2, 3, 128])))
    decoded = list(decode_records(read, LsnRange(1, begin, builder.end_lsn), segment_size))
    for sought in (
        *(restore_point(name) for name in NAMES),
        *(transaction_end(xid, builder.wal_format) for xid in XIDS),
    ):
        right = [record for record in decoded if part.start <= record.lsn < part.end and sought.is_it(record)]
        assert find_record(read, part, segment_size, sought) == (right[0] if right else None)


@pytest.mark.parametrize("major", strategies.MAJORS)
@pytest.mark.parametrize("dropped", [0, 1], ids=["plain", "drops-a-table"])
@pytest.mark.parametrize("operation", [COMMIT, ABORT, COMMIT_PREPARED, ABORT_PREPARED])
def test_each_end_of_a_transaction_is_found(major: int, dropped: int, operation: int) -> None:
    builder = WalBuilder(major)
    builder.append(transaction_end_spec(COMMIT, 744, major=major))
    wanted = builder.append(transaction_end_spec(operation, 745, major=major, dropped=dropped, subxacts=3))
    builder.append(transaction_end_spec(operation, 745, major=major))
    part = LsnRange(1, Lsn(builder.start_lsn), builder.end_lsn)
    sought = transaction_end(745, wal_format_of_major(major))
    found = find_record(partial(pieces, builder, 1), part, builder.segment_size, sought)
    assert found is not None
    assert found.lsn == wanted.lsn
    assert find_record(partial(pieces, builder, 1), part._replace(end=wanted.lsn), builder.segment_size, sought) is None


@pytest.mark.parametrize("pages", [1, 2], ids=["in-two-pieces", "in-one-piece"])
@pytest.mark.parametrize("left_on_page", range(8, 112, 8))
@pytest.mark.parametrize(
    ("spec", "sought"),
    [
        (transaction_end_spec(COMMIT, 745), transaction_end(745, wal_format_of_major(17))),
        (transaction_end_spec(ABORT_PREPARED, 745), transaction_end(745, wal_format_of_major(17))),
        (restore_point_spec(NAMES[3]), restore_point(NAMES[3])),
    ],
    ids=["commit", "abort-prepared", "restore-point"],
)
def test_a_record_is_found_wherever_its_page_ends(
    spec: RecordSpec, sought: SoughtRecord, left_on_page: int, pages: int
) -> None:
    builder = WalBuilder()
    builder.append_filler(left_on_page)
    wanted = builder.append(spec)
    part = LsnRange(1, Lsn(builder.start_lsn), builder.end_lsn)
    found = find_record(partial(pieces, builder, pages), part, builder.segment_size, sought)
    assert found is not None
    assert found.lsn == wanted.lsn


def test_an_end_is_found_that_begins_within_what_looks_like_one() -> None:
    """The pattern matches twenty bytes before the true one's beginning too, up to the first byte of its xid."""
    xid = 0x010030FC
    builder = WalBuilder()
    builder.append(RecordSpec(RM_HEAP, 0x60, main_data=struct.pack("<6xI8xBBH", xid, COMMIT, RM_XACT, 0)))
    wanted = builder.append(transaction_end_spec(COMMIT, xid))
    part = LsnRange(1, Lsn(builder.start_lsn), builder.end_lsn)
    sought = transaction_end(xid, builder.wal_format)
    found = find_record(partial(pieces, builder, 1), part, builder.segment_size, sought)
    assert found is not None
    assert found.lsn == wanted.lsn


def test_a_restore_point_is_found_behind_zeros() -> None:
    """Where a standby's archive begins in the middle of history, the page before a segment may hold nothing."""
    builder = WalBuilder(start_lsn=2 << 20)
    wanted = builder.append(restore_point_spec(b"here"))
    before = 2 * PAGE_SIZE

    def read(position: Lsn) -> Iterator[bytes]:
        yield (bytes(before) + builder.wal() + bytes(-builder.end_lsn % PAGE_SIZE))[position - (2 << 20) + before :]

    part = LsnRange(1, Lsn((2 << 20) - before), builder.end_lsn)
    found = find_record(read, part, builder.segment_size, restore_point(b"here"))
    assert found is not None
    assert found.lsn == wanted.lsn


def test_other_names_and_transactions_are_not_found() -> None:
    builder = WalBuilder()
    builder.append(restore_point_spec(b"here and there"))
    builder.append(look_alike(745, 21))
    builder.append(RecordSpec(RM_XACT, 0x10, 745, main_data=bytes(8)))
    builder.append(RecordSpec(RM_XACT, COMMIT_PREPARED, 745, main_data=bytes(8)))
    part = LsnRange(1, Lsn(builder.start_lsn), builder.end_lsn)
    for sought in (restore_point(b"there"), restore_point(b"here"), transaction_end(745, builder.wal_format)):
        assert find_record(partial(pieces, builder, 1), part, builder.segment_size, sought) is None
