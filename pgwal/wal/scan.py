# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, cdivision=True
"""WAL bytes in, changed blocks out: the walk over pages and records as a tight loop.

It opens no file and keeps no clock.  The rules are those of src/backend/access/transam/xlogreader.c, PostgreSQL 13
to 19; ``layout.py`` declares the structures that are read here by offset, ``decoder.py`` is the same walk as a
specification, and tests hold the two equal.

This source runs in two forms: compiled by Cython, with the C types that ``scan.pxd`` gives to its names, and
interpreted as it stands.  So that both agree, no sum, product or shift here can leave the C type of its result.
A literal of more than 31 bits would be a Python object in the loop, so there is none.
"""

from __future__ import annotations

import warnings
from array import array
from collections import deque
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; these are all the names that it uses.
    cython = SimpleNamespace(compiled=False, nogil=nullcontext())

from pgwal.aligned_buffer import aligned_buffer
from pgwal.errors import FormatError, SlowScanner, UnknownRecord
from pgwal.lsn import Lsn
from pgwal.segment import LONG_PAGE_HEADER_SIZE, SHORT_PAGE_HEADER_SIZE, WAL_PAGE_SIZE, WalGeometry
from pgwal.wal.page_magic import wal_format_of_magic
from pgwal.wal.record import KEPT_BYTES, KEPT_BYTES_OF_LISTS, EndReason

if TYPE_CHECKING:
    from typing import TypeAlias, TypeVar

    Buffer: TypeAlias = bytes | bytearray | memoryview
    Holder = TypeVar("Holder", bytearray, Buffer, array[int])
    RelationFork: TypeAlias = tuple[int, int, int, int]

COMPILED: bool = cython.compiled

LONG_SCAN_BYTES = 16 << 20
"""Who scans more than this by the interpreted form is told once, by the warning SlowScanner."""

# --- results ----------------------------------------------------------------------------------------------

_NEED_DATA = 0
_STOP = 1
_SPECIAL = 2
_END_OF_WAL = 3

NEED_DATA: int = _NEED_DATA
STOP: int = _STOP
SPECIAL: int = _SPECIAL
END_OF_WAL: int = _END_OF_WAL

# What the loop asks of scan(), besides the results above.
_GO_ON = 4
_NEED_FORMAT = 5
_NEED_TABLES = 6
_NEED_RECORD_BUFFER = 7
_UNKNOWN = 8
_BROKEN = 9

# --- format -----------------------------------------------------------------------------------------------

_PAGE_SIZE = WAL_PAGE_SIZE
_PAGE_MASK = WAL_PAGE_SIZE - 1
_SHORT_HEADER = SHORT_PAGE_HEADER_SIZE
_LONG_HEADER = LONG_PAGE_HEADER_SIZE

_FIRST_IS_CONTRECORD = 0x0001
_HAS_LONG_HEADER = 0x0002

_RECORD_HEADER = 24

_RM_XLOG, _RM_XACT, _RM_SMGR, _RM_DBASE, _RM_TBLSPC, _RM_HEAP2, _RM_HEAP = 0, 1, 2, 4, 5, 9, 10
# The info of no record, for one that a version does not have.
_NO_OPERATION = 0x100
_LAST_BUILTIN_RMID = 21
_FIRST_CUSTOM_RMID = 128

_MAX_BLOCK_ID = 32
_ID_TOP_LEVEL_XID = 252
_ID_ORIGIN = 253
_ID_DATA_LONG = 254
_ID_DATA_SHORT = 255
_BLOCK_SIZE = 8192

# No more of the main data is read in the loop.
_MAIN_START = 16

# Heap blocks that one block of a visibility map stands for: 8192 - 24 bytes, two bits a heap block.
_HEAP_BLOCKS_PER_MAP_BLOCK = 32672
_FSM_FORK, _VM_FORK, _INIT_FORK = 1, 2, 3

_PAGE_MAGIC = int(EndReason.PAGE_MAGIC)
_PAGE_FLAGS = int(EndReason.PAGE_FLAGS)
_PAGE_LONG_HEADER = int(EndReason.PAGE_LONG_HEADER)
_PAGE_ADDRESS = int(EndReason.PAGE_ADDRESS)
_PAGE_TIMELINE = int(EndReason.PAGE_TIMELINE)
_CONTRECORD = int(EndReason.CONTRECORD)
_RECORD_LENGTH = int(EndReason.RECORD_LENGTH)
_RECORD_PREV_LINK = int(EndReason.RECORD_PREV_LINK)
_RECORD_CRC = int(EndReason.RECORD_CRC)

# --- states of the walk -----------------------------------------------------------------------------------

# On the first pages: what they continue of an earlier record is skipped.
_FINDING_FIRST = 0
# A record ends at _at, or the rest of a segment is skipped from there on.
_BETWEEN_RECORDS = 1
# A record that is not whole on a page and in a chunk is being copied together.
_COLLECTING = 2
# It goes on with the page at _at.
_CONTINUING = 3
# It is whole, the zeros that align its end are not here yet.
_PADDING = 4

# --- tables -----------------------------------------------------------------------------------------------

# References that one record can add: 33 blocks, and the map blocks of two of them.
_MAX_REFERENCES = _MAX_BLOCK_ID + 1
_MAX_DERIVED = 2
_MAX_NEW_RELATIONS = _MAX_REFERENCES + _MAX_DERIVED

_INITIAL_RELATIONS = 512
# With those that the shortenings of some megabytes of WAL add: where there is no room, Python decodes a record.
_INITIAL_RELATIONS_SHORTENED = 1 << 13
_INITIAL_LOG = 1 << 16
_INITIAL_DERIVED = 1 << 10
_INITIAL_RECORD = 1 << 16

# Of a longer record, what follows goes to one page behind them, for its CRC.
_KEPT_BYTES = KEPT_BYTES
_KEPT_BYTES_OF_LISTS = KEPT_BYTES_OF_LISTS

# Beyond these a take gives the memory back.
_LARGE_LOG = 1 << 20
_LARGE_RECORD = 1 << 22

# What is read at a time: more leaves the processor's second cache, less is as many more calls.
_SOURCE_BUFFER = 1 << 18

# Recently seen blocks: 32 KB, so that it stays in the processor's first cache or nearly so.
_SEEN_SIZE = 1 << 12

# In an entry of the log the relation stands above the block number; this bit marks a derived map block.
_DERIVED_BIT = 1 << 31
_LOW_HALF = (1 << 32) - 1

# The limit of a fork that was not shortened, and what no server shortens one to: INVALID_BLOCK_NUMBER.
_NO_LIMIT = (1 << 32) - 1

# Of no relation fork: the last relation that was looked up, when there is none.
_NO_NUMBER = 1 << 40

_BROKEN_BECAUSE = (
    "its headers end early",
    "there is no such block or data id",
    "its block ids are out of order",
    "a block has a data length that does not fit its flags",
    "its first block names no relation",
    "a block is of no known fork",
    "a block has an image header that does not add up",
    "its parts do not add up to its length",
    "its data is too short",
    "it overwrites another record than the one that was cut off",
)
_ENDS_EARLY, _NO_SUCH_ID, _ID_ORDER, _DATA_LENGTH, _NO_RELATION, _NO_FORK = 0, 1, 2, 3, 4, 5
_IMAGE, _SUM, _DATA_SHORT, _OTHER_OVERWRITTEN = 6, 7, 8, 9

