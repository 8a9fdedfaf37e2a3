"""Find one record in much WAL: by what its bytes look like first, then by decoding around each such place.

Decoding all WAL would take long.  A pattern is fast, but has to pass over the headers of pages, and other bytes may
match it too; so only what the decoder makes of a place counts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pgwal.errors import FormatError
from pgwal.lsn import Lsn, LsnRange
from pgwal.segment import LONG_PAGE_HEADER_SIZE, SHORT_PAGE_HEADER_SIZE, WAL_PAGE_SIZE
from pgwal.wal import layout
from pgwal.wal.decoder import NEED_DATA, WalDecoder
from pgwal.wal.page_magic import WalFormat
from pgwal.wal.record import WalRecord

WalReader = Callable[[Lsn], Iterable[bytes]]
"""Gives one timeline's WAL from the start of a position's page on, in pieces of whole pages, to where it ends."""

_MAX_MATCH = 128
"""A pattern matches within so many bytes, and within so many from where the record starts."""

_PAGES_BEFORE = 4
"""How far before a match decoding begins.  One page would do: a record is found from its own page on."""

_COMMITS_AND_ABORTS = (layout.XACT_COMMIT, layout.XACT_ABORT)
_ENDS_OF_PREPARED = (layout.XACT_COMMIT_PREPARED, layout.XACT_ABORT_PREPARED)


class SoughtRecord(NamedTuple):
    """A kind of record: what the bytes of each contain, which others may contain too, and whether one is of it."""

    pattern: re.Pattern[bytes]
    is_it: Callable[[WalRecord], bool]


def restore_point(name: bytes) -> SoughtRecord:
    """Return what tells the records of a restore point."""

    def is_it(record: WalRecord) -> bool:
        is_point = record.rmid == layout.RM_XLOG and record.info & layout.INFO_RMGR_MASK == layout.XLOG_RESTORE_POINT
        return is_point and record.main_data[8:].partition(b"\0")[0] == name

    return SoughtRecord(re.compile(re.escape(name + b"\0")), is_it)


def transaction_end(xid: int, wal_format: WalFormat) -> SoughtRecord:
    """Return what tells the records that commit or abort a transaction, prepared or not; ``xid`` is without epoch.

    The end of a prepared transaction is one that was written without a transaction of its own, as servers do.
    """

    def is_it(record: WalRecord) -> bool:
        if record.rmid != layout.RM_XACT:
            return False
        operation = record.info & layout.XACT_OPERATION_MASK
        if operation in _COMMITS_AND_ABORTS:
            return record.xid == xid
        return operation in _ENDS_OF_PREPARED and prepared_xid(record, wal_format) == xid

    own = _header_pattern(xid, _COMMITS_AND_ABORTS)
    return SoughtRecord(re.compile(own + b"|" + _header_pattern(0, _ENDS_OF_PREPARED)), is_it)


def _header_pattern(xid: int, operations: tuple[int, ...]) -> bytes:
    """Return a pattern of a transaction's end from its xid on.

    That is xid, link, info, resource manager, padding, CRC, and then what begins data that no block belongs to.
    """
    infos = bytes(info for info in range(256) if info & layout.XACT_OPERATION_MASK in operations)
    return rb"%s[\s\S]{8}[%s]\x01\0\0[\s\S]{4}[\xfc-\xff]" % (re.escape(struct.pack("<I", xid)), re.escape(infos))


def prepared_xid(record: WalRecord, wal_format: WalFormat) -> int | None:
    """Return the transaction that a record ends which was prepared (ParseCommitRecord, ParseAbortRecord)."""
    data = record.main_data
    try:
        (xinfo,) = struct.unpack_from("<I", data, 8)
        at = 12 + (8 if xinfo & layout.XINFO_HAS_DBINFO else 0)
        item_sizes = (
            (layout.XINFO_HAS_SUBXACTS, 4),
            (layout.XINFO_HAS_RELFILELOCATORS, 12),
            (layout.XINFO_HAS_DROPPED_STATS, wal_format.dropped_stats_item_size),
            (layout.XINFO_HAS_INVALS, 16),
        )
        for bit, item_size in item_sizes:
            if xinfo & bit:
                at += 4 + item_size * int(struct.unpack_from("<i", data, at)[0])
        return int(struct.unpack_from("<I", data, at)[0]) if xinfo & layout.XINFO_HAS_TWOPHASE else None
    except struct.error:
        return None


def find_record(read: WalReader, part: LsnRange, segment_size: int, sought: SoughtRecord) -> WalRecord | None:
    """Return the first record of a kind that starts in a part of one timeline's WAL; None when there is none.

    A record is missed only where the decoder does not come to it from a page before it, or from its segment's start.
    """
    for about in _candidates(read, part, segment_size, sought.pattern):
        # Before a segment there may be nothing but zeros, behind which records are found only from its own start on.
        before, segment_start = about - _PAGES_BEFORE * WAL_PAGE_SIZE, about - about % segment_size
        for start in sorted({max(part.start, before), max(part.start, before, segment_start)}):
            found = _decoded(read, part._replace(start=Lsn(start)), segment_size, about, sought)
            if found is not None:
                return found
    return None


def decode_records(read: WalReader, part: LsnRange, segment_size: int) -> Iterator[WalRecord]:
    """Yield the records that start in a part of one timeline's WAL, to the end of what is there.

    Raises FormatError where the decoder does.
    """
    decoder = WalDecoder(segment_size, part.start)
    for data in read(part.start):
        decoder.feed(data)
        while isinstance(record := decoder.next_record(), WalRecord):
            if record.lsn >= part.end:
                return
            yield record
        if record is not NEED_DATA:
            return


def _candidates(read: WalReader, part: LsnRange, segment_size: int, pattern: re.Pattern[bytes]) -> Iterator[Lsn]:
    """Yield about where the pattern occurs in the bytes of records, which are those of pages without their headers."""
    position = Lsn(part.start - part.start % WAL_PAGE_SIZE)
    tail = b""
    for data in read(part.start):
        if position >= part.end:
            return
        text = tail + _without_page_headers(data, position, segment_size)
        # One that begins within another is found with it: what is decoded reaches further than a match.
        for match in pattern.finditer(text):
            # Each page has lost its header.
            lost = (match.start() // (WAL_PAGE_SIZE - LONG_PAGE_HEADER_SIZE) + 1) * SHORT_PAGE_HEADER_SIZE
            yield Lsn(max(0, position - len(tail)) + match.start() + lost)
        position = Lsn(position + len(data))
        tail = text[-_MAX_MATCH:]


def _without_page_headers(data: bytes, position: int, segment_size: int) -> bytes:
    pages = []
    for at in range(0, len(data), WAL_PAGE_SIZE):
        begins_segment = (position + at) % segment_size == 0
        header_size = LONG_PAGE_HEADER_SIZE if begins_segment else SHORT_PAGE_HEADER_SIZE
        pages.append(data[at + header_size : at + WAL_PAGE_SIZE])
    return b"".join(pages)


def _decoded(read: WalReader, part: LsnRange, segment_size: int, about: Lsn, sought: SoughtRecord) -> WalRecord | None:
    """Decode the records around a place, and return the first of them that is of the kind."""
    try:
        for record in decode_records(read, part, segment_size):
            if record.lsn > about + WAL_PAGE_SIZE:
                return None
            if sought.is_it(record):
                return record
    except FormatError:
        return None
    return None
