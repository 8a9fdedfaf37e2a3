"""Read one segment file, whatever its compression."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from pgwal.budget import MOST_LOOKS, PART_BYTES
from pgwal.errors import FormatError, ObjectNotFound, PgwalError

if TYPE_CHECKING:
    from types import ModuleType

    from pgwal.repository.segment_part import SharedFile


REPLACE_HINT = "Replace it by a whole copy, if another archive holds one."


class SegmentReader:
    """Reads a segment file, decompressing it; errors of the decompression are FormatErrors that name the file.

    One that is not ``complete`` may be cut off anywhere, as its receiver last flushed it.  What is no open file is gone
    when a receiver gives it another name: reading goes on with what ``renamed`` opens, which has the same and more.
    """

    def __init__(
        self,
        raw: BinaryIO,
        compression: str,
        path: str,
        *,
        complete: bool,
        renamed: Callable[[], SegmentReader] | None = None,
    ) -> None:
        self._renamed = renamed
        self._position = 0
        self._open(raw, compression, path, complete=complete)

    def _open(self, raw: BinaryIO, compression: str, path: str, *, complete: bool) -> None:
        self.path = path
        self.complete = complete
        self._raw = raw
        self._compression = compression
        # Of these, read() would drop what it has when it then meets the end of a file that is cut off.
        self._read: Callable[[int], bytes] = raw.read
        self._errors: tuple[type[Exception], ...] = (OSError, RuntimeError, zlib.error)
        if compression == ".gz":
            import gzip

            self._read = gzip.GzipFile(fileobj=raw).read1
        elif compression == ".lz4":
            import lz4.frame

            self._read = lz4.frame.LZ4FrameFile(raw).read1
        elif compression == ".zst":
            import zstandard

            self._errors = (OSError, zstandard.ZstdError)
            self._read = zstandard.ZstdDecompressor().stream_reader(raw, closefd=False, read_across_frames=True).read
        self.is_compressed = bool(compression)

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._raw.close()

    def share(self) -> SharedFile:
        """Return the file for others to read, when this reader is closed too."""
        try:
            shared: SharedFile = segment_part_module().SharedFile(self._raw.fileno())
        except OSError as error:
            raise self._broken(error) from error
        return shared

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes: by seeking where nothing is compressed."""
        if not self.is_compressed:
            self._raw.seek(count)
            self._position = count
            return
        while count and (data := self.read(min(PART_BYTES, count))):
            count -= len(data)

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, less at the end."""
        pieces = []
        while size and (data := self._read_renamed(size)):
            pieces.append(data)
            size -= len(data)
            self._position += len(data)
        return b"".join(pieces)

    def _read_renamed(self, size: int) -> bytes:
        """Read from wherever the segment is by now; raises ObjectNotFound where it is nowhere, or never stays."""
        for _ in range(MOST_LOOKS):
            with suppress(ObjectNotFound):
                return self._read_some(size)
            if self._renamed is None:
                break
            other = self._renamed()
            self._raw.close()
            self._open(other._raw, other._compression, other.path, complete=other.complete)
            if self._position:
                position, self._position = self._position, 0
                self.skip(position)
        return self._read_some(size)

    def _read_some(self, size: int) -> bytes:
        try:
            return self._read(size)
        except EOFError as error:
            if not self.complete:
                return b""
            raise self._broken(error) from error
        except self._errors as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> FormatError:
        return broken_segment(self.path, "decompressed" if self.is_compressed else "read", error)


def segment_part_module() -> ModuleType:
    """Import what reads parts of segments; raises PgwalError when it is not of the form that the scanner is.

    A compiled scanner would not see that an interpreted part reads anything.
    """
    from pgwal.wal import scan

    try:
        from pgwal.repository import segment_part
    except ValueError:
        # Compiled, it does not fit what it inherits from.
        form = None
    else:
        form = segment_part.COMPILED
    if form is not scan.COMPILED:
        raise PgwalError("this installation of pgwal is compiled in part only", hint="Install it again.")
    return segment_part


def broken_segment(path: str, action: str, error: Exception) -> FormatError:
    """Return the error for a segment file that cannot be read, or decompressed."""
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
    return FormatError(f"{path} cannot be {action}: {reason}", hint=REPLACE_HINT)
