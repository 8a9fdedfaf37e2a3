"""Hypothesis strategies over the specifications of the builders.

Strategies are made once and kept: making them takes longer than drawing from them.
"""

from __future__ import annotations

import struct
from functools import cache

from core.wal_builder import (
    BLOCK_SIZE,
    PAGE_SIZE,
    RM_DBASE,
    RM_HEAP,
    RM_HEAP2,
    RM_SMGR,
    RM_XACT,
    RM_XLOG,
    BlockSpec,
    ImageSpec,
    RecordSpec,
    WalBuilder,
)
from hypothesis import strategies as st

from pgwal.postgres_version import VERSIONS

MAJORS = tuple(version.major for version in VERSIONS)

majors = st.sampled_from(MAJORS)

u32 = st.integers(0, 0xFFFFFFFF)
block_numbers = st.one_of(st.integers(0, 5), st.integers(32670, 32680), u32)

# Few relations, so that the same comes again, and any, so that the bytes vary.
locators = st.one_of(
    st.sampled_from([(1663, 5, 16384), (1663, 5, 16385), (1664, 0, 1262), (16400, 5, 16384)]),
    st.tuples(u32, u32, u32),
)


@cache
def image_specs(major: int) -> st.SearchStrategy[ImageSpec]:
    """Images that are whole, have a hole, or are compressed in a way that the version has."""
    compressions = st.sampled_from(["pglz"] if major < 15 else ["pglz", "lz4", "zstd"])
    lengths = st.integers(0, 600)
    holes = st.integers(1, BLOCK_SIZE - 1)
    with_hole = st.tuples(holes, holes).filter(lambda hole: sum(hole) <= BLOCK_SIZE)
    return st.one_of(
        st.just(ImageSpec()),
        with_hole.map(lambda hole: ImageSpec.with_hole(*hole)),
        st.builds(ImageSpec, lengths, compression=compressions, applies=st.booleans()),
        st.builds(ImageSpec, lengths, st.integers(1, 4000), st.integers(1, 4000), compressions),
    )


@cache
def block_specs(major: int) -> st.SearchStrategy[BlockSpec]:
    """Block references; their ids are for whoever puts them into a record."""
    return st.builds(
        BlockSpec,
        st.just(0),
        locator=locators,
        fork=st.sampled_from([0, 0, 0, 1, 2, 3]),
        block_no=block_numbers,
        data=st.one_of(st.just(b""), st.binary(max_size=40)),
        image=st.one_of(st.none(), st.none(), image_specs(major)),
        will_init=st.booleans(),
        may_be_same=st.booleans(),
    )


_id_lists = st.one_of(
    st.integers(0, 3).map(lambda count: list(range(count))),
    st.sets(st.integers(0, 32), max_size=4).map(sorted),
)

