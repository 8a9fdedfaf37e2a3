"""Where the bytes of a packed backup's files lie: packs of frames, and the extents that files are of them.

A stored file is cut into frames, each compressed on its own, so that any part of it can be read alone; small files
share a frame.  Frames lie one behind the other in packs.  An extent is a part of a file, in consecutive frames of a
pack.
"""

from __future__ import annotations

import json
import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pgwal.backup.stored_path import check_path
from pgwal.errors import FormatError

FRAME_SIZE = 1 << 20
"""The most bytes that a frame has of files."""
PACK_MAGIC = b"PGWALPK1"
PACK_HEADER_SIZE = len(PACK_MAGIC) + 16
"""The magic, and the bytes of the pack's name."""
SEAL_SIZE = 20
"""How much longer an encrypted frame is."""

_PACK_NAME = re.compile(r"[0-9a-f]{32}")
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,1024}")
_FRAME_DIGEST = re.compile(r"[0-9a-f]{32}")
_MAX_PACK_SIZE = (1 << 63) - 1
_ROW = struct.Struct("<QII16s16s")
_NOT_NOTED = bytes(16)
"""In a row, of a frame whose content digest no entry tells."""
_PACK_KEYS = {"pack", "size", "frames"}


class Extent(NamedTuple):
    """``length`` bytes of a file, from ``offset`` in the first of consecutive frames on.

    ``pack`` and ``frame`` are numbers, from 0: of a pack in the backup's entry, and of a frame in the pack there.
    """

    pack: int
    frame: int
    offset: int
    length: int


class Frame(NamedTuple):
    """A frame: where it lies in its pack, how many bytes are stored there, and of how many bytes of files.

    It is stored as it is where both numbers are equal, compressed otherwise; encrypted, it is SEAL_SIZE bytes longer.
    ``digest`` is the xxh3-128 digest of what is stored, ``content_digest`` that of the bytes of files: None in entries
    of before it was noted, and where the frame is stored as it is, whose ``digest`` is of the same bytes.
    """

    offset: int
    stored_size_bytes: int
    size_bytes: int
    digest: bytes
    content_digest: bytes | None = None


class Sealed(NamedTuple):
    """What an encrypted pack begins with, instead of the magic and its name, and what it ends with."""

    header: bytes
    trailer: bytes = b""


class Pack:
    """A pack and those of its frames that a backup needs, in 56 bytes each; ``size_bytes`` is that of the object.

    A position in it counts the bytes of files in its frames, whatever is stored of them.
    """

    def __init__(self, name: str, size_bytes: int | None = None, sealed: Sealed | None = None) -> None:
        self.name = name
        self.sealed = sealed
        self.size_bytes = len(self.header) if size_bytes is None else size_bytes
        self._rows = bytearray()
        self._ends = array("Q")
        """The position at which each frame ends."""

    def __len__(self) -> int:
        return len(self._rows) // _ROW.size

    def __getitem__(self, number: int) -> Frame:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return _of_row(_ROW.unpack_from(self._rows, number * _ROW.size))

    def add(self, frame: Frame) -> None:
        """Add a frame behind the others."""
        self._rows += _ROW.pack(*frame[:-1], frame.content_digest or _NOT_NOTED)
        self._ends.append(self.end + frame.size_bytes)

    def end_with(self, trailer: bytes) -> None:
        """Note what an encrypted pack ends with, behind its last frame."""
        if self.sealed is not None:
            self.sealed = self.sealed._replace(trailer=trailer)
            self.size_bytes += len(trailer)

    @property
    def end(self) -> int:
        """The position behind all frames."""
        return self._ends[-1] if self._ends else 0

    def position(self, number: int) -> int:
        """Return the position at which a frame begins."""
        return self._ends[number - 1] if number else 0

    def find(self, position: int) -> tuple[int, int]:
        """Return the number of the frame that has a position, and where in it that is."""
        number = bisect_right(self._ends, position)
        return number, position - self._ends[number - 1] if number else position

    @property
    def header(self) -> bytes:
        """What the object begins with."""
        if self.sealed is not None:
            return self.sealed.header
        return PACK_MAGIC + bytes.fromhex(self.name)

    @property
    def overhead_bytes(self) -> int:
        """How much longer a frame is stored for being sealed."""
        return 0 if self.sealed is None else SEAL_SIZE

    def check(self) -> None:
        """Raise FormatError unless its frames lie in it, one behind the other."""
        position = len(self.header)
        for frame in self:
            length = frame.stored_size_bytes - self.overhead_bytes
            if frame.offset < position or not 0 < length <= frame.size_bytes <= FRAME_SIZE:
                raise FormatError(f"catalogue entry: pack {self.name} cannot have the frame at byte {frame.offset}")
            position = frame.offset + frame.stored_size_bytes
        if position + self.overhead_bytes > self.size_bytes:
            raise FormatError(
                f"catalogue entry: the frames of pack {self.name} reach beyond its {self.size_bytes} bytes"
            )

    def with_frames(self, frames: Iterable[Frame]) -> Pack:
        """Return the pack with other frames of it; raises FormatError where they lie across each other."""
        found = Pack(self.name, self.size_bytes, self.sealed)
        for frame in sorted(frames):
            found.add(frame)
        found.check()
        return found

    @property
    def is_all_frames(self) -> bool:
        """Whether there is nothing in it but frames that are known."""
        position = len(self.header)
        for frame in self:
            if frame.offset != position:
                return False
            position += frame.stored_size_bytes
        return position + self.overhead_bytes == self.size_bytes

    def content_digest(self, number: int) -> bytes | None:
        """Return the xxh3-128 digest of the bytes of files in a frame, None where the entry does not tell it."""
        frame = self[number]
        if self.sealed is None and frame.stored_size_bytes == frame.size_bytes:
            return frame.digest
        return frame.content_digest

    def __iter__(self) -> Iterator[Frame]:
        return map(_of_row, _ROW.iter_unpack(self._rows))


