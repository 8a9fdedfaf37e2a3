"""The WAL's structures, declared with construct: the readable specification, per WAL page magic.

Everything is little-endian.  Sources: src/include/access/{xlog_internal,xlogrecord,xact,heapam_xlog}.h,
src/include/catalog/{storage_xlog,pg_control}.h, src/include/commands/{dbcommands,tablespace}*.h and
src/include/utils/relmapper.h of PostgreSQL 13 to 19.  The scanner walks the same structures as a tight loop.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any

from construct import (
    Byte,
    Construct,
    CString,
    ExprAdapter,
    Flag,
    GreedyBytes,
    If,
    Int8ul,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64sl,
    Int64ul,
    Padding,
    Prefixed,
    PrefixedArray,
    Struct,
    Switch,
    obj_,
    this,
)

from pgwal.postgres_version import CheckpointForm
from pgwal.wal.page_magic import WalFormat

# --- pages ------------------------------------------------------------------------------------------------

PAGE_FIRST_IS_CONTRECORD = 0x0001
PAGE_LONG_HEADER = 0x0002

_PAGE_HEADER_FIELDS = (
    "magic" / Int16ul,
    "info" / Int16ul,
    "timeline_id" / Int32ul,
    "page_lsn" / Int64ul,
    "remaining_length" / Int32ul,
    Padding(4),
)

ShortPageHeader = Struct(*_PAGE_HEADER_FIELDS)
"""XLogPageHeaderData, 24 bytes: starts every WAL page."""

LongPageHeader = Struct(
    *_PAGE_HEADER_FIELDS,
    "system_identifier" / Int64ul,
    "segment_size" / Int32ul,
    "wal_page_size" / Int32ul,
)
"""XLogLongPageHeaderData, 40 bytes: starts the first page of every segment."""

# --- records ----------------------------------------------------------------------------------------------

RECORD_HEADER_SIZE = 24

RecordHeader = Struct(
    "total_length" / Int32ul,
    "xid" / Int32ul,
    "prev_lsn" / Int64ul,
    "info" / Int8ul,
    "rmid" / Int8ul,
    Padding(2),
    "crc" / Int32ul,
)
"""XLogRecord, 24 bytes, at a multiple of 8; its CRC covers what follows it and then its first 20 bytes."""

INFO_SPECIAL_REL_UPDATE = 0x01
INFO_RMGR_MASK = 0xF0

MAX_BLOCK_ID = 32
ID_TOP_LEVEL_XID = 252
ID_ORIGIN = 253
ID_DATA_LONG = 254
ID_DATA_SHORT = 255

BLOCK_FORK_MASK = 0x0F
BLOCK_HAS_IMAGE = 0x10
BLOCK_HAS_DATA = 0x20
BLOCK_WILL_INIT = 0x40
BLOCK_SAME_REL = 0x80

IMAGE_HAS_HOLE = 0x01

Locator = Struct("spc_oid" / Int32ul, "db_oid" / Int32ul, "rel_number" / Int32ul)
"""RelFileLocator (RelFileNode up to 15), 12 bytes."""


@cache
def image_header(wal_format: WalFormat) -> Construct[Any, Any]:
    """XLogRecordBlockImageHeader, and XLogRecordBlockCompressHeader where the image has a hole and is compressed."""
    compressed = wal_format.compressed_image_bits
    return Struct(
        "length" / Int16ul,
        "hole_offset" / Int16ul,
        "info" / Int8ul,
        "hole_length" / If(lambda image: image.info & compressed and image.info & IMAGE_HAS_HOLE, Int16ul),
    )


@cache
def block_header(wal_format: WalFormat) -> Construct[Any, Any]:
    """XLogRecordBlockHeader after its id byte, with the image header and locator that its flags announce."""
    return Struct(
        "flags" / Int8ul,
        "data_length" / Int16ul,
        "image" / If(this.flags & BLOCK_HAS_IMAGE, image_header(wal_format)),
        "locator" / If(lambda block: not block.flags & BLOCK_SAME_REL, Locator),
        "block_no" / Int32ul,
    )


@cache
def header_fragment(wal_format: WalFormat) -> Construct[Any, Any]:
    """One fragment between record header and payloads: an id byte and what it announces."""
    fragments: dict[int, Construct[Any, Any]] = dict.fromkeys(range(MAX_BLOCK_ID + 1), block_header(wal_format))
    fragments[ID_ORIGIN] = Int16ul
    fragments[ID_DATA_LONG] = Int32ul
    fragments[ID_DATA_SHORT] = Int8ul
    if wal_format.has_top_level_xid:
        fragments[ID_TOP_LEVEL_XID] = Int32ul
    return Struct("id" / Int8ul, "body" / Switch(this.id, fragments))


# --- resource managers and the records that change relation files outside of block references ------------------

RM_XLOG, RM_XACT, RM_SMGR, RM_DBASE, RM_TBLSPC, RM_RELMAP, RM_HEAP2, RM_HEAP = 0, 1, 2, 4, 5, 7, 9, 10
LAST_BUILTIN_RMID = 21
FIRST_CUSTOM_RMID = 128

XLOG_CHECKPOINT_SHUTDOWN = 0x00
XLOG_CHECKPOINT_ONLINE = 0x10
XLOG_SWITCH = 0x40
XLOG_BACKUP_END = 0x50
XLOG_PARAMETER_CHANGE = 0x60
XLOG_RESTORE_POINT = 0x70
XLOG_FPW_CHANGE = 0x80
XLOG_END_OF_RECOVERY = 0x90
XLOG_OVERWRITE_CONTRECORD = 0xD0
XLOG_CHECKPOINT_REDO = 0xE0

XACT_OPERATION_MASK = 0x70
XACT_COMMIT = 0x00
XACT_PREPARE = 0x10
XACT_ABORT = 0x20
XACT_COMMIT_PREPARED = 0x30
XACT_ABORT_PREPARED = 0x40
XACT_HAS_INFO = 0x80
XACT_ENDS = (XACT_COMMIT, XACT_ABORT, XACT_COMMIT_PREPARED, XACT_ABORT_PREPARED)

XINFO_HAS_DBINFO = 0x001
XINFO_HAS_SUBXACTS = 0x002
XINFO_HAS_RELFILELOCATORS = 0x004
XINFO_HAS_INVALS = 0x008
XINFO_HAS_TWOPHASE = 0x010
XINFO_HAS_DROPPED_STATS = 0x100

SMGR_CREATE = 0x10
SMGR_TRUNCATE = 0x20
TRUNCATE_HEAP, TRUNCATE_VM, TRUNCATE_FSM = 1, 2, 4

WAL_LEVEL_MINIMAL = 0

SmgrCreate = Struct("locator" / Locator, "fork" / Int32sl)
"""xl_smgr_create, 16 bytes."""

SmgrTruncate = Struct("block_no" / Int32ul, "locator" / Locator, "flags" / Int32sl)
"""xl_smgr_truncate, 20 bytes: ``block_no`` is the new length of the main fork, whichever forks are truncated."""

DbaseCreateFileCopy = Struct(
    "db_oid" / Int32ul, "spc_oid" / Int32ul, "source_db_oid" / Int32ul, "source_spc_oid" / Int32ul
)
"""xl_dbase_create_rec (13, 14), xl_dbase_create_file_copy_rec (since 15), 16 bytes."""

DbaseCreateWalLog = Struct("db_oid" / Int32ul, "spc_oid" / Int32ul)
"""xl_dbase_create_wal_log_rec (since 15), 8 bytes."""

DbaseDrop = Struct("db_oid" / Int32ul, "spc_oids" / PrefixedArray(Int32ul, Int32ul))
"""xl_dbase_drop_rec, 8 + 4n bytes."""

TablespaceCreate = Struct("spc_oid" / Int32ul, "path" / CString("utf8"))
"""xl_tblspc_create_rec."""

TablespaceDrop = Struct("spc_oid" / Int32ul)
"""xl_tblspc_drop_rec, 4 bytes."""

RelmapUpdate = Struct("db_oid" / Int32ul, "spc_oid" / Int32ul, "map" / PrefixedArray(Int32ul, Byte))
"""xl_relmap_update: the new contents of a pg_filenode.map."""


def _words() -> Construct[Any, Any]:
    """A count and that many words, as an array: there may be millions, which construct would parse one by one."""
    counted = Prefixed(ExprAdapter(Int32ul, 4 * obj_, obj_ // 4), GreedyBytes)
    return ExprAdapter(counted, lambda words, _: array("I", words), lambda words, _: array("I", words).tobytes())


XactEnd = Struct(
    "time" / Int64sl,
    "xinfo" / Int32ul,
    "database" / If(this.xinfo & XINFO_HAS_DBINFO, Struct("db_oid" / Int32ul, "spc_oid" / Int32ul)),
    "subxacts" / If(this.xinfo & XINFO_HAS_SUBXACTS, _words()),
    "dropped" / If(this.xinfo & XINFO_HAS_RELFILELOCATORS, PrefixedArray(Int32ul, Locator)),
)
"""xl_xact_commit and xl_xact_abort with an xinfo word, as far as the relations whose files are unlinked."""

XactPrepare = Struct(
    "magic" / Int32ul,
    "total_length" / Int32ul,
    "xid" / Int32ul,
    "db_oid" / Int32ul,
    "prepared_at" / Int64sl,
    "owner_oid" / Int32ul,
    "subxact_count" / Int32sl,
    "commit_dropped_count" / Int32sl,
    "abort_dropped_count" / Int32sl,
)
"""xl_xact_prepare (TwoPhaseFileHeader up to 12) as far as the counts of relations that are to be dropped.

