"""What reads WAL, for the fuzzing of decoders: pages as they are, and records whose length and CRC are put right."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, FileIO
from typing import cast

import lz4.frame
import zstandard
from core.wal_builder import RM_HEAP, RM_XACT, RM_XLOG, BlockSpec, RecordSpec, WalBuilder
from fuzz.fuzz_scan import INTERPRETED, Input, check_decoder, scan, scanned_form

from pgwal.checksum import crc32c
from pgwal.errors import FormatError
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.segment_reader import SegmentReader
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry
from pgwal.summary.summarizer import ChangeReader, Summarizer
from pgwal.wal import layout
from pgwal.wal.decoder import decode_main_data, decode_payload, decode_record
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record_search import decode_records, find_record, transaction_end
from pgwal.wal.segment_check import SegmentCheck

MAJOR, SEGMENT_SIZE, START = 17, 1 << 20, Lsn(1 << 20)
GEOMETRY = WalGeometry(SEGMENT_SIZE)
INFLATED_MAX_BYTES = 1 << 20
HEADER_SIZE = layout.RECORD_HEADER_SIZE
PAGE_HEADER_SIZE = 40


def read_wal(content: bytes) -> None:
    """Have each that reads WAL read it; what the compiled scanner says, the interpreted one says too."""
    case = Input(content, START, SEGMENT_SIZE)
    outcome = scan(scanned_form, case, iter([content]))
    assert scan(INTERPRETED, case, iter([content])) == outcome
    assert outcome.reference_count <= len(content)
    check_decoder(case, outcome)
    summarize(content)
    if outcome.error is not None:
        raise FormatError(outcome.error[1])
    if outcome.result == scanned_form.END_OF_WAL and not outcome.record_count:
        raise FormatError(f"WAL ends at once, because of {outcome.reason}")


def search_wal(content: bytes) -> None:
    """Look for a transaction's end, and have every record decoded."""

    def read(lsn: Lsn) -> list[bytes]:
        return [content[lsn - START :]]

    part = LsnRange(1, START, Lsn(START + len(content)))
    with suppress(FormatError):
        found = find_record(read, part, SEGMENT_SIZE, transaction_end(SEARCHED_XID, wal_format_of_major(MAJOR)))
        assert found is None or found.xid == SEARCHED_XID
    for record in decode_records(read, part, SEGMENT_SIZE):
        assert part.start <= record.lsn < part.end


def summarize(content: bytes) -> None:
    wal_format = wal_format_of_major(MAJOR)
    for reader in (
        ChangeReader(wal_format, GEOMETRY, START, Lsn(START + WAL_PAGE_SIZE)),
        Summarizer(1, wal_format, GEOMETRY, START),
    ):
        with suppress(FormatError):
            reader.feed(content)


def read_record(content: bytes) -> None:
    """Read a record whose length and CRC hold, on a page of its own."""
    content = content[: WAL_PAGE_SIZE - PAGE_HEADER_SIZE].ljust(HEADER_SIZE, b"\0")
    content = struct.pack("<I", len(content)) + content[4:]
    crc = crc32c(content[HEADER_SIZE:] + content[: HEADER_SIZE - 4])
    content = content[: HEADER_SIZE - 4] + struct.pack("<I", crc) + content[HEADER_SIZE:]
    wal_format = wal_format_of_major(MAJOR)
    with suppress(FormatError):
        decode_payload(wal_format, decode_record(wal_format, START, Lsn(START + len(content)), content))
    read_wal((PAGE_HEADER + content).ljust(WAL_PAGE_SIZE, b"\0"))


def read_payload(content: bytes) -> None:
    wal_format = wal_format_of_major(13 + content[0] % 7 if content else MAJOR)
    keys = sorted(layout.payloads(wal_format))
    rmid, info = keys[content[1] % len(keys)] if len(content) > 1 else (RM_XLOG, 0)
    decode_main_data(wal_format, START, rmid, info, content[2:])


def read_segment(content: bytes) -> None:
    pages = content.ljust(2 * WAL_PAGE_SIZE, b"\0")
    SegmentCheck(GEOMETRY, 1, 1, SYSTEM_IDENTIFIER, complete=True).feed(pages[: 2 * WAL_PAGE_SIZE])


def inflate(suffix: str) -> Callable[[bytes], None]:
    def read(content: bytes) -> None:
        raw = cast("FileIO", BytesIO(content))
        with SegmentReader(raw, suffix, "segment", complete=len(content) % 2 == 0) as reader:
            reader.skip(100)
            size = sum(len(reader.read(8192)) for _ in range(INFLATED_MAX_BYTES // 8192))
        assert size <= INFLATED_MAX_BYTES

    return read


def built(*specs: RecordSpec) -> bytes:
    builder = WalBuilder(MAJOR, SEGMENT_SIZE, START)
    for spec in specs:
        builder.append(spec)
    return builder.wal()


SYSTEM_IDENTIFIER = WalBuilder().system_identifier
RECORD = RecordSpec(RM_HEAP, blocks=(BlockSpec(0, block_no=7), BlockSpec(1, block_no=8)), main_data=bytes(10))
# Little of it: ten thousand times by four readers, two of which are slow.
WAL = built(RECORD, RecordSpec(RM_HEAP, main_data=bytes(300)), RECORD)
SEARCHED_XID = 700
ENDED = built(RECORD, RecordSpec(RM_XACT, 0x00, SEARCHED_XID, main_data=bytes(8)), RECORD)
PAGE_HEADER = built(RECORD)[:PAGE_HEADER_SIZE]
SEGMENT = b"half of a segment" * 100
WAL_DECODERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "WAL": (read_wal, WAL),
    "search for a record": (search_wal, ENDED),
    "record": (read_record, built(RECORD)[PAGE_HEADER_SIZE:]),
    "payload of a record": (read_payload, bytes([4, 3]) + bytes(120)),
    "headers of a segment": (read_segment, PAGE_HEADER),
    ".gz": (inflate(".gz"), gzip.compress(SEGMENT, mtime=0)),
    ".lz4": (inflate(".lz4"), lz4.frame.compress(SEGMENT)),
    ".zst": (inflate(".zst"), zstandard.compress(SEGMENT)),
}
