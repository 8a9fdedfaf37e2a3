"""The databases of a cluster, by the files of its shared catalog: where pg_database is, and the rows that it holds.

Sources of the formats: src/backend/utils/cache/relmapper.c, src/include/storage/{bufpage,itemid}.h,
src/include/access/htup_details.h and src/include/catalog/pg_database.h, PostgreSQL 13 to 19.
"""

from __future__ import annotations

from collections import defaultdict

from construct import Array, BitsInteger, BitStruct, Bytes, ByteSwapped, ConstructError, Int16ul, Int32ul, Struct, this

from pgwal.checksum import crc32c
from pgwal.errors import ChecksumMismatch, FormatError
from pgwal.relation import BLOCK_SIZE

FIRST_NORMAL_OID = 16384
"""Databases below it are those that initdb makes: template1, template0 and postgres."""

_PG_DATABASE_OID = 1262
_MAP_MAGIC = 0x592717
_MAX_MAPPINGS = 64
_LP_NORMAL = 1
_ROW_SIZE = 68

RelMapFile = Struct(
    "magic" / Int32ul,
    "mapping_count" / Int32ul,
    "mappings" / Array(this.mapping_count, Struct("oid" / Int32ul, "rel_number" / Int32ul)),
)
"""pg_filenode.map up to its mappings; room for 62 of them (13 to 15) or 64, and a CRC-32C of all before it follow."""

_CRC_OFFSETS = {512: 504, 524: 520}
"""By the size of the file: up to 15 it is filled to 512 bytes, from 16 on it ends with the CRC."""

PageHeader = Struct(
    "lsn" / Bytes(8),
    "checksum" / Int16ul,
    "flags" / Int16ul,
    "lower" / Int16ul,
    "upper" / Int16ul,
    "special" / Int16ul,
    "size_and_version" / Int16ul,
    "prune_xid" / Int32ul,
)
"""PageHeaderData, 24 bytes; line pointers follow, up to ``lower``."""

LinePointer = ByteSwapped(BitStruct("length" / BitsInteger(15), "flags" / BitsInteger(2), "offset" / BitsInteger(15)))
"""ItemIdData, 4 bytes."""

_T_HOFF_OFFSET = 22
"""Of HeapTupleHeaderData: the byte that says where the columns begin."""

DatabaseRow = Struct("oid" / Int32ul, "name" / Bytes(64))
"""The first columns of pg_database, which are never null."""


def database_catalog_path(relation_map: bytes) -> str:
    """Return where pg_database is, by the bytes of ``global/pg_filenode.map``; raises FormatError."""
    crc_offset = _CRC_OFFSETS.get(len(relation_map))
    if crc_offset is None:
        raise FormatError(f"global/pg_filenode.map has {len(relation_map)} bytes, not 512 or 524")
    stored_crc = Int32ul.parse(relation_map[crc_offset:])
    if crc32c(relation_map[:crc_offset]) != stored_crc:
        raise ChecksumMismatch("global/pg_filenode.map is damaged: its CRC does not match")
    count = Int32ul.parse(relation_map[4:])
    if Int32ul.parse(relation_map) != _MAP_MAGIC or count > _MAX_MAPPINGS:
        raise FormatError("global/pg_filenode.map is not a map of relations")
    for mapping in RelMapFile.parse(relation_map).mappings:
        if mapping.oid == _PG_DATABASE_OID:
            return f"global/{mapping.rel_number}"
    raise FormatError("global/pg_filenode.map does not say where pg_database is")


def database_names(catalog: bytes) -> dict[bytes, set[int]]:
    """Return the OIDs of the databases that have, or had, each name, by the bytes of pg_database.

    Rows count whether they are visible or not, which other files would tell: one that was renamed has two names, and
    one that was just dropped may still be there.  Raises FormatError for what is no table.
    """
    found: dict[bytes, set[int]] = defaultdict(set)
    for start in range(0, len(catalog) - BLOCK_SIZE + 1, BLOCK_SIZE):
        page = catalog[start : start + BLOCK_SIZE]
        try:
            for oid, name in _rows(page):
                found[name].add(oid)
        except ConstructError as error:
            raise FormatError(f"block {start // BLOCK_SIZE} of pg_database is no page of a table") from error
    return dict(found)


def _rows(page: bytes) -> list[tuple[int, bytes]]:
    header = PageHeader.parse(page)
    if header.upper == 0:
        return []  # It is new.
    count = (header.lower - PageHeader.sizeof()) // LinePointer.sizeof()
    if not 0 <= count <= BLOCK_SIZE // LinePointer.sizeof():
        raise FormatError("a page of pg_database has a header that cannot be right")
    rows = []
    for pointer in Array(count, LinePointer).parse(page[PageHeader.sizeof() :]):
        if pointer.flags == _LP_NORMAL:
            item = page[pointer.offset : pointer.offset + pointer.length]
            columns = item[item[_T_HOFF_OFFSET] :] if len(item) > _T_HOFF_OFFSET else b""
            if len(columns) < _ROW_SIZE:
                raise FormatError("a row of pg_database is too short")
            row = DatabaseRow.parse(columns)
            rows.append((row.oid, row.name.partition(b"\0")[0]))
    return rows
