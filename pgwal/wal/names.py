"""Names of resource managers and of their records, as pg_waldump prints them.

Source: src/include/access/rmgrlist.h and the ``_identify`` functions in src/backend/access/rmgrdesc, PostgreSQL 13
to 19.  Names that not all versions have, or for other records, are in the versions' rows.
"""

from __future__ import annotations

from pgwal.wal.page_magic import WalFormat

RMGR_NAMES = (
    "XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2",
    "Heap", "Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic",
    "LogicalMessage",
)  # fmt: skip

_HEAP_MASK = 0x70
_XACT_MASK = 0x70
_INIT_PAGE = 0x80
# Heap2, Heap, BRIN
_PAGE_RMGRS = (9, 10, 17)

_XLOG = {
    0x00: "CHECKPOINT_SHUTDOWN", 0x10: "CHECKPOINT_ONLINE", 0x20: "NOOP", 0x30: "NEXTOID", 0x40: "SWITCH",
    0x50: "BACKUP_END", 0x60: "PARAMETER_CHANGE", 0x70: "RESTORE_POINT", 0x80: "FPW_CHANGE", 0x90: "END_OF_RECOVERY",
    0xA0: "FPI_FOR_HINT", 0xB0: "FPI", 0xD0: "OVERWRITE_CONTRECORD", 0xE0: "CHECKPOINT_REDO",
}  # fmt: skip
_XACT = {
    0x00: "COMMIT", 0x10: "PREPARE", 0x20: "ABORT", 0x30: "COMMIT_PREPARED", 0x40: "ABORT_PREPARED",
    0x50: "ASSIGNMENT", 0x60: "INVALIDATION",
}  # fmt: skip
_HEAP2 = {0x00: "REWRITE", 0x50: "MULTI_INSERT", 0x60: "LOCK_UPDATED", 0x70: "NEW_CID"}
_HEAP = {
    0x00: "INSERT", 0x10: "DELETE", 0x20: "UPDATE", 0x30: "TRUNCATE", 0x40: "HOT_UPDATE", 0x50: "HEAP_CONFIRM",
    0x60: "LOCK", 0x70: "INPLACE",
}  # fmt: skip
_BY_RMGR: dict[int, dict[int, str]] = {
    0: _XLOG,
    2: {0x10: "CREATE", 0x20: "TRUNCATE"},
    3: {0x00: "ZEROPAGE", 0x10: "TRUNCATE"},
    5: {0x00: "CREATE", 0x10: "DROP"},
    6: {0x00: "ZERO_OFF_PAGE", 0x10: "ZERO_MEM_PAGE", 0x20: "CREATE_ID", 0x30: "TRUNCATE_ID"},
    7: {0x00: "UPDATE"},
    8: {0x00: "LOCK", 0x10: "RUNNING_XACTS", 0x20: "INVALIDATIONS"},
    9: _HEAP2,
    10: _HEAP,
    11: {
        0x00: "INSERT_LEAF", 0x10: "INSERT_UPPER", 0x20: "INSERT_META", 0x30: "SPLIT_L", 0x40: "SPLIT_R",
        0x50: "INSERT_POST", 0x60: "DEDUP", 0x70: "DELETE", 0x80: "UNLINK_PAGE", 0x90: "UNLINK_PAGE_META",
        0xA0: "NEWROOT", 0xB0: "MARK_PAGE_HALFDEAD", 0xC0: "VACUUM", 0xD0: "REUSE_PAGE", 0xE0: "META_CLEANUP",
    },
    12: {
        0x00: "INIT_META_PAGE", 0x10: "INIT_BITMAP_PAGE", 0x20: "INSERT", 0x30: "ADD_OVFL_PAGE",
        0x40: "SPLIT_ALLOCATE_PAGE", 0x50: "SPLIT_PAGE", 0x60: "SPLIT_COMPLETE", 0x70: "MOVE_PAGE_CONTENTS",
        0x80: "SQUEEZE_PAGE", 0x90: "DELETE", 0xA0: "SPLIT_CLEANUP", 0xB0: "UPDATE_META_PAGE",
        0xC0: "VACUUM_ONE_PAGE",
    },
    13: {
        0x10: "CREATE_PTREE", 0x20: "INSERT", 0x30: "SPLIT", 0x40: "VACUUM_PAGE", 0x50: "DELETE_PAGE",
        0x60: "UPDATE_META_PAGE", 0x70: "INSERT_LISTPAGE", 0x80: "DELETE_LISTPAGE", 0x90: "VACUUM_DATA_LEAF_PAGE",
    },
    14: {
        0x00: "PAGE_UPDATE", 0x10: "DELETE", 0x20: "PAGE_REUSE", 0x30: "PAGE_SPLIT", 0x60: "PAGE_DELETE",
        0x70: "ASSIGN_LSN",
    },
    15: {0x00: "LOG"},
    16: {
        0x10: "ADD_LEAF", 0x20: "MOVE_LEAFS", 0x30: "ADD_NODE", 0x40: "SPLIT_TUPLE", 0x50: "PICKSPLIT",
        0x60: "VACUUM_LEAF", 0x70: "VACUUM_ROOT", 0x80: "VACUUM_REDIRECT",
    },
    17: {
        0x00: "CREATE_INDEX", 0x10: "INSERT", 0x20: "UPDATE", 0x30: "SAMEPAGE_UPDATE", 0x40: "REVMAP_EXTEND",
        0x50: "DESUMMARIZE",
    },
    18: {0x00: "ZEROPAGE", 0x10: "TRUNCATE", 0x20: "SETTS"},
    19: {0x00: "SET", 0x10: "DROP"},
    20: {0x00: "Generic"},
    21: {0x00: "MESSAGE"},
}  # fmt: skip


def rmgr_name(rmid: int) -> str:
    """Return the name of a resource manager; one of an extension by its number."""
    return RMGR_NAMES[rmid] if rmid < len(RMGR_NAMES) else f"custom{rmid:03d}"


def record_name(wal_format: WalFormat, rmid: int, info: int) -> str:
    """Return the name of a record, with ``+INIT`` where it initialises its page, or UNKNOWN with the info byte."""
    operation = info & 0xF0
    if rmid == 1:
        name = _XACT.get(operation & _XACT_MASK)
    elif rmid in _PAGE_RMGRS:
        name = _own_or_common(wal_format, rmid, operation & _HEAP_MASK)
        if name is not None and operation & _INIT_PAGE:
            name += "+INIT"
    else:
        name = _own_or_common(wal_format, rmid, operation)
    return name if name is not None else f"UNKNOWN (info {info:02X})"


def _own_or_common(wal_format: WalFormat, rmid: int, operation: int) -> str | None:
    return wal_format.record_names.get((rmid, operation)) or _BY_RMGR.get(rmid, {}).get(operation)
