"""WAL bytes in, records out: the walk over pages and records as the construct declarations define it.

This is the specification that ``scan.py`` is held to, and what ``inspect`` prints; it is slow.  The rules are
those of src/backend/access/transam/xlogreader.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from typing import Any

from construct import ConstructError

from pgwal.checksum import crc32c
from pgwal.errors import FormatError, UnknownRecord
from pgwal.lsn import Lsn
from pgwal.relation import BLOCK_SIZE, Fork, RelFileLocator
from pgwal.segment import LONG_PAGE_HEADER_SIZE, SHORT_PAGE_HEADER_SIZE, WAL_PAGE_SIZE
from pgwal.wal import layout
from pgwal.wal.collected_record import CollectedRecord
from pgwal.wal.page_magic import WalFormat, wal_format_of_magic
from pgwal.wal.record import KEPT_BYTES, KEPT_BYTES_OF_LISTS, BlockReference, EndOfWal, EndReason, WalRecord


class Need(Enum):
    """What the decoder waits for."""

    DATA = "data"


NEED_DATA = Need.DATA

_MAIN_START = 16
"""What the scanner reads of the main data of any record."""

_Walk = Generator[Need | WalRecord, None, EndOfWal]


class _NoRecord(Exception):
    """Unwinds the walk to the point that reports the end of WAL."""

    def __init__(self, lsn: int, reason: EndReason) -> None:
        super().__init__()
        self.end = EndOfWal(Lsn(lsn), reason)


class _Overwritten(Exception):
    """The record in hand was cut off by a crash; reading goes on at the page that says so."""


class WalDecoder:
    """Walks the WAL of one timeline from the first record that starts at or after ``start_lsn``.

    Feed it bytes from the start of ``start_lsn``'s page on, in chunks of any size, and take records until it says
    NEED_DATA (feed more) or EndOfWal (final: only the caller knows whether valid WAL should have been there).
    Raises FormatError for a record whose CRC is right and whose contents are not; the error is final as well.
    """

    def __init__(
        self,
        segment_size: int,
        start_lsn: int,
        *,
        wal_format: WalFormat | None = None,
        system_identifier: int = 0,
        prev_lsn: int = 0,
    ) -> None:
        self.wal_format = wal_format
        self.timeline_id = 0
        self._segment_size = segment_size
        self._start_lsn = start_lsn
        self._system_identifier = system_identifier
        self._prev_lsn = prev_lsn
        self._synced = False
        self._at = start_lsn - start_lsn % WAL_PAGE_SIZE
        self._buffer = bytearray()
        self._overwritten_lsn: int | None = None
        self._walk = self._records()
        self._outcome: EndOfWal | FormatError | None = None

    @property
    def feed_lsn(self) -> Lsn:
        """The position of the next byte to feed."""
        return Lsn(self._at + len(self._buffer))

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data

    def next_record(self) -> WalRecord | Need | EndOfWal:
        """Return the next record, NEED_DATA, or why there is none."""
        if isinstance(self._outcome, FormatError):
            raise self._outcome
        if self._outcome is not None:
            return self._outcome
        try:
            return next(self._walk)
        except StopIteration as stop:
            end: EndOfWal = stop.value
            self._outcome = end
            return end
        except FormatError as error:
            self._outcome = error
            raise

    # -- bytes -----------------------------------------------------------------------------------------------

    def _take(self, count: int) -> Generator[Need, None, bytes]:
        while len(self._buffer) < count:
            yield Need.DATA
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._at += count
        return taken

    def _peek(self, count: int) -> Generator[Need, None, bytes]:
        while len(self._buffer) < count:
            yield Need.DATA
        return bytes(self._buffer[:count])

    # -- pages -----------------------------------------------------------------------------------------------

    def _page_header(self) -> Generator[Need, None, Any]:
        """Read and check the header of the page that starts here (ReadPageInternal, XLogReaderValidatePageHeader)."""
        page_lsn = self._at
        raw = yield from self._peek(SHORT_PAGE_HEADER_SIZE)
        header = layout.ShortPageHeader.parse(raw)
        if self.wal_format is None and header.magic != 0:
            self.wal_format = wal_format_of_magic(header.magic, f"WAL page {Lsn(page_lsn)}")
        if self.wal_format is None or header.magic != self.wal_format.magic:
            raise _NoRecord(page_lsn, EndReason.PAGE_MAGIC)
        if header.info & ~self.wal_format.page_flags:
            raise _NoRecord(page_lsn, EndReason.PAGE_FLAGS)
        if header.info & layout.PAGE_LONG_HEADER:
            raw = yield from self._peek(LONG_PAGE_HEADER_SIZE)
            header = layout.LongPageHeader.parse(raw)
            if not self._fits_cluster(header):
                raise _NoRecord(page_lsn, EndReason.PAGE_LONG_HEADER)
        elif page_lsn % self._segment_size == 0:
            raise _NoRecord(page_lsn, EndReason.PAGE_LONG_HEADER)
        if header.page_lsn != page_lsn:
            raise _NoRecord(page_lsn, EndReason.PAGE_ADDRESS)
        if header.timeline_id < self.timeline_id:
            raise _NoRecord(page_lsn, EndReason.PAGE_TIMELINE)
        self.timeline_id = header.timeline_id
        yield from self._take(len(raw))
        return header

    def _fits_cluster(self, header: Any) -> bool:
        sysid_fits = self._system_identifier in (0, header.system_identifier)
        sizes_fit = header.segment_size == self._segment_size and header.wal_page_size == WAL_PAGE_SIZE
        return sysid_fits and sizes_fit

    def _left_on_page(self) -> int:
        return WAL_PAGE_SIZE - self._at % WAL_PAGE_SIZE

    # -- records ---------------------------------------------------------------------------------------------

    def _records(self) -> _Walk:
        try:
            yield from self._skip_continued_record()
            while True:
                if self._left_on_page() == WAL_PAGE_SIZE:
                    yield from self._enter_page()
                try:
                    record = yield from self._record()
                except _Overwritten:
                    continue
                if record.lsn >= self._start_lsn:
                    yield record
                if record.rmid == layout.RM_XLOG and record.info & 0xF0 == layout.XLOG_SWITCH:
                    yield from self._take(-self._at % self._segment_size)
        except _NoRecord as no_record:
            return no_record.end

    def _skip_continued_record(self) -> Generator[Need, None, None]:
        """Find the first record start on or after the first page (XLogFindNextRecord)."""
        while True:
            header = yield from self._page_header()
            if not header.info & layout.PAGE_FIRST_IS_CONTRECORD:
                return
            rest = (header.remaining_length + 7) & ~7
            yield from self._take(min(rest, self._left_on_page()))
            if self._left_on_page() != WAL_PAGE_SIZE:
                return

    def _enter_page(self) -> Generator[Need, None, None]:
        """Read the header of a page on which a record is to start."""
        page_lsn = self._at
        header = yield from self._page_header()
        if header.info & layout.PAGE_FIRST_IS_CONTRECORD:
            raise _NoRecord(page_lsn, EndReason.CONTRECORD)

    def _record(self) -> Generator[Need, None, WalRecord]:
        lsn = self._at
        raw_length = yield from self._peek(4)
        total_length = int.from_bytes(raw_length, "little")
        if total_length < layout.RECORD_HEADER_SIZE:
            raise _NoRecord(lsn, EndReason.RECORD_LENGTH)
        on_page = min(total_length, self._left_on_page())
        if on_page >= layout.RECORD_HEADER_SIZE:
            raw = yield from self._peek(layout.RECORD_HEADER_SIZE)
            self._check_prev_link(lsn, layout.RecordHeader.parse(raw))
        record = CollectedRecord(total_length)
        record.append((yield from self._take(on_page)))
        while record.length < total_length:
            yield from self._continuation(lsn, record)
        yield from self._take(-self._at % 8)
        return self._checked_record(lsn, record)

    def _continuation(self, lsn: int, record: CollectedRecord) -> Generator[Need, None, None]:
        """Append what the next page holds of the record (XLogDecodeNextRecord)."""
        page_lsn = self._at
        try:
            header = yield from self._page_header()
        except _NoRecord as no_record:
            raise _NoRecord(lsn, no_record.end.reason) from None
        assert self.wal_format is not None
        if header.info & self.wal_format.overwrite_contrecord_flag:
            self._overwritten_lsn = lsn
            raise _Overwritten
        continued = header.info & layout.PAGE_FIRST_IS_CONTRECORD
        if not continued or record.total_length != record.length + header.remaining_length:
            raise _NoRecord(lsn, EndReason.CONTRECORD)
        had_header = record.length >= layout.RECORD_HEADER_SIZE
        record.append((yield from self._take(min(header.remaining_length, self._left_on_page()))))
        if not had_header and page_lsn:
            self._check_prev_link(lsn, layout.RecordHeader.parse(bytes(record.kept)))

    def _check_prev_link(self, lsn: int, header: Any) -> None:
        fits = header.prev_lsn == self._prev_lsn if self._synced or self._prev_lsn else header.prev_lsn < lsn
        if not fits:
            raise _NoRecord(lsn, EndReason.RECORD_PREV_LINK)

    def _checked_record(self, lsn: int, collected: CollectedRecord) -> WalRecord:
        data = bytes(collected.kept)
        header = layout.RecordHeader.parse(data)
        if crc32c(data[:20], collected.body_crc()) != header.crc:
            raise _NoRecord(lsn, EndReason.RECORD_CRC)
        self._synced = True
        self._prev_lsn = lsn
        assert self.wal_format is not None
        record = decode_record(self.wal_format, Lsn(lsn), Lsn(self._at), data)
        self._check_overwrite(record)
        return record

    def _check_overwrite(self, record: WalRecord) -> None:
        discarded, self._overwritten_lsn = self._overwritten_lsn, None
        if (record.rmid, record.info & 0xF0) != (layout.RM_XLOG, layout.XLOG_OVERWRITE_CONTRECORD):
            return
        named = decode_payload(self.wal_format, record).overwritten_lsn
        if discarded is not None and named != discarded:
            raise FormatError(
                f"record at {record.lsn} overwrites the one at {Lsn(named)},"
                f" but the one at {Lsn(discarded)} was cut off",
                lsn=record.lsn,
            )


def decode_record(wal_format: WalFormat, lsn: Lsn, end_lsn: Lsn, data: bytes) -> WalRecord:
    """Decode one record whose CRC is right (DecodeXLogRecord); of ``data`` the end may be missing, as of WalRecord.

    Raises FormatError when its parts do not add up, UnknownRecord for an unknown resource manager or an unknown
    record that says it changes relation files.
    """
    header = layout.RecordHeader.parse(data)
    _check_known(wal_format, lsn, header)
    blocks: list[BlockReference] = []
    payload_size = main_length = 0
    at, size, kept = layout.RECORD_HEADER_SIZE, header.total_length, len(data)
    fragment_format = layout.header_fragment(wal_format)
    while kept - at > payload_size:
        try:
            fragment = fragment_format.parse(data[at : at + 40])
        except ConstructError:
            raise _broken(lsn, "its headers end early") from None
        if fragment.body is None:
            raise _broken(lsn, f"there is no block or data id {fragment.id}")
        at += _fragment_size(fragment)
        if fragment.id in (layout.ID_DATA_SHORT, layout.ID_DATA_LONG):
            main_length = fragment.body
            break
        if fragment.id <= layout.MAX_BLOCK_ID:
            blocks.append(_block_reference(wal_format, lsn, fragment, blocks))
            payload_size += fragment.body.data_length
            payload_size += fragment.body.image.length if fragment.body.image else 0
    if size - at != payload_size + main_length:
        raise _broken(lsn, "its parts do not add up to its length")
    if kept < size and kept - at < payload_size + _MAIN_START:
        # Headers of megabytes, which no server writes.
        raise _broken(lsn, "its headers end early")
    return WalRecord(
        lsn, end_lsn, Lsn(header.prev_lsn), header.xid, header.rmid, header.info, size,
        tuple(blocks), data[size - main_length :],
    )  # fmt: skip


def decode_payload(wal_format: WalFormat | None, record: WalRecord) -> Any:
    """Decode the main data of a record that ``layout.payloads`` declares.

    Raises UnknownRecord when it is not among them, FormatError when the data is too short for it.
    """
    assert wal_format is not None
    return decode_main_data(wal_format, record.lsn, record.rmid, record.info, record.main_data)


def decode_main_data(wal_format: WalFormat, lsn: int, rmid: int, info: int, main_data: bytes) -> Any:
    """As decode_payload, from the parts of a record."""
    payload = layout.payloads(wal_format).get((rmid, info & layout.INFO_RMGR_MASK))
    if payload is None:
        raise unknown_record(wal_format, lsn, rmid, info)
    try:
        return payload.parse(main_data)
    except ConstructError:
        if len(main_data) > KEPT_BYTES:
            raise FormatError(
                f"record at {Lsn(lsn)} lists more transactions and relations than fit into what of a record pgwal keeps"
                f" {KEPT_BYTES_OF_LISTS} bytes",
                hint="It ends a transaction with millions of them. Begin again behind it, with a full backup.",
                lsn=lsn,
            ) from None
        raise _broken(lsn, f"its data is too short (rmgr {rmid}, info {info:#04x})") from None


def unknown_record(wal_format: WalFormat, lsn: int, rmid: int, info: int) -> UnknownRecord:
    """Return the error for a record that changes relation files in a way that is not known."""
    return UnknownRecord(
        f"record at {Lsn(lsn)}: rmgr {rmid}, info {info:#04x} is not known for PostgreSQL {wal_format.major}",
        hint="It may change relation files in a way that this pgwal does not understand; look for a newer pgwal.",
        lsn=lsn,
    )


def _broken(lsn: int, why: str) -> FormatError:
    return FormatError(f"record at {Lsn(lsn)}: its CRC is right, but {why}", lsn=lsn)


def _check_known(wal_format: WalFormat, lsn: int, header: Any) -> None:
    custom = wal_format.has_custom_rmgrs and header.rmid >= layout.FIRST_CUSTOM_RMID
    announces = header.info & layout.INFO_SPECIAL_REL_UPDATE
    understood = header.rmid in (layout.RM_SMGR, layout.RM_DBASE, layout.RM_XACT)
    if (header.rmid > layout.LAST_BUILTIN_RMID and not custom) or (announces and not understood):
        raise unknown_record(wal_format, lsn, header.rmid, header.info)


def _fragment_size(fragment: Any) -> int:
    fixed = {layout.ID_TOP_LEVEL_XID: 5, layout.ID_ORIGIN: 3, layout.ID_DATA_LONG: 5, layout.ID_DATA_SHORT: 2}
    if fragment.id in fixed:
        return fixed[fragment.id]
    block = fragment.body
    image_size = 0 if block.image is None else 5 if block.image.hole_length is None else 7
    return 8 + image_size + (12 if block.locator is not None else 0)


def _block_reference(wal_format: WalFormat, lsn: Lsn, fragment: Any, earlier: list[BlockReference]) -> BlockReference:
    block = fragment.body
    if earlier and fragment.id <= earlier[-1].block_id:
        raise _broken(lsn, f"block id {fragment.id} is out of order")
    if bool(block.flags & layout.BLOCK_HAS_DATA) != (block.data_length > 0):
        raise _broken(lsn, f"block {fragment.id} has a data length that does not fit its flags")
    if block.locator is None and not earlier:
        raise _broken(lsn, "its first block names no relation")
    if block.flags & layout.BLOCK_FORK_MASK > Fork.INIT:
        raise _broken(lsn, f"block {fragment.id} is of no known fork")
    if block.image is not None:
        _check_image(wal_format, lsn, fragment.id, block.image)
    locator = RelFileLocator(**_fields(block.locator)) if block.locator is not None else earlier[-1].locator
    return BlockReference(
        fragment.id,
        locator,
        Fork(block.flags & layout.BLOCK_FORK_MASK),
        block.block_no,
        block.image is not None,
        block.image is not None and bool(block.image.info & wal_format.apply_image_bit),
        bool(block.flags & layout.BLOCK_WILL_INIT),
        block.image.length if block.image is not None else 0,
    )


def _fields(container: Any) -> dict[str, int]:
    return {name: container[name] for name in ("spc_oid", "db_oid", "rel_number")}


def _check_image(wal_format: WalFormat, lsn: Lsn, block_id: int, image: Any) -> None:
    """Hold an image header to the rules of DecodeXLogRecord."""
    compressed = bool(image.info & wal_format.compressed_image_bits)
    has_hole = bool(image.info & layout.IMAGE_HAS_HOLE)
    hole_length = (image.hole_length or 0) if compressed else BLOCK_SIZE - image.length
    if has_hole:
        fits = image.hole_offset > 0 and hole_length > 0 and image.length != BLOCK_SIZE
    else:
        fits = image.hole_offset == 0 and hole_length == 0
    fits = fits and (image.length != BLOCK_SIZE if compressed else has_hole or image.length == BLOCK_SIZE)
    if not fits:
        raise _broken(lsn, f"block {block_id} has an image header that does not add up")
