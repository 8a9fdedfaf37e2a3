"""PostgreSQL's WAL summary files, both ways: names, and the block reference table inside.

Source of the format: src/common/blkreftable.c and src/backend/backup/walsummary.c, PostgreSQL 17 to 19.

| part | contents |
|---|---|
| u32 | magic 0x652B137B |
| entry, ascending | u32 tablespace, u32 database, u32 relation, i32 fork, u32 limit block, u32 n |
| | n x u16 usage of chunk i, which covers blocks [i x 65536, (i + 1) x 65536) |
| | for usage 1 to 4095 that many u16 offsets in the chunk, for 4096 a bitmap of 65536 bits, for 0 nothing |
| 24 bytes | zeros |
| u32 | CRC-32C of all bytes before it |

There PostgreSQL's own files end, and its readers look no further.  Behind it pgwal keeps what links a summary to those
before and behind it (``pgwal.summary.link``):

| part | contents |
|---|---|
| u32 | magic 0x4C574750 ("PGWL") |
| u32 | version, 1 |
| u64 | LSN of the record before the first one of the range |
| u64 | LSN of the last record of the range |
| u32 | CRC-32C of the 28 bytes before it, the CRC above among them: it belongs to this table and no other |

A roaring bitmap's containers are nearly these chunks, so both directions go by way of its portable serialisation
(github.com/RoaringBitmap/RoaringFormatSpec) and cost time by the bytes, not by the blocks.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterator

from pyroaring import BitMap

from pgwal.checksum import crc32c
from pgwal.errors import (
    BrokenInvariant,
    ChecksumMismatch,
    FormatError,
    LimitExceeded,
    TruncatedInput,
    UnsupportedVersion,
)
from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import Fork
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.chunks import BITMAP_USAGE, CUT_OFF, TOO_MANY_WORDS, chunk_words, roaring_of_chunks
from pgwal.summary.link import Link

SUMMARY_MAGIC = 0x652B137B
LINK_MAGIC = 0x4C574750
_LINK_VERSION = 1

_BITMAP_BYTES = 8192
_BLOCKS_PER_CHUNK = 65536
_FEW = 64
"""So many blocks of the first chunk are listed sooner than serialised: most of the small relations of a server."""
_MAX_CHUNKS = 1 << 16
_ENTRY = struct.Struct("<IIIiII")
_END_MARKER = bytes(_ENTRY.size)
_CRC = struct.Struct("<I")
_LINK = struct.Struct("<IIQQ")
_LINK_SIZE = _LINK.size + _CRC.size
MAX_READ_SUMMARY_BYTES = 1 << 30
"""More than a file has of the changes of 64 TiB; PostgreSQL reads no larger one into memory either."""
LINK_TAIL_SIZE = _CRC.size + _LINK_SIZE
"""So many bytes at a file's end hold its link, if it has one, and what that is checked with."""

MAX_SUMMARY_BYTES = 256 << 20
"""The bits of 16 TiB, in PostgreSQL's format; an entry has two bytes for each 512 MiB in front of a block, too."""

MAX_SUMMARY_ENTRIES = 4 << 20
"""So many take about 4 GB of memory."""

_ROARING_WITH_RUNS = 12347
_ROARING_ARRAY_MAX = 4096
_ROARING_NO_OFFSET_BELOW = 4

_SUMMARY_NAME = re.compile(r"[0-9A-F]{40}\.summary")

if sys.byteorder != "little":
    raise BrokenInvariant("WAL and summaries of a big-endian server are not supported")


def summary_file_name(summary_range: LsnRange) -> str:
    """Return the name of the summary file of a range."""
    timeline_id, start, end = summary_range
    return f"{timeline_id:08X}{int(start):016X}{int(end):016X}.summary"


def parse_summary_file_name(name: str) -> LsnRange | None:
    """Return the range of a summary file, or None for the name of something else."""
    if _SUMMARY_NAME.fullmatch(name) is None:
        return None
    return LsnRange(int(name[:8], 16), Lsn(int(name[8:24], 16)), Lsn(int(name[24:40], 16)))