_long_data = st.tuples(st.binary(min_size=1, max_size=9), st.integers(256, 20000)).map(
    lambda both: (both[0] * (both[1] // len(both[0]) + 1))[: both[1]]
)

# Mostly short; sometimes so long that it spans pages; bits that clear map bits; the xinfo of a transaction's end.
main_data = st.one_of(
    st.binary(max_size=30),
    st.binary(max_size=300),
    _long_data,
    st.lists(st.integers(0, 3), min_size=8, max_size=14).map(bytes),
    st.tuples(st.integers(0, 0x1FF), st.binary(max_size=30)).map(lambda both: struct.pack("<qI", 0, both[0]) + both[1]),
)


@cache
def _kinds(major: int) -> st.SearchStrategy[tuple[int, int]]:
    """(rmid, info) of known records: all kinds of them, with weight on those that are treated apart."""
    operations = list(range(0, 256, 16))
    # Not SWITCH, which is no record to append; not OVERWRITE_CONTRECORD, which has to fit.
    kinds = [(RM_XLOG, operation) for operation in operations if operation not in (0x40, 0xD0)]
    kinds += [(rmid, operation | 0x01) for rmid in (RM_SMGR, RM_DBASE, RM_XACT) for operation in operations]
    kinds += 3 * [(rmid, operation) for rmid in (RM_XACT, RM_HEAP, RM_HEAP2) for operation in operations]
    kinds += [(rmid, 0x20) for rmid in range(5, 22)]
    if major >= 15:
        kinds += [(rmid, 0x50) for rmid in (128, 129, 254, 255)]
    return st.sampled_from(kinds + [(rmid, info | 0x02) for rmid, info in kinds])


@cache
def record_specs(major: int) -> st.SearchStrategy[RecordSpec]:
    """Valid records of a version."""
    return st.builds(
        _record,
        kind=_kinds(major),
        xid=u32,
        ids=_id_lists,
        blocks=st.lists(block_specs(major), min_size=4, max_size=4),
        data=main_data,
        origin=st.one_of(st.none(), st.integers(0, 0xFFFF)),
        top_level_xid=st.one_of(st.none(), u32) if major >= 14 else st.none(),
        long_main_data=st.booleans(),
    )


def _record(
    kind: tuple[int, int],
    xid: int,
    ids: list[int],
    blocks: list[BlockSpec],
    data: bytes,
    origin: int | None,
    top_level_xid: int | None,
    long_main_data: bool,
) -> RecordSpec:
    with_ids = tuple(
        BlockSpec(
            block_id,
            block.locator,
            block.fork,
            block.block_no,
            block.data,
            block.image,
            block.will_init,
            block.may_be_same,
        )
        for block_id, block in zip(ids, blocks, strict=False)
    )
    is_long = long_main_data and bool(data)
    return RecordSpec(*kind, xid, with_ids, data, origin, top_level_xid, is_long)


small_record_specs = st.builds(
    RecordSpec,
    st.just(RM_HEAP),
    st.sampled_from([0x00, 0x10, 0x20, 0x60]),
    blocks=block_numbers.map(lambda block_no: (BlockSpec(0, block_no=block_no),)),
    main_data=st.binary(max_size=40),
)


@cache
def _steps(major: int, small: bool) -> st.SearchStrategy[tuple[str, object]]:
    """What a builder does next, and with what."""
    records = st.tuples(st.just("record"), small_record_specs if small else record_specs(major))
    if small:
        return records
    fills = st.tuples(st.just("fill"), st.integers(0, 6))
    cuts = st.tuples(st.just("cut"), st.integers(1, 3))
    others = st.sampled_from([("switch", None), ("timeline", None)])
    return st.one_of(records, records, records, records, fills, cuts, others)


_starts = st.sampled_from([1 << 20, (1 << 20) + 3 * PAGE_SIZE, (2 << 20) - 2 * PAGE_SIZE, (1 << 32) - 2 * PAGE_SIZE])
_timelines = st.integers(1, 3)


@st.composite
def wal_builders(draw: st.DrawFn, *, major: int | None = None, max_steps: int = 12, small: bool = False) -> WalBuilder:
    """WAL with records of all kinds, page ends at every distance, switches, cut-off records and new timelines."""
    major = draw(majors) if major is None else major
    builder = WalBuilder(major, start_lsn=draw(_starts), timeline_id=draw(_timelines))
    for step, what in draw(st.lists(_steps(major, small), min_size=1, max_size=max_steps)):
        if step == "record":
            assert isinstance(what, RecordSpec)
            builder.append(what)
        elif step == "fill":
            assert isinstance(what, int)
            builder.append_filler(8 * what)
        elif step == "cut":
            assert isinstance(what, int)
            _cut_off(builder, what)
        elif step == "switch":
            builder.append_switch()
        else:
            # The page keeps its timeline, as the server's do: the next one tells.
            builder.timeline_id += 1
    builder.append(RecordSpec(RM_HEAP, 0x00, blocks=(BlockSpec(0, block_no=7),), main_data=b"last"))
    return builder


def _cut_off(builder: WalBuilder, pages: int) -> None:
    left = PAGE_SIZE - builder.next_lsn % PAGE_SIZE
    builder.append_cut_off(RecordSpec(main_data=bytes(left + pages * PAGE_SIZE)), pages)
    builder.append(RecordSpec())


@st.composite
def chunkings(draw: st.DrawFn, size: int) -> list[int]:
    """Sizes of chunks that together are ``size``: even ones, down to single bytes where they are few, or any."""
    step = draw(st.sampled_from([0, 1, 3, 8, 24, 100, 512, 8191, 8192, 8193, 100_000]))
    if step:
        step = max(step, size // 1000 + 1)
        return [min(step, size - at) for at in range(0, size, step)]
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=30)))
    return [end - start for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
