# cython: language_level=3, annotation_typing=False
"""Read what lies apart in open files, or in memory, many blocks or parts in one call.

Incremental backups and restores do, and a call of Python for each costs more than the reading; nor do other threads
wait for it meanwhile.  This source runs in
two forms, as pgwal/wal/scan.py does: compiled by Cython, with block_reads.h, and interpreted as it stands.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; this is all that it uses.
    from types import SimpleNamespace

    cython = SimpleNamespace(compiled=False)

if TYPE_CHECKING:
    from array import array

COMPILED: bool = cython.compiled


def read_blocks(descriptor: int, block_numbers: array[int]) -> bytes:
    """Return blocks of 8192 bytes, one after the other; zeros for what lies beyond the end of the file.

    ``block_numbers`` is an array of type I.  Raises OSError.
    """
    if block_numbers.itemsize != 4:
        raise ValueError("block numbers have four bytes")
    content = _new_bytes(len(block_numbers) * 8192)
    _require_done(_blocks_into(content, descriptor, block_numbers, len(block_numbers)))
    return _finished(content)


def read_parts(target: memoryview, descriptors: array[int], offsets: array[int], lengths: array[int]) -> int:
    """Fill ``target`` with parts of files, one after the other, and return how many bytes they have.

    The arrays are of types i, Q and I, and tell of each part where it comes from: -1 stands for zeros instead of a
    file.  They have fewer bytes than their lengths say when a file ends before; parts behind that one are not read.
    Raises OSError.
    """
    if (descriptors.itemsize, offsets.itemsize, lengths.itemsize) != (4, 8, 4):
        raise ValueError("the arrays are of types i, Q and I")
    if not (len(descriptors) == len(offsets) == len(lengths)):
        raise ValueError("the arrays are of one length")
    if sum(lengths) > target.nbytes:
        raise ValueError("the parts are longer than the target")
    return _require_done(_parts_into(target, descriptors, offsets, lengths, len(lengths)))


def copy_parts(target: memoryview, contents: list[bytes | None], offsets: array[int], lengths: array[int]) -> int:
    """Fill ``target`` with parts of contents, one after the other, and return how many bytes they have.

    The arrays are of types Q and I, and tell of each part where in its content it lies: None stands for zeros.  Raises
    ValueError where a part is not all in its content, or the target too small.
    """
    if (offsets.itemsize, lengths.itemsize) != (8, 4):
        raise ValueError("the arrays are of types Q and I")
    if not (len(contents) == len(offsets) == len(lengths)):
        raise ValueError("the arrays are of one length")
    size = sum(lengths)
    if size > target.nbytes:
        raise ValueError("the parts are longer than the target")
    for content, offset, length in zip(contents, offsets, lengths, strict=True):
        if content is not None and offset + length > len(content):
            raise ValueError("a part is not all in its content")
    _copy_into(target, contents, offsets, lengths, len(lengths))
    return size


def _require_done(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


if not cython.compiled:

    def _new_bytes(size: int) -> bytearray:
        return bytearray(size)

    def _finished(content: bytearray) -> bytes:
        return bytes(content)

    def _blocks_into(content: bytearray, descriptor: int, block_numbers: array[int], count: int) -> int:
        for at in range(count):
            _read_at(descriptor, memoryview(content)[at * 8192 : (at + 1) * 8192], block_numbers[at] * 8192)
        return 0

    def _parts_into(
        target: memoryview, descriptors: array[int], offsets: array[int], lengths: array[int], count: int
    ) -> int:
        total = 0
        for at in range(count):
            part = target[total : total + lengths[at]]
            if descriptors[at] < 0:
                part[:] = bytes(len(part))
                done = len(part)
            else:
                done = _read_at(descriptors[at], part, offsets[at])
            total += done
            if done < len(part):
                break
        return total

    def _copy_into(
        target: memoryview, contents: list[bytes | None], offsets: array[int], lengths: array[int], count: int
    ) -> None:
        total = 0
        for at in range(count):
            content, start, length = contents[at], offsets[at], lengths[at]
            target[total : total + length] = bytes(length) if content is None else content[start : start + length]
            total += length

    def _read_at(descriptor: int, part: memoryview, offset: int) -> int:
        done = 0
        while done < len(part) and (size := os.preadv(descriptor, [part[done:]], offset + done)):
            done += size
        return done
