"""Which records create, drop or truncate relation files, and what that means for a block map.

The rules are those of SummarizeSmgrRecord, SummarizeDbaseRecord and SummarizeXactRecord in
src/backend/postmaster/walsummarizer.c, PostgreSQL 17 to 19, with the record types of 13 to 19.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pgwal.lsn import Lsn
from pgwal.relation import Fork
from pgwal.wal import layout
from pgwal.wal.decoder import decode_main_data, unknown_record
from pgwal.wal.page_magic import WalFormat

HEAP_BLOCKS_PER_VM_BLOCK = 32672
"""Heap blocks whose visibility one block of the map holds: 8168 bytes of bits, two bits a block."""


class Shortening(NamedTuple):
    """A relation fork was shortened to ``limit_block`` blocks; 0 when it was created, dropped or made anew.

    ``rel_number`` 0 with the main fork means every relation of the database in the tablespace.
    """

    spc_oid: int
    db_oid: int
    rel_number: int
    fork: int
    limit_block: int


def shortenings(wal_format: WalFormat, lsn: int, rmid: int, info: int, main_data: bytes) -> list[Shortening]:
    """Return what a record shortens; an empty list for records that shorten nothing.

    Raises UnknownRecord for an unknown record of a resource manager that owns files, FormatError for a broken one.
    """
    if rmid == layout.RM_SMGR:
        return _of_smgr(wal_format, lsn, info, main_data)
    if rmid == layout.RM_DBASE:
        return _of_dbase(wal_format, lsn, info, main_data)
    if rmid == layout.RM_XACT:
        return _of_xact(wal_format, lsn, info, main_data)
    return []


def wal_level_of(wal_format: WalFormat, lsn: int, info: int, main_data: bytes) -> int | None:
    """Return the wal_level that an XLOG record announces, or None when it announces none."""
    operation = info & layout.INFO_RMGR_MASK
    announcing = {layout.XLOG_PARAMETER_CHANGE}
    if wal_format.has_checkpoint_redo:
        announcing |= {layout.XLOG_CHECKPOINT_REDO, layout.XLOG_CHECKPOINT_SHUTDOWN, layout.XLOG_END_OF_RECOVERY}
    if operation not in announcing:
        return None
    payload = decode_main_data(wal_format, lsn, layout.RM_XLOG, operation, main_data)
    return int(payload.wal_level)


def _of_smgr(wal_format: WalFormat, lsn: int, info: int, main_data: bytes) -> list[Shortening]:
    payload = decode_main_data(wal_format, lsn, layout.RM_SMGR, info, main_data)
    locator = _locator(payload.locator)
    if info & layout.INFO_RMGR_MASK == layout.SMGR_CREATE:
        if not Fork.MAIN <= payload.fork <= Fork.INIT:
            raise unknown_record(wal_format, lsn, layout.RM_SMGR, info)
        return [] if payload.fork == Fork.FSM else [Shortening(*locator, payload.fork, 0)]
    found = []
    if payload.flags & layout.TRUNCATE_HEAP:
        found.append(Shortening(*locator, Fork.MAIN, payload.block_no))
    if payload.flags & layout.TRUNCATE_VM:
        found.append(Shortening(*locator, Fork.VM, -(-payload.block_no // HEAP_BLOCKS_PER_VM_BLOCK)))
    return found


def _of_dbase(wal_format: WalFormat, lsn: int, info: int, main_data: bytes) -> list[Shortening]:
    payload = decode_main_data(wal_format, Lsn(lsn), layout.RM_DBASE, info, main_data)
    dropped = info & layout.INFO_RMGR_MASK == wal_format.dbase_drop
    tablespaces = payload.spc_oids if dropped else [payload.spc_oid]
    return [Shortening(spc_oid, payload.db_oid, 0, Fork.MAIN, 0) for spc_oid in tablespaces]


def _of_xact(wal_format: WalFormat, lsn: int, info: int, main_data: bytes) -> list[Shortening]:
    if info & layout.XACT_OPERATION_MASK not in layout.XACT_ENDS or not info & layout.XACT_HAS_INFO:
        return []
    payload = decode_main_data(wal_format, lsn, layout.RM_XACT, info, main_data)
    return [
        Shortening(*_locator(dropped), fork, 0)
        for dropped in payload.dropped or ()
        for fork in (Fork.MAIN, Fork.VM, Fork.INIT)
    ]


def _locator(payload: Any) -> tuple[int, int, int]:
    return payload.spc_oid, payload.db_oid, payload.rel_number
