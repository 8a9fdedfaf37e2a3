"""A directory of WAL segments to read from: a repository's own, pg_receivewal's, or an archive's.

Segments may be compressed, as ``<name>.gz``, ``.lz4`` or ``.zst``, and the one that is being received is named
``.partial`` at the end; pg_receivewal preallocates it, so that it is as large as a whole one, and zeros or old WAL
follow what is valid in it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import lz4.frame
import zstandard

from pgwal.errors import FormatError, ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.repository.store import Store
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry, is_history_name, is_segment_name
from pgwal.timeline import TimelineHistory, history_file_name
from pgwal.wal.layout import PAGE_LONG_HEADER, LongPageHeader
from pgwal.wal.page_magic import WalFormat, wal_format_of_magic

PARTIAL_SUFFIX = ".partial"
COMPRESSION_SUFFIXES = ("", ".zst", ".lz4", ".gz")

_READ_SIZE = 1 << 20
_LONG_HEADER_SIZE = 40


class WalSegmentFile(NamedTuple):
    """A segment file; one that is not ``complete`` holds valid WAL up to some position inside."""

    timeline_id: int
    segment_no: int
    complete: bool
    name: str


class WalDirectory:
    """The WAL in one directory of a store, whatever its compression; reading only."""

    def __init__(self, store: Store, directory: str, geometry: WalGeometry) -> None:
        self.geometry = geometry
        self._store = store
        self._directory = directory

    def segments(self) -> list[WalSegmentFile]:
        """Return the segments, by timeline and number; a complete one hides a partial one of the same number."""
        found: dict[tuple[int, int], WalSegmentFile] = {}
        for name, size_bytes in self._store.list(self._directory):
            base, compression, complete = split_segment_name(name)
            if not is_segment_name(base) or (not compression and size_bytes != self.geometry.segment_size):
                continue
            key = self.geometry.parse_file_name(base)
            if key not in found or (complete and not found[key].complete):
                found[key] = WalSegmentFile(*key, complete, name)
        return [found[key] for key in sorted(found)]

    def is_complete(self, timeline_id: int, segment_no: int) -> bool:
        name = self.geometry.file_name(timeline_id, segment_no)
        return any(self._store.exists(self._path(name + suffix)) for suffix in COMPRESSION_SUFFIXES)

    def read(self, timeline_id: int, start: Lsn) -> Iterator[bytes]:
        """Yield the bytes from the start of ``start``'s page on, to the end of the last consecutive segment.

        Raises FormatError when a compressed segment cannot be decompressed, or is not of the segment size.
        """
        position = start - start % WAL_PAGE_SIZE
        while True:
            segment_no, offset = divmod(position, self.geometry.segment_size)
            try:
                file = self._open(self.geometry.file_name(timeline_id, segment_no))
            except ObjectNotFound:
                return
            with file:
                yield from self._read_segment(file, offset)
            position = (segment_no + 1) * self.geometry.segment_size

    def read_segment(self, name: str) -> bytes:
        """Return a whole segment, or a partial one where there is no whole one; raises ObjectNotFound, FormatError."""
        with self._open(name) as file:
            return b"".join(self._read_segment(file, 0))

    def history(self, timeline_id: int) -> TimelineHistory:
        """Return a timeline's history; raises ObjectNotFound when its file is not there."""
        if timeline_id == 1:
            return TimelineHistory(1)
        content = self._store.read(self._path(history_file_name(timeline_id)))
        return TimelineHistory.decode(timeline_id, content)

    def histories(self) -> list[TimelineHistory]:
        """Return the histories whose files are there, by timeline."""
        names = [name for name, _ in self._store.list(self._directory) if is_history_name(name)]
        return [self.history(int(name[:8], 16)) for name in names]

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}" if self._directory else name

    def _open(self, name: str) -> _SegmentReader:
        for _ in range(2):  # a partial segment may be completed between two looks
            for partial in ("", PARTIAL_SUFFIX):
                for compression in COMPRESSION_SUFFIXES:
                    path = self._path(name + compression + partial)
                    if self._store.exists(path):
                        try:
                            return _SegmentReader(self._store.open(path), compression, path)
                        except ObjectNotFound:
                            continue
        raise ObjectNotFound(f"WAL segment {name} is not in {self._directory or 'the directory'}")

    def _read_segment(self, file: _SegmentReader, offset: int) -> Iterator[bytes]:
        file.skip(offset)
        left = self.geometry.segment_size - offset
        while left:
            data = file.read(min(_READ_SIZE, left))
            if not data:
                raise FormatError(
                    f"{file.path} ends {left} bytes before the end of a segment of {self.geometry.segment_size}",
                    hint="Replace it by a whole copy, if another archive holds one.",
                )
            left -= len(data)
            yield data


class _SegmentReader:
    """Reads a segment file, decompressing it; errors of the decompression are FormatErrors that name the file."""

    def __init__(self, raw: BinaryIO, compression: str, path: str) -> None:
        self.path = path
        self._raw = raw
        self._stream: BinaryIO = raw
        if compression == ".gz":
            self._stream = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
        elif compression == ".lz4":
            self._stream = lz4.frame.LZ4FrameFile(raw)
        elif compression == ".zst":
            self._stream = zstandard.ZstdDecompressor().stream_reader(raw, closefd=False)

    def __enter__(self) -> _SegmentReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._raw.close()

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes: by seeking where nothing is compressed."""
        if self._stream is self._raw:
            self._raw.seek(count)
            return
        while count and (data := self.read(min(_READ_SIZE, count))):
            count -= len(data)

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except (OSError, EOFError, RuntimeError, zlib.error, zstandard.ZstdError) as error:
            raise FormatError(f"{self.path} cannot be decompressed: {error}") from error


def split_segment_name(name: str) -> tuple[str, str, bool]:
    """Return (segment name, compression suffix, whether complete) of a file name; the first part may be no segment."""
    base = name.removesuffix(PARTIAL_SUFFIX)
    complete = base == name
    for suffix in COMPRESSION_SUFFIXES[1:]:
        if base.endswith(suffix):
            return base.removesuffix(suffix), suffix, complete
    return base, "", complete


def open_wal_directory(store: Store, directory: str = "", *, only: str | None = None) -> tuple[WalDirectory, WalFormat]:
    """Open a directory of recorded WAL, taking segment size and version from its first page, or that of file ``only``.

    Raises ObjectNotFound when it holds no WAL, UnsupportedVersion when that is of another version.
    """
    for name, _ in store.list(directory):
        base, compression, _ = split_segment_name(name)
        if not is_segment_name(base) or only not in (None, name):
            continue
        path = f"{directory}/{name}" if directory else name
        with _SegmentReader(store.open(path), compression, path) as file:
            content = file.read(_LONG_HEADER_SIZE)
        if len(content) == _LONG_HEADER_SIZE and any(content[:2]):
            header = LongPageHeader.parse(content)
            wal_format = wal_format_of_magic(header.magic, path)
            if not header.info & PAGE_LONG_HEADER or header.wal_page_size != WAL_PAGE_SIZE:
                raise FormatError(f"{path} does not begin as a WAL segment of a supported page size does")
            return WalDirectory(store, directory, WalGeometry(header.segment_size)), wal_format
    raise ObjectNotFound(
        "the directory holds no WAL segments", hint="Name a directory with files such as 000000010000000000000001."
    )
