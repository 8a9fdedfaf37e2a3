"""A directory of WAL segments to read from: a repository's own, pg_receivewal's, or an archive's.

Segments may be compressed, as ``<name>.gz``, ``.lz4`` or ``.zst``, and the one that is being received is named
``.partial`` at the end (see ``wal_file_name``).  pg_receivewal preallocates it, so that it is as large as a whole one,
and zeros or old WAL follow what is valid in it.  A compressed one ends where it was last flushed; zeros are read behind
that.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pgwal.budget import FIRST_PART_BYTES, MOST_LOOKS, PART_BYTES
from pgwal.errors import BrokenInvariant, FormatError, ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.repository.object_reader import LastRead, open_object
from pgwal.repository.segment_reader import REPLACE_HINT, SegmentReader, broken_segment, segment_part_module
from pgwal.repository.store import ObjectStore, StoredObject, as_files, objects_in
from pgwal.repository.wal_file_name import (
    COMPRESSION_SUFFIXES,
    PARTIAL_SUFFIX,
    partial_end,
    preference,
    split_segment_name,
)
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry, is_history_name, is_segment_name
from pgwal.timeline import TimelineHistory, history_file_name

if TYPE_CHECKING:
    from pgwal.repository.segment_part import SegmentPart


_PARTIAL_SUFFIXES = tuple(suffix + PARTIAL_SUFFIX for suffix in COMPRESSION_SUFFIXES)

_LISTED_DIGITS = 2
"""Of a segment's name, the last ones that a listing of it leaves open."""
_LONG_HEADER_SIZE = 40

WalParts: TypeAlias = "Generator[bytes | SegmentPart, None, None]"
"""Consecutive WAL; to be closed when not all of it is wanted."""


class WalSegmentFile(NamedTuple):
    """A segment file; one that is not ``complete`` holds valid WAL up to some position inside."""

    timeline_id: int
    segment_no: int
    complete: bool
    name: str