if not cython.compiled:
    from struct import unpack_from

    from pgwal.checksum import crc32c as _crc32c_of

    def _record_crc(data: Buffer, at: int, length: int) -> int:
        body_crc = _crc32c_of(bytes(data[at + 24 : at + length]))
        return _header_crc(data[at : at + 20], body_crc)

    def _header_crc(record: Buffer, body_crc: int) -> int:
        return _crc32c_of(bytes(record[:20]), body_crc)

    def _copied_crc(target: bytearray, target_at: int, source: Buffer, source_at: int, count: int, crc: int) -> int:
        _copy(target, target_at, source, source_at, count)
        return _crc32c_of(bytes(source[source_at : source_at + count]), crc)

    def _choose_crc32c(name: str) -> str:  # noqa: ARG001
        return "google-crc32c"

    def _copy(target: bytearray, target_at: int, source: Buffer, source_at: int, count: int) -> None:
        target[target_at : target_at + count] = source[source_at : source_at + count]

    def _u16(data: Buffer, at: int) -> int:
        return unpack_from("<H", data, at)[0]  # type: ignore[no-any-return]

    def _u32(data: Buffer, at: int) -> int:
        return unpack_from("<I", data, at)[0]  # type: ignore[no-any-return]

    def _u64(data: Buffer, at: int) -> int:
        return unpack_from("<Q", data, at)[0]  # type: ignore[no-any-return]

    def _address(holder: Holder) -> Holder:
        return holder

    _bytes_of = _words_of = _double_words_of = _address


def choose_crc32c(name: str = "") -> str:
    """Choose how CRCs are computed, and return its name: the one named if there is such a one, or the fastest."""
    return _choose_crc32c(name)


def record_crc(record: bytes) -> int:
    """Return the CRC that the header of a record of at least 24 bytes should hold."""
    if len(record) < 24:
        raise ValueError("a record is shorter than its header")
    return _record_crc(_bytes_of(record), 0, len(record))


def copied_crc(target: bytearray, data: bytes, crc: int = 0) -> int:
    """Copy ``data`` to the start of ``target`` and return its CRC, continued from ``crc``."""
    if len(target) < len(data):
        raise ValueError("the target is shorter than the data")
    return _copied_crc(_bytes_of(target), 0, _bytes_of(data), 0, len(data), crc)


CRC_IMPLEMENTATION: str = choose_crc32c()


class WalSource:
    """WAL that a scanner reads by itself when it gets to it; what it is read from is known to a subclass.

    left   how many bytes there still are; none when reading has failed, which is for whoever made it to find out
    """

    def __init__(self, size_bytes: int) -> None:
        self.left = size_bytes

    def fill(self, target: Buffer, size: int) -> int:  # noqa: ARG002
        """Put the next bytes, ``size`` of them or what is left, to the start of ``target``; return how many, 0 ends."""
        return 0


_NO_SOURCE = WalSource(0)


