"""Checksums of data pages: both forms of the module against the algorithm written down plainly."""

from __future__ import annotations

import random
import struct
from array import array
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from module_forms import both_forms

import pgwal.page

PAGE_SIZE = 8192
NEWEST = (1 << 64) - 1
COLUMN_START = (
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
)  # fmt: skip


FORMS = both_forms(pgwal.page)


def plain_checksum(page: bytes, block_number: int) -> int:
    """Return a page's checksum as checksum_impl.h computes it, word by word."""
    words = list(struct.unpack("<2048I", page))
    words[2] &= 0xFFFF0000
    sums = list(COLUMN_START)
    for number, word in enumerate([*words, *[0] * 64]):
        mixed = sums[number % 32] ^ word
        sums[number % 32] = (mixed * 16777619 & 0xFFFFFFFF) ^ mixed >> 17
    total = block_number & 0xFFFFFFFF
    for each in sums:
        total ^= each
    return total % 65535 + 1


def build_page(seed: int, block_number: int, lsn: int = 1, upper: int = 8000) -> bytearray:
    page = bytearray(random.Random(seed).randbytes(PAGE_SIZE))
    struct.pack_into("<II", page, 0, lsn >> 32, lsn & 0xFFFFFFFF)
    struct.pack_into("<H", page, 14, upper)
    struct.pack_into("<H", page, 8, plain_checksum(bytes(page), block_number))
    return page


def is_bad(page: bytes, block_number: int) -> bool:
    """Tell it by the plain algorithm: of all changes of a page, one in 65535 has the checksum that was there."""
    return plain_checksum(bytes(page), block_number) != struct.unpack_from("<H", page, 8)[0]


block_numbers = st.integers(0, 0xFFFFFFFE)


@pytest.mark.parametrize("module", FORMS)
@settings(deadline=None)
@given(seed=st.integers(0, 1 << 32), block_number=block_numbers, kind=st.sampled_from([bytes, bytearray, memoryview]))
def test_a_page_has_the_checksum_of_the_plain_algorithm(
    module: ModuleType, seed: int, block_number: int, kind: type
) -> None:
    page = build_page(seed, block_number)
    assert module.find_bad_pages(kind(page), block_number, NEWEST) == []
    assert module.find_bad_pages(kind(page), block_number ^ 1, NEWEST) == [0] * is_bad(page, block_number ^ 1)