Nothing is dropped yet: the record that ends the transaction repeats the list that applies.
"""

_CHECKPOINT_NEXT = ("next_xid" / Int64ul, "next_oid" / Int32ul, "next_multi" / Int32ul)
_CHECKPOINT_OLDEST = (
    "oldest_xid" / Int32ul,
    "oldest_xid_db_oid" / Int32ul,
    "oldest_multi" / Int32ul,
    "oldest_multi_db_oid" / Int32ul,
)
_CHECKPOINT_TIME = (
    "time" / Int64sl,
    "oldest_commit_ts_xid" / Int32ul,
    "newest_commit_ts_xid" / Int32ul,
    "oldest_active_xid" / Int32ul,
    Padding(4),
)

CheckpointBefore17 = Struct(
    "redo_lsn" / Int64ul,
    "timeline_id" / Int32ul,
    "prev_timeline_id" / Int32ul,
    "full_page_writes" / Flag,
    Padding(7),
    *_CHECKPOINT_NEXT,
    "next_multi_offset" / Int32ul,
    *_CHECKPOINT_OLDEST,
    Padding(4),
    *_CHECKPOINT_TIME,
)
"""CheckPoint (13 to 16), 88 bytes."""

Checkpoint17 = Struct(
    "redo_lsn" / Int64ul,
    "timeline_id" / Int32ul,
    "prev_timeline_id" / Int32ul,
    "full_page_writes" / Flag,
    Padding(3),
    "wal_level" / Int32sl,
    *_CHECKPOINT_NEXT,
    "next_multi_offset" / Int32ul,
    *_CHECKPOINT_OLDEST,
    Padding(4),
    *_CHECKPOINT_TIME,
)
"""CheckPoint (17, 18), 88 bytes."""

CheckpointSince19 = Struct(
    "redo_lsn" / Int64ul,
    "timeline_id" / Int32ul,
    "prev_timeline_id" / Int32ul,
    "full_page_writes" / Flag,
    Padding(3),
    "wal_level" / Int32sl,
    "logical_decoding_enabled" / Flag,
    Padding(7),
    *_CHECKPOINT_NEXT,
    "next_multi_offset" / Int64ul,
    *_CHECKPOINT_OLDEST,
    *_CHECKPOINT_TIME,
)
"""CheckPoint (19), 96 bytes."""

_CHECKPOINTS: dict[CheckpointForm, Construct[Any, Any]] = {
    CheckpointForm.WITHOUT_WAL_LEVEL: CheckpointBefore17,
    CheckpointForm.WITH_WAL_LEVEL: Checkpoint17,
    CheckpointForm.WITH_WIDE_MULTI_OFFSET: CheckpointSince19,
}

CheckpointRedo = Struct("wal_level" / Int32sl)
"""XLOG_CHECKPOINT_REDO (since 17): the start of this record is the redo LSN of the checkpoint to come."""

BackupEnd = Struct("start_lsn" / Int64ul)
"""XLOG_BACKUP_END, 8 bytes: the start of the backup that ends; the end of this record is its stop."""

ParameterChange = Struct(
    "max_connections" / Int32sl,
    "max_worker_processes" / Int32sl,
    "max_wal_senders" / Int32sl,
    "max_prepared_xacts" / Int32sl,
    "max_locks_per_xact" / Int32sl,
    "wal_level" / Int32sl,
    "wal_log_hints" / Flag,
    "track_commit_timestamp" / Flag,
)
"""xl_parameter_change, 28 bytes with padding."""

FpwChange = Struct("full_page_writes" / Flag)

EndOfRecoveryBefore17 = Struct("time" / Int64sl, "timeline_id" / Int32ul, "prev_timeline_id" / Int32ul)
"""xl_end_of_recovery (13 to 16), 16 bytes."""

EndOfRecoverySince17 = Struct(
    "time" / Int64sl, "timeline_id" / Int32ul, "prev_timeline_id" / Int32ul, "wal_level" / Int32sl
)
"""xl_end_of_recovery (since 17), 24 bytes with padding."""

# --- heap records that clear bits of the visibility map by a flag -------------------------------------------

HeapInsert = Struct("offset_number" / Int16ul, "flags" / Int8ul)
"""xl_heap_insert, 3 bytes; flag 0x01: the map's bits of block 0's page were cleared."""

HeapMultiInsert = Struct("flags" / Int8ul, Padding(1), "tuple_count" / Int16ul)
"""xl_heap_multi_insert; flag 0x01 as for HeapInsert."""

HeapDelete = Struct("xmax" / Int32ul, "offset_number" / Int16ul, "infobits" / Int8ul, "flags" / Int8ul)
"""xl_heap_delete, 8 bytes; flag 0x01 as for HeapInsert.  xl_heap_lock and xl_heap_lock_updated look the same."""

HeapUpdate = Struct(
    "old_xmax" / Int32ul,
    "old_offset_number" / Int16ul,
    "old_infobits" / Int8ul,
    "flags" / Int8ul,
    "new_xmax" / Int32ul,
    "new_offset_number" / Int16ul,
)
"""xl_heap_update, 14 bytes; flag 0x01: bits of the old tuple's page were cleared, 0x02: of the new tuple's page.