class WalScanner:
    """Walks the WAL of one timeline from the first record that starts at or after ``start_lsn``.

    Feed it bytes from the start of ``start_lsn``'s page on, in chunks of any size, and call ``scan`` until it says
    NEED_DATA.  A chunk is not copied: it must stay as it is until then.  Or have it read them, from a WalSource.

    ``magic`` 0 takes the format from the first page.  ``system_identifier`` 0 fits any.  ``prev_lsn``, when given,
    is where the record before ``start_lsn`` starts: the first record that is reported must link to it.
    ``derive_map_blocks`` False spares whoever never takes derived blocks the memory that they would pile up in.
    With ``all_transaction_ends`` each record that ends a transaction is a special one, with ``tablespaces`` each that
    creates or drops a tablespace.  With ``decode_shortenings``, which excludes both, records that do no more than
    create, drop or truncate relation files are decoded here, and ``take_changes`` returns what they do in the place of
    ``take_blocks``; special are only those that may announce a wal_level, and those that the loop does not decode
    because they are broken, unknown, unlike a server's or have too long a list.

    scan() raises FormatError for a record whose CRC is right and whose contents are not, UnknownRecord for one that
    announces what is not known, UnsupportedVersion for an unknown page magic.  Errors and END_OF_WAL are final.
    Records that start before ``start_lsn`` on its page are walked and checked in the same way, but not reported.

    feed_lsn               the position of the next byte to feed, or to read
    position               where the next record starts, as far as is known: the end of the last one (aligned to 8;
                           a page boundary stays one, though the record will start after that page's header), the
                           next segment after XLOG_SWITCH, the page that discards a record which a crash cut off;
                           before the first record the earliest place where it can start.  After END_OF_WAL where
                           there is no record: the start of the one that is incomplete or wrong, or the bad page
    timeline_id            of the newest page
    magic                  of the pages, 0 while it is unknown
    last_record_lsn        where the newest whole record starts, also one before ``start_lsn``; 0 before there is one
    first_record_lsn       where the first record that was reported starts; 0 before there is one
    first_prev_lsn         the xl_prev of that record: where the record before it starts
    record_count           how many records were reported
    block_reference_count  how many block references they had, repetitions included
    special_*              after SPECIAL, the record that Python must decode; ``special_end_lsn`` and, as to how much
                           is kept of it, ``special_main`` as of WalRecord
    """

    def __init__(
        self,
        segment_size: int,
        start_lsn: int,
        *,
        magic: int = 0,
        system_identifier: int = 0,
        prev_lsn: int = 0,
        derive_map_blocks: bool = True,
        all_transaction_ends: bool = False,
        tablespaces: bool = False,
        decode_shortenings: bool = False,
    ) -> None:
        # So far below 2^64 that no sum of positions can wrap.
        if not (0 <= start_lsn < 1 << 63):
            raise ValueError("not a WAL position")
        if not (0 <= prev_lsn < 1 << 63):
            raise ValueError("not a WAL position")
        if not (0 <= system_identifier < 1 << 64):
            raise ValueError("not a system identifier")
        if decode_shortenings and (all_transaction_ends or tablespaces):
            raise ValueError("records that are to be handed over are not decoded here")
        self._segment_size = WalGeometry(segment_size).segment_size
        self._segment_mask = segment_size - 1
        self._start_lsn = start_lsn
        self._expected_prev = prev_lsn
        self._wants_derived = derive_map_blocks
        self._all_transaction_ends = all_transaction_ends
        self._tablespaces = tablespaces
        self._decodes_shortenings = decode_shortenings
        self._system_identifier = system_identifier
        self._stop = (1 << 64) - 1
        self._set_format(0)
        self._at = start_lsn - start_lsn % _PAGE_SIZE
        self.feed_lsn = self._at
        self.position = self._at
        self._skip_to = self._at
        self._state = _FINDING_FIRST
        self.last_record_lsn = 0
        self.first_record_lsn = 0
        self.first_prev_lsn = 0
        self._has_prev = False
        self._is_linked = False
        self.timeline_id = 0
        self._reason = 0
        self._failure: FormatError | None = None
        self.record_count = 0
        self.block_reference_count = 0
        self._start_page()
        self._start_record()
        self._start_special()
        self._start_tables()
        self._start_chunks()
        if magic:
            self._set_format(wal_format_of_magic(magic, "WalScanner").magic)

    def _start_chunks(self) -> None:
        self._chunk: memoryview = memoryview(b"")
        self._size = 0
        self._queue: deque[memoryview] = deque()
        self._cursor = 0
        self._source = _NO_SOURCE
        self._source_buffer: memoryview | None = None

    def _start_page(self) -> None:
        self._head = bytearray(_LONG_HEADER)
        self._head_bytes = _bytes_of(self._head)
        self._head_have = 0
        self._page_flags = 0
        self._page_rest = 0

    def _start_record_buffer(self) -> None:
        self._record = bytearray(_INITIAL_RECORD)
        self._record_bytes = _bytes_of(self._record)
        self._record_capacity = _INITIAL_RECORD

    def _start_record(self) -> None:
        self._start_record_buffer()
        self._record_lsn = 0
        self._record_total = 0
        self._kept = _KEPT_BYTES
        self._unkept = 0
        self._have = 0
        self._want = 0
        self._want_of_page = 0
        self._body_crc = 0
        self._is_link_checked = False
        self._has_discarded = False
        self._discarded_lsn = 0

    def _start_special(self) -> None:
        self._main_at = 0
        self._main_length = 0
        self._image_length = 0
        self._is_in_record = False
        self._lsn = 0
        self._rmid = 0
        self._info = 0
        self._detail = 0
        self.special_lsn = 0
        self.special_end_lsn = 0
        self.special_prev_lsn = 0
        self.special_xid = 0
        self.special_rmid = 0
        self.special_info = 0
        self.special_main = b""

    def _start_tables(self) -> None:
        self._found = array("Q", bytes(8 * _MAX_REFERENCES))
        self._found_at = _double_words_of(self._found)
        self._found_count = 0
        self._held = False
        self._block_0 = 0
        self._block_1 = 0
        self._derived_blocks: dict[RelationFork, set[int]] = {}
        self._log = array("Q", bytes(8 * _INITIAL_LOG))
        self._derived = array("Q", bytes(8 * _INITIAL_DERIVED))
        self._log_count = 0
        self._derived_count = 0
        self._forget_seen()
        self._start_relations()

    def _start_relations(self) -> None:
        count = _INITIAL_RELATIONS_SHORTENED if self._decodes_shortenings else _INITIAL_RELATIONS
        self._places = array("Q", bytes(8 * count))
        self._numbers = array("Q", bytes(8 * count))
        self._limits = array("I", bytes(4 * count))
        self._slots = array("I", bytes(4 * 2 * count))
        self._relation_count: int = 0
        self._is_shortened = False
        self._forget_last_relation()
        self._bind_tables()

    def _forget_last_relation(self) -> None:
        self._last_place: int = 0
        self._last_number: int = _NO_NUMBER
        self._last_relation: int = 0

    def _bind_tables(self) -> None:
        """Tell the loop where the tables are and up to where they are free."""
        self._log_at = _double_words_of(self._log)
        self._log_limit = len(self._log) - _MAX_REFERENCES
        self._derived_at = _double_words_of(self._derived)
        self._derived_limit = len(self._derived) - _MAX_DERIVED
        self._places_at = _double_words_of(self._places)
        self._numbers_at = _double_words_of(self._numbers)
        self._limits_at = _words_of(self._limits)
        # Relation 0 is none.
        self._relation_limit = len(self._places) - 1 - _MAX_NEW_RELATIONS
        self._slots_at = _words_of(self._slots)
        self._slot_mask = len(self._slots) - 1

    # -- what the caller sees --------------------------------------------------------------------------------

    @property
    def stop_lsn(self) -> int:
        """No record that starts here or later is taken."""
        return self._stop

    @stop_lsn.setter
    def stop_lsn(self, lsn: int) -> None:
        if not (0 <= lsn < 1 << 64):
            raise ValueError("not a WAL position")
        self._stop = lsn

    @property
    def untaken_count(self) -> int:
        """How many blocks, some of them more than once, ``take_blocks`` would return."""
        return self._log_count

    @property
    def end_reason(self) -> EndReason | None:
        """Why WAL ends, after END_OF_WAL."""
        return EndReason(self._reason) if self._reason else None

    def feed(self, data: Buffer) -> None:
        """Take the next bytes; they must not change before scan() says NEED_DATA."""
        view = memoryview(data).cast("B")
        if len(view) == 0:
            return
        self.feed_lsn += len(view)
        if not self._reason and self._failure is None:
            self._queue.append(view)

    def read(self, source: WalSource) -> None:
        """Have scan() read the next bytes; they have all been read when it says NEED_DATA, and must have before more.

        Through a buffer that stays in the processor's second cache: what is scanned need not come from memory again.
        """
        if self._queue:
            raise ValueError("bytes that were fed wait to be scanned")
        if self._cursor != self._size:
            raise ValueError("what was fed has not been read")
        if self._source.left != 0:
            raise ValueError("what was fed has not been read")
        if self._reason or self._failure is not None:
            return
        if self._source_buffer is None:
            self._source_buffer = aligned_buffer(_SOURCE_BUFFER)
        self._take_chunk(self._source_buffer, 0)
        self._source = source

    def scan(self) -> int:
        """Walk on through what was fed: NEED_DATA, STOP, SPECIAL or END_OF_WAL.

        Call again after SPECIAL, and after raising ``stop_lsn``.  At SPECIAL the blocks of all records before the
        special one can be taken; its own and those of later records are not among them yet.
        """
        if self._failure is not None:
            raise self._failure
        while not self._reason:
            code = self._run()
            if code == _NEED_DATA:
                if not self._next_chunk():
                    return _NEED_DATA
            elif code == _STOP:
                return _STOP
            elif code == _SPECIAL:
                self.special_main = self._kept_main()
                return _SPECIAL
            elif code != _END_OF_WAL:
                self._serve(code)
        self._drop_chunks()
        return _END_OF_WAL

    def _kept_main(self) -> bytes:
        """Return the main data of the record that was parsed last, as far as it is kept."""
        end = self._main_at + self._main_length
        if not self._is_in_record:
            return bytes(self._chunk[self._main_at : end])
        # No slice of a bytearray, which would be one more copy.
        return bytes(memoryview(self._record)[self._main_at : min(end, self._kept)])

    def _run(self) -> int:
        data = _bytes_of(self._chunk)
        source = self._source
        with cython.nogil:
            code = self._walk(data, self._size)
            while code == _NEED_DATA and source.left:
                # Where there is something left of a source, the chunk is its buffer, which has been used up.
                self._cursor = 0
                self._size = source.fill(data, _SOURCE_BUFFER)
                if self._size == 0:
                    break
                self.feed_lsn += self._size
                code = self._walk(data, self._size)
        return code

    def _next_chunk(self) -> bool:
        if not cython.compiled and self._at - self._start_lsn > LONG_SCAN_BYTES:
            # Python gives a warning once for each line that it is of: this one, whoever calls.
            warnings.warn(SlowScanner(), stacklevel=1)
        self._take_chunk(memoryview(b""), 0)
        if not self._queue:
            return False
        chunk = self._queue.popleft()
        self._take_chunk(chunk, len(chunk))
        return True

    def _take_chunk(self, chunk: memoryview, size: int) -> None:
        self._chunk = chunk
        self._size = size
        self._cursor = 0
        self._source = _NO_SOURCE

    def _drop_chunks(self) -> None:
        self._queue.clear()
        self._next_chunk()

    def _serve(self, code: int) -> None:
        """Do for the loop what needs Python: memory, the format of a magic, errors."""
        if code == _NEED_TABLES:
            self._grow_tables()
        elif code == _NEED_RECORD_BUFFER:
            self._grow_record()
        else:
            try:
                self._look_up_format() if code == _NEED_FORMAT else self._raise(code)
            except FormatError as failure:
                self._failure = failure
                self._drop_chunks()
                raise

    def _grow_record(self) -> None:
        # At most double of what has arrived: a record's length is believed only as far as its bytes are there.
        self._record_capacity = 2 * self._record_capacity
        self._record.extend(bytes(self._record_capacity - len(self._record)))
        self._record_bytes = _bytes_of(self._record)

    def _shrink_record(self) -> None:
        """Give the memory of a large record back, unless another is under way."""
        have = 0 if self._state == _BETWEEN_RECORDS else self._have
        if have <= _INITIAL_RECORD:
            begun = self._record[:have]
            self._start_record_buffer()
            self._record[:have] = begun

    def _look_up_format(self) -> None:
        where = f"WAL page {Lsn(self._at)}"
        self._set_format(wal_format_of_magic(_u16(self._head_bytes, 0), where).magic)

    def _set_format(self, magic: int) -> None:
        self.magic = magic
        self._compressed_bits = 0
        self._has_top_level_xid = False
        self._has_custom_rmgrs = False
        self._all_page_flags = 0
        self._overwrite_flag = 0
        self._derives = False
        self._dbase_create_file_copy = self._dbase_create_wal_log = self._dbase_drop = _NO_OPERATION
        if magic:
            wal_format = wal_format_of_magic(magic, "WalScanner")
            self._compressed_bits = wal_format.compressed_image_bits
            self._has_top_level_xid = wal_format.has_top_level_xid
            self._has_custom_rmgrs = wal_format.has_custom_rmgrs
            self._all_page_flags = wal_format.page_flags
            self._overwrite_flag = wal_format.overwrite_contrecord_flag
            self._derives = self._wants_derived and wal_format.clears_unnamed_map_blocks
            self._dbase_create_file_copy = wal_format.dbase_create_file_copy
            if wal_format.dbase_create_wal_log is not None:
                self._dbase_create_wal_log = wal_format.dbase_create_wal_log
            self._dbase_drop = wal_format.dbase_drop

    def _raise(self, code: int) -> None:
        where = f"record at {Lsn(self._lsn)}"
        if code == _UNKNOWN:
            major = wal_format_of_magic(self.magic, where).major
            raise UnknownRecord(
                f"{where}: rmgr {self._rmid}, info {self._info:#04x} is not known for PostgreSQL {major}",
                hint="It may change relation files in a way that this pgwal does not understand; "
                "look for a newer pgwal.",
                lsn=Lsn(self._lsn),
            )
        raise FormatError(f"{where}: its CRC is right, but {_BROKEN_BECAUSE[self._detail]}", lsn=Lsn(self._lsn))

    # -- the walk: from here on no Python object is touched when compiled -------------------------------------

    def _walk(self, data: Buffer, size: int) -> int:
        """Walk through ``data``, the chunk, from the cursor on."""
        code = _GO_ON
        if self._held:
            code = self._push_references()
        while code == _GO_ON:
            if self._state == _BETWEEN_RECORDS:
                code = self._between_records(data, size)
            elif self._state == _COLLECTING:
                code = self._collect(data, size)
            elif self._state == _CONTINUING:
                code = self._continue_on_page(data, size)
            elif self._state == _PADDING:
                code = self._take_collected(size)
            else:
                code = self._find_first(data, size)
        return code

    def _end(self, lsn: int, reason: int) -> int:
        self.position = lsn
        self._reason = reason
        return _END_OF_WAL

    def _is_stopped(self) -> bool:
        """Tell whether the next record, which has no byte read, starts at or after ``stop_lsn`` at the earliest."""
        start = self._at if self._at > self._skip_to else self._skip_to
        if start & _PAGE_MASK == 0:
            start += _SHORT_HEADER if start & self._segment_mask else _LONG_HEADER
        return start >= self._stop

    def _skip(self, size: int) -> int:
        """Drop bytes up to ``_skip_to``, unread."""
        count = size - self._cursor
        if count > self._skip_to - self._at:
            count = self._skip_to - self._at
        self._cursor += count
        self._at += count
        return _GO_ON if self._at == self._skip_to else _NEED_DATA

    def _page_header(self, data: Buffer, size: int, blamed_lsn: int) -> int:
        """Read and check the header of the page at ``_at`` (XLogReaderValidatePageHeader).

        ``_at`` moves when it is whole and right.  Otherwise WAL ends at ``blamed_lsn``.
        """
        wanted = _SHORT_HEADER
        while True:
            if self._head_have < wanted:
                count = wanted - self._head_have
                if count > size - self._cursor:
                    count = size - self._cursor
                if count:
                    _copy(self._head_bytes, self._head_have, data, self._cursor, count)
                self._head_have += count
                self._cursor += count
            if self._head_have < wanted:
                return _NEED_DATA
            magic = _u16(self._head_bytes, 0)
            flags = _u16(self._head_bytes, 2)
            if self.magic == 0 and magic != 0:
                return _NEED_FORMAT
            if magic != self.magic or magic == 0:
                return self._end(blamed_lsn, _PAGE_MAGIC)
            if flags & ~self._all_page_flags:
                return self._end(blamed_lsn, _PAGE_FLAGS)
            if not flags & _HAS_LONG_HEADER or wanted == _LONG_HEADER:
                break
            wanted = _LONG_HEADER
        if wanted == _LONG_HEADER:
            if not self._fits_cluster():
                return self._end(blamed_lsn, _PAGE_LONG_HEADER)
        elif self._at & self._segment_mask == 0:
            return self._end(blamed_lsn, _PAGE_LONG_HEADER)
        if _u64(self._head_bytes, 8) != self._at:
            return self._end(blamed_lsn, _PAGE_ADDRESS)
        timeline = _u32(self._head_bytes, 4)
        if timeline < self.timeline_id:
            return self._end(blamed_lsn, _PAGE_TIMELINE)
        self.timeline_id = timeline
        self._page_flags = flags
        self._page_rest = _u32(self._head_bytes, 16)
        self._head_have = 0
        self._at += wanted
        return _GO_ON

    def _fits_cluster(self) -> bool:
        if self._system_identifier != 0 and _u64(self._head_bytes, 24) != self._system_identifier:
            return False
        return _u32(self._head_bytes, 32) == self._segment_size and _u32(self._head_bytes, 36) == _PAGE_SIZE

    def _find_first(self, data: Buffer, size: int) -> int:
        """Skip what the first pages continue of an earlier record (XLogFindNextRecord)."""
        if self._is_stopped():
            return _STOP
        if self._at < self._skip_to:
            code = self._skip(size)
            if code != _GO_ON:
                return code
        if self._at & _PAGE_MASK:
            self._state = _BETWEEN_RECORDS
            return _GO_ON
        code = self._page_header(data, size, self._at)
        if code != _GO_ON:
            return code
        if self._page_flags & _FIRST_IS_CONTRECORD:
            rest = self._page_rest + 7 & ~7
            on_page = _PAGE_SIZE - (self._at & _PAGE_MASK)
            self._skip_to = self._at + (rest if rest < on_page else on_page)
            self.position = self._skip_to
        else:
            self._state = _BETWEEN_RECORDS
        return _GO_ON

    def _between_records(self, data: Buffer, size: int) -> int:
        """Take the whole records of a page that lie in the chunk, up to anything that is not as simple."""
        if self._is_stopped():
            return _STOP
        if self._at < self._skip_to:
            code = self._skip(size)
            if code != _GO_ON:
                return code
        if self._at & _PAGE_MASK == 0:
            page_lsn = self._at
            code = self._page_header(data, size, page_lsn)
            if code != _GO_ON:
                return code
            if self._page_flags & _FIRST_IS_CONTRECORD:
                # No record is open here (the server's "contrecord is requested").
                return self._end(page_lsn, _CONTRECORD)
        code = _GO_ON
        while code == _GO_ON:
            at = self._at
            if at >= self._stop:
                return _STOP
            on_page = _PAGE_SIZE - (at & _PAGE_MASK)
            cursor = self._cursor
            here = size - cursor
            if here > on_page:
                here = on_page
            if here < _RECORD_HEADER:
                return self._start_collecting()
            total = _u32(data, cursor)
            if total < _RECORD_HEADER:
                return self._end(at, _RECORD_LENGTH)
            if not self._is_link_right(at, _u64(data, cursor + 8)):
                return self._end(at, _RECORD_PREV_LINK)
            aligned = total + 7 & ~7
            if aligned > here:
                return self._start_collecting()
            code = self._take_record(data, cursor, total, at, at + aligned, _record_crc(data, cursor, total))
            if code in (_GO_ON, _SPECIAL, _NEED_TABLES):
                self._cursor = cursor + aligned
                self._at = at + aligned
            if self._at & _PAGE_MASK == 0 or self._at < self._skip_to:
                return code
        return code

    def _is_link_right(self, lsn: int, link: int) -> bool:
        """Check xl_prev (ValidXLogRecordHeader)."""
        if self._is_linked:
            return link == self.last_record_lsn
        if self._has_prev:
            if link != self.last_record_lsn:
                return False
        elif link >= lsn:
            return False
        return lsn < self._start_lsn or self._expected_prev == 0 or link == self._expected_prev

    def _start_collecting(self) -> int:
        self._state = _COLLECTING
        self._record_lsn = self._at
        self._record_total = 0
        self._kept = _KEPT_BYTES
        self._have = 0
        self._want = 4
        self._want_of_page = 4
        self._body_crc = 0
        self._is_link_checked = False
        return _GO_ON

    def _collect(self, data: Buffer, size: int) -> int:
        """Copy what this page has of a record into the record buffer, checking its header as soon as it is there.

        ``_want`` is how much of the record to copy next; no copy reaches from its header into its body, of which the
        CRC is computed by the way, nor from what is kept of it into the rest.
        """
        while True:
            count = self._want - self._have
            if count > size - self._cursor:
                count = size - self._cursor
            if count:
                place = self._have if self._have < self._kept else self._kept
                if place + count > self._record_capacity:
                    return _NEED_RECORD_BUFFER
                if self._have < _RECORD_HEADER:
                    _copy(self._record_bytes, place, data, self._cursor, count)
                else:
                    self._body_crc = _copied_crc(self._record_bytes, place, data, self._cursor, count, self._body_crc)
                self._have += count
                self._cursor += count
                self._at += count
            if self._have < self._want:
                return _NEED_DATA
            if self._record_total == 0:
                total = _u32(self._record_bytes, 0)
                if total < _RECORD_HEADER:
                    return self._end(self._record_lsn, _RECORD_LENGTH)
                on_page = _PAGE_SIZE - (self._record_lsn & _PAGE_MASK)
                self._record_total = total
                self._want_of_page = total if total < on_page else on_page
                self._want_header()
                continue
            if not self._is_link_checked and self._have >= _RECORD_HEADER:
                if not self._is_link_right(self._record_lsn, _u64(self._record_bytes, 8)):
                    return self._end(self._record_lsn, _RECORD_PREV_LINK)
                self._is_link_checked = True
                if self._record_bytes[17] in (_RM_XACT, _RM_DBASE):
                    self._kept = _KEPT_BYTES_OF_LISTS
            if self._have < self._want_of_page:
                self._want_body()
                continue
            if self._have < self._record_total:
                self._state = _CONTINUING
            else:
                self._state = _PADDING
                self._skip_to = self._at + 7 & ~7
            return _GO_ON

    def _want_header(self) -> None:
        """Want what this page has of the record's header."""
        self._want = self._want_of_page if self._want_of_page < _RECORD_HEADER else _RECORD_HEADER

    def _want_body(self) -> None:
        """Want what this page has of the record's body, up to where it is no longer kept."""
        self._want = self._want_of_page
        if self._have < self._kept and self._kept < self._want:
            self._want = self._kept

    def _continue_on_page(self, data: Buffer, size: int) -> int:
        """Read the header of a page on which the collected record should go on (XLogDecodeNextRecord)."""
        page_lsn = self._at
        code = self._page_header(data, size, self._record_lsn)
        if code != _GO_ON:
            return code
        if self._page_flags & self._overwrite_flag:
            # A crash cut the record off: it never happened, and its successor begins here.
            self._has_discarded = True
            self._discarded_lsn = self._record_lsn
            self.position = page_lsn
            self._state = _BETWEEN_RECORDS
            return _GO_ON
        if not self._page_flags & _FIRST_IS_CONTRECORD or self._have + self._page_rest != self._record_total:
            return self._end(self._record_lsn, _CONTRECORD)
        on_page = _PAGE_SIZE - (self._at & _PAGE_MASK)
        self._want_of_page = self._have + (self._page_rest if self._page_rest < on_page else on_page)
        if self._have < _RECORD_HEADER:
            self._want_header()
        else:
            self._want_body()
        self._state = _COLLECTING
        return _GO_ON

    def _take_collected(self, size: int) -> int:
        code = self._skip(size)
        if code != _GO_ON:
            return code
        self._state = _BETWEEN_RECORDS
        crc = _header_crc(self._record_bytes, self._body_crc)
        total = self._record_total
        self._unkept = total - self._kept if total > self._kept else 0
        code = self._take_record(self._record_bytes, 0, total, self._record_lsn, self._at, crc)
        self._unkept = 0
        return code

    # -- one record ------------------------------------------------------------------------------------------

    def _take_record(self, data: Buffer, base: int, total: int, lsn: int, end_lsn: int, crc: int) -> int:
        """Check and parse the record of ``total`` bytes at ``base``, which has this CRC.

        Its header was read and its link is right.
        """
        if crc != _u32(data, base + 20):
            return self._end(lsn, _RECORD_CRC)
        self.last_record_lsn = lsn
        self._has_prev = True
        info = data[base + 16]
        rmid = data[base + 17]
        if not self._is_known(rmid, info):
            self._lsn = lsn
            self._rmid = rmid
            self._info = info
            return _UNKNOWN
        self._lsn = lsn
        if not self._parse(data, base + _RECORD_HEADER, base + total - self._unkept):
            return _BROKEN
        is_special = False
        if rmid in (_RM_HEAP, _RM_HEAP2):
            if self._derives and lsn >= self._start_lsn:
                self._derive_map_blocks(data, rmid, info)
        elif rmid <= _RM_DBASE:
            if rmid == _RM_XLOG and not self._check_xlog(data, info, end_lsn):
                return _BROKEN
            is_special = self._is_special(data, rmid, info)
        elif rmid == _RM_TBLSPC:
            is_special = self._tablespaces
        self._has_discarded = False
        self.position = end_lsn if end_lsn > self._skip_to else self._skip_to
        if lsn < self._start_lsn:
            return self._room()
        if not self._is_linked:
            self._is_linked = True
            self.first_record_lsn = lsn
            self.first_prev_lsn = _u64(data, base + 8)
        self.record_count += 1
        if is_special and not (self._decodes_shortenings and self._log_shortenings(data, rmid, info)):
            self.special_lsn = lsn
            self.special_end_lsn = end_lsn
            self.special_prev_lsn = _u64(data, base + 8)
            self.special_xid = _u32(data, base + 4)
            self.special_rmid = rmid
            self.special_info = info
            self._is_in_record = self._record_lsn == lsn
            self._held = self._found_count != 0
            return _SPECIAL
        return self._push_references()

    def _is_known(self, rmid: int, info: int) -> bool:
        if rmid > _LAST_BUILTIN_RMID and not (self._has_custom_rmgrs and rmid >= _FIRST_CUSTOM_RMID):
            return False
        # SPECIAL_REL_UPDATE: it changes relation files other than by its references.
        return info & 0x01 == 0 or rmid in (_RM_XACT, _RM_SMGR, _RM_DBASE)

    def _check_xlog(self, data: Buffer, info: int, end_lsn: int) -> bool:
        """Do what SWITCH says, and hold OVERWRITE_CONTRECORD to the record that was discarded."""
        operation = info & 0xF0
        if operation == 0x40:
            # The rest of the segment is zeros, page headers included.
            self._skip_to = end_lsn + self._segment_mask & ~self._segment_mask
        elif operation == 0xD0:
            if self._main_length < 16:
                self._detail = _DATA_SHORT
                return False
            if self._has_discarded and _u64(data, self._main_at) != self._discarded_lsn:
                self._detail = _OTHER_OVERWRITTEN
                return False
        return True

    def _is_special(self, data: Buffer, rmid: int, info: int) -> bool:
        """Tell whether a record changes relation files outside of its references, or what recovery depends on."""
        operation = info & 0xF0
        if rmid in (_RM_SMGR, _RM_DBASE):
            return True
        if rmid == _RM_XLOG:
            # CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE, PARAMETER_CHANGE, FPW_CHANGE, END_OF_RECOVERY, CHECKPOINT_REDO
            return operation in (0x00, 0x10, 0x60, 0x80, 0x90, 0xE0)
        # COMMIT, ABORT, COMMIT_PREPARED, ABORT_PREPARED
        if rmid != _RM_XACT or operation & 0x70 not in (0x00, 0x20, 0x30, 0x40):
            return False
        if self._all_transaction_ends:
            return True
        # With an xinfo word: those that drop relations.
        if operation & 0x80 == 0:
            return False
        # One that is too short for its xinfo is handed over as well, for its decoder to refuse.
        return self._main_length < 12 or _u32(data, self._main_at + 8) & 0x004 != 0

    # -- shortenings (the rules of rmgr.py, which decodes what is handed over) --------------------------------

    def _log_shortenings(self, data: Buffer, rmid: int, info: int) -> bool:
        """Note what a special record shortens; False, with nothing noted, when it is to be handed over."""
        operation = info & 0xF0
        if rmid == _RM_XLOG:
            # CHECKPOINT_ONLINE and FPW_CHANGE shorten nothing and announce no wal_level.
            return operation == 0x10 or operation == 0x80
        if self._found_count:
            # No server's has references, which would have to come after what is shortened.
            return False
        at = self._main_at
        size = self._main_length - self._unkept
        if rmid == _RM_SMGR:
            return self._log_smgr(data, at, size, operation)
        if rmid == _RM_DBASE:
            return self._log_dbase(data, at, size, operation)
        return self._log_dropped(data, at, size)

    def _log_smgr(self, data: Buffer, at: int, size: int, operation: int) -> bool:
        if operation == 0x10 and size >= 16:  # CREATE
            fork = _u32(data, at + 12)
            if fork > _INIT_FORK:
                return False
            # That of a free space map is left out when it is taken.
            self._shorten(_u64(data, at), _u32(data, at + 8) | fork << 32, 0)
            return True
        if operation == 0x20 and size >= 20:  # TRUNCATE
            block = _u32(data, at)
            if block == _NO_LIMIT:
                return False
            self._truncate(_u64(data, at + 4), _u32(data, at + 12), block, _u32(data, at + 16))
            return True
        return False

    def _truncate(self, place: int, number: int, block: int, flags: int) -> None:
        map_number = number | _VM_FORK << 32
        map_block = block // _HEAP_BLOCKS_PER_MAP_BLOCK
        is_in_map_block = block % _HEAP_BLOCKS_PER_MAP_BLOCK != 0
        if flags & 0x1:
            self._shorten(place, number, block)
        if flags & 0x2:
            self._shorten(place, map_number, map_block + 1 if is_in_map_block else map_block)
        if flags & 0x1 and is_in_map_block and self._wants_derived:
            # The page that holds bits of both kept and truncated blocks is cleared in part, and seldom logged.
            self._note_derived(self._relation(place, map_number), map_block)

    def _log_dbase(self, data: Buffer, at: int, size: int, operation: int) -> bool:
        # The database is the upper half of a place; relation 0 stands for all of it there.
        if operation == self._dbase_drop:
            if size < 8:
                return False
            count = _u32(data, at + 4)
            if (size - 8) // 4 < count or not self._has_room(count):
                return False
            database = _u32(data, at)
            for index in range(count):
                self._shorten(_u32(data, at + 8 + 4 * index) | database << 32, 0, 0)
            return True
        if (operation == self._dbase_create_file_copy and size >= 16) or (
            operation == self._dbase_create_wal_log and size >= 8
        ):
            database = _u32(data, at)
            self._shorten(_u32(data, at + 4) | database << 32, 0, 0)
            return True
        return False

    def _log_dropped(self, data: Buffer, at: int, size: int) -> bool:
        """Note the relations that the end of a transaction drops, which follow its database and subtransactions."""
        if size < 12:
            return False
        xinfo = _u32(data, at + 8)
        offset = 20 if xinfo & 0x001 else 12
        if xinfo & 0x002:
            if size < offset + 4:
                return False
            count = _u32(data, at + offset)
            offset += 4 + 4 * count
        if xinfo & 0x004 == 0 or size < offset + 4:
            return False
        count = _u32(data, at + offset)
        offset += 4
        if (size - offset) // 12 < count or not self._has_room(3 * count):
            return False
        at += offset
        for _ in range(count):
            place = _u64(data, at)
            number = _u32(data, at + 8)
            self._shorten(place, number, 0)
            self._shorten(place, number | _VM_FORK << 32, 0)
            self._shorten(place, number | _INIT_FORK << 32, 0)
            at += 12
        return True

    def _has_room(self, count: int) -> bool:
        """Tell whether the tables have room for so many relation forks, beside those of the next record."""
        return self._relation_count + count <= self._relation_limit

    def _shorten(self, place: int, number: int, limit: int) -> None:
        """Note that a fork was shortened: what comes after is logged under another number, which has this limit.

        So the blocks before and after stay apart, and those after count as new.  A limit that is no lower than an
        earlier one makes nothing void (BlockRefTableSetLimitBlock).
        """
        slot = self._slot(place, number)
        relation = self._slots_at[slot]
        if relation == 0 or limit < self._limits_at[relation]:
            self._add_relation(slot, place, number, limit)
            self._is_shortened = True

    # -- references ------------------------------------------------------------------------------------------

    def _parse(self, data: Buffer, at: int, end: int) -> bool:
        """Parse the block and data headers of the record body [at, end), as far as it is kept (DecodeXLogRecord).

        Leaves the references in ``_found``, and where the main data is.  False with ``_detail`` when it is broken.
        """
        payload = main = count = next_id = place = number = 0
        self._block_0 = self._block_1 = self._found_count = 0
        while end - at > payload:
            id_ = data[at]
            if id_ > _MAX_BLOCK_ID:
                if id_ == _ID_DATA_SHORT and end - at >= 2:
                    main = data[at + 1]
                    at += 2
                    break
                at = self._pass_other_header(data, at, end)
                if at == 0:
                    return False
                if id_ == _ID_DATA_LONG:
                    main = self._main_length
                    break
                continue
            if id_ < next_id:
                return self._broken(_ID_ORDER)
            if end - at < 8:
                return self._broken(_ENDS_EARLY)
            next_id = id_ + 1
            flags = data[at + 1]
            length = _u16(data, at + 2)
            at += 4
            if (flags & 0x20 != 0) != (length != 0):
                return self._broken(_DATA_LENGTH)
            payload += length
            if flags & 0x10:
                at = self._pass_image_header(data, at, end)
                if at == 0:
                    return False
                payload += self._image_length
            fork = flags & 0x0F
            if fork > 3:
                return self._broken(_NO_FORK)
            if flags & 0x80 == 0:
                if end - at < 16:
                    return self._broken(_ENDS_EARLY)
                place, number = _u64(data, at), _u32(data, at + 8)
                at += 12
            elif count == 0 or end - at < 4:
                return self._broken(_NO_RELATION if count == 0 else _ENDS_EARLY)
            key = self._relation(place, number | fork << 32) << 32 | _u32(data, at)
            at += 4
            self._found_at[count] = key
            count += 1
            if id_ == 0:
                self._block_0 = key
            elif id_ == 1:
                self._block_1 = key
        return self._is_all(at, end, payload, main, count)

    def _broken(self, detail: int) -> bool:
        self._detail = detail
        return False

    def _pass_other_header(self, data: Buffer, at: int, end: int) -> int:
        """Return where a header that is no block's ends, 0 when it is broken; of long data, note the length."""
        id_ = data[at]
        if id_ == _ID_DATA_LONG:
            if end - at >= 5:
                self._main_length = _u32(data, at + 1)
            at += 5
        elif id_ == _ID_DATA_SHORT:
            at += 2
        elif id_ == _ID_ORIGIN:
            at += 3
        elif id_ == _ID_TOP_LEVEL_XID and self._has_top_level_xid:
            at += 5
        else:
            self._broken(_NO_SUCH_ID)
            return 0
        if at > end:
            self._broken(_ENDS_EARLY)
            return 0
        return at

    def _pass_image_header(self, data: Buffer, at: int, end: int) -> int:
        """Return where the header of a page image ends, 0 when it is broken, and note the length of the image."""
        if end - at < 7:
            # Five bytes here, or seven, and a block number of four after them.
            self._broken(_ENDS_EARLY)
            return 0
        length = _u16(data, at)
        hole_offset = _u16(data, at + 2)
        image_info = data[at + 4]
        hole_length = 0
        is_compressed = image_info & self._compressed_bits
        if is_compressed == 0:
            # One longer than a block fits neither rule below.
            hole_length = _BLOCK_SIZE - length if length <= _BLOCK_SIZE else 0
        elif image_info & 0x01:
            hole_length = _u16(data, at + 5)
            at += 2
        if image_info & 0x01:
            is_right = hole_offset != 0 and hole_length != 0 and length != _BLOCK_SIZE
        else:
            is_right = hole_offset == 0 and hole_length == 0 and (length == _BLOCK_SIZE) == (is_compressed == 0)
        if not is_right:
            self._broken(_IMAGE)
            return 0
        self._image_length = length
        return at + 5

    def _is_all(self, at: int, end: int, payload: int, main: int, count: int) -> bool:
        """Tell whether what the headers promise is all that follows them, and note it."""
        if end - at + self._unkept != payload + main:
            return self._broken(_SUM)
        if self._unkept and end - at < payload + _MAIN_START:
            # Headers of megabytes, which no server writes.
            return self._broken(_ENDS_EARLY)
        self._found_count = count
        self._main_at = at + payload
        self._main_length = main
        return True

    def _relation(self, place: int, number: int) -> int:
        """Return the number (from 1 on) that stands for a relation fork until the next take.

        ``place`` is the tablespace and, above it, the database; ``number`` the relation and, above it, the fork.
        """
        if place == self._last_place and number == self._last_number:
            return self._last_relation
        slot = self._slot(place, number)
        relation = self._slots_at[slot]
        if relation == 0:
            return self._add_relation(slot, place, number, _NO_LIMIT)
        self._last_place = place
        self._last_number = number
        self._last_relation = relation
        return relation

    def _slot(self, place: int, number: int) -> int:
        """Return the slot that holds the newest number of a relation fork, or an empty one for it."""
        relation = 0
        slot = (number & _LOW_HALF) * 0x5E3779B1 ^ (number >> 32) * 0x15EBCA77
        slot ^= (place & _LOW_HALF) * 0x27D4EB2F ^ (place >> 32) * 0x165667B1
        slot = (slot ^ slot >> 23) & self._slot_mask
        while True:
            relation = self._slots_at[slot]
            if relation == 0 or (self._places_at[relation] == place and self._numbers_at[relation] == number):
                return slot
            slot = slot + 1 & self._slot_mask

    def _add_relation(self, slot: int, place: int, number: int, limit: int) -> int:
        """Give a relation fork, which has this slot, its next number, and return that."""
        relation = self._relation_count + 1
        self._relation_count = relation
        self._slots_at[slot] = relation
        self._places_at[relation] = place
        self._numbers_at[relation] = number
        self._limits_at[relation] = limit
        self._last_place = place
        self._last_number = number
        self._last_relation = relation
        return relation

    def _push_references(self) -> int:
        """Add what ``_found`` holds to the log, leaving out what was added a moment ago."""
        self._held = False
        found = self._found_at
        log = self._log_at
        count = self._found_count
        logged = self._log_count
        for index in range(count):
            key = found[index]
            if self._is_new(key):
                log[logged] = key
                logged += 1
        self._log_count = logged
        self.block_reference_count += count
        return self._room()

    def _is_new(self, key: int) -> bool:
        """Note that a block was seen; False when it surely was already since the last take."""
        slot = (key & _LOW_HALF) * 0x5E3779B1 ^ (key >> 32) * 0x15EBCA77
        slot = (slot >> 13) & _SEEN_SIZE - 1
        if self._seen_at[slot] == key:
            return False
        self._seen_at[slot] = key
        return True

    def _room(self) -> int:
        """Go on only when the tables have room for all that the next record can add."""
        if (
            self._log_count > self._log_limit
            or self._relation_count > self._relation_limit
            or self._derived_count > self._derived_limit
        ):
            return _NEED_TABLES
        return _GO_ON

    def _derive_map_blocks(self, data: Buffer, rmid: int, info: int) -> None:
        """Note the map blocks in which a heap record clears bits without referring to them (13 to 17.10, 18.5).

        The flags are in its main data; one that has too little of it says nothing (a server writes none such).
        """
        operation = info & 0x70
        offset = 7
        old_bit = 0x01
        new_bit = 0x00
        if rmid == _RM_HEAP2:
            if operation == 0x50:  # MULTI_INSERT
                offset = 0
            elif operation != 0x60:  # LOCK_UPDATED
                return
        elif operation == 0x00:  # INSERT
            offset = 2
        elif operation == 0x20 or operation == 0x40:  # UPDATE, HOT_UPDATE
            new_bit = 0x02
        elif operation != 0x10 and operation != 0x60:  # DELETE, LOCK
            return
        if offset >= self._main_length:
            return
        flags = data[self._main_at + offset]
        if flags & new_bit:
            self._derive_map_block(self._block_0)
        if flags & old_bit:
            # An update within one page has no reference 1; the other records have only reference 0 to mean.
            is_other_page = new_bit != 0 and self._block_1 != 0
            self._derive_map_block(self._block_1 if is_other_page else self._block_0)

    def _derive_map_block(self, heap_key: int) -> None:
        if heap_key == 0:
            return
        heap = heap_key >> 32
        number = self._numbers_at[heap] & _LOW_HALF
        relation = self._relation(self._places_at[heap], number | _VM_FORK << 32)
        self._note_derived(relation, (heap_key & _LOW_HALF) // _HEAP_BLOCKS_PER_MAP_BLOCK)

    def _note_derived(self, relation: int, block: int) -> None:
        key = (relation | _DERIVED_BIT) << 32 | block
        if self._is_new(key):
            self._derived_at[self._derived_count] = key
            self._derived_count += 1

    # -- tables ----------------------------------------------------------------------------------------------

    def _grow_tables(self) -> None:
        """Make room; whoever takes often never gets here."""
        if self._derived_count > self._derived_limit:
            self._settle_derived()
        if self._log_count > self._log_limit:
            self._log.frombytes(bytes(8 * len(self._log)))
        if self._relation_count > self._relation_limit:
            self._places.frombytes(bytes(8 * len(self._places)))
            self._numbers.frombytes(bytes(8 * len(self._numbers)))
            self._limits.frombytes(bytes(4 * len(self._limits)))
            self._slots = array("I", bytes(4 * 2 * len(self._slots)))
            self._bind_tables()
            self._fill_slots()
        self._bind_tables()

    def _fill_slots(self) -> None:
        """Enter all relations into empty slots, each fork under its newest number."""
        self._forget_last_relation()
        for relation in range(1, self._relation_count + 1):
            self._slots_at[self._slot(self._places_at[relation], self._numbers_at[relation])] = relation

    def _fork(self, relation: int) -> RelationFork:
        place = self._places_at[relation]
        number = self._numbers_at[relation]
        return place & _LOW_HALF, place >> 32, number & _LOW_HALF, number >> 32

    def _settle_derived(self) -> None:
        """Move derived map blocks out of the log, where each can be many times, into sets."""
        for key in self._derived[: self._derived_count]:
            fork = self._fork(key >> 32 & ~_DERIVED_BIT)
            self._derived_blocks.setdefault(fork, set()).add(key & _LOW_HALF)
        self._derived_count = 0

    def take_blocks(self) -> list[tuple[RelationFork, array[int]]]:
        """Return and forget the blocks that records referred to since the last take.

        For each relation fork (tablespace, database, relation, fork) its block numbers, in no order; some may come
        more than once.
        """
        if self._decodes_shortenings:
            raise ValueError("what shortens relation forks was decoded, and belongs between their blocks")
        return [(fork, blocks) for fork, _, blocks in self._take()]

    def take_changes(self) -> list[tuple[RelationFork, int, array[int]]]:
        """Return and forget, with ``decode_shortenings``, what records changed since the last take.

        A fork, its limit and its block numbers: the fork was shortened to so many blocks, unless the limit is
        INVALID_BLOCK_NUMBER, and after that records referred to these blocks, in no order.  A fork that was shortened
        comes again for each time that its limit became lower, in LSN order.  Free space maps are left out: they are
        not fully logged, and so in no summary.
        """
        return self._take()

    def _take(self) -> list[tuple[RelationFork, int, array[int]]]:
        if self._log_count == 0 and not self._is_shortened:
            return []
        self._settle_derived()
        log, ends = self._sort_log()
        ends_at = _words_of(ends)
        nothing = array("I")
        taken: list[tuple[RelationFork, int, array[int]]] = []
        start = 0
        for relation in range(1, self._relation_count + 1):
            end = ends_at[relation]
            limit = self._limits_at[relation]
            is_left_out = self._decodes_shortenings and self._numbers_at[relation] >> 32 == _FSM_FORK
            if (end > start or limit != _NO_LIMIT) and not is_left_out:
                taken.append((self._fork(relation), limit, log[start:end] if end > start else nothing))
            start = end
        self._clear_tables()
        return taken

    def _sort_log(self) -> tuple[array[int], array[int]]:
        """Return the log's block numbers by relation, and where those of each relation end."""
        ends = array("I", bytes(4 * (self._relation_count + 1)))
        blocks = array("I", bytes(4 * self._log_count))
        if self._log_count:
            self._fill_sorted(_words_of(blocks), _words_of(ends))
        return blocks, ends

    def _fill_sorted(self, blocks: array[int], ends: array[int]) -> None:
        for index in range(self._log_count):
            ends[self._log_at[index] >> 32] += 1
        start = 0
        for relation in range(self._relation_count + 1):
            count = ends[relation]
            ends[relation] = start
            start += count
        # Each start moves to its end as the relation's blocks are entered.
        for index in range(self._log_count):
            key = self._log_at[index]
            relation = key >> 32
            blocks[ends[relation]] = key & _LOW_HALF
            ends[relation] += 1

    def _clear_tables(self) -> None:
        self._log_count = 0
        self._forget_seen()
        if not self._held:
            self._start_relations()
        elif self._is_shortened:
            # A special record that waits has its references by the numbers of these relations; their limits are taken.
            self._limits = array("I", b"\xff" * (4 * len(self._limits)))
            self._limits_at = _words_of(self._limits)
            self._is_shortened = False
        if len(self._log) > _LARGE_LOG:
            self._log = array("Q", bytes(8 * _INITIAL_LOG))
            self._bind_tables()
        if self._record_capacity > _LARGE_RECORD:
            self._shrink_record()

    def _forget_seen(self) -> None:
        self._seen = array("Q", bytes(8 * _SEEN_SIZE))
        self._seen_at = _double_words_of(self._seen)

    def take_derived_blocks(self) -> list[tuple[RelationFork, array[int]]]:
        """Return and forget the visibility map blocks in which records cleared bits without referring to them.

        Of the same shape as ``take_blocks``; derived from flags of heap records, so a server from 17.11 or 18.6 on
        has them among its references too.  19 refers to all of them, and so there are none here.
        """
        self._settle_derived()
        taken = [(fork, array("I", sorted(blocks))) for fork, blocks in self._derived_blocks.items()]
        self._derived_blocks = {}
        self._forget_seen()
        return taken
