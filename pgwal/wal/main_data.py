# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, cdivision=True
"""What the main data of a record says that its references do not: what the loop over records asks of a few of them.

One of the modules of the scanner, which run in two forms: ``scan.py`` says how.  Only records that may be special come
here, so that a call from another module is cheap.  What records shorten is read by the rules of ``rmgr.py``, which
decodes what is handed over.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; this is all that it uses.
    cython = SimpleNamespace(compiled=False)

if not cython.compiled:
    from pgwal.wal.scan_types import *

if TYPE_CHECKING:
    from pgwal.wal.page_magic import WalFormat
    from pgwal.wal.reference_log import ReferenceLog
    from pgwal.wal.scan_request import ScanRequest
    from pgwal.wal.scan_types import Buffer

COMPILED: bool = cython.compiled

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

# What no server shortens a fork to: INVALID_BLOCK_NUMBER.
_NO_LIMIT = (1 << 32) - 1

# What stands above a relation's number for its visibility map, and for its initialization fork.
_OF_MAP = 2 << 32
_OF_INIT = 3 << 32


class MainData:
    """The main data of the record that was parsed last: ``_main_length`` bytes at ``_main_at``, less ``_unkept``."""

    def __init__(self, request: ScanRequest, references: ReferenceLog) -> None:
        """What is shortened, and the map blocks that are derived, go to ``references``."""
        self._segment_size = request.segment_size
        self._segment_mask = request.segment_size - 1
        self._references = references
        self._wants_derived = request.derive_map_blocks
        self._all_transaction_ends = request.all_transaction_ends
        self._tablespaces = request.tablespaces
        self._decodes_shortenings = request.decode_shortenings
        self._dbase_create_file_copy = self._dbase_create_wal_log = self._dbase_drop = NO_OPERATION
        self._main_at = 0
        self._main_length = 0
        self._unkept = 0
        self._found_before = 0
        self._skip_to = request.start_lsn - request.start_lsn % PAGE_SIZE
        self._has_discarded = False
        self._discarded_lsn = 0
        self._detail = 0

    def _read_as(self, wal_format: WalFormat) -> None:
        """Take the operations of databases to be those of this format."""
        self._dbase_create_file_copy = wal_format.dbase_create_file_copy
        if wal_format.dbase_create_wal_log is not None:
            self._dbase_create_wal_log = wal_format.dbase_create_wal_log
        self._dbase_drop = wal_format.dbase_drop

    def _broken_because(self) -> str:
        """Return what is wrong with the record that was parsed last."""
        return _BROKEN_BECAUSE[self._detail]

    # -- from here on no Python object is touched when compiled ----------------------------------------------

    def _check_xlog(self, data: Buffer, info: int, end_lsn: int) -> bool:
        """Do what SWITCH says, and hold OVERWRITE_CONTRECORD to the record that was discarded."""
        operation = info & 0xF0
        if operation == 0x40:
            # The rest of the segment is zeros, page headers included.
            self._skip_to = end_lsn + self._segment_mask & ~self._segment_mask
        elif operation == 0xD0:
            if self._main_length < 16:
                self._detail = DATA_SHORT
                return False
            if self._has_discarded and u64(data, self._main_at) != self._discarded_lsn:
                self._detail = OTHER_OVERWRITTEN
                return False
        return True

    def _is_special(self, data: Buffer, rmid: int, info: int) -> bool:
        """Tell whether a record changes relation files outside of its references, or what recovery depends on."""
        operation = info & 0xF0
        if rmid in (RM_SMGR, RM_DBASE):
            return True
        if rmid == RM_XLOG:
            # CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE, PARAMETER_CHANGE, FPW_CHANGE, END_OF_RECOVERY, CHECKPOINT_REDO
            return operation in (0x00, 0x10, 0x60, 0x80, 0x90, 0xE0)
        # COMMIT, ABORT, COMMIT_PREPARED, ABORT_PREPARED
        if rmid != RM_XACT or operation & 0x70 not in (0x00, 0x20, 0x30, 0x40):
            return False
        if self._all_transaction_ends:
            return True
        # With an xinfo word: those that drop relations.
        if operation & 0x80 == 0:
            return False
        # One that is too short for its xinfo is handed over as well, for its decoder to refuse.
        return self._main_length < 12 or u32(data, self._main_at + 8) & 0x004 != 0

    def _is_decoded(self, data: Buffer, rmid: int, info: int) -> bool:
        """Decode a special record here, if that can be; False, with nothing noted, when it is to be handed over."""
        operation = info & 0xF0
        if rmid == RM_XLOG:
            # CHECKPOINT_ONLINE and FPW_CHANGE shorten nothing and announce no wal_level.
            return operation == 0x10 or operation == 0x80
        if self._references.found_count != self._found_before:
            # No server's has references, which would have to come after what is shortened.
            return False
        # What was found before belongs before what is shortened.
        self._references.push(self._found_before)
        self._found_before = 0
        return self._note_shortenings(data, self._main_at, self._main_length - self._unkept, rmid, operation)

    def _note_shortenings(self, data: Buffer, at: int, size: int, rmid: int, operation: int) -> bool:
        """Note what a record of SMGR, DBASE or XACT shortens; False, with nothing noted, if it is to be handed over."""
        if rmid == RM_SMGR:
            return self._note_smgr(data, at, size, operation)
        if rmid == RM_DBASE:
            return self._note_dbase(data, at, size, operation)
        return self._note_dropped(data, at, size)

    def _note_smgr(self, data: Buffer, at: int, size: int, operation: int) -> bool:
        if operation == 0x10 and size >= 16:  # CREATE
            fork = u32(data, at + 12)
            if fork > INIT_FORK:
                return False
            # That of a free space map is left out when it is taken.
            self._references.shorten(u64(data, at), u32(data, at + 8) | fork << 32, 0)
            return True
        if operation == 0x20 and size >= 20:  # TRUNCATE
            block = u32(data, at)
            if block == _NO_LIMIT:
                return False
            self._truncate(u64(data, at + 4), u32(data, at + 12), block, u32(data, at + 16))
            return True
        return False

    def _truncate(self, place: int, number: int, block: int, flags: int) -> None:
        map_number = number | _OF_MAP
        map_block = block // HEAP_BLOCKS_PER_MAP_BLOCK
        is_in_map_block = block % HEAP_BLOCKS_PER_MAP_BLOCK != 0
        if flags & 0x1:
            self._references.shorten(place, number, block)
        if flags & 0x2:
            self._references.shorten(place, map_number, map_block + 1 if is_in_map_block else map_block)
        if flags & 0x1 and is_in_map_block and self._wants_derived:
            # The page that holds bits of both kept and truncated blocks is cleared in part, and seldom logged.
            self._references.derive_map_block(place, number, map_block)

    def _note_dbase(self, data: Buffer, at: int, size: int, operation: int) -> bool:
        # The database is the upper half of a place; relation 0 stands for all of it there.
        if operation == self._dbase_drop:
            if size < 8:
                return False
            count = u32(data, at + 4)
            if (size - 8) // 4 < count or not self._references.has_room(count):
                return False
            database = u32(data, at)
            for index in range(count):
                self._references.shorten(u32(data, at + 8 + 4 * index) | database << 32, 0, 0)
            return True
        if (operation == self._dbase_create_file_copy and size >= 16) or (
            operation == self._dbase_create_wal_log and size >= 8
        ):
            database = u32(data, at)
            self._references.shorten(u32(data, at + 4) | database << 32, 0, 0)
            return True
        return False

    def _note_dropped(self, data: Buffer, at: int, size: int) -> bool:
        """Note the relations that the end of a transaction drops, which follow its database and subtransactions."""
        if size < 12:
            return False
        xinfo = u32(data, at + 8)
        offset = 20 if xinfo & 0x001 else 12
        if xinfo & 0x002:
            if size < offset + 4:
                return False
            count = u32(data, at + offset)
            offset += 4 + 4 * count
        if xinfo & 0x004 == 0 or size < offset + 4:
            return False
        count = u32(data, at + offset)
        offset += 4
        if (size - offset) // 12 < count or not self._references.has_room(3 * count):
            return False
        at += offset
        for _ in range(count):
            place = u64(data, at)
            number = u32(data, at + 8)
            self._references.shorten(place, number, 0)
            self._references.shorten(place, number | _OF_MAP, 0)
            self._references.shorten(place, number | _OF_INIT, 0)
            at += 12
        return True
