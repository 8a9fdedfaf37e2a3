"""The header of INCREMENTAL files, and their names."""

from array import array
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.backup.incremental_file import (
    IncrementalHeader,
    incremental_file_size,
    incremental_header_size,
    incremental_name,
    is_incremental_name,
    original_name,
)
from pgwal.errors import FormatError, TruncatedInput
from pgwal.relation import BLOCKS_PER_FILE

# One block (7) of a file of 20 blocks, as PostgreSQL 17 writes it.
WORKED_EXAMPLE = bytes.fromhex("0d1faed3 01000000 14000000 07000000").ljust(8192, b"\0")


def header(kept: int, *blocks: int) -> IncrementalHeader:
    return IncrementalHeader(kept, array("I", blocks))


HEADERS = st.builds(
    lambda kept, blocks: IncrementalHeader(kept, array("I", blocks)),
    st.integers(0, BLOCKS_PER_FILE),
    st.lists(st.integers(0, BLOCKS_PER_FILE - 1), unique=True, max_size=50),
)


def test_the_worked_example() -> None:
    assert header(20, 7).encode() == WORKED_EXAMPLE
    decoded = IncrementalHeader.decode(WORKED_EXAMPLE, 16384)
    assert decoded == header(20, 7)
    assert (decoded.header_size, decoded.file_size, decoded.reconstructed_block_count) == (8192, 16384, 20)


def test_without_blocks_there_is_no_padding() -> None:
    encoded = bytes.fromhex("0d1faed3 00000000 05000000")
    assert header(5).encode() == encoded
    assert header(5).file_size == 12
    assert IncrementalHeader.decode(encoded, 12) == header(5)


@pytest.mark.parametrize(
    ("blocks", "size"), [(0, 12), (1, 8192), (2045, 8192), (2046, 16384), (BLOCKS_PER_FILE, 532480)]
)
def test_the_header_fills_pages(blocks: int, size: int) -> None:
    assert incremental_header_size(blocks) == size
    assert incremental_file_size(blocks) == size + blocks * 8192
    assert len(header(0, *range(blocks)).encode()) == size


def test_the_largest_header() -> None:
    largest = header(BLOCKS_PER_FILE, *range(BLOCKS_PER_FILE))
    assert IncrementalHeader.decode(largest.encode(), largest.file_size) == largest


@pytest.mark.parametrize(("kept", "blocks", "length"), [(0, (), 0), (3, (7, 1), 8), (9, (7,), 9), (0, (0,), 1)])
def test_the_reconstructed_length(kept: int, blocks: tuple[int, ...], length: int) -> None:
    assert header(kept, *blocks).reconstructed_block_count == length


@given(HEADERS)
def test_decode_undoes_encode(value: IncrementalHeader) -> None:
    encoded = value.encode()
    assert IncrementalHeader.decode(encoded, value.file_size) == value
    assert IncrementalHeader.decode(encoded + b"the first block", value.file_size) == value
    prefix = IncrementalHeader.decode_prefix(encoded)
    assert (prefix.block_count, prefix.truncation_block_length) == (
        len(value.block_numbers),
        value.truncation_block_length,
    )
    assert (prefix.header_size, prefix.file_size) == (len(encoded), value.file_size)


@pytest.mark.parametrize(
    ("kept", "blocks"),
    [
        (BLOCKS_PER_FILE + 1, ()),
        (-1, ()),
        (0, (BLOCKS_PER_FILE,)),
        (9, (3, 3)),
        (0, tuple(range(BLOCKS_PER_FILE + 1))),
    ],
)
def test_impossible_values_are_not_made(kept: int, blocks: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        header(kept, *blocks)


@pytest.mark.parametrize(
    "prefix",
    [
        "0e1faed3 01000000 14000000 07000000",  # magic
        "0d1faed3 01000200 14000000 07000000",  # number of blocks
        "0d1faed3 01000000 01000200 07000000",  # truncation block length
        "0d1faed3 01000000 14000000 00000200",  # block number
        "0d1faed3 01000000 14000000 07000000 01",  # padding
    ],
)
def test_impossible_values_are_not_read(prefix: str) -> None:
    with pytest.raises(FormatError):
        IncrementalHeader.decode(bytes.fromhex(prefix).ljust(8192, b"\0"), 16384)


@pytest.mark.parametrize("size", [0, 12, 8192, 16383, 16385, 24576])
def test_the_file_has_exactly_the_size_of_its_blocks(size: int) -> None:
    with pytest.raises(FormatError):
        IncrementalHeader.decode(WORKED_EXAMPLE, size)


@given(st.integers(0, 8191))
def test_every_truncation_is_seen(length: int) -> None:
    with pytest.raises(TruncatedInput):
        IncrementalHeader.decode(WORKED_EXAMPLE[:length], 16384)


def test_every_flipped_bit_gives_another_value_or_an_error() -> None:
    for bit in range(24 * 8):
        damaged = bytearray(WORKED_EXAMPLE)
        damaged[bit // 8] ^= 1 << bit % 8
        with suppress(FormatError):
            assert IncrementalHeader.decode(bytes(damaged), 16384) != header(20, 7)


@given(st.binary(max_size=64), st.integers(0, 100000))
def test_any_bytes_give_only_declared_errors(content: bytes, size: int) -> None:
    for candidate in (content, WORKED_EXAMPLE[:4] + content):
        with suppress(FormatError):
            IncrementalHeader.decode(candidate, size)


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("base/5/16384", "base/5/INCREMENTAL.16384"),
        ("global/1262_vm", "global/INCREMENTAL.1262_vm"),
        ("pg_tblspc/1/PG_17_202406281/5/9.3", "pg_tblspc/1/PG_17_202406281/5/INCREMENTAL.9.3"),
    ],
)
def test_names(path: str, stored: str) -> None:
    assert incremental_name(path) == stored
    assert original_name(stored) == path
    assert is_incremental_name(stored)
    assert not is_incremental_name(path)


def test_a_name_counts_only_where_relation_files_live() -> None:
    assert not is_incremental_name("INCREMENTAL.16384")
    assert not is_incremental_name("pg_xact/INCREMENTAL.0000")
    assert not is_incremental_name("base/5/INCREMENTAL.")


@pytest.mark.parametrize("path", ["base/5/16384", "base/5/INCREMENTAL.", "INCREMENTAL./16384", ""])
def test_other_names_have_no_original(path: str) -> None:
    with pytest.raises(FormatError):
        original_name(path)
