# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""Data pages: does a page hold what its checksum says, and which were changed behind a position in WAL?

Source of the format: src/include/storage/bufpage.h and checksum_impl.h, PostgreSQL 13 to 19.  A page begins with

| offset | type | field |
|---|---|---|
| 0 | u32, u32 | pd_lsn, the higher half first: the end of the last record that changed the page |
| 8 | u16 | pd_checksum |
| 14 | u16 | pd_upper; 0 in a page that was never initialised and has no checksum |

The sum is a variant of FNV-1a over 32 columns of words at a time; the number of the block in its relation fork is
mixed in, so that a page in a wrong place is found as well.

This source runs in two forms, as pgwal/wal/scan.py does: compiled by Cython, with page_checksum.h for the sum, and
interpreted as it stands.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; these are all the names that it uses.
    cython = SimpleNamespace(compiled=False, nogil=nullcontext())

if TYPE_CHECKING:
    from array import array
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

COMPILED: bool = cython.compiled

NEVER_TORN = (1 << 64) - 1
"""In place of an LSN: no page may be torn.  All are looked at then, and one that is new must be all zeros."""


def find_bad_pages(data: Buffer, block_number: int, lsn: int) -> list[int]:
    """Return which pages of ``data`` differ from their checksums, by their places in it.

    ``block_number`` is that of the first one, counted from the start of the relation fork.  Pages that were changed at
    ``lsn``, where the backup started, or later are not looked at: they may be torn, and WAL has them whole.  Nor are
    pages that were never initialised, unless ``lsn`` is NEVER_TORN, nor bytes after the last whole page.
    """
    return _find(data, len(data) // 8192, block_number, lsn)


def find_bad_blocks(data: Buffer, block_numbers: array[int], lsn: int) -> list[int]:
    """As find_bad_pages, of as many pages as there are ``block_numbers``: an array of type I with that of each page."""
    if block_numbers.itemsize != 4:
        raise ValueError("block numbers have four bytes")
    if len(data) < len(block_numbers) * 8192:
        raise ValueError("the data are shorter than the blocks")
    return _find_listed(data, block_numbers, len(block_numbers), lsn)


def find_newer_pages(data: Buffer, lsn: int) -> list[int]:
    """Return which pages of ``data`` were last changed by a record that ends behind ``lsn``, by their places in it.

    Bytes after the last whole page are not looked at.
    """
    return _find_newer(data, len(data) // 8192, lsn)


def page_lsn(page: bytes) -> int:
    """Return the end of the last record that changed a page."""
    return int.from_bytes(page[:4], "little") << 32 | int.from_bytes(page[4:8], "little")


def _find(data: Buffer, count: int, block_number: int, lsn: int) -> list[int]:
    found: list[int] = []
    at = 0
    start = _bytes_of(data)
    while True:
        with cython.nogil:
            at = _next_bad_page(start, at, count, block_number, lsn)
        if at == count:
            return found
        found.append(at)
        at += 1


def _find_listed(data: Buffer, block_numbers: array[int], count: int, lsn: int) -> list[int]:
    found: list[int] = []
    at = 0
    start = _bytes_of(data)
    numbers = _numbers_of(block_numbers)
    while at < count:
        with cython.nogil:
            # A block's number less its place would be that of the first page.
            while at < count and _next_bad_page(start, at, at + 1, numbers[at] - at, lsn) > at:
                at += 1
        if at < count:
            found.append(at)
            at += 1
    return found


def _find_newer(data: Buffer, count: int, lsn: int) -> list[int]:
    found: list[int] = []
    at = 0
    start = _bytes_of(data)
    while True:
        with cython.nogil:
            at = _next_newer_page(start, at, count, lsn)
        if at == count:
            return found
        found.append(at)
        at += 1


if not cython.compiled:
    from struct import Struct

    _HEADER = Struct("<IIH4xH")
    _ROW_SIZE = 128
    _PRIME = 16777619

    # Sums of 32 bits in lanes of 64, those of the even columns in one number and those of the odd columns in another:
    # one multiplication does 16 columns.
    _LANES = sum(1 << 64 * lane for lane in range(16))
    _LOW_HALVES = 0xFFFFFFFF * _LANES
    _LOW_15_BITS = 0x7FFF * _LANES
    _COLUMN_START = int.from_bytes(
        bytes.fromhex(
            "e9361f5b605952b8aa50ab022a6de61d7a46ff79a3f8b99bd27c7e212c3de183"
            "4f47d4f870b99ee316aec642fa1632995d3b097b3cffda982a9018f7db9c1c0b"
            "4b768fe5bc367618b13b7b5ddee73de779c9be92b2c0a6cc79094a30d443aa85"
            "bb253178a2eaa86cc6ea07e43efc5c4b768cbf9fbe20ca15d39fcaf256d79b95"
        ),
        "little",
    )

    def _bytes_of(data: Buffer) -> Buffer:
        return data

    def _numbers_of(block_numbers: array[int]) -> array[int]:
        return block_numbers

    def _next_bad_page(data: Buffer, at: int, count: int, block_number: int, lsn: int) -> int:
        while at < count and not _is_bad_page(data[at * 8192 : (at + 1) * 8192], block_number + at, lsn):
            at += 1
        return at

    def _next_newer_page(data: Buffer, at: int, count: int, lsn: int) -> int:
        while at < count:
            lsn_high, lsn_low, _, _ = _HEADER.unpack_from(data, at * 8192)
            if (lsn_high << 32 | lsn_low) > lsn:
                break
            at += 1
        return at

    def _is_bad_page(page: Buffer, block_number: int, lsn: int) -> bool:
        lsn_high, lsn_low, checksum, upper = _HEADER.unpack_from(page)
        if upper == 0:
            return lsn == NEVER_TORN and any(page)
        if lsn != NEVER_TORN and (lsn_high << 32 | lsn_low) >= lsn:
            return False
        return bool((_page_sum(page) ^ block_number & 0xFFFFFFFF) % 65535 + 1 != checksum)

    def _page_sum(page: Buffer) -> int:
        even, odd = _COLUMN_START & _LOW_HALVES, _COLUMN_START >> 32 & _LOW_HALVES
        # pd_checksum counts as 0 in its own sum.
        row = int.from_bytes(page[:_ROW_SIZE], "little") & ~(0xFFFF << 64)
        for end in range(2 * _ROW_SIZE, 8192 + 4 * _ROW_SIZE, _ROW_SIZE):
            even, odd = _mix(even, row & _LOW_HALVES), _mix(odd, row >> 32 & _LOW_HALVES)
            # Two rows of zeros follow the last one.
            row = int.from_bytes(page[end - _ROW_SIZE : end], "little")
        total = 0
        for lane in range(0, 1024, 64):
            total ^= (even ^ odd) >> lane & 0xFFFFFFFF
        return total

    def _mix(sums: int, words: int) -> int:
        mixed = sums ^ words
        return (mixed * _PRIME & _LOW_HALVES) ^ (mixed >> 17 & _LOW_15_BITS)
