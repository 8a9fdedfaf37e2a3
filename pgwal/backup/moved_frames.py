"""Where frames lie that were moved out of packs of which little was needed.

Entries are written once, and go on to name the pack in which a frame was stored.  The table of a new pack says where
each of its frames lay before; that stays true for ever, for from there frames may be moved on, as the table of another
pack says.  Frames are moved as they are: what an entry says of one holds wherever it lies.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pgwal.backup.backup_file import load_json
from pgwal.backup.document_lines import DocumentLines, digest_line
from pgwal.backup.pack_table import Pack, PackReader, encode_packs, is_pack_name
from pgwal.checksum import ContentDigest
from pgwal.errors import FormatError

_WHAT = "table of moved frames"
_HEAD = b'{"pgwal-moved-frames": 1, "packs": [\n'
_ORIGINS_START = b'], "from": [\n'
_END = b"],\n"
_MAX_OFFSET = (1 << 63) - 1


class Origin(NamedTuple):
    """A pack, and the offsets, ascending, at which frames lay there that were moved."""

    pack_name: str
    offsets: array[int]


class MovedFrames(NamedTuple):
    """A new pack, and where its frames lay before: those of the first origin, then those of the next."""

    pack: Pack
    origins: Sequence[Origin]


class FramePlace(NamedTuple):
    """Where a frame may lie: the pack, and its offset there.

    ``tables`` are the names of the packs that it was moved through to come there.
    """

    pack_name: str
    offset: int
    tables: tuple[str, ...] = ()


class FrameMoves:
    """What tables say together."""

    def __init__(self, tables: Iterable[MovedFrames] = ()) -> None:
        self._packs: dict[str, Pack] = {}
        self._origins: dict[str, list[tuple[Pack, int, array[int]]]] = {}
        """By name of a pack: the new pack, the number there of the first frame that was moved, and the offsets."""
        for pack, origins in tables:
            self._packs[pack.name] = pack
            first = 0
            for name, offsets in origins:
                self._origins.setdefault(name, []).append((pack, first, offsets))
                first += len(offsets)

    def is_moved(self, pack_name: str) -> bool:
        """Tell whether there is a table that says of some frames of a pack where they are."""
        return pack_name in self._origins

    def pack(self, name: str) -> Pack | None:
        """Return the pack of a table, None for one that was not made of moved frames."""
        return self._packs.get(name)

    def places(self, pack_name: str, offset: int) -> Iterator[FramePlace]:
        """Yield where a frame lay, first the place that entries tell, and each before those that it was moved to."""
        waiting, seen = [FramePlace(pack_name, offset)], set[tuple[str, int]]()
        while waiting:
            place = waiting.pop()
            # Of no table that was written, but a circle would have no end.
            if place[:2] in seen:
                continue
            seen.add(place[:2])
            yield place
            for pack, first, offsets in self._origins.get(place.pack_name, ()):
                at = bisect_left(offsets, place.offset)
                if at < len(offsets) and offsets[at] == place.offset:
                    waiting.append(FramePlace(pack.name, pack[first + at].offset, (*place.tables, pack.name)))


# ---- as an object


def encode_moved_frames(moved: MovedFrames) -> Iterator[bytes]:
    """Yield the document of a table in pieces."""
    digest = ContentDigest()
    lines = [_HEAD, *_joined(encode_packs([moved.pack])), _ORIGINS_START]
    lines += [*_joined(json.dumps([name, *offsets]).encode() for name, offsets in moved.origins), _END]
    for line in lines:
        digest.update(line)
        yield line
    yield digest_line(digest)


def _joined(items: Iterable[bytes]) -> Iterator[bytes]:
    is_first = True
    for item in items:
        yield item if is_first else b",\n" + item
        is_first = False
    yield b"\n"


def decode_moved_frames(content: bytes) -> MovedFrames:
    """Parse a table; raises FormatError, TruncatedInput or ChecksumMismatch."""
    try:
        return _decode(content)
    except FormatError as error:
        error.restate(f"{_WHAT}: {str(error).removeprefix('catalogue entry: ').removeprefix(f'{_WHAT}: ')}")
        raise


def _decode(content: bytes) -> MovedFrames:
    lines = DocumentLines(content.splitlines(keepends=True), _WHAT)
    if lines.line() != _HEAD:
        raise FormatError(f"{_WHAT}: its first line is not that of one, or of a newer format")
    reader = PackReader()
    for line in lines.items(_ORIGINS_START):
        reader.feed(load_json(line))
    packs = reader.finish()
    if lines.last != _ORIGINS_START or len(packs) != 1:
        raise FormatError(f"{_WHAT}: it is of {len(packs)} packs")
    origins = [_origin(load_json(line)) for line in lines.items(_END)]
    if lines.last != _END:
        raise FormatError(f"{_WHAT}: its list of packs does not end as one")
    lines.require_digest()
    lines.require_end()
    if len({origin.pack_name for origin in origins} | {packs[0].name}) != len(origins) + 1:
        raise FormatError(f"{_WHAT}: a pack comes twice")
    if sum(len(origin.offsets) for origin in origins) != len(packs[0]):
        raise FormatError(f"{_WHAT}: it does not tell of each frame where it lay")
    return MovedFrames(packs[0], origins)


def _origin(value: Any) -> Origin:
    if not isinstance(value, list) or not value or not isinstance(value[0], str) or not is_pack_name(value[0]):
        raise FormatError(f"{_WHAT}: where frames lay cannot be read")
    name, *offsets = value
    if not all(type(offset) is int and 0 <= offset <= _MAX_OFFSET for offset in offsets):
        raise FormatError(f"{_WHAT}: an offset in pack {name} is out of range")
    if any(first >= second for first, second in pairwise(offsets)):
        raise FormatError(f"{_WHAT}: offsets in pack {name} do not ascend")
    return Origin(name, array("Q", offsets))