Block 0 is the new tuple's page, block 1 the old tuple's where that is another one.
"""

HEAP_ALL_VISIBLE_CLEARED = 0x01
HEAP_UPDATE_NEW_ALL_VISIBLE_CLEARED = 0x02

HEAP_OPERATION_MASK = 0x70
HEAP_INSERT, HEAP_DELETE, HEAP_UPDATE, HEAP_HOT_UPDATE, HEAP_LOCK = 0x00, 0x10, 0x20, 0x40, 0x60
HEAP2_MULTI_INSERT, HEAP2_LOCK_UPDATED = 0x50, 0x60

OverwriteContrecord = Struct("overwritten_lsn" / Int64ul, "time" / Int64sl)
"""xl_overwrite_contrecord, 16 bytes: names the record that was cut off by a crash."""


@cache
def payloads(wal_format: WalFormat) -> dict[tuple[int, int], Construct[Any, Any]]:
    """Main data of the records that pgwal decodes, by (rmid, info without its low nibble)."""
    known: dict[tuple[int, int], Construct[Any, Any]] = {
        (RM_SMGR, SMGR_CREATE): SmgrCreate,
        (RM_SMGR, SMGR_TRUNCATE): SmgrTruncate,
        (RM_DBASE, wal_format.dbase_create_file_copy): DbaseCreateFileCopy,
        (RM_DBASE, wal_format.dbase_drop): DbaseDrop,
        (RM_TBLSPC, 0x00): TablespaceCreate,
        (RM_TBLSPC, 0x10): TablespaceDrop,
        (RM_RELMAP, 0x00): RelmapUpdate,
        (RM_XLOG, XLOG_BACKUP_END): BackupEnd,
        (RM_XLOG, XLOG_PARAMETER_CHANGE): ParameterChange,
        (RM_XLOG, XLOG_FPW_CHANGE): FpwChange,
        (RM_XLOG, XLOG_OVERWRITE_CONTRECORD): OverwriteContrecord,
    }
    known[RM_XACT, XACT_PREPARE] = XactPrepare
    for init_page in (0x00, 0x80):
        known[RM_HEAP, HEAP_INSERT | init_page] = HeapInsert
        known[RM_HEAP, HEAP_UPDATE | init_page] = HeapUpdate
        known[RM_HEAP, HEAP_HOT_UPDATE | init_page] = HeapUpdate
        known[RM_HEAP2, HEAP2_MULTI_INSERT | init_page] = HeapMultiInsert
    known[RM_HEAP, HEAP_DELETE] = HeapDelete
    known[RM_HEAP, HEAP_LOCK] = HeapDelete
    known[RM_HEAP2, HEAP2_LOCK_UPDATED] = HeapDelete
    known.update({(RM_XACT, operation | XACT_HAS_INFO): XactEnd for operation in XACT_ENDS})
    since_17 = wal_format.has_checkpoint_redo
    checkpoint = _CHECKPOINTS[wal_format.checkpoint]
    known[RM_XLOG, XLOG_CHECKPOINT_SHUTDOWN] = checkpoint
    known[RM_XLOG, XLOG_CHECKPOINT_ONLINE] = checkpoint
    known[RM_XLOG, XLOG_END_OF_RECOVERY] = EndOfRecoverySince17 if since_17 else EndOfRecoveryBefore17
    if since_17:
        known[RM_XLOG, XLOG_CHECKPOINT_REDO] = CheckpointRedo
    if wal_format.dbase_create_wal_log is not None:
        known[RM_DBASE, wal_format.dbase_create_wal_log] = DbaseCreateWalLog
    return known