def encode_summary(block_map: BlockMap, link: Link | None = None, source: str = "a WAL summary") -> bytes:
    """Return the contents of the summary file of a map; without a ``link`` what PostgreSQL itself would write.

    Raises LimitExceeded, which names ``source``, when it would be too large.
    """
    require_size(block_map, source)
    parts = [_CRC.pack(SUMMARY_MAGIC)]
    without_blocks: list[int] = []
    for key, changes in block_map.entries():
        if not changes.has_blocks:
            # What was dropped comes by the hundred thousand, and is encoded in bulk.
            without_blocks += key
            without_blocks += (changes.limit_block, 0)
            continue
        if without_blocks:
            parts.append(array("I", without_blocks).tobytes())
            without_blocks.clear()
        blocks = changes.blocks
        if len(blocks) <= _FEW and blocks.max() < _BLOCKS_PER_CHUNK:
            parts.append(_ENTRY.pack(*key, changes.limit_block, 1))
            parts.append(array("H", (len(blocks), *blocks)).tobytes())
            continue
        usages, data = _encode_chunks(blocks)
        parts.append(_ENTRY.pack(*key, changes.limit_block, len(usages)))
        parts.append(usages.tobytes())
        parts.extend(data)
    parts.append(array("I", without_blocks).tobytes())
    parts.append(_END_MARKER)
    content = b"".join(parts)
    crc = _CRC.pack(crc32c(content))
    return content + crc + (_encode_link(link, crc) if link is not None else b"")


def require_size(block_map: BlockMap, source: str) -> None:
    """Raise LimitExceeded for a map of which no summary file is written, because it would be too large."""
    cause = None
    if len(block_map) > MAX_SUMMARY_ENTRIES:
        cause = f"names more than {MAX_SUMMARY_ENTRIES} relation forks"
    elif _encoded_size(block_map) > MAX_SUMMARY_BYTES:
        cause = f"names blocks so far apart that its file would have more than {MAX_SUMMARY_BYTES} bytes"
    if cause is not None:
        raise LimitExceeded(
            f"{source} {cause}",
            hint="A summary ends at a checkpoint: have the server make them more often, and begin again behind this"
            " WAL, with a full backup.",
        )


def _encoded_size(block_map: BlockMap) -> int:
    """Return how many bytes the entries take at least."""
    size = _ENTRY.size * len(block_map)
    for blocks in block_map.block_sets():
        last = blocks.max()
        # As roaring keeps offsets and bitmaps, and a word for each chunk up to the last one in use.
        size += 2 * ((last >> 16) + 1) + 2 * min(len(blocks), (last >> 4) + 1)
    return size


def decode_summary(content: bytes, source: str) -> BlockMap:
    """Parse a summary file, with a link or without; ``source`` names it in errors.

    Raises TruncatedInput, ChecksumMismatch, UnsupportedVersion for the link of a later pgwal, or FormatError for
    anything else that neither the server nor pgwal would write.
    """
    if decode_link(content, source) is not None:
        content = content[:-_LINK_SIZE]
    if len(content) < 4 + len(_END_MARKER) + 4:
        raise TruncatedInput(f"{source}: {len(content)} bytes are too few for a WAL summary")
    (magic,) = struct.unpack_from("<I", content)
    if magic != SUMMARY_MAGIC:
        raise FormatError(f"{source}: magic is {magic:#010x}, that of a WAL summary is {SUMMARY_MAGIC:#010x}")
    (stored,) = struct.unpack_from("<I", content, len(content) - 4)
    if crc32c(content[:-4]) != stored:
        raise ChecksumMismatch(f"{source}: the CRC of the WAL summary does not match its contents")
    return _decode_entries(content, source)


def decode_link(content: bytes, source: str) -> Link | None:
    """Return the link of a summary file, of which the last LINK_TAIL_SIZE bytes are enough; None when it has none.

    None is said of a damaged file too that does not look like one with a link.  Raises ChecksumMismatch,
    UnsupportedVersion for the link of a later pgwal, or FormatError when its records are not in order.
    """
    # Without a link there are zeros: the end marker.
    if len(content) < LINK_TAIL_SIZE or not content.endswith(_CRC.pack(LINK_MAGIC), 0, 4 - _LINK_SIZE):
        return None
    _, version, prev_lsn, last_lsn = _LINK.unpack_from(content, len(content) - _LINK_SIZE)
    if version != _LINK_VERSION:
        raise UnsupportedVersion(f"{source}: the link of the WAL summary has version {version}, not {_LINK_VERSION}")
    link = Link(Lsn(prev_lsn), Lsn(last_lsn))
    if _encode_link(link, content[-LINK_TAIL_SIZE:-_LINK_SIZE]) != content[-_LINK_SIZE:]:
        raise ChecksumMismatch(f"{source}: the CRC of the link of the WAL summary does not match its contents")
    if last_lsn < prev_lsn:
        raise FormatError(f"{source}: its last record, {link.last_lsn}, lies before the one before its first")
    return link


def _encode_link(link: Link, table_crc: bytes) -> bytes:
    encoded = _LINK.pack(LINK_MAGIC, _LINK_VERSION, *link)
    return encoded + _CRC.pack(crc32c(table_crc + encoded))


