"""The binary format of COPY TO STDOUT, read piece by piece as it arrives.

Source of the format: src/backend/commands/copyto.c (13: copy.c), PostgreSQL 13 to 19: a header, then for each row an
i16 count of fields and for each field an i32 length (-1: NULL) and the value, then -1 instead of a count.  Integers
are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pgwal.errors import FormatError

_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_HEADER = struct.Struct(f">{len(_SIGNATURE)}sII")
_FIELD_COUNT = struct.Struct(">h")
_LENGTH = struct.Struct(">i")
_END = -1


class BinaryCopyReader:
    """Is fed the bytes of one COPY, in pieces of any size, and gives the values of its single column."""

    def __init__(self) -> None:
        self._pending = b""
        self._in_rows = False
        self._ended = False

    def feed(self, piece: bytes | bytearray | memoryview) -> Iterator[bytes | None]:
        """Yield the values that are complete with this piece, None for NULL; exhaust it before the next call.

        Raises FormatError for bytes that are no binary COPY of one column.
        """
        # A server sends whole rows, so that nothing is pending and a large value is copied but once, out of here.
        data = memoryview(self._pending + bytes(piece) if self._pending else piece)
        at = 0 if self._in_rows else self._skip_header(data)
        while self._in_rows and not self._ended and len(data) - at >= _FIELD_COUNT.size:
            end, is_null = self._row_end(data, at)
            if end is None or end > len(data):
                break
            if not self._ended:
                yield None if is_null else bytes(data[at + _FIELD_COUNT.size + _LENGTH.size : end])
            at = end
        if self._ended and at < len(data):
            raise FormatError(f"binary COPY: {len(data) - at} bytes after its end")
        self._pending = bytes(data[at:])

    def finish(self) -> None:
        """Raise FormatError when the end of the rows has not been seen."""
        if not self._ended:
            raise FormatError("binary COPY ends before its trailer")

    def _skip_header(self, data: memoryview) -> int:
        """Return where the rows begin; 0 when the header is not yet complete."""
        if len(data) < _HEADER.size:
            return 0
        signature, _, extension_size = _HEADER.unpack_from(data)
        if signature != _SIGNATURE:
            raise FormatError("the server did not send binary COPY data")
        end = _HEADER.size + int(extension_size)
        self._in_rows = end <= len(data)
        return end if self._in_rows else 0

    def _row_end(self, data: memoryview, at: int) -> tuple[int | None, bool]:
        """Return where the row at ``at`` ends, None when that is not yet known, and whether its value is NULL."""
        (count,) = _FIELD_COUNT.unpack_from(data, at)
        start = at + _FIELD_COUNT.size
        if count == _END:
            self._ended = True
            return start, False
        if count != 1:
            raise FormatError(f"binary COPY: a row of {count} columns instead of one")
        if len(data) - start < _LENGTH.size:
            return None, False
        (length,) = _LENGTH.unpack_from(data, start)
        if length < -1:
            raise FormatError(f"binary COPY: a value of {length} bytes")
        return start + _LENGTH.size + max(length, 0), length == -1
