"""Summary files: against the server's own bytes, a plain reading of the format, and damage of every kind."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from pgwal.checksum import crc32c
from pgwal.errors import ChecksumMismatch, FormatError, LimitExceeded, TruncatedInput, UnsupportedVersion
from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import INVALID_BLOCK_NUMBER, Fork
from pgwal.summary import codec
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.codec import (
    LINK_TAIL_SIZE,
    MAX_SUMMARY_BYTES,
    SUMMARY_MAGIC,
    decode_link,
    decode_summary,
    encode_summary,
    parse_summary_file_name,
    require_size,
    summary_file_name,
)
from pgwal.summary.link import UNKNOWN, Link

KEY = RelationFork(1663, 5, 16384, 0)
CHUNK = 1 << 16

EMPTY = bytes.fromhex("7b132b65" + 24 * "00" + "b871164b")
ENTRY = bytes.fromhex("7f060000 05000000 00400000 00000000 ffffffff 01000000 0300 0000 0600 3300")


def sealed(body: bytes) -> bytes:
    """Return a summary file of these bytes, with magic, end marker and a right CRC."""
    return resealed(struct.pack("<I", SUMMARY_MAGIC) + body + bytes(24) + bytes(4))


def resealed(content: bytes) -> bytes:
    """Return the bytes with a CRC that is right for them."""
    return content[:-4] + struct.pack("<I", crc32c(content[:-4]))


def entry(usages: Iterable[int], data: bytes = b"", *, key: RelationFork = KEY, limit: int = 0xFFFFFFFF) -> bytes:
    usages = list(usages)
    return struct.pack(f"<IIIiII{len(usages)}H", *key, limit, len(usages), *usages) + data


def map_of(blocks: Iterable[int], *, key: RelationFork = KEY, limit: int | None = None) -> BlockMap:
    block_map = BlockMap()
    if limit is not None:
        block_map.set_limit(key, limit)
    block_map.mark(key, blocks)
    return block_map


def read_plainly(content: bytes) -> list[tuple[RelationFork, int, set[int]]]:
    """Read a summary file the way that the table in the codec says, block by block."""
    entries, at = [], 4
    while content[at : at + 24] != bytes(24):
        *key, limit, count = struct.unpack_from("<IIIiII", content, at)
        at += 24
        usages = struct.unpack_from(f"<{count}H", content, at)
        at += 2 * count
        blocks: set[int] = set()
        for chunk, usage in enumerate(usages):
            words = struct.unpack_from(f"<{usage}H", content, at)
            at += 2 * usage
            if usage == 4096:
                offsets = {16 * w + bit for w, word in enumerate(words) for bit in range(16) if word >> bit & 1}
            else:
                offsets = set(words)
            blocks |= {CHUNK * chunk + offset for offset in offsets}
        entries.append((RelationFork(*key), limit, blocks))
    assert len(content) == at + 24 + 4
    return entries


# --- good files -------------------------------------------------------------------------------------------


def test_the_empty_summary_is_the_servers() -> None:
    assert encode_summary(BlockMap()) == EMPTY
    assert decode_summary(EMPTY, "empty") == BlockMap()


def test_the_worked_example() -> None:
    example = map_of([0, 6, 51])
    assert encode_summary(example) == sealed(ENTRY)
    assert decode_summary(sealed(ENTRY), "example") == example


def test_arrays_come_in_any_order() -> None:
    content = sealed(entry([0, 3], struct.pack("<3H", 51, 0, 6)))
    assert decode_summary(content, "unsorted") == map_of([CHUNK, CHUNK + 6, CHUNK + 51])


def test_a_bitmap_that_was_cleared_again_stays_one() -> None:
    bitmap = bytearray(8192)
    assert decode_summary(sealed(entry([4096], bytes(bitmap))), "cleared") == map_of([])
    bitmap[1] = 0x80
    assert decode_summary(sealed(entry([4096], bytes(bitmap))), "sparse") == map_of([15])


def test_trailing_chunks_without_blocks_are_read_and_not_written() -> None:
    content = sealed(entry([1, 0, 0], struct.pack("<H", 7)))
    assert decode_summary(content, "padded") == map_of([7])
    assert encode_summary(map_of([7])) == sealed(entry([1], struct.pack("<H", 7)))


@pytest.mark.parametrize("count", [1, 2, 4094, 4095, 4096, 4097, 65535, 65536])
@pytest.mark.parametrize("first_chunk", [0, 3])
@pytest.mark.parametrize("runs", [True, False], ids=["runs", "scattered"])
def test_chunks_at_the_edges_of_arrays_and_bitmaps(count: int, first_chunk: int, runs: bool) -> None:
    offsets = range(count) if runs else sorted(offset * 40503 % CHUNK for offset in range(count))
    blocks = BitMap(first_chunk * CHUNK + offset for offset in offsets)
    if runs:
        blocks = BitMap(range(first_chunk * CHUNK, first_chunk * CHUNK + count))
        blocks.run_optimize()
    content = encode_summary(map_of(blocks))
    assert decode_summary(content, "edges") == map_of(blocks)
    assert read_plainly(content) == [(KEY, INVALID_BLOCK_NUMBER, set(blocks))]
    usages = struct.unpack_from(f"<{first_chunk + 1}H", content, 28)
    assert usages == (*[0] * first_chunk, min(count, 4096))


def test_the_last_block_that_there_can_be() -> None:
    last = map_of([0xFFFFFFFE], limit=0xFFFFFFFE)
    assert decode_summary(encode_summary(last), "last") == last


relations = st.builds(RelationFork, st.integers(1, 3), st.integers(0, 3), st.integers(0, 0xFFFFFFFF), st.integers(0, 3))
limits = st.one_of(st.none(), st.integers(0, 3), st.integers(0, INVALID_BLOCK_NUMBER - 1))
ranges = st.builds(
    lambda start, length: range(start, min(start + length, INVALID_BLOCK_NUMBER)),
    st.one_of(st.integers(0, 3 * CHUNK), st.integers(0, INVALID_BLOCK_NUMBER - 1)),
    st.one_of(st.integers(1, 10), st.integers(4090, 4100), st.integers(1, 2 * CHUNK)),
)


@st.composite
def block_maps(draw: st.DrawFn) -> BlockMap:
    """Entries with scattered blocks and runs, some shortened before and some after."""
    block_map = BlockMap()
    for key in draw(st.lists(relations, max_size=6)):
        for _ in range(draw(st.integers(0, 2))):
            limit = draw(limits)
            if limit is not None:
                block_map.set_limit(key, limit)
            if draw(st.booleans()):
                block_map.mark(key, BitMap(draw(ranges)))
            block_map.mark(key, draw(st.lists(st.integers(0, 4 * CHUNK), max_size=20)))
    return block_map


@given(block_maps())
@settings(deadline=None)
def test_every_map_comes_back(block_map: BlockMap) -> None:
    content = encode_summary(block_map)
    decoded = decode_summary(content, "round trip")
    assert decoded == block_map
    assert encode_summary(decoded) == content


@given(block_maps())
@settings(deadline=None, max_examples=30)
def test_files_say_plainly_what_the_map_says(block_map: BlockMap) -> None:
    expected = [(key, changes.limit_block, set(changes.blocks)) for key, changes in block_map.entries()]
    assert read_plainly(encode_summary(block_map)) == expected


# --- links ------------------------------------------------------------------------------------------------

EXAMPLE_LINK = Link(Lsn(0x1000028), Lsn(0x1A3F0A0))
# As docs/formats.md has it, behind the empty summary.
EXAMPLE_TRAILER = bytes.fromhex("5047574c 01000000 2800000100000000 a0f0a30100000000")

links = st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)).map(
    lambda lsns: Link(*map(Lsn, sorted(lsns)))
)


def with_link(trailer: bytes) -> bytes:
    """Return the empty summary and this behind it, with a CRC that is right."""
    return EMPTY + trailer + struct.pack("<I", crc32c(EMPTY[-4:] + trailer))


def test_a_link_is_behind_all_that_postgresql_reads() -> None:
    content = encode_summary(BlockMap(), EXAMPLE_LINK)
    assert content == with_link(EXAMPLE_TRAILER)
    assert decode_link(content, "linked") == EXAMPLE_LINK


@given(block_maps(), links)
@settings(deadline=None, max_examples=50)
def test_every_link_comes_back_and_changes_nothing_of_the_table(block_map: BlockMap, link: Link) -> None:
    plain, content = encode_summary(block_map), encode_summary(block_map, link)
    assert content.startswith(plain)
    assert decode_summary(content, "linked") == block_map
    assert decode_link(content, "linked") == decode_link(content[-LINK_TAIL_SIZE:], "linked") == link
    assert decode_link(plain, "plain") is None


def test_every_cut_of_a_link_is_noticed_but_that_of_all_of_it() -> None:
    plain, content = encode_summary(map_of([7])), encode_summary(map_of([7]), EXAMPLE_LINK)
    for length in range(len(content)):
        if length == len(plain):
            assert decode_summary(content[:length], "cut") == map_of([7])
            assert decode_link(content[:length], "cut") is None
            continue
        with pytest.raises(FormatError, match=r"^cut"):
            decode_summary(content[:length], "cut")


def test_every_flipped_bit_of_a_link_is_noticed() -> None:
    plain, whole = encode_summary(map_of([7])), encode_summary(map_of([7]), EXAMPLE_LINK)
    for bit in range(8 * len(plain), 8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match=r"^flipped"):
            decode_summary(bytes(content), "flipped")


def test_a_link_belongs_to_the_table_before_it() -> None:
    trailer = encode_summary(map_of([7]), EXAMPLE_LINK)[len(encode_summary(map_of([7]))) :]
    with pytest.raises(ChecksumMismatch, match=r"^moved: the CRC of the link"):
        decode_link(encode_summary(map_of([8])) + trailer, "moved")


def test_links_that_no_pgwal_writes() -> None:
    with pytest.raises(UnsupportedVersion, match=r"^later: .* version 2"):
        decode_summary(with_link(EXAMPLE_TRAILER[:4] + b"\2" + EXAMPLE_TRAILER[5:]), "later")
    with pytest.raises(FormatError, match=r"^back: its last record, 0/1000028, lies before"):
        decode_summary(with_link(EXAMPLE_TRAILER[:8] + EXAMPLE_TRAILER[16:] + EXAMPLE_TRAILER[8:16]), "back")


def test_ranges_follow_each_other_where_one_names_the_last_record_of_the_other() -> None:
    link = Link(Lsn(100), Lsn(200))
    assert link.follows(100)
    assert not link.follows(99)
    assert link.follows(0), "where nothing is known of the range before"
    assert UNKNOWN.follows(99)
    assert UNKNOWN.after(Lsn(99)) == (99, 99)
    assert link.after(Lsn(100)) == link
    first_of_all = Link(Lsn(0), Lsn(200))
    assert not first_of_all.follows(99), "a record without one before it follows none"


# --- damaged files ----------------------------------------------------------------------------------------


def sample() -> bytes:
    """Return a file with every kind of part, of some 8 KB."""
    block_map = map_of([0, 6, 51, 2 * CHUNK + 1], limit=70000)
    block_map.merge(map_of(range(5000), key=RelationFork(1663, 5, 16385, 0)))
    block_map.merge(map_of([], key=RelationFork(1663, 7, 0, 0), limit=0))
    return encode_summary(block_map)


def test_every_truncation_is_noticed() -> None:
    content = sample()
    for length in range(len(content)):
        with pytest.raises(FormatError, match=r"^cut"):
            decode_summary(content[:length], "cut")


def test_every_truncation_with_a_right_crc_is_noticed() -> None:
    content = sample()
    for length in range(len(content) - 4):
        with pytest.raises(TruncatedInput, match=r"^cut"):
            decode_summary(resealed(content[:length] + bytes(4)), "cut")


@given(st.data())
def test_every_flipped_bit_is_noticed(data: st.DataObject) -> None:
    content = bytearray(sample())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ChecksumMismatch if bit >= 32 else FormatError, match=r"^flipped"):
        decode_summary(bytes(content), "flipped")


@given(st.data())
@settings(deadline=None)
def test_flipped_bits_with_a_right_crc_give_a_map_or_a_format_error(data: st.DataObject) -> None:
    content = bytearray(sample())
    # Most of the file is a bitmap, in which every bit is right: so half of the flips are before it.
    ends = st.sampled_from([8 * 120, 8 * (len(content) - 4)])
    for bit in data.draw(st.lists(ends.flatmap(lambda end: st.integers(0, end - 1)), min_size=1, max_size=4)):
        content[bit // 8] ^= 1 << bit % 8
    with suppress(FormatError):
        decoded = decode_summary(resealed(bytes(content)), "flipped")
        assert decode_summary(encode_summary(decoded), "again") == decoded


@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_give_a_map_or_a_format_error(body: bytes, whole: bool) -> None:
    with suppress(FormatError):
        decode_summary(sealed(body) if whole else body, "any")


@pytest.mark.parametrize(
    ("body", "error", "reason"),
    [
        (entry([], key=RelationFork(1663, 5, 1, 4)), FormatError, "has fork 4"),
        (entry([], key=RelationFork(1663, 5, 1, -1)), FormatError, "has fork -1"),
        (entry([1], struct.pack("<H", 0)) * 2, FormatError, "out of order"),
        (
            entry([], key=RelationFork(2, 1, 1, 0)) + entry([], key=RelationFork(1, 2, 2, 1)),
            FormatError,
            "out of order",
        ),
        (entry([4097], bytes(2 * 4097)), FormatError, "more words than the 4096"),
        (entry([2], struct.pack("<2H", 7, 7)), FormatError, "twice"),
        (entry([]) + bytes(24), FormatError, "24 bytes follow"),
        (entry([4096], bytes(8191)), TruncatedInput, "cut off"),
        (struct.pack("<IIIiII", *KEY, 0, 3), TruncatedInput, "cut off"),
    ],
)
def test_what_no_server_writes(body: bytes, error: type[FormatError], reason: str) -> None:
    with pytest.raises(error, match=f"^odd: .*{reason}"):
        decode_summary(sealed(body), "odd")


def test_another_magic() -> None:
    with pytest.raises(FormatError, match="magic is 0x652b137c"):
        decode_summary(b"\x7c" + EMPTY[1:], "other")


@pytest.mark.parametrize("count", [65536, 65537, 0x3FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("usage", [0, 1, 4096, 65535])
def test_absurd_counts_do_not_allocate(count: int, usage: int) -> None:
    content = sealed(struct.pack("<IIIiII", *KEY, INVALID_BLOCK_NUMBER, count) + struct.pack("<H", usage) * 8)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode_summary(content, "absurd")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000


# --- names ------------------------------------------------------------------------------------------------


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_names_go_both_ways(timeline_id: int, start: int, end: int) -> None:
    summary_range = LsnRange(timeline_id, Lsn(start), Lsn(end))
    assert parse_summary_file_name(summary_file_name(summary_range)) == summary_range


def test_a_name_is_the_servers() -> None:
    name = "0000000100000000010000280000000001A3F0D8.summary"
    assert summary_file_name(LsnRange(1, Lsn(0x1000028), Lsn(0x1A3F0D8))) == name


@pytest.mark.parametrize("stem", ["temp", "", "0" * 39, "0" * 41, "g" * 40, "a" * 40])
def test_other_names_are_of_something_else(stem: str) -> None:
    assert parse_summary_file_name(f"{stem}.summary") is None
    assert parse_summary_file_name(stem) is None


def far_apart(fork_count: int) -> BlockMap:
    """Return a map whose file has 128 KiB for each fork, which takes WAL of 30 bytes."""
    block_map = BlockMap()
    for number in range(fork_count):
        block_map.mark(RelationFork(1663, 5, 16384 + number, Fork.MAIN), [0xFFFFFFFE])
    return block_map


def test_a_summary_that_would_be_too_large_is_refused_with_the_limit() -> None:
    per_fork = len(encode_summary(far_apart(2))) - len(encode_summary(far_apart(1)))
    most = MAX_SUMMARY_BYTES // per_fork
    require_size(far_apart(most - 1), "x")
    with pytest.raises(LimitExceeded, match=f"^here names blocks so far .* than {MAX_SUMMARY_BYTES} bytes") as caught:
        encode_summary(far_apart(most + 1), source="here")
    assert caught.value.hint


def test_a_summary_of_too_many_forks_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_SUMMARY_ENTRIES", 3)
    require_size(far_apart(3), "x")
    with pytest.raises(LimitExceeded, match="here names more than 3 relation forks"):
        encode_summary(far_apart(4), source="here")
