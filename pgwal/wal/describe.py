"""A record as text and as a document: what ``pgwal inspect`` prints, close to pg_waldump."""

from __future__ import annotations

from array import array
from typing import Any

from construct import Container, ListContainer

from pgwal.errors import UnknownRecord
from pgwal.lsn import Lsn
from pgwal.relation import Fork
from pgwal.wal.decoder import decode_payload
from pgwal.wal.names import record_name, rmgr_name
from pgwal.wal.page_magic import WalFormat
from pgwal.wal.record import BlockReference, WalRecord


def image_length(record: WalRecord) -> int:
    """Return the bytes that page images take in a record."""
    return sum(block.image_length for block in record.blocks)


def record_line(wal_format: WalFormat, record: WalRecord) -> str:
    """Return one line for a record, in the form of pg_waldump."""
    own_length = record.total_length - image_length(record)
    parts = [
        f"rmgr: {rmgr_name(record.rmid):<11}",
        f"len (rec/tot): {own_length:6}/{record.total_length:6}, tx: {record.xid:10},",
        f"lsn: {_padded(record.lsn)}, prev {_padded(record.prev_lsn)},",
        f"desc: {record_name(wal_format, record.rmid, record.info)}{_details(wal_format, record)}",
    ]
    return " ".join(parts) + "".join(f", {_block_text(block)}" for block in record.blocks)


def record_document(wal_format: WalFormat, record: WalRecord) -> dict[str, Any]:
    """Return a record as JSON takes it: docs/schemas/inspect.json has its members."""
    return {
        "lsn": str(record.lsn),
        "end_lsn": str(record.end_lsn),
        "prev_lsn": str(record.prev_lsn),
        "rmgr": rmgr_name(record.rmid),
        "record_type": record_name(wal_format, record.rmid, record.info),
        "info": record.info,
        "xid": record.xid,
        "size_bytes": record.total_length,
        "image_bytes": image_length(record),
        "block_references": [_block_document(block) for block in record.blocks],
        "data": _plain(_payload(wal_format, record)),
    }


def _payload(wal_format: WalFormat, record: WalRecord) -> Any:
    """Return the main data decoded, None for records that pgwal has no declaration of."""
    try:
        return decode_payload(wal_format, record)
    except UnknownRecord:
        return None


def _details(wal_format: WalFormat, record: WalRecord) -> str:
    payload = _plain(_payload(wal_format, record))
    if not payload:
        return ""
    known = {name: value for name, value in payload.items() if value is not None}
    return " " + ", ".join(f"{name}: {_value_text(name, value)}" for name, value in known.items())


def _value_text(name: str, value: Any) -> str:
    if name.endswith("_lsn"):
        return str(Lsn(value))
    if isinstance(value, dict):
        return "/".join(str(part) for part in value.values())
    if isinstance(value, list):
        return " ".join(_value_text("", part) for part in value)
    return str(value)


def _plain(value: Any) -> Any:
    """Turn construct's containers into dicts and lists; bytes, which nobody reads, are left out."""
    if isinstance(value, Container):
        named = {name: part for name, part in value.items() if not name.startswith("_")}
        return {name: _plain(part) for name, part in named.items() if not isinstance(part, bytes)}
    if isinstance(value, ListContainer | array):
        return [_plain(part) for part in value]
    return value


def _block_text(block: BlockReference) -> str:
    fork = "" if block.fork == Fork.MAIN else f" fork {block.fork.name.lower()}"
    image = (" FPW" if block.image_applies else " FPW for WAL verification") if block.has_image else ""
    return f"blkref #{block.block_id}: rel {'/'.join(map(str, block.locator))}{fork} blk {block.block_no}{image}"


def _block_document(block: BlockReference) -> dict[str, object]:
    return {
        "block_id": block.block_id,
        "tablespace_oid": block.locator.spc_oid,
        "database_oid": block.locator.db_oid,
        "relation_number": block.locator.rel_number,
        "fork": block.fork.name.lower(),
        "block_no": block.block_no,
        "image_bytes": block.image_length,
        "will_init": block.will_init,
    }


def _padded(lsn: Lsn) -> str:
    """pg_waldump pads the low half."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:08X}"