def _of_row(row: tuple[int, int, int, bytes, bytes]) -> Frame:
    return Frame(*row[:-1], None if row[-1] == _NOT_NOTED else row[-1])


class ContentPart(NamedTuple):
    """``length`` bytes of a stored file from ``offset`` on, and their xxh3-128 digest."""

    offset: int
    length: int
    digest: bytes


class PackedContents(NamedTuple):
    """What the entry of a packed backup tells besides its files: the packs, and the paths of all directories."""

    packs: Sequence[Pack]
    directories: Sequence[str]

    @property
    def size_bytes(self) -> int:
        """How large the packs are."""
        return sum(pack.size_bytes for pack in self.packs)


# ---- as lines of an entry


def encode_packs(packs: Iterable[Pack]) -> Iterator[bytes]:
    """Yield the lines of packs, without newlines: one for each, and behind it one for each of its frames."""
    for pack in packs:
        pack.check()
        document: dict[str, object] = {"pack": pack.name, "size": pack.size_bytes, "frames": len(pack)}
        if pack.sealed is not None:
            document["sealed"] = [pack.sealed.header.hex(), pack.sealed.trailer.hex()]
        yield json.dumps(document).encode()
        for frame in pack:
            noted = "" if frame.content_digest is None else f', "{frame.content_digest.hex()}"'
            row = f"{frame.offset}, {frame.stored_size_bytes}, {frame.size_bytes}"
            yield f'[{row}, "{frame.digest.hex()}"{noted}]'.encode()


class PackReader:
    """Reads such lines, parsed as JSON; ``packs`` is what was read."""

    def __init__(self) -> None:
        self.packs: list[Pack] = []
        self._left = 0

    def feed(self, value: Any) -> None:
        """Take the next line; raises FormatError."""
        if self._left:
            self.packs[-1].add(_frame(value))
            self._left -= 1
            return
        if self.packs:
            self.packs[-1].check()
        if not isinstance(value, dict) or value.keys() - {"sealed"} != _PACK_KEYS:
            raise FormatError("catalogue entry: a pack has not the members of one")
        name, size_bytes, count = value["pack"], value["size"], value["frames"]
        if not isinstance(name, str) or not is_pack_name(name):
            raise FormatError(f"catalogue entry: {name!r} is not the name of a pack")
        if not _is_number(size_bytes, _MAX_PACK_SIZE) or not _is_number(count, _MAX_PACK_SIZE):
            raise FormatError(f"catalogue entry: a number of pack {name} is out of range")
        self.packs.append(Pack(name, size_bytes, _sealed(value["sealed"]) if "sealed" in value else None))
        self._left = count

    def skip_frames(self) -> int:
        """Take the rest of the last pack's frames for read, and return how many these are."""
        skipped, self._left = self._left, 0
        return skipped

    def finish(self) -> list[Pack]:
        """Return all packs; raises FormatError when a frame is missing, or a pack came twice."""
        if self._left:
            raise FormatError(f"catalogue entry: {self._left} frames of pack {self.packs[-1].name} are missing")
        if self.packs:
            self.packs[-1].check()
        if len({pack.name for pack in self.packs}) < len(self.packs):
            raise FormatError("catalogue entry: a pack comes twice")
        return self.packs


def is_pack_name(name: str) -> bool:
    """Tell whether an object's last part names a pack."""
    return _PACK_NAME.fullmatch(name) is not None


def _is_number(value: object, highest: int) -> bool:
    return type(value) is int and 0 <= value <= highest


def _sealed(value: Any) -> Sealed:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(part, str) and _HEX.fullmatch(part) for part in value)
    ):
        raise FormatError("catalogue entry: how a pack is sealed cannot be read")
    header, trailer = map(bytes.fromhex, value)
    if len(trailer) != SEAL_SIZE:
        raise FormatError("catalogue entry: the end of a pack is of another length")
    return Sealed(header, trailer)


def _frame(value: Any) -> Frame:
    if not isinstance(value, list) or len(value) not in (4, 5):
        raise FormatError("catalogue entry: a frame has not the members of one")
    offset, stored_size_bytes, size_bytes, *digests = value
    if (
        not _is_number(offset, _MAX_PACK_SIZE)
        or not _is_number(size_bytes, FRAME_SIZE)
        or not _is_number(stored_size_bytes, FRAME_SIZE + SEAL_SIZE)
        or not all(isinstance(digest, str) and _FRAME_DIGEST.fullmatch(digest) for digest in digests)
    ):
        raise FormatError("catalogue entry: a member of a frame is out of range")
    return Frame(offset, stored_size_bytes, size_bytes, *map(bytes.fromhex, digests))


def check_directories(value: Any) -> list[str]:
    """Return the directories of an entry; raises FormatError for what are none."""
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise FormatError("catalogue entry: its directories are no list of paths")
    for path in value:
        check_path(path)
    if any(first >= second for first, second in pairwise(value)):
        raise FormatError("catalogue entry: its directories are not in order")
    return value


def check_extents(extents: Sequence[Extent], packs: Sequence[Pack], path: str) -> None:
    """Raise FormatError unless the extents of a file lie in frames that there are."""
    for number, frame, offset, length in extents:
        if number >= len(packs) or frame >= len(packs[number]) or offset >= packs[number][frame].size_bytes:
            raise FormatError(f"catalogue entry: {path!r} is in a frame that is in no pack")
        pack = packs[number]
        if pack.position(frame) + offset + length > pack.end:
            raise FormatError(f"catalogue entry: {path!r} reaches beyond the frames of pack {pack.name}")
