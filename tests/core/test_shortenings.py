"""Three parsers of what shortens relation forks: the construct declarations, and the scanner's loop in both forms.

On generated special records of every version, whole ones, cut off and with wrong counts, with blocks between them: the
maps, and the errors, must be the same.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import pytest
from core.wal_builder import RM_DBASE, RM_HEAP, RM_SMGR, RM_XACT, RM_XLOG, BlockSpec, RecordSpec, WalBuilder
from core.wal_builder import checkpoint_fields as checkpoint
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from module_forms import both_forms
from strategies import MAJORS, block_numbers, chunkings, majors

import pgwal.wal.scan
from pgwal.errors import ErrorFacts, FormatError
from pgwal.relation import INVALID_BLOCK_NUMBER
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.wal import layout
from pgwal.wal.page_magic import WalFormat, wal_format_of_major
from pgwal.wal.rmgr import HEAP_BLOCKS_PER_VM_BLOCK, shortenings, wal_level_of
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, SPECIAL

SEGMENT_SIZE = 1 << 20
FSM = 1
forms = pytest.mark.parametrize("form", both_forms(pgwal.wal.scan))
many = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

# --- special records ----------------------------------------------------------------------------------------------

# Few forks, so that they meet: two relations in two places, and the database of one of them.
PLACES = [(1663, 5), (16400, 5)]
locators = st.builds(lambda place, number: (*place, number), st.sampled_from(PLACES), st.sampled_from([16384, 16385]))
counts = st.one_of(st.none(), st.integers(0, 5), st.sampled_from([0x40000000, 0x55555556, 0xFFFFFFFF]))


def locator_bytes(locator: tuple[int, int, int]) -> bytes:
    return struct.pack("<III", *locator)


def listed(count: int | None, items: list[bytes]) -> bytes:
    """A list that the server would write, or one that claims another count."""
    return struct.pack("<I", len(items) if count is None else count) + b"".join(items)


creations = st.builds(
    lambda locator, fork: (RM_SMGR, 0x11, locator_bytes(locator) + struct.pack("<i", fork)),
    locators,
    st.sampled_from([0, 0, 0, 1, 2, 3, 3, 4, -1, 256]),
)
truncations = st.builds(
    lambda block_no, locator, flags: (RM_SMGR, 0x21, struct.pack("<I12sI", block_no, locator_bytes(locator), flags)),
    st.one_of(block_numbers, st.integers(0, 5), st.just(INVALID_BLOCK_NUMBER)),
    locators,
    st.sampled_from([7, 7, 1, 2, 3, 4, 0, 0x80000001]),
)


def transaction_end(
    operation: int, xinfo: int, subxacts: list[int], lists: tuple[int | None, int | None], dropped: list[bytes]
) -> tuple[int, int, bytes]:
    data = struct.pack("<qI", 5, xinfo)
    if xinfo & layout.XINFO_HAS_DBINFO:
        data += struct.pack("<II", 5, 1663)
    if xinfo & layout.XINFO_HAS_SUBXACTS:
        data += listed(lists[0], [struct.pack("<I", xid) for xid in subxacts])
    if xinfo & layout.XINFO_HAS_RELFILELOCATORS:
        data += listed(lists[1], dropped)
    return RM_XACT, operation | 0x80 | 0x01, data


ends = st.builds(
    transaction_end,
    st.sampled_from(layout.XACT_ENDS),
    st.one_of(st.integers(0, 7), st.just(4), st.integers(0, 0xFFFFFFFF)),
    st.lists(st.integers(700, 703), max_size=3),
    st.one_of(st.just((None, None)), st.tuples(counts, counts)),
    st.lists(locators.map(locator_bytes), max_size=4),
)
databases = st.builds(
    lambda operation, data: (RM_DBASE, operation, data),
    st.sampled_from([0x00, 0x10, 0x20, 0x30]),
    st.one_of(
        st.just(struct.pack("<IIII", 5, 1663, 1, 1663)),
        st.builds(
            lambda count, spaces: struct.pack("<I", 5) + listed(count, [struct.pack("<I", space) for space in spaces]),
            counts,
            st.lists(st.sampled_from([1663, 16400]), max_size=3),
        ),
    ),
)
others = st.builds(
    lambda rmid, operation, data: (rmid, operation, data),
    st.sampled_from([RM_XLOG, RM_XACT, RM_SMGR, RM_DBASE]),
    # Not SWITCH and OVERWRITE_CONTRECORD, which are for test_scan.
    st.sampled_from([operation for operation in range(0, 256, 16) if operation not in (0x40, 0xD0)]),
    st.binary(max_size=100),
)


def announcements(major: int) -> list[tuple[int, int, bytes]]:
    """Records that may announce a wal_level."""
    fields = dict.fromkeys(
        ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact"), 10
    )
    fields |= {"wal_log_hints": 0, "track_commit_timestamp": 0, "time": 0, "timeline_id": 1, "prev_timeline_id": 1}
    declared = layout.payloads(wal_format_of_major(major))
    operations = [0x00, 0x10, 0x60, 0x80, 0x90, *([0xE0] if major >= 17 else [])]
    return [
        (RM_XLOG, info, declared[RM_XLOG, info].build(fields | checkpoint(major) | {"wal_level": 1}))
        for info in operations
    ]


@cache
def specials(major: int) -> st.SearchStrategy[RecordSpec]:
    """Special records: nearly all as a server writes them, some cut off or longer, a few with references."""
    known = st.one_of(creations, truncations, ends, databases, st.sampled_from(announcements(major)))
    return st.builds(
        special,
        st.one_of(known, known, known, others),
        st.sampled_from([0, 0, 0, 0, 1, 2, 3]),
        st.one_of(st.none(), st.none(), st.none(), st.integers(0, 40)),
        st.one_of(st.just([]), st.just([]), st.lists(references, max_size=2)),
    )


def special(
    kind: tuple[int, int, bytes], low_bits: int, length: int | None, blocks: list[tuple[tuple[int, int, int], int, int]]
) -> RecordSpec:
    rmid, info, data = kind
    specs = tuple(BlockSpec(index, *block) for index, block in enumerate(blocks))
    # SPECIAL_REL_UPDATE of another resource manager is for test_scan, too.
    low_bits &= 2 if rmid == RM_XLOG else 3
    return RecordSpec(rmid, info | low_bits, 700, specs, data if length is None else data[:length])


references = st.tuples(locators, st.sampled_from([0, 0, 0, 1, 2, 3]), st.one_of(st.integers(0, 5), block_numbers))


def changed(block: tuple[tuple[int, int, int], int, int]) -> RecordSpec:
    return RecordSpec(RM_HEAP, 0, 700, (BlockSpec(0, *block),), bytes(3))


@st.composite
def wal_with_specials(draw: st.DrawFn) -> WalBuilder:
    builder = WalBuilder(draw(majors))
    for spec in draw(st.lists(st.one_of(references.map(changed), specials(builder.major)), min_size=1, max_size=16)):
        builder.append(spec)
    return builder


# --- what the parsers make of it ----------------------------------------------------------------------------------


@dataclass
class Read:
    """What a parser made of WAL: both maps, the record and count where it ended, and the error if there was one."""

    keep_forgotten: bool
    block_map: BlockMap = field(init=False)
    derived: BlockMap = field(default_factory=BlockMap)
    forgotten: dict[RelationFork, Any] = field(default_factory=dict)
    levels: list[tuple[int, int | None]] = field(default_factory=list)
    error: tuple[type, str, str | None, ErrorFacts] | None = None
    record_count: int = 0
    reference_count: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        self.block_map = BlockMap(keep_forgotten=self.keep_forgotten)

    def apply_special(self, wal_format: WalFormat, scanner: Any) -> None:
        """As the construct declarations have it (SummarizeWAL): the level, and then what is shortened."""
        record = scanner.special_lsn, scanner.special_rmid, scanner.special_info, scanner.special_main
        if scanner.special_rmid == RM_XLOG:
            level = wal_level_of(wal_format, scanner.special_lsn, scanner.special_info, scanner.special_main)
            if level is not None:
                self.levels.append((scanner.special_lsn, level))
        for *key, limit in shortenings(wal_format, *record):
            self.block_map.set_limit(RelationFork(*key), limit)
            if key[3] == 0 and limit % HEAP_BLOCKS_PER_VM_BLOCK:
                self.derived.mark(RelationFork(*key[:3], 2), (limit // HEAP_BLOCKS_PER_VM_BLOCK,))

    def take(self, scanner: Any, *, in_bulk: bool) -> None:
        if in_bulk:
            self.block_map.apply(scanner.take_changes())
        else:
            for key, numbers in scanner.take_blocks():
                if key[3] != FSM:
                    self.block_map.mark(RelationFork(*key), numbers)
        for key, numbers in scanner.take_derived_blocks():
            self.derived.mark(RelationFork(*key), numbers)

    def note_end(self, scanner: Any) -> None:
        self.record_count, self.reference_count = scanner.record_count, scanner.block_reference_count
        self.position = scanner.position
        self.forgotten = {key: changes.forgotten for key, changes in self.block_map.entries()}


def read(
    form: ModuleType, builder: WalBuilder, sizes: list[int], *, in_bulk: bool, takes_often: bool, keep_forgotten: bool
) -> Read:
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn, decode_shortenings=in_bulk)
    found, wal, at = Read(keep_forgotten), builder.wal(), 0
    try:
        for size in sizes:
            scanner.feed(wal[at : at + size])
            at += size
            while (event := scanner.scan()) == SPECIAL:
                found.take(scanner, in_bulk=in_bulk)
                found.apply_special(builder.wal_format, scanner)
            assert event in (NEED_DATA, END_OF_WAL)
            if takes_often:
                found.take(scanner, in_bulk=in_bulk)
    except FormatError as error:
        found.error = type(error), str(error), error.hint, error.facts
    found.take(scanner, in_bulk=in_bulk)
    found.note_end(scanner)
    return found


TWICE = WalBuilder(17)
for _spec in (
    changed(((1663, 5, 16384), 0, 3)),
    special((RM_SMGR, 0x21, struct.pack("<IIIII", 3, 1663, 5, 16384, 1)), 0, None, []),
    # Seen a moment ago, and all the same it must be told again: it was made void in between.
    changed(((1663, 5, 16384), 0, 3)),
    special((RM_SMGR, 0x21, struct.pack("<IIIII", 2, 1663, 5, 16384, 1)), 0, None, [((1663, 5, 16384), 0, 3)]),
):
    TWICE.append(_spec)


@forms
@many
@example(data=None, builder=TWICE, takes_often=False, keep_forgotten=False)
@given(data=st.data(), builder=wal_with_specials(), takes_often=st.booleans(), keep_forgotten=st.booleans())
def test_the_loop_shortens_as_the_declarations_do(
    form: ModuleType, data: st.DataObject | None, builder: WalBuilder, takes_often: bool, keep_forgotten: bool
) -> None:
    whole = [len(builder.wal())]
    sizes = whole if data is None else data.draw(st.one_of(st.just(whole), chunkings(whole[0])))
    expected = read(form, builder, whole, in_bulk=False, takes_often=False, keep_forgotten=keep_forgotten)
    found = read(form, builder, sizes, in_bulk=True, takes_often=takes_often, keep_forgotten=keep_forgotten)
    assert found == expected
    if data is None:
        changes = found.block_map.get(RelationFork(1663, 5, 16384, 0))
        assert changes is not None
        assert (changes.limit_block, list(changes.blocks)) == (2, [3])


@forms
@pytest.mark.parametrize(
    "kind",
    [
        # It shortens nothing, and the map has an entry of it.
        (RM_SMGR, 0x21, struct.pack("<IIIII", INVALID_BLOCK_NUMBER, 1663, 5, 16384, 1)),
        *((RM_SMGR, 0x11, bytes(length)) for length in (0, 11, 12, 15)),
        *((RM_SMGR, 0x21, bytes(length)) for length in (0, 16, 19)),
        *((RM_XACT, 0x81, struct.pack("<qIIII", 0, 4, 1, 1663, 5) + bytes(length)) for length in (0, 3)),
        *((RM_DBASE, 0x20, struct.pack("<II", 5, 2) + bytes(length)) for length in (0, 7)),
    ],
    ids=str,
)
def test_what_no_server_writes_is_handed_over(form: ModuleType, kind: tuple[int, int, bytes]) -> None:
    builder = WalBuilder()
    builder.append(changed(((1663, 5, 16384), 0, 3)))
    built = builder.append(special(kind, 0, None, []))
    assert scanned(form, builder)[0] == [built.lsn]
    options = {"takes_often": False, "keep_forgotten": False}
    sizes = [len(builder.wal())]
    expected = read(form, builder, sizes, in_bulk=False, **options)
    assert read(form, builder, sizes, in_bulk=True, **options) == expected


@forms
def test_a_limit_that_was_taken_is_not_taken_again_with_the_references_behind_it(form: ModuleType) -> None:
    table = (1663, 5, 16384)
    builder = WalBuilder()
    builder.append(special((RM_SMGR, 0x21, struct.pack("<IIIII", 5, *table, 1)), 0, None, []))
    builder.append(special((RM_SMGR, 0x21, struct.pack("<IIIII", 7, *table, 1)), 0, None, [(table, 0, 9)]))
    handed_over, changes = scanned(form, builder)
    assert handed_over == [builder.records[1].lsn]
    assert [(limit, list(numbers)) for _, limit, numbers in changes] == [(5, []), (INVALID_BLOCK_NUMBER, [9])]


# --- what is decoded where ----------------------------------------------------------------------------------------


def scanned(form: ModuleType, builder: WalBuilder) -> tuple[list[int], list[Any]]:
    """Return which special records were handed over, and what the rest changed."""
    scanner = form.WalScanner(SEGMENT_SIZE, builder.start_lsn, decode_shortenings=True)
    scanner.feed(builder.wal())
    handed_over, changes = [], []
    while (event := scanner.scan()) == SPECIAL:
        changes += scanner.take_changes()
        handed_over.append(scanner.special_lsn)
    assert event == NEED_DATA
    return handed_over, changes + scanner.take_changes()


@forms
@pytest.mark.parametrize("major", MAJORS)
def test_what_servers_write_is_decoded_in_the_loop(form: ModuleType, major: int) -> None:
    builder = WalBuilder(major)
    wal_format = builder.wal_format
    table, index = (1663, 5, 16384), (1663, 5, 16390)
    for kind in (
        (RM_SMGR, 0x11, locator_bytes(table) + struct.pack("<i", 3)),
        (RM_SMGR, 0x11, locator_bytes(table) + struct.pack("<i", FSM)),
        (RM_SMGR, 0x21, struct.pack("<I12sI", 9, locator_bytes(index), 7)),
        (RM_DBASE, wal_format.dbase_create_file_copy, struct.pack("<IIII", 6, 1663, 1, 1663)),
        (RM_DBASE, wal_format.dbase_drop, struct.pack("<IIII", 7, 2, 1663, 16400)),
        *(
            transaction_end(operation, 7, [701, 702], (None, None), [locator_bytes((1663, 8, 100 + operation))])
            for operation in layout.XACT_ENDS
        ),
        (RM_XLOG, 0x80, b"\1"),
    ):
        builder.append(special(kind, 0, None, []))
    if wal_format.dbase_create_wal_log is not None:
        data = struct.pack("<II", 9, 1663)
        builder.append(special((RM_DBASE, wal_format.dbase_create_wal_log, data), 0, None, []))
    handed_over, changes = scanned(form, builder)
    assert handed_over == []
    dropped = [((1663, 8, 100 + end, fork), 0) for end in layout.XACT_ENDS for fork in (0, 2, 3)]
    expected = [((*table, 3), 0), ((*index, 0), 9), ((*index, 2), 1), ((1663, 6, 0, 0), 0)]
    expected += [((1663, 7, 0, 0), 0), ((16400, 7, 0, 0), 0), *dropped]
    expected += [((1663, 9, 0, 0), 0)] if wal_format.dbase_create_wal_log is not None else []
    assert [(key, limit) for key, limit, _ in changes] == expected
    assert not any(numbers for _, _, numbers in changes)


@forms
def test_a_list_without_room_is_handed_over_and_takes_none(form: ModuleType) -> None:
    builder = WalBuilder()
    long = [struct.pack("<III", 1663, 5, 20000 + number) for number in range(3000)]
    first = builder.append(special(transaction_end(0, 4, [], (None, None), long), 0, None, []))
    short = [struct.pack("<III", 1663, 5, 30000 + number) for number in range(1000)]
    for _ in range(3):
        builder.append(special(transaction_end(0, 4, [], (None, None), short), 0, None, []))
    handed_over, changes = scanned(form, builder)
    assert handed_over == [first.lsn]
    assert len(changes) == 3000
    # Dropped again and again without a take, they are still no more forks than they are.
    assert len({key for key, _, _ in changes}) == 3000


@forms
def test_blocks_alone_are_not_taken_where_limits_belong_between_them(form: ModuleType) -> None:
    with pytest.raises(ValueError, match="between their blocks"):
        form.WalScanner(SEGMENT_SIZE, 0, decode_shortenings=True).take_blocks()
    for other in ("all_transaction_ends", "tablespaces"):
        with pytest.raises(ValueError, match="not decoded here"):
            form.WalScanner(SEGMENT_SIZE, 0, decode_shortenings=True, **{other: True})


@forms
def test_tables_that_grow_keep_the_newest_number_of_each_fork(form: ModuleType) -> None:
    builder = WalBuilder()
    table = (1663, 5, 16384)
    builder.append(changed((table, 0, 8)))
    builder.append(special((RM_SMGR, 0x21, struct.pack("<I12sI", 5, locator_bytes(table), 1)), 0, None, []))
    for first in range(0, 9000, 30):
        blocks = tuple(BlockSpec(i, (1663, 5, 20000 + first + i)) for i in range(30))
        builder.append(RecordSpec(RM_HEAP, 0, 700, blocks, bytes(3)))
    builder.append(changed((table, 0, 8)))
    handed_over, changes = scanned(form, builder)
    assert handed_over == []
    of_table = [(limit, list(numbers)) for key, limit, numbers in changes if key == (*table, 0)]
    assert of_table == [(INVALID_BLOCK_NUMBER, [8]), (5, [8])]
    assert len(changes) == 9002
