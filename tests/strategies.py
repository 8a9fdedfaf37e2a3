"""Hypothesis strategies over the specifications of the builders."""

from __future__ import annotations

import struct

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

MAJORS = (13, 14, 15, 16, 17, 18)

majors = st.sampled_from(MAJORS)

u32 = st.integers(0, 0xFFFFFFFF)
block_numbers = st.one_of(st.integers(0, 5), st.integers(32670, 32680), u32)

# Few relations, so that the same comes again, and any, so that the bytes vary.
locators = st.one_of(
    st.sampled_from([(1663, 5, 16384), (1663, 5, 16385), (1664, 0, 1262), (16400, 5, 16384)]),
    st.tuples(u32, u32, u32),
)


def image_specs(major: int) -> st.SearchStrategy[ImageSpec]:
    """Images that are whole, have a hole, or are compressed in a way that the version has."""
    compressions = ["pglz"] if major < 15 else ["pglz", "lz4", "zstd"]
    holes = st.integers(1, BLOCK_SIZE - 1).flatmap(
        lambda offset: st.builds(
            ImageSpec.with_hole, st.just(offset), st.integers(1, min(BLOCK_SIZE - offset, BLOCK_SIZE - 1))
        )
    )
    compressed = st.builds(
        ImageSpec,
        length=st.integers(0, 600),
        compression=st.sampled_from(compressions),
        applies=st.booleans(),
    )
    compressed_with_hole = st.builds(
        ImageSpec,
        length=st.integers(0, 600),
        hole_offset=st.integers(1, 4000),
        hole_length=st.integers(1, 4000),
        compression=st.sampled_from(compressions),
    )
    return st.one_of(st.just(ImageSpec()), holes, compressed, compressed_with_hole)


@st.composite
def block_specs(draw: st.DrawFn, major: int) -> tuple[BlockSpec, ...]:
    """The block references of one record, of which most have few."""
    count = draw(st.sampled_from([0, 0, 1, 1, 1, 2, 2, 4, 33]))
    ids = sorted(draw(st.sets(st.integers(0, 32), min_size=count, max_size=count))) if count < 33 else range(33)
    if count == 1 and draw(st.booleans()):
        ids = [0]
    return tuple(
        BlockSpec(
            block_id,
            locator=draw(locators),
            fork=draw(st.sampled_from([0, 0, 0, 1, 2, 3])),
            block_no=draw(block_numbers),
            data=draw(st.binary(max_size=40)),
            image=draw(st.one_of(st.none(), image_specs(major))) if count < 33 else None,
            will_init=draw(st.booleans()),
            may_be_same=draw(st.booleans()),
        )
        for block_id in ids
    )