@pytest.mark.parametrize("module", FORMS)
@settings(deadline=None)
@given(seed=st.integers(0, 1 << 32), bit=st.integers(0, PAGE_SIZE * 8 - 1))
def test_no_flipped_bit_passes(module: ModuleType, seed: int, bit: int) -> None:
    page = build_page(seed, 7, lsn=1 << 33)
    page[bit // 8] ^= 1 << bit % 8
    assert module.find_bad_pages(page, 7, NEWEST) == [0] * is_bad(page, 7)


@pytest.mark.parametrize("module", FORMS)
@settings(deadline=None)
@given(bad=st.sets(st.integers(0, 9)), first=st.integers(0, 1 << 31), rest=st.integers(0, PAGE_SIZE - 1))
@example(bad={0, 1, 2}, first=103533, rest=0)
def test_bad_pages_among_many(module: ModuleType, bad: set[int], first: int, rest: int) -> None:
    pages = [build_page(number, first + number) for number in range(10)]
    for number in bad:
        pages[number][5000] ^= 1
    found = module.find_bad_pages(b"".join(pages) + b"x" * rest, first, NEWEST)
    assert found == [number for number in sorted(bad) if is_bad(pages[number], first + number)]


@pytest.mark.parametrize("module", FORMS)
@given(bad=st.sets(st.integers(0, 9)), numbers=st.sets(block_numbers, min_size=10, max_size=10))
def test_bad_blocks_among_some(module: ModuleType, bad: set[int], numbers: set[int]) -> None:
    pages = [build_page(place, number) for place, number in enumerate(sorted(numbers))]
    for place in bad:
        pages[place][5000] ^= 1
    listed = array("I", sorted(numbers))
    found = module.find_bad_blocks(b"".join(pages), listed, NEWEST)
    assert found == [place for place in sorted(bad) if is_bad(pages[place], listed[place])]
    assert module.find_bad_blocks(b"".join(pages), listed, 1) == []
    assert module.find_bad_blocks(b"", array("I"), NEWEST) == []


@pytest.mark.parametrize("module", FORMS)
def test_pages_that_are_not_looked_at(module: ModuleType) -> None:
    start_lsn = 0x5_0000_0028
    broken = [(lsn, upper) for lsn in (0, start_lsn - 1, start_lsn, start_lsn + 1, NEWEST) for upper in (0, 1)]
    pages = [build_page(number, number, *each) for number, each in enumerate(broken)]
    for page in pages:
        page[100] ^= 0x10
    # Not those that are new, nor those that were changed since the start.
    assert module.find_bad_pages(b"".join(pages), 0, start_lsn) == [1, 3]
    assert module.find_bad_pages(bytes(PAGE_SIZE), 0, start_lsn) == []
    assert module.find_bad_pages(b"", 0, start_lsn) == []


@pytest.mark.parametrize("module", FORMS)
@settings(deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["right", "bad", "zero", "new but not zero", "late", "late and bad"]), max_size=7),
    never_torn=st.booleans(),
)
def test_pages_of_all_kinds_side_by_side(module: ModuleType, kinds: list[str], never_torn: bool) -> None:
    """The compiled form takes two at a time."""
    start_lsn = 1000
    pages = []
    for number, kind in enumerate(kinds):
        page = build_page(number, number, start_lsn if "late" in kind else 1)
        if "bad" in kind:
            page[-1] ^= 1
        if kind == "zero":
            page = bytearray(PAGE_SIZE)
        if kind == "new but not zero":
            struct.pack_into("<H", page, 14, 0)
        pages.append(page)
    bad = {"bad"} | ({"new but not zero", "late and bad"} if never_torn else set())
    expected = [number for number, kind in enumerate(kinds) if kind in bad]
    lsn = module.NEVER_TORN if never_torn else start_lsn
    assert module.find_bad_pages(b"".join(pages), 0, lsn) == expected


@pytest.mark.parametrize("module", FORMS)
def test_where_no_page_may_be_torn_all_are_looked_at(module: ModuleType) -> None:
    pages = [build_page(number, number, lsn) for number, lsn in enumerate((1, NEWEST - 1, NEWEST))]
    assert module.find_bad_pages(b"".join(pages), 0, module.NEVER_TORN) == []
    for page in pages:
        page[100] ^= 0x10
    assert module.find_bad_pages(b"".join(pages), 0, module.NEVER_TORN) == [0, 1, 2]
    # A page that is new is all zeros.
    one_bit = bytes(PAGE_SIZE - 1) + b"\1"
    assert module.find_bad_pages(bytes(PAGE_SIZE) + one_bit, 0, module.NEVER_TORN) == [1]
    assert module.find_bad_pages(bytes(PAGE_SIZE) + one_bit, 0, NEWEST - 1) == []


@pytest.mark.parametrize("module", FORMS)
@given(
    lsns=st.lists(st.integers(0, NEWEST) | st.integers((1 << 32) - 3, (1 << 32) + 3), max_size=7),
    lsn=st.integers(0, NEWEST) | st.integers((1 << 32) - 3, (1 << 32) + 3),
    rest=st.integers(0, PAGE_SIZE - 1),
)
def test_pages_that_were_changed_behind_a_position(module: ModuleType, lsns: list[int], lsn: int, rest: int) -> None:
    pages = [struct.pack("<II", each >> 32, each & 0xFFFFFFFF) + bytes(PAGE_SIZE - 8) for each in lsns]
    found = module.find_newer_pages(b"".join(pages) + b"\xff" * rest, lsn)
    assert found == [number for number, each in enumerate(lsns) if each > lsn]
    assert [module.page_lsn(page) for page in pages] == lsns
