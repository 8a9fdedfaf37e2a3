"""Records that are longer than what is kept of one: they cost no more memory, and are checked like others."""

from __future__ import annotations

import random
import struct
import tracemalloc
from types import ModuleType

import pytest
from core.test_scan import SEGMENT_SIZE, assert_decoder_agrees, assert_is, forms, scan_all
from core.wal_builder import RM_HEAP, RM_XACT, BlockSpec, ImageSpec, RecordSpec, WalBuilder

import pgwal.wal.scan
from pgwal.errors import FormatError
from pgwal.wal.decoder import WalDecoder, decode_main_data
from pgwal.wal.record import KEPT_BYTES, KEPT_BYTES_OF_LISTS, EndReason, WalRecord
from pgwal.wal.rmgr import shortenings
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, SPECIAL

# What both forms read is long, and the interpreted one says that it is slow.
pytestmark = pytest.mark.filterwarnings("ignore::pgwal.errors.SlowScanner")

MB = 1 << 20
RM_LOGICALMSG = 21
COMMIT_WITH_INFO = 0x80
HAS_SUBXACTS, HAS_RELFILELOCATORS = 0x02, 0x04
NOISE = random.Random(3).randbytes(MB)


def noise(size: int) -> bytes:
    return (NOISE * (size // MB + 1))[:size]


def heap(block_no: int, main_data: bytes = bytes(3)) -> RecordSpec:
    return RecordSpec(RM_HEAP, blocks=(BlockSpec(0, block_no=block_no),), main_data=main_data)


def long_records() -> WalBuilder:
    """One with all the payload that a record can have, one that is just kept, one that just is not, and a message."""
    builder = WalBuilder()
    image = ImageSpec(65535, 100, 1, compression="lz4")
    blocks = tuple(BlockSpec(n, (1663, 5, 16384 + n), block_no=n, data=noise(65535), image=image) for n in range(33))
    flags = bytes(7) + b"\x01"
    builder.append(RecordSpec(RM_HEAP, 0x10, blocks=blocks, main_data=flags + noise(9 * MB)))
    for size in (KEPT_BYTES, KEPT_BYTES + 1):
        own = len(RecordSpec(main_data=bytes(300)).encode(builder.wal_format, 0)) - 300
        built = builder.append(RecordSpec(main_data=noise(size - own)))
        assert built.total_length == size
    builder.append(RecordSpec(RM_LOGICALMSG, main_data=noise(24 * MB)))
    builder.append(heap(7))
    return builder


def test_long_records_are_read_like_others() -> None:
    builder = long_records()
    wal = builder.wal()
    pieces = [100_003] * (len(wal) // 100_003) + [len(wal) % 100_003]
    outcome = scan_all(wal, builder.start_lsn, chunks=pieces)
    assert_is(outcome, builder.records)
    assert outcome.derived
    assert_decoder_agrees(wal, builder.start_lsn, 0, outcome)


@pytest.mark.parametrize("back", [9, 5 * MB, 15 * MB + 4 * MB // 3])
def test_no_changed_bit_of_a_long_record_passes(back: int) -> None:
    builder = WalBuilder()
    builder.append_all([heap(1), RecordSpec(RM_LOGICALMSG, main_data=noise(24 * MB)), heap(2)])
    long = builder.records[1]
    wal = bytearray(builder.wal())
    wal[long.end_lsn - builder.start_lsn - back] ^= 0x10
    outcome = scan_all(bytes(wal), builder.start_lsn)
    assert (outcome.result, outcome.end_reason, outcome.position) == (END_OF_WAL, EndReason.RECORD_CRC, long.lsn)
    assert_decoder_agrees(bytes(wal), builder.start_lsn, 0, outcome)


@forms
def test_a_long_record_takes_no_memory(form: ModuleType) -> None:
    builder = WalBuilder()
    builder.append_all([RecordSpec(RM_LOGICALMSG, main_data=noise(32 * MB)), heap(2)])
    wal = memoryview(builder.wal())
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn)
    tracemalloc.start()
    for at in range(0, len(wal), MB):
        scanner.feed(wal[at : at + MB])
        assert scanner.scan() == NEED_DATA
    assert scanner.record_count == 2
    assert tracemalloc.get_traced_memory()[1] < 24 * MB
    tracemalloc.stop()


def test_a_long_record_takes_the_decoder_no_memory() -> None:
    builder = WalBuilder()
    builder.append_all([RecordSpec(RM_LOGICALMSG, main_data=noise(32 * MB)), heap(2)])
    wal = memoryview(builder.wal())
    decoder = WalDecoder(SEGMENT_SIZE, builder.start_lsn)
    found = []
    tracemalloc.start()
    for at in range(0, len(wal), MB):
        decoder.feed(wal[at : at + MB])
        while isinstance(record := decoder.next_record(), WalRecord):
            found.append((record.lsn, record.total_length))
    assert tracemalloc.get_traced_memory()[1] < 28 * MB
    tracemalloc.stop()
    assert found == [(built.lsn, built.total_length) for built in builder.records]


def commit(dropped: list[tuple[int, int, int]], subxact_count: int, rest: int) -> RecordSpec:
    parts = [
        struct.pack("<qI", 0, HAS_SUBXACTS | HAS_RELFILELOCATORS),
        struct.pack("<i", subxact_count) + bytes(4 * subxact_count),
        struct.pack("<i", len(dropped)) + b"".join(struct.pack("<III", *locator) for locator in dropped),
    ]
    return RecordSpec(RM_XACT, COMMIT_WITH_INFO, main_data=b"".join(parts) + noise(rest))


def test_what_a_long_commit_drops_is_known() -> None:
    """Where invalidations of megabytes follow, and where megabytes of subtransactions come before."""
    builder = WalBuilder()
    dropped = [(1663, 5, 16384 + number) for number in range(3)]
    builder.append_all([commit(dropped, 1000, KEPT_BYTES_OF_LISTS + MB), commit(dropped, KEPT_BYTES // 4, 0), heap(2)])
    wal = builder.wal()
    scanner = pgwal.wal.scan.WalScanner(SEGMENT_SIZE, builder.start_lsn)
    scanner.feed(wal)
    for built, is_cut_off in zip(builder.records, (True, False), strict=False):
        assert scanner.scan() == SPECIAL
        assert (len(scanner.special_main) < len(built.spec.main_data)) == is_cut_off
        # What is cut off is what nobody decodes.
        kept = built.spec.main_data[: len(scanner.special_main)]
        assert scanner.special_main == kept
        found = shortenings(
            builder.wal_format, built.lsn, scanner.special_rmid, scanner.special_info, scanner.special_main
        )
        assert {tuple(shortening[:3]) for shortening in found} == set(dropped)
    assert scanner.scan() == NEED_DATA
    assert scanner.record_count == 3


def test_a_list_that_ends_behind_what_is_kept_is_refused_with_the_limit() -> None:
    wal_format = WalBuilder().wal_format
    cut_off = struct.pack("<qIi", 0, HAS_SUBXACTS, 20 * MB) + bytes(KEPT_BYTES_OF_LISTS - 16)
    with pytest.raises(FormatError, match="of a record pgwal keeps 67100672 bytes") as caught:
        decode_main_data(wal_format, 1, RM_XACT, COMMIT_WITH_INFO, cut_off)
    assert caught.value.hint


def test_headers_of_megabytes_are_refused_by_all_forms() -> None:
    # Origins, one after the other, and main data behind what is kept: with a right CRC, which no server writes.
    origins = b"\xfd\x00\x00" * (KEPT_BYTES // 3 - 8)
    for body in (origins + b"\xfd\x00\x00" * 1000, origins + struct.pack("<BI", 254, 1000) + bytes(1000)):
        builder = WalBuilder()
        builder.append_all([heap(1), RecordSpec(body=body)])
        outcome = scan_all(builder.wal(), builder.start_lsn)
        assert outcome.record_count == 1
        assert outcome.error is not None
        assert outcome.error[0] == "FormatError"
