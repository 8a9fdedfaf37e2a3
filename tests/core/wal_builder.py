"""Builds WAL from literals: record specifications in, pages out, for any format from 13 to 19.

It knows nothing of the code under test but the table of page magics: what it writes is what
src/backend/access/transam/xloginsert.c and xlog.c would.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from google_crc32c import extend

from pgwal.lsn import Lsn
from pgwal.wal.page_magic import WalFormat, wal_format_of_major

PAGE_SIZE = 8192
SHORT_HEADER = 24
LONG_HEADER = 40
RECORD_HEADER = 24
BLOCK_SIZE = 8192

FIRST_IS_CONTRECORD = 0x0001
LONG_HEADER_FLAG = 0x0002
# Up to 18; since 19 its bit is that of FIRST_IS_OVERWRITE_CONTRECORD.
BKP_REMOVABLE = 0x0004
FIRST_IS_OVERWRITE_CONTRECORD = {13: 0x0008, 19: 0x0004}

RM_XLOG, RM_XACT, RM_SMGR, RM_DBASE, RM_HEAP2, RM_HEAP, RM_BTREE = 0, 1, 2, 4, 9, 10, 11
XLOG_NOOP = 0x20
XLOG_SWITCH = 0x40
XLOG_OVERWRITE_CONTRECORD = 0xD0

# bimg_info of each compression, for the formats that have it.
_COMPRESSION_BITS = {13: {"pglz": 0x02}, 15: {"pglz": 0x04, "lz4": 0x08, "zstd": 0x10}}

CHECKPOINT_FIELDS = {
    "redo_lsn": 1 << 20, "timeline_id": 1, "prev_timeline_id": 1, "full_page_writes": True, "next_xid": 745,
    "next_oid": 24576, "next_multi": 1, "next_multi_offset": 0, "oldest_xid": 730, "oldest_xid_db_oid": 1,
    "oldest_multi": 1, "oldest_multi_db_oid": 1, "time": 1_790_000_000, "oldest_commit_ts_xid": 0,
    "newest_commit_ts_xid": 0, "oldest_active_xid": 745,
}  # fmt: skip
"""Of a CheckPoint; see ``checkpoint_fields`` for those that came later."""


def overwrite_contrecord_flag(major: int) -> int:
    return FIRST_IS_OVERWRITE_CONTRECORD[19 if major >= 19 else 13]


def checkpoint_fields(major: int) -> dict[str, int]:
    """Return the fields of a CheckPoint of this version."""
    fields: dict[str, int] = dict(CHECKPOINT_FIELDS)
    if major >= 17:
        fields["wal_level"] = 1
    if major >= 19:
        fields |= {"logical_decoding_enabled": False, "next_multi_offset": 5 << 32}
    return fields


def align(position: int) -> int:
    return position + 7 & ~7


@dataclass(frozen=True)
class ImageSpec:
    """A page image of ``length`` stored bytes; whole by default, with a hole or compressed when asked for."""

    length: int = BLOCK_SIZE
    hole_offset: int = 0
    hole_length: int = 0
    compression: str | None = None
    applies: bool = True

    @staticmethod
    def with_hole(offset: int, length: int) -> ImageSpec:
        return ImageSpec(BLOCK_SIZE - length, offset, length)

    def header(self, wal_format: WalFormat) -> bytes:
        bits = 0x01 if self.hole_offset else 0
        if self.applies:
            bits |= wal_format.apply_image_bit
        if self.compression is not None:
            bits |= _COMPRESSION_BITS[13 if wal_format.major < 15 else 15][self.compression]
        header = struct.pack("<HHB", self.length, self.hole_offset, bits)
        if self.compression is not None and self.hole_offset:
            header += struct.pack("<H", self.hole_length)
        return header


@dataclass(frozen=True)
class BlockSpec:
    """A block reference.  SAME_REL is written where the locator is that of the reference before, unless refused."""

    block_id: int
    locator: tuple[int, int, int] = (1663, 5, 16384)
    fork: int = 0
    block_no: int = 0
    data: bytes = b""
    image: ImageSpec | None = None
    will_init: bool = False
    may_be_same: bool = True

    @property
    def relation(self) -> tuple[int, int, int, int]:
        return (*self.locator, self.fork)

    def header(self, wal_format: WalFormat, before: BlockSpec | None) -> bytes:
        is_same = self.may_be_same and before is not None and before.locator == self.locator
        flags = self.fork
        flags |= 0x10 if self.image is not None else 0
        flags |= 0x20 if self.data else 0
        flags |= 0x40 if self.will_init else 0
        flags |= 0x80 if is_same else 0
        header = struct.pack("<BBH", self.block_id, flags, len(self.data))
        if self.image is not None:
            header += self.image.header(wal_format)
        if not is_same:
            header += struct.pack("<III", *self.locator)
        return header + struct.pack("<I", self.block_no)

    def payload(self) -> bytes:
        # Not all the same byte, or a shifted read would go unnoticed.
        image = bytes(range(251)) * (self.image.length // 251 + 1) if self.image is not None else b""
        return (image[: self.image.length] if self.image is not None else b"") + self.data


@dataclass(frozen=True)
class RecordSpec:
    """A WAL record: what XLogInsert is given.  ``body`` replaces all that follows the header, as it stands."""

    rmid: int = RM_XLOG
    info: int = XLOG_NOOP
    xid: int = 0
    blocks: tuple[BlockSpec, ...] = ()
    main_data: bytes = b""
    origin: int | None = None
    top_level_xid: int | None = None
    long_main_data: bool = False
    body: bytes | None = None

    def encode_body(self, wal_format: WalFormat) -> bytes:
        if self.body is not None:
            return self.body
        headers = b""
        before = None
        for block in self.blocks:
            headers += block.header(wal_format, before)
            before = block
        if self.origin is not None:
            headers += struct.pack("<BH", 253, self.origin)
        if self.top_level_xid is not None:
            assert wal_format.has_top_level_xid
            headers += struct.pack("<BI", 252, self.top_level_xid)
        if len(self.main_data) > 255 or self.long_main_data:
            headers += struct.pack("<BI", 254, len(self.main_data))
        elif self.main_data:
            headers += struct.pack("<BB", 255, len(self.main_data))
        return headers + b"".join(block.payload() for block in self.blocks) + self.main_data

    def encode(self, wal_format: WalFormat, prev_lsn: int) -> bytes:
        body = self.encode_body(wal_format)
        header = struct.pack("<IIQBBH", RECORD_HEADER + len(body), self.xid, prev_lsn, self.info, self.rmid, 0)
        return header + struct.pack("<I", extend(extend(0, body), header)) + body


@dataclass(frozen=True)
class BuiltRecord:
    """A record of the WAL that was built: where it starts, its first byte behind (aligned), the record before."""

    lsn: Lsn
    end_lsn: Lsn
    prev_lsn: Lsn
    spec: RecordSpec
    total_length: int


@dataclass
class WalBuilder:
    """Writes records one after the other from ``start_lsn``, a page boundary, on.

    ``records`` are those that count: not what ``append_cut_off`` began.
    """

    major: int = 17
    segment_size: int = 1 << 20
    start_lsn: int = 1 << 20
    timeline_id: int = 1
    system_identifier: int = 0x1234567890ABCDEF
    prev_lsn: int = 0
    magic: int | None = None
    records: list[BuiltRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.start_lsn % PAGE_SIZE == 0
        self.wal_format = wal_format_of_major(self.major)
        self._wal = bytearray()
        self._overwritten_lsn: Lsn | None = None

    @property
    def end_lsn(self) -> Lsn:
        """Where the next byte goes."""
        return Lsn(self.start_lsn + len(self._wal))

    @property
    def next_lsn(self) -> Lsn:
        """Where the next record will start."""
        end = self.end_lsn
        return end if end % PAGE_SIZE else Lsn(end + self._header_size(end))

    def wal(self) -> bytes:
        """The WAL so far, to the end of the last record."""
        return bytes(self._wal)

    def wal_from(self, lsn: int) -> bytes:
        """The WAL so far from the start of the page that holds ``lsn``."""
        return bytes(self._wal[lsn - lsn % PAGE_SIZE - self.start_lsn :])

    def wal_between(self, start: int, end: int) -> bytes:
        """The WAL from one position to another, or to where it ends."""
        return bytes(self._wal[start - self.start_lsn : max(0, end - self.start_lsn)])

    def wal_to_segment_end(self) -> bytes:
        """The WAL so far and zeros, as in a file that was made for it."""
        return bytes(self._wal) + bytes(-self.end_lsn % self.segment_size)

    def cut(self, lsn: int, timeline_id: int | None = None) -> WalBuilder:
        """Return a builder that goes on at ``lsn`` as a server does that has lost all behind it.

        That is the end of a record, or a page boundary: the next append says that the record was cut off there.
        """
        kept = [built for built in self.records if built.end_lsn <= lsn]
        cut = replace(
            self,
            timeline_id=self.timeline_id if timeline_id is None else timeline_id,
            prev_lsn=kept[-1].lsn if kept else 0,
            records=kept,
        )
        cut._wal = self._wal[: lsn - self.start_lsn]
        assert cut.end_lsn == lsn
        begun = self.records[len(kept)].lsn if len(kept) < len(self.records) else lsn
        if begun < lsn:
            assert lsn % PAGE_SIZE == 0
            cut._overwritten_lsn = Lsn(begun)
        elif lsn == self.end_lsn:
            cut._overwritten_lsn = self._overwritten_lsn
        return cut

    @property
    def whole_end_lsn(self) -> Lsn:
        """Where the last whole record ends, and WAL for whoever reads it."""
        return self.end_lsn if self._overwritten_lsn is None else self._overwritten_lsn

    @property
    def is_cut_off(self) -> bool:
        """Whether the last record was cut off, and nothing says so yet."""
        return self._overwritten_lsn is not None

    def append(self, spec: RecordSpec) -> BuiltRecord:
        """Write a record; one that crosses a page goes on behind the next page's header."""
        if self._overwritten_lsn is not None:
            self._append_overwrite_contrecord()
        return self._append(spec)

    def append_all(self, specs: list[RecordSpec]) -> None:
        for spec in specs:
            self.append(spec)

    def append_switch(self) -> BuiltRecord:
        """Write XLOG_SWITCH, and zeros to the end of the segment."""
        built = self.append(RecordSpec(RM_XLOG, XLOG_SWITCH))
        self._wal += bytes(-self.end_lsn % self.segment_size)
        return built

    def append_filler(self, left_on_page: int) -> BuiltRecord:
        """Write a record after which so many bytes are left on its page (a multiple of 8)."""
        room = PAGE_SIZE - self.next_lsn % PAGE_SIZE - left_on_page
        if room < RECORD_HEADER + 2:
            room += PAGE_SIZE - self._header_size(self.next_lsn - self.next_lsn % PAGE_SIZE + PAGE_SIZE)
        length = room - RECORD_HEADER
        data = bytes(length - 5 if length - 2 > 255 else length - 2)
        return self.append(RecordSpec(main_data=data, long_main_data=length - 2 > 255))

    def append_cut_off(self, spec: RecordSpec, pages: int = 1) -> Lsn:
        """Begin a record that a crash cuts off at the end of its page (or ``pages`` - 1 pages later).

        Returns where it starts; the next append writes OVERWRITE_CONTRECORD before its own record.  The record
        must not end before.
        """
        self._begin_page_if_due()
        lsn = self.end_lsn
        data = spec.encode(self.wal_format, self.prev_lsn)
        for page in range(pages):
            if page:
                self._begin_page(FIRST_IS_CONTRECORD, len(data))
            left = PAGE_SIZE - len(self._wal) % PAGE_SIZE
            assert left < len(data), "the record ends before it is cut off"
            self._wal += data[:left]
            data = data[left:]
        self._overwritten_lsn = lsn
        return lsn

    def _append(self, spec: RecordSpec) -> BuiltRecord:
        self._begin_page_if_due()
        lsn, prev_lsn = self.end_lsn, self.prev_lsn
        # A view: what is left of a record of many pages is not copied for each.
        data = memoryview(spec.encode(self.wal_format, prev_lsn))
        total_length = len(data)
        while data:
            if self.end_lsn % PAGE_SIZE == 0:
                self._begin_page(FIRST_IS_CONTRECORD, len(data))
            left = -len(self._wal) % PAGE_SIZE or PAGE_SIZE
            self._wal += data[:left]
            data = data[left:]
        self._wal += bytes(-len(self._wal) % 8)
        self.prev_lsn = lsn
        built = BuiltRecord(lsn, self.end_lsn, Lsn(prev_lsn), spec, total_length)
        self.records.append(built)
        return built

    def _append_overwrite_contrecord(self) -> None:
        assert self._overwritten_lsn is not None
        self._begin_page(overwrite_contrecord_flag(self.major), 0)
        payload = struct.pack("<Qq", self._overwritten_lsn, 0)
        self._overwritten_lsn = None
        self._append(RecordSpec(RM_XLOG, XLOG_OVERWRITE_CONTRECORD, main_data=payload))

    def _begin_page_if_due(self) -> None:
        if self.end_lsn % PAGE_SIZE == 0:
            self._begin_page(0, 0)

    def _header_size(self, page_lsn: int) -> int:
        return SHORT_HEADER if page_lsn % self.segment_size else LONG_HEADER

    def _begin_page(self, flags: int, rest: int) -> None:
        lsn = self.end_lsn
        is_long = lsn % self.segment_size == 0
        if is_long:
            flags |= LONG_HEADER_FLAG
        if self.major < 19 and lsn // PAGE_SIZE % 3 == 0:
            flags |= BKP_REMOVABLE
        magic = self.wal_format.magic if self.magic is None else self.magic
        self._wal += struct.pack("<HHIQI4x", magic, flags, self.timeline_id, lsn, rest)
        if is_long:
            self._wal += struct.pack("<QII", self.system_identifier, self.segment_size, PAGE_SIZE)


def with_recycled_tail(newer: WalBuilder) -> bytes:
    """Return the WAL so far with the rest of its segment as a recycled file has it: pages of an older segment."""
    older = replace(newer, start_lsn=newer.start_lsn - newer.segment_size, prev_lsn=0, records=[])
    while older.end_lsn < newer.start_lsn:
        older.append(RecordSpec(RM_HEAP, 0, blocks=(BlockSpec(0, block_no=len(older.records)),), main_data=b"old"))
    wal = newer.wal()
    return wal + older.wal()[len(wal) : newer.segment_size]


def references(records: list[BuiltRecord]) -> list[tuple[tuple[int, int, int, int], int]]:
    """Return what the records refer to: (relation fork, block), in order, repetitions included."""
    return [(block.relation, block.block_no) for record in records for block in record.spec.blocks]