def _decode_entries(content: bytes, source: str) -> BlockMap:
    block_map = BlockMap()
    at, end = 4, len(content) - 4
    # Everything before the CRC is made of words; an odd byte before it follows the end marker or cuts an entry off.
    words = array("H")
    words.frombytes(content[: end & ~1])
    previous: RelationFork | None = None
    while True:
        if end - at < _ENTRY.size:
            raise TruncatedInput(f"{source}: the entry at byte {at} is cut off")
        *fields, limit_block, chunk_count = _ENTRY.unpack_from(content, at)
        key = RelationFork(*fields)
        if content[at : at + _ENTRY.size] == _END_MARKER:
            break
        if not Fork.MAIN <= key.fork <= Fork.INIT or chunk_count > _MAX_CHUNKS:
            raise FormatError(f"{source}: the entry at byte {at} has fork {key.fork} and {chunk_count} chunks")
        if previous is not None and key <= previous:
            raise FormatError(f"{source}: the entry at byte {at} is out of order")
        at += _ENTRY.size
        block_map.put(key, limit_block, _decode_chunks(words, at, chunk_count, source))
        at += 2 * chunk_words(words, at // 2, chunk_count)
        previous = key
    if at + _ENTRY.size != end:
        raise FormatError(f"{source}: {end - at - _ENTRY.size} bytes follow the end marker")
    return block_map


def _decode_chunks(words: array[int], at: int, chunk_count: int, source: str) -> BitMap:
    """Return the blocks that the chunks at byte ``at`` name."""
    size = chunk_words(words, at // 2, chunk_count)
    if size == CUT_OFF:
        raise TruncatedInput(f"{source}: the chunks at byte {at} are cut off")
    if size == TOO_MANY_WORDS:
        raise FormatError(f"{source}: a chunk at byte {at} has more words than the {BITMAP_USAGE} that are possible")
    roaring = roaring_of_chunks(words, at // 2, chunk_count)
    if roaring is None:
        raise FormatError(f"{source}: a chunk at byte {at} names a block twice")
    return BitMap.deserialize(roaring.tobytes())


def _encode_chunks(blocks: BitMap) -> tuple[array[int], list[bytes]]:
    """Return the usage of each chunk up to the last one in use, and the data of those in use."""
    usages, data = array("H"), []
    for chunk, cardinality, body in _containers(blocks.serialize()):
        usages.frombytes(bytes(2 * (chunk - len(usages))))
        usages.append(min(cardinality, BITMAP_USAGE))
        # Roaring keeps 4096 offsets in an array still, PostgreSQL one less.
        data.append(_bitmap_of_array(body) if cardinality == BITMAP_USAGE else body)
    return usages, data


def _bitmap_of_array(body: bytes) -> bytes:
    bitmap = bytearray(_BITMAP_BYTES)
    for offset in memoryview(body).cast("H"):
        bitmap[offset >> 3] |= 1 << (offset & 7)
    return bytes(bitmap)


def _containers(serialized: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (chunk, cardinality, array or bitmap) of a serialised roaring bitmap."""
    (cookie,) = struct.unpack_from("<I", serialized)
    if cookie & 0xFFFF == _ROARING_WITH_RUNS:
        count = (cookie >> 16) + 1
        flags = int.from_bytes(serialized[4 : 4 + (count + 7) // 8], "little")
        at = 4 + (count + 7) // 8
        has_offsets = count >= _ROARING_NO_OFFSET_BELOW
    else:
        (count,) = struct.unpack_from("<I", serialized, 4)
        flags, at, has_offsets = 0, 8, True
    headers = struct.unpack_from(f"<{2 * count}H", serialized, at)
    at += 4 * count + (4 * count if has_offsets else 0)
    for index in range(count):
        chunk, cardinality = headers[2 * index], headers[2 * index + 1] + 1
        if flags >> index & 1:
            (run_count,) = struct.unpack_from("<H", serialized, at)
            runs = struct.unpack_from(f"<{2 * run_count}H", serialized, at + 2)
            at += 2 + 4 * run_count
            yield chunk, cardinality, _expand_runs(runs, cardinality)
        else:
            size = 2 * cardinality if cardinality <= _ROARING_ARRAY_MAX else _BITMAP_BYTES
            yield chunk, cardinality, serialized[at : at + size]
            at += size


def _expand_runs(runs: tuple[int, ...], cardinality: int) -> bytes:
    members = array("H")
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        members.extend(range(start, start + length + 1))
    if cardinality <= _ROARING_ARRAY_MAX:
        return members.tobytes()
    bits = 0
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        bits |= ((1 << (length + 1)) - 1) << start
    return bits.to_bytes(_BITMAP_BYTES, "little")
