"""One bit, two meanings: 0x0004 in a page header is BKP_REMOVABLE up to 18, FIRST_IS_OVERWRITE_CONTRECORD from 19 on.

Both forms of the scanner and the decoder choose by the page magic.  WAL is built here bit by bit.
"""

from __future__ import annotations

import struct
from types import ModuleType

import pytest
from core.wal_builder import FIRST_IS_CONTRECORD, PAGE_SIZE, RM_HEAP, BlockSpec, RecordSpec, WalBuilder
from module_forms import both_forms

from pgwal.lsn import Lsn
from pgwal.wal import scan
from pgwal.wal.decoder import NEED_DATA, WalDecoder
from pgwal.wal.record import EndOfWal, EndReason, WalRecord

START = 1 << 20
SEGMENT_SIZE = 1 << 20
BIT_OF_BOTH = 0x0004
# What marks the page behind a record that a crash cut off.
OVERWRITE = {18: 0x0008, 19: 0x0004}

every_form = pytest.mark.parametrize("form", both_forms(scan))


def read(form: ModuleType, wal: bytes) -> tuple[list[Lsn], EndOfWal | None]:
    """Return the blocks and the end that the scanner finds; the decoder must find the same records and the same end."""
    scanner = form.WalScanner(SEGMENT_SIZE, START)
    scanner.feed(wal)
    while (event := scanner.scan()) == form.SPECIAL:
        pass
    end = EndOfWal(Lsn(scanner.position), EndReason(scanner.end_reason)) if event == form.END_OF_WAL else None
    decoder = WalDecoder(SEGMENT_SIZE, START)
    decoder.feed(wal)
    records = []
    while isinstance(item := decoder.next_record(), WalRecord):
        records.append(item.lsn)
    assert (item if isinstance(item, EndOfWal) else None) == end
    assert item is NEED_DATA or isinstance(item, EndOfWal)
    assert (scanner.record_count, scanner.last_record_lsn) == (len(records), records[-1] if records else 0)
    return records, end


def with_flags(wal: bytes, page: int, set_bits: int = 0, clear_bits: int = 0) -> bytes:
    changed = bytearray(wal)
    at = page * PAGE_SIZE + 2
    (flags,) = struct.unpack_from("<H", wal, at)
    struct.pack_into("<H", changed, at, flags & ~clear_bits | set_bits)
    return bytes(changed)


def over_two_pages(major: int) -> WalBuilder:
    """A record that goes on on the second page, and one behind it."""
    builder = WalBuilder(major)
    builder.append(RecordSpec())
    builder.append(RecordSpec(RM_HEAP, 0, blocks=(BlockSpec(0, block_no=3),), main_data=bytes(PAGE_SIZE)))
    builder.append(RecordSpec())
    return builder


def cut_off(major: int) -> WalBuilder:
    """A record that was cut off at the end of the first page, and the records that come in its place."""
    builder = WalBuilder(major)
    builder.append(RecordSpec())
    builder.append_cut_off(RecordSpec(RM_HEAP, 0, blocks=(BlockSpec(0, block_no=7),), main_data=bytes(PAGE_SIZE)))
    builder.append(RecordSpec(RM_HEAP, 0, blocks=(BlockSpec(0, block_no=8),), main_data=bytes(3)))
    return builder


@every_form
def test_18_ignores_the_bit(form: ModuleType) -> None:
    builder = over_two_pages(18)
    for page in (0, 1):
        assert read(form, with_flags(builder.wal(), page, BIT_OF_BOTH)) == ([r.lsn for r in builder.records], None)


@every_form
def test_18_does_not_take_the_bit_for_an_overwritten_record(form: ModuleType) -> None:
    """The record goes on nowhere: WAL ends with it, and nothing is skipped."""
    builder = cut_off(18)
    wal = with_flags(builder.wal(), 1, BIT_OF_BOTH, OVERWRITE[18])
    records, end = read(form, wal)
    assert records == [builder.records[0].lsn]
    assert end == EndOfWal(builder.records[0].end_lsn, EndReason.CONTRECORD)


@every_form
@pytest.mark.parametrize("major", [18, 19])
def test_an_overwritten_record_never_happened(form: ModuleType, major: int) -> None:
    builder = cut_off(major)
    assert struct.unpack_from("<H", builder.wal(), PAGE_SIZE + 2)[0] & OVERWRITE[major]
    records, end = read(form, builder.wal())
    assert (records, end) == ([record.lsn for record in builder.records], None)
    scanner = form.WalScanner(SEGMENT_SIZE, START)
    scanner.feed(builder.wal())
    while scanner.scan() == form.SPECIAL:
        pass
    assert [list(blocks) for _, blocks in scanner.take_blocks()] == [[8]]


@every_form
def test_19_takes_the_bit_for_an_overwritten_record_alone(form: ModuleType) -> None:
    """On a page on which a record does go on, the bit voids that record, whatever else the header says."""
    builder = over_two_pages(19)
    wal = builder.wal()
    assert read(form, wal) == ([record.lsn for record in builder.records], None)
    assert struct.unpack_from("<H", wal, PAGE_SIZE + 2)[0] == FIRST_IS_CONTRECORD
    records, end = read(form, with_flags(wal, 1, BIT_OF_BOTH))
    assert records == [builder.records[0].lsn]
    assert end is not None


@every_form
@pytest.mark.parametrize("page", [0, 1])
def test_19_has_no_bit_0x0008(form: ModuleType, page: int) -> None:
    builder = over_two_pages(19)
    _, end = read(form, with_flags(builder.wal(), page, 0x0008))
    assert end is not None
    assert end.reason == EndReason.PAGE_FLAGS


@every_form
def test_19_lets_no_cut_off_record_pass_by_the_bit_of_18(form: ModuleType) -> None:
    builder = cut_off(19)
    records, end = read(form, with_flags(builder.wal(), 1, 0x0008, OVERWRITE[19]))
    assert records == [builder.records[0].lsn]
    assert end == EndOfWal(builder.records[0].end_lsn, EndReason.PAGE_FLAGS)
