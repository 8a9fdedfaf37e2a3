"""Records that shorten relation forks, cut off at every byte and with every wrong count: the loop against construct.

What random records meet by luck alone: a read one byte behind a record, the limits at which a rule changes.  Nothing
here is drawn, so no run is luckier than another one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import ModuleType

import pytest
from core.test_shortenings import changed, listed, locator_bytes, read, special, transaction_end
from core.wal_builder import RM_DBASE, RM_SMGR, WalBuilder
from module_forms import both_forms
from strategies import MAJORS

import pgwal.wal.scan
from pgwal.relation import INVALID_BLOCK_NUMBER
from pgwal.wal import layout
from pgwal.wal.page_magic import WalFormat, wal_format_of_major
from pgwal.wal.rmgr import HEAP_BLOCKS_PER_VM_BLOCK

Kind = tuple[int, int, bytes]
Block = tuple[tuple[int, int, int], int, int]

# In database 1: what is read at the wrong place may be taken for a count of one.
TABLE, INDEX, UNSEEN = (1663, 1, 16384), (16400, 1, 16385), (1663, 1, 16390)
# Below, at and above the places where a map block begins; the last block that there can be, and what is no block.
BLOCKS = (
    0,
    3,
    *(HEAP_BLOCKS_PER_VM_BLOCK + difference for difference in (-1, 0, 1)),
    INVALID_BLOCK_NUMBER - 1,
    INVALID_BLOCK_NUMBER,
)
# Of lists of two: as many as there are, one more or fewer, and those whose size in bytes leaves 32 bits.
COUNTS = (None, 0, 1, 3, 0x40000000, 0x55555556, 0xFFFFFFFF)
# One with references is handed over, whatever it is.
REFERENCES = [(TABLE, 0, 9), (INDEX, 2, 9)]

forms = pytest.mark.parametrize("form", both_forms(pgwal.wal.scan))


def whole_records(wal_format: WalFormat) -> Iterator[Kind]:
    """Yield a record of each kind, as long as it can matter."""
    dropped = [locator_bytes(TABLE), locator_bytes(INDEX)]
    yield RM_SMGR, 0x10, locator_bytes(TABLE) + struct.pack("<i", 0)
    yield RM_SMGR, 0x20, struct.pack("<I12sI", 2, locator_bytes(TABLE), 7)
    yield RM_DBASE, wal_format.dbase_create_file_copy, struct.pack("<IIII", 5, 1663, 1, 1663)
    if wal_format.dbase_create_wal_log is not None:
        yield RM_DBASE, wal_format.dbase_create_wal_log, struct.pack("<II", 5, 1663)
    yield RM_DBASE, wal_format.dbase_drop, struct.pack("<IIII", 5, 2, 1663, 16400)
    for xinfo in (4, 5, 6, 7):
        yield transaction_end(layout.XACT_COMMIT, xinfo, [701, 702], (None, None), dropped)


def odd_records(wal_format: WalFormat) -> Iterator[Kind]:
    """Yield records of full length with every count, fork, flag and block number at which something changes."""
    for fork in (-1, 0, 1, 2, 3, 4, 256):
        yield RM_SMGR, 0x10, locator_bytes(TABLE) + struct.pack("<i", fork)
    for block in BLOCKS:
        for table in (TABLE, UNSEEN):
            for flags in (0, 1, 2, 3, 7):
                yield RM_SMGR, 0x20, struct.pack("<I12sI", block, locator_bytes(table), flags)
    for operation in range(0, 0x100, 0x10):
        yield RM_DBASE, operation, struct.pack("<IIII", 5, 2, 1663, 16400)
        yield RM_SMGR, operation, struct.pack("<I12sI", 2, locator_bytes(TABLE), 3)
        yield transaction_end(operation, 4, [], (None, None), [locator_bytes(TABLE)])
    spaces = [struct.pack("<I", space) for space in (1663, 16400)]
    dropped = [locator_bytes(TABLE), locator_bytes(INDEX)]
    for count in COUNTS:
        yield RM_DBASE, wal_format.dbase_drop, struct.pack("<I", 5) + listed(count, spaces)
        yield transaction_end(layout.XACT_ABORT, 7, [701, 702], (count, None), dropped)
        yield transaction_end(layout.XACT_ABORT_PREPARED, 7, [701, 702], (None, count), dropped)


def cases(wal_format: WalFormat) -> Iterator[tuple[Kind, int, list[Block]]]:
    """Yield records, how many bytes of their main data are there (or behind it), and their references."""
    for kind in whole_records(wal_format):
        yield kind, len(kind[2]), REFERENCES
        yield from ((kind, length, []) for length in range(len(kind[2]) + 3))
    yield from ((kind, len(kind[2]), []) for kind in odd_records(wal_format))


def recorded(major: int, kind: Kind, length: int, references: list[Block]) -> WalBuilder:
    """Return WAL of a record of changes, the special one, and the same changes once more."""
    rmid, info, data = kind
    around = [changed((table, fork, block)) for table in (TABLE, INDEX) for fork in (0, 2) for block in (1, 3)]
    builder = WalBuilder(major)
    # What stands behind a record that is cut off would make it whole.
    made = special((rmid, info, data[:length].ljust(length, b"\1")), 0, None, references)
    for spec in (*around, made, *around):
        builder.append(spec)
    return builder


@forms
@pytest.mark.parametrize("major", MAJORS)
def test_every_cut_and_count_is_read_as_construct_does(form: ModuleType, major: int) -> None:
    for kind, length, references in cases(wal_format_of_major(major)):
        builder = recorded(major, kind, length, references)
        sizes = [len(builder.wal())]
        expected, found = (
            read(form, builder, sizes, in_bulk=in_bulk, takes_often=False, keep_forgotten=True)
            for in_bulk in (False, True)
        )
        assert found == expected, f"{kind} of {length} bytes"