def main_data() -> st.SearchStrategy[bytes]:
    """Mostly short; sometimes so long that it spans pages."""
    long = st.builds(
        lambda seed, size: (seed * (size // len(seed) + 1))[:size],
        st.binary(min_size=1, max_size=9),
        st.integers(256, 20000),
    )
    return st.one_of(st.binary(max_size=30), st.binary(max_size=300), long)


def _kinds(major: int) -> st.SearchStrategy[tuple[int, int]]:
    """(rmid, info) of known records: all kinds of them, with weight on those that are treated apart."""
    operations = st.integers(0, 15).map(lambda operation: operation << 4)
    low_bits = st.sampled_from([0x00, 0x00, 0x02])
    # Not SWITCH, which is no record to append; not OVERWRITE_CONTRECORD, which has to fit.
    xlog = st.tuples(st.just(RM_XLOG), operations.filter(lambda operation: operation not in (0x40, 0xD0)))
    file_changes = st.tuples(st.sampled_from([RM_SMGR, RM_DBASE]), operations.map(lambda operation: operation | 0x01))
    xact = st.tuples(st.just(RM_XACT), st.tuples(operations, st.sampled_from([0, 1])).map(sum))
    heap = st.tuples(st.sampled_from([RM_HEAP, RM_HEAP2]), operations)
    builtin = st.tuples(st.integers(5, 21), operations)
    kinds = [xlog, file_changes, xact, heap, heap, builtin]
    if major >= 15:
        kinds.append(st.tuples(st.integers(128, 255), operations))
    return st.tuples(st.one_of(kinds), low_bits).map(lambda both: (both[0][0], both[0][1] | both[1]))


@st.composite
def record_specs(draw: st.DrawFn, major: int) -> RecordSpec:
    """A valid record of a version."""
    rmid, info = draw(_kinds(major))
    data = draw(main_data())
    if rmid == RM_XACT and info & 0x80 and draw(st.booleans()):
        data = struct.pack("<qI", 0, draw(st.integers(0, 0x1FF))) + data
    if rmid in (RM_HEAP, RM_HEAP2) and draw(st.booleans()):
        data = bytes(draw(st.lists(st.integers(0, 3), min_size=8, max_size=14)))
    return RecordSpec(
        rmid,
        info,
        xid=draw(u32),
        blocks=draw(block_specs(major)),
        main_data=data,
        origin=draw(st.one_of(st.none(), st.integers(0, 0xFFFF))),
        top_level_xid=draw(st.one_of(st.none(), u32)) if major >= 14 else None,
        long_main_data=draw(st.booleans()) and bool(data),
    )


def small_record_specs() -> st.SearchStrategy[RecordSpec]:
    return st.builds(
        RecordSpec,
        st.just(RM_HEAP),
        st.sampled_from([0x00, 0x10, 0x20, 0x60]),
        blocks=st.builds(BlockSpec, st.just(0), block_no=block_numbers).map(lambda block: (block,)),
        main_data=st.binary(max_size=40),
    )


def _cut_off(draw: st.DrawFn, builder: WalBuilder) -> None:
    pages = draw(st.integers(1, 3))
    left = PAGE_SIZE - builder.next_lsn % PAGE_SIZE
    builder.append_cut_off(RecordSpec(main_data=bytes(left + pages * PAGE_SIZE)), pages)


def _new_timeline(builder: WalBuilder) -> None:
    # In the middle of a page, the page keeps its older timeline: the next one tells.
    builder.timeline_id += 1


@st.composite
def wal_builders(draw: st.DrawFn, *, major: int | None = None, max_steps: int = 20, small: bool = False) -> WalBuilder:
    """WAL with records of all kinds, page ends at every distance, switches, cut-off records and new timelines."""
    builder = WalBuilder(
        major=draw(majors) if major is None else major,
        start_lsn=draw(st.sampled_from([1 << 20, (1 << 20) + 3 * PAGE_SIZE, (0x1_0000_0000) - 2 * PAGE_SIZE])),
        timeline_id=draw(st.integers(1, 3)),
    )
    specs = small_record_specs() if small else record_specs(builder.major)
    steps = ["record"] * 8 if small else ["record"] * 8 + ["fill", "fill", "switch", "cut", "timeline"]
    for step in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=max_steps)):
        if step == "record":
            builder.append(draw(specs))
        elif step == "fill":
            builder.append_filler(draw(st.integers(0, 6)) * 8)
        elif step == "switch":
            builder.append_switch()
        elif step == "cut":
            _cut_off(draw, builder)
            builder.append(draw(specs))
        else:
            _new_timeline(builder)
    builder.append(draw(specs))
    return builder


@st.composite
def chunkings(draw: st.DrawFn, size: int) -> list[int]:
    """Sizes of chunks that together are ``size``."""
    kind = draw(st.sampled_from(["whole", "even", "random"]))
    if kind == "whole":
        return [size]
    if kind == "even":
        step = draw(st.sampled_from([1, 3, 8, 24, 100, 512, 8191, 8192, 8193, 100_000]))
        step = max(step, size // 5000 + 1)
        return [min(step, size - at) for at in range(0, size, step)]
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=30)))
    return [end - start for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
