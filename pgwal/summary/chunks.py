# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, cdivision=True
"""The chunks of a summary entry as the serialised form of a roaring bitmap, as tight loops.

A chunk covers 65536 blocks, as a container of a roaring bitmap does (github.com/RoaringBitmap/RoaringFormatSpec); with
changes all over a large database there are as many of them as changed blocks.  This source runs compiled, with the C
types of ``chunks.pxd``, and interpreted as it stands.  Everything is counted in words of two bytes, of which both
formats are made.
"""

from __future__ import annotations

from array import array

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it.
    cython = None

BITMAP_USAGE = 4096
"""The usage of a chunk that is stored as a bitmap of 65536 bits, 4096 words."""

TOO_MANY_WORDS = -1
CUT_OFF = -2

_TWICE = -3
_BITMAP_WORDS = 4096
_ARRAY_MAX = 4096
_NO_RUNS = 12346
# The cookie and the number of containers.
_HEAD_WORDS = 4
# Of each container: its key and its cardinality, then where it is.
_CONTAINER_WORDS = 4
_FEW = 128


def chunk_words(words: array[int], at: int, chunk_count: int) -> int:
    """Return how many words the usages and data of ``chunk_count`` chunks at ``words[at]`` have.

    TOO_MANY_WORDS when a chunk claims more than a chunk can have, CUT_OFF when they are not all there.
    """
    end = len(words)
    if end - at < chunk_count:
        return CUT_OFF
    total = chunk_count
    for chunk in range(at, at + chunk_count):
        if words[chunk] > _BITMAP_WORDS:
            return TOO_MANY_WORDS
        total += words[chunk]
    return total if total <= end - at else CUT_OFF


def roaring_of_chunks(words: array[int], at: int, chunk_count: int) -> array[int] | None:
    """Return the serialised roaring bitmap of the chunks at ``words[at]``; None when one names a block twice.

    ``chunk_words`` must have found them to be there.
    """
    container_count = _used_chunks(words, at, chunk_count)
    data_words = chunk_words(words, at, chunk_count) - chunk_count
    roaring = array("H", bytes(2 * (_HEAD_WORDS + _CONTAINER_WORDS * container_count + data_words)))
    scratch = array("H", bytes(2 * _BITMAP_WORDS))
    used = _fill(words, at, chunk_count, roaring, container_count, scratch)
    if used == _TWICE:
        return None
    return roaring[:used]


def _used_chunks(words: array[int], at: int, chunk_count: int) -> int:
    """Return how many of the chunks hold a block; a bitmap may have become empty."""
    used = 0
    data = at + chunk_count
    for chunk in range(chunk_count):
        usage = words[at + chunk]
        if usage == _BITMAP_WORDS:
            for index in range(data, data + usage):
                if words[index]:
                    used += 1
                    break
        elif usage:
            used += 1
        data += usage
    return used


def _fill(
    words: array[int],
    at: int,
    chunk_count: int,
    roaring: array[int],
    container_count: int,
    scratch: array[int],
) -> int:
    """Write the serialised bitmap, and return how many words it has, or _TWICE.  ``scratch`` is zero, and stays so."""
    roaring[0] = _NO_RUNS
    roaring[2] = container_count & 0xFFFF
    roaring[3] = container_count >> 16
    header = _HEAD_WORDS
    offset = header + 2 * container_count
    body = offset + 2 * container_count
    data = at + chunk_count
    for chunk in range(chunk_count):
        usage = words[at + chunk]
        if usage == 0:
            continue
        cardinality = usage
        length = usage
        if usage == _BITMAP_WORDS:
            cardinality = _count_bits(words, data)
            length = _BITMAP_WORDS
            if cardinality == 0:
                data += usage
                continue
            if cardinality > _ARRAY_MAX:
                for index in range(_BITMAP_WORDS):
                    roaring[body + index] = words[data + index]
            else:
                # Roaring wants so few as an array.
                length = _list_bits(words, data, roaring, body)
        elif usage <= _FEW:
            if not _insert_sorted(words, data, usage, roaring, body):
                return _TWICE
        elif not _sort_by_bits(words, data, usage, roaring, body, scratch):
            return _TWICE
        roaring[header] = chunk
        roaring[header + 1] = cardinality - 1
        header += 2
        byte = 2 * body
        roaring[offset] = byte & 0xFFFF
        roaring[offset + 1] = byte >> 16
        offset += 2
        body += length
        data += usage
    return body


def _insert_sorted(words: array[int], data: int, count: int, target: array[int], body: int) -> bool:
    """Copy a few words in ascending order; False when one is there twice."""
    for index in range(count):
        word = words[data + index]
        place = body + index
        while place > body and target[place - 1] >= word:
            if target[place - 1] == word:
                return False
            target[place] = target[place - 1]
            place -= 1
        target[place] = word
    return True


def _sort_by_bits(words: array[int], data: int, count: int, target: array[int], body: int, scratch: array[int]) -> bool:
    """Copy words in ascending order by way of a bitmap; False when one is there twice."""
    for index in range(count):
        word = words[data + index]
        scratch[word >> 4] |= 1 << (word & 15)
    found = _list_bits(scratch, 0, target, body) if _count_bits(scratch, 0) == count else -1
    for index in range(_BITMAP_WORDS):
        scratch[index] = 0
    return found == count


def _count_bits(words: array[int], at: int) -> int:
    count = 0
    for index in range(at, at + _BITMAP_WORDS):
        word = words[index]
        while word:
            word &= word - 1
            count += 1
    return count


def _list_bits(words: array[int], at: int, target: array[int], body: int) -> int:
    """Write the numbers of the bits that are set, ascending, and return how many there are."""
    count = 0
    for index in range(_BITMAP_WORDS):
        word = words[at + index]
        bit = 0
        while word:
            if word & 1:
                target[body + count] = 16 * index + bit
                count += 1
            word >>= 1
            bit += 1
    return count