class WalDirectory:
    """The WAL in one directory of a store, whatever its compression, or one segment file of it; reading only."""

    def __init__(self, store: ObjectStore, directory: str, geometry: WalGeometry, *, only: str | None = None) -> None:
        """``only`` is the name of the one file that counts."""
        self.geometry = geometry
        self._store = store
        self._directory = directory
        self._only = only
        self._agreed: set[str] = set()
        self._has_files = as_files(store) is not None
        self._preference = partial(preference, is_in_files=self._has_files)
        self._has_ends: bool | None = None
        """Whether names of partial files tell up to where they count, None where nobody has looked."""
        self._whole: dict[str, list[str]] = {}
        """What was found of whole segments where each look is a request: they stay what they are, until they go."""
        self._last_read: LastRead | None = None

    @contextmanager
    def reading_again(self) -> Iterator[None]:
        """Ask an object store but once for what is read several times of a whole segment while the context lasts.

        What was known of segments before is looked for again.
        Only where nothing moves segments away, as it is when another history takes their place.
        """
        self._whole = {}
        self._last_read = LastRead()
        try:
            yield
        finally:
            self._last_read = None

    def segments(self) -> list[WalSegmentFile]:
        """Return the segments, by timeline and number; a complete one hides a partial one of the same number."""
        return self._segments_of(self._listed())

    def _segments_of(self, listed: Iterable[StoredObject]) -> list[WalSegmentFile]:
        found: dict[tuple[int, int], WalSegmentFile] = {}
        for name, size_bytes in listed:
            base, compression, complete = split_segment_name(name)
            if not is_segment_name(base) or self._only not in (None, name):
                continue
            # One that is written may have been cut off while its room was taken; a receiver fills it up.
            if not compression and size_bytes != self.geometry.segment_size and (complete or not size_bytes):
                continue
            try:
                key = self.geometry.parse_file_name(base)
            except FormatError:
                # Of another segment size; no WAL of this cluster can bear that name.
                continue
            if key not in found or self._preference(name)[:3] < self._preference(found[key].name)[:3]:
                found[key] = WalSegmentFile(*key, complete, name)
        return [found[key] for key in sorted(found)]

    def written_segments(self) -> list[WalSegmentFile]:
        """As ``segments``, without those behind a timeline's WAL: made in advance or recycled, as in a pg_wal."""
        found: list[WalSegmentFile] = []
        timelines_at_end = set[int]()
        for segment in reversed(self.segments()):
            if segment.timeline_id in timelines_at_end or self.first_page_timeline(segment) is not None:
                timelines_at_end.add(segment.timeline_id)
                found.append(segment)
        return found[::-1]

    def first_page_timeline(self, segment: WalSegmentFile) -> int | None:
        """Return the timeline that a segment's first page names, or None when the page is of another position."""
        # Here and below what takes long to import comes late: a server waits for each segment that it fetches.
        from pgwal.wal.layout import LongPageHeader

        with self._open_listed(segment) as file:
            content = file.read(_LONG_HEADER_SIZE)
        if len(content) < _LONG_HEADER_SIZE:
            return None
        header = LongPageHeader.parse(content)
        is_its_own = header.magic != 0 and header.page_lsn == self.geometry.segment_start(segment.segment_no)
        return int(header.timeline_id) if is_its_own else None

    def is_complete(self, timeline_id: int, segment_no: int) -> bool:
        return bool(self._whole_files(self.geometry.file_name(timeline_id, segment_no)))

    def read(self, timeline_id: int, start: Lsn) -> Iterator[bytes]:
        """Yield the bytes from the start of ``start``'s page on, to the end of the last consecutive segment.

        Raises FormatError when a compressed segment cannot be decompressed, or one is not of the segment size.
        """
        for file, offset in self._opened_from(timeline_id, start):
            yield from self._read_segment(file, offset)

    def parts(self, timeline_id: int, start: Lsn) -> WalParts:
        """Yield the same WAL: bytes of segments that are compressed, or no files, and of others parts yet to be read.

        After one was read, ``require_read`` must be called.  Raises FormatError as ``read`` does.
        """
        segment_part = segment_part_module()
        for file, offset in self._opened_from(timeline_id, start):
            if file.is_compressed or not self._has_files:
                yield from self._read_segment(file, offset)
                continue
            shared = file.share()
            for at in range(offset, self.geometry.segment_size, PART_BYTES):
                size_bytes = min(PART_BYTES, self.geometry.segment_size - at)
                yield segment_part.SegmentPart(shared, file.path, at, size_bytes, zero_filled=not file.complete)

    def require_read(self, part: bytes | SegmentPart) -> None:
        """Raise FormatError when a part could not be read, or the file has not all of it."""
        if isinstance(part, bytes):
            return
        if part.error_number:
            raise broken_segment(part.path, "read", OSError(part.error_number, os.strerror(part.error_number)))
        if part.end >= 0:
            raise self._too_short(part.path, self.geometry.segment_size - part.end)
        if part.left != 0:
            raise BrokenInvariant("a part of a segment has not been read")

    def _opened_from(self, timeline_id: int, start: Lsn) -> Iterator[tuple[SegmentReader, int]]:
        """Open consecutive segments in turn, and tell from which offset on each is wanted."""
        position = start - start % WAL_PAGE_SIZE
        while True:
            segment_no, offset = divmod(position, self.geometry.segment_size)
            try:
                file = self._open(self.geometry.file_name(timeline_id, segment_no))
            except ObjectNotFound:
                return
            with file:
                yield file, offset
            position = (segment_no + 1) * self.geometry.segment_size

    def open_segment(self, segment: WalSegmentFile) -> SegmentReader:
        """Open a segment file to read it from its start, decompressed; to be closed as a context.

        One that a receiver has completed or compressed meanwhile is opened under its new name.
        Raises ObjectNotFound when it is gone.
        """
        name = self.geometry.file_name(segment.timeline_id, segment.segment_no)
        if segment.complete and name not in self._agreed:
            self._require_agreement(name, self._whole_files(name))
        return self._open_listed(segment)

    def _open_listed(self, segment: WalSegmentFile) -> SegmentReader:
        try:
            return self._open_file(segment.name)
        except ObjectNotFound:
            return self._open_renamed(self.geometry.file_name(segment.timeline_id, segment.segment_no))

    def read_segment(self, name: str) -> bytes:
        """Return a whole segment, or a partial one where there is no whole one; raises ObjectNotFound, FormatError."""
        return b"".join(self.segment_pieces(name))

    def segment_pieces(self, name: str) -> Iterator[bytes]:
        """Yield the same in pieces of PART_BYTES, or of a whole segment that is smaller."""
        with self._open(name, is_read_whole=True) as file:
            yield from self._read_segment(file, 0)

    def history(self, timeline_id: int) -> TimelineHistory:
        """Return a timeline's history; raises ObjectNotFound when its file is not there."""
        if timeline_id == 1:
            return TimelineHistory(1)
        return TimelineHistory.decode(timeline_id, self.history_content(timeline_id))

    def history_content(self, timeline_id: int) -> bytes:
        """Return the history file of a timeline as it is; raises ObjectNotFound, FormatError for one without end.

        An empty one is none: a crash left it, for no server writes such a one.
        """
        path = self._path(history_file_name(timeline_id))
        content = self._store.get(path)
        if not content:
            raise ObjectNotFound(f"{self._store.locate(path)} is empty")
        return content

    def history_timelines(self) -> list[int]:
        """Return the timelines whose history files are there, and not empty."""
        return [int(name[:8], 16) for name, size_bytes in self._listed() if is_history_name(name) and size_bytes]

    def histories(self) -> list[TimelineHistory]:
        """Return the histories whose files are there, by timeline."""
        return [self.history(timeline_id) for timeline_id in self.history_timelines()]

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}" if self._directory else name

    def _listed(self) -> list[StoredObject]:
        found = objects_in(self._store, self._directory)
        self._has_ends = any(name.endswith(PARTIAL_SUFFIX) and partial_end(name) is not None for name, _ in found)
        return found

    def _listed_between(self, timeline_id: int, numbers: Sequence[int]) -> list[StoredObject]:
        """List what there is of some segments of a timeline, and maybe more."""
        if self._has_files:
            return self._listed()
        first, last = (self._path(self.geometry.file_name(timeline_id, find(numbers))) for find in (min, max))
        differing = (at for at, (one, other) in enumerate(zip(first, last, strict=True)) if one != other)
        prefix = first[: next(differing, len(first))]
        # What comes behind a name without its end comes behind all before it.
        found = self._store.list(prefix, after=first[:-1] if len(prefix) < len(first) else "")
        return sorted(StoredObject(path.rpartition("/")[2], size_bytes) for path, size_bytes in found)

    def _segments_between(self, timeline_id: int, numbers: Sequence[int]) -> list[WalSegmentFile]:
        """Return some segments of a timeline, as far as they are there, and maybe more."""
        listed = self._listed_between(timeline_id, numbers)
        segments = self._segments_of(listed)
        if not self._has_files:
            names: dict[str, list[str]] = {}
            for name, _ in listed:
                names.setdefault(split_segment_name(name)[0], []).append(name)
            for segment in filter(attrgetter("complete"), segments):
                base = self.geometry.file_name(segment.timeline_id, segment.segment_no)
                self._whole[base] = _whole_of(sorted(names[base], key=self._preference))
        return segments

    def _is_known_whole(self, timeline_id: int, segment_no: int) -> bool:
        return bool(self._whole.get(self.geometry.file_name(timeline_id, segment_no)))

    def _files(self, name: str) -> list[str]:
        """Return the names of a segment's files, in the order in which they count: of whole ones alone if there are."""
        if not self._has_files:
            return self._whole.get(name) or self._stored_files(name)
        # To ask for a few names takes less than to list many thousands.
        found = self._whole_files(name) or self._those_there(name + suffix for suffix in _PARTIAL_SUFFIXES)
        if not found and self._has_ends is None:
            self._listed()
        # What names tell of their ends was copied from an object store, if it is there.
        return found or (self._stored_files(name) if self._has_ends else [])

    def _whole_files(self, name: str) -> list[str]:
        if not self._has_files:
            return _whole_of(self._files(name))
        return self._those_there(name + suffix for suffix in COMPRESSION_SUFFIXES)

    def files_of(self, name: str) -> list[str]:
        """Look what there is of a segment, and return the names of its files: those of whole ones first.

        In a directory, partial ones whose names tell up to where they go are passed over.
        """
        if not self._has_files:
            return self._stored_files(name)
        return self._those_there(name + suffix for suffix in (*COMPRESSION_SUFFIXES, *_PARTIAL_SUFFIXES))

    def _those_there(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._only in (None, name) and self._store.exists(self._path(name))]

    def _stored_files(self, name: str) -> list[str]:
        """Return the names of all files of a segment, in the order in which they count, by one listing.

        It is one of those beside it, too: who reads one mostly reads the next."""
        beside: dict[str, list[str]] = {name: []}
        for path, _ in self._store.list(self._path(name[:-_LISTED_DIGITS])):
            found = path.rpartition("/")[2]
            if self._only in (None, found):
                beside.setdefault(split_segment_name(found)[0], []).append(found)
        for base, names in beside.items():
            self._whole[base] = _whole_of(sorted(names, key=self._preference))
        return sorted(beside[name], key=self._preference)

    def _require_agreement(self, name: str, whole: Sequence[str]) -> None:
        """Raise FormatError when a whole segment is there in two forms that differ, and nobody can tell which is right.

        Both are there for a moment when one has been compressed.  A damaged one counts for nothing where another is
        whole, as somebody may have put that beside it.
        """
        if self._only is not None or name in self._agreed:
            return
        for other in whole[1:]:
            with suppress(ObjectNotFound, _Damaged):
                if not self._are_same(whole[0], other):
                    raise FormatError(
                        f"{self._path(whole[0])} and {self._path(other)} hold different WAL",
                        hint="Compare them with another archive's, and move the wrong one away.",
                    )
        self._agreed.add(name)

    def _are_same(self, name: str, other: str) -> bool:
        with self._open_file(name) as first, self._open_file(other) as second:
            try:
                # Both may inflate without end; what is behind a segment nobody reads.
                left = self.geometry.segment_size
                while left and (data := first.read(min(PART_BYTES, left))):
                    if second.read(len(data)) != data:
                        return False
                    left -= len(data)
                return first.read(1) == second.read(1)
            except FormatError as error:
                raise _Damaged from error

    def _open(self, name: str, *, is_read_whole: bool = False) -> SegmentReader:
        for look in range(MOST_LOOKS):  # a partial segment may be completed, or stored anew, between two looks
            files = self._files(name)
            if look and not files:
                break
            whole = _whole_of(files)
            self._require_agreement(name, whole)
            for file_name in whole or files:
                with suppress(ObjectNotFound):
                    return self._open_file(file_name, is_read_whole=is_read_whole)
            self._whole.pop(name, None)
        raise ObjectNotFound(f"WAL segment {name} is not in {self._directory or 'the directory'}")

    def _open_file(self, name: str, *, is_read_whole: bool = False) -> SegmentReader:
        path = self._path(name)
        segment, compression, complete = split_segment_name(name)
        last_read = self._last_read if complete and not is_read_whole else None
        raw = open_object(self._store, path, is_read_whole=is_read_whole, last_read=last_read)
        return SegmentReader(raw, compression, path, complete=complete, renamed=partial(self._open_renamed, segment))

    def _open_renamed(self, name: str) -> SegmentReader:
        """Open a segment whose file is gone: a receiver has completed it, or compressed it, or stored more of it."""
        self._whole.pop(name, None)
        if self._last_read is not None:
            self._last_read = LastRead()
        return self._open(name)

    def _read_segment(self, file: SegmentReader, offset: int) -> Iterator[bytes]:
        left = self.geometry.segment_size - offset
        part_bytes = FIRST_PART_BYTES
        file.skip(offset)
        while left:
            size = min(part_bytes, left)
            part_bytes = min(4 * part_bytes, PART_BYTES)
            data = file.read(size)
            if len(data) < size and file.complete:
                raise self._too_short(file.path, left - len(data))
            left -= size
            yield data.ljust(size, b"\0")

    def _too_short(self, path: str, missing_bytes: int) -> FormatError:
        return FormatError(
            f"{path} ends {missing_bytes} bytes before the end of a segment of {self.geometry.segment_size}",
            hint=REPLACE_HINT,
        )


def _whole_of(names: Iterable[str]) -> list[str]:
    return [name for name in names if split_segment_name(name)[2]]


class _Damaged(Exception):
    """One of two files cannot be read."""
