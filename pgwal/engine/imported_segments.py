"""Take segments of another archive over in runs, each of which any worker of a fleet can take.

A run reads the segment before it as well, where the archive has that: its first one goes on with it, whoever takes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from pgwal.budget import READ_BYTES
from pgwal.engine.archive_wal import ArchiveRoom
from pgwal.engine.fitting_segment import checked_pieces
from pgwal.engine.fleet import Room, Tell
from pgwal.engine.foreign_archive import ForeignFile
from pgwal.errors import FormatError, PgwalError, StorageFull, StoreUnavailable
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression
from pgwal.repository.wal_archive import WalArchive
from pgwal.segment import WalGeometry
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, WalScanner


class Outcome(StrEnum):
    """What became of a file, or would."""

    TAKEN = "taken"
    THERE = "there"
    DOUBLE = "double"
    REFUSED = "refused"
    NO_WAL = "no WAL"


class ImportedFile(NamedTuple):
    """A file of the directory, by its path below that; ``reason`` is why it was refused."""

    path: str
    outcome: Outcome
    reason: str = ""


class ForeignSegment(NamedTuple):
    """A segment by its name, and the files that hold some or all of it, whole ones first."""

    name: str
    files: Sequence[ForeignFile]


class SegmentRun(NamedTuple):
    """Segments by name; ``before`` is the one before the first of them, where the other archive has it.

    ``names`` are those of them, and of the ones behind, that are in either archive: WAL does not end before these.
    """

    before: ForeignSegment | None
    segments: Sequence[ForeignSegment]
    names: frozenset[str]
    compression: Compression
    dry_run: bool


class ImportVerdict(NamedTuple):
    """What became of the files of a run, and the timelines and numbers of segments of which something was brought."""

    files: Sequence[ImportedFile]
    brought: Sequence[tuple[int, int]]


def cut_into_runs(
    by_segment: Mapping[str, Sequence[ForeignFile]],
    geometry: WalGeometry,
    most: int | None,
    archive: WalArchive,
    compression: Compression,
    *,
    dry_run: bool,
) -> Iterator[SegmentRun]:
    """Cut segments into runs of ``most``, or none; all that follow each other come in order."""
    segments = [ForeignSegment(name, files) for name, files in sorted(by_segment.items())]
    step = most or max(1, len(segments))
    archived = {geometry.file_name(s.timeline_id, s.segment_no) for s in archive.segments() if s.complete}
    for first in range(0, len(segments), step):
        run = segments[first : first + step]
        before = segments[first - 1] if first else None
        if before is not None and _next_name(before.name, geometry) != run[0].name:
            before = None
        following = {_next_name(segment.name, geometry) for segment in run}
        names = frozenset(name for name in following if name and (name in by_segment or name in archived))
        yield SegmentRun(before, run, names, compression, dry_run)


def _next_name(name: str, geometry: WalGeometry) -> str | None:
    """Return the name of the segment behind another one, None where that is none of this size."""
    try:
        timeline_id, number = geometry.parse_file_name(name)
    except FormatError:
        return None
    return geometry.file_name(timeline_id, number + 1)


def reason_to_refuse(error: PgwalError) -> str:
    """Return why a file is refused; raises the error where that is no fault of the file's."""
    if isinstance(error, StorageFull | StoreUnavailable):
        raise error
    return str(error)


def import_run(room: Room, tell: Tell, run: SegmentRun) -> ImportVerdict:
    """Take a run of segments over: work for a crew.  Raises StorageFull, StoreUnavailable."""
    importing = _RunImport(ArchiveRoom(room.repository.place, run.compression), run, tell)
    if run.before is not None:
        importing.look_at(run.before)
    for segment in run.segments:
        importing.take(segment)
    return ImportVerdict(importing.found, importing.brought)


class _RunImport:
    """One run on its way into the repository."""

    def __init__(self, room: ArchiveRoom, run: SegmentRun, tell: Tell) -> None:
        self.found: list[ImportedFile] = []
        self.brought: list[tuple[int, int]] = []
        self._room = room
        self._geometry = room.identity.geometry
        self._run = run
        self._tell = tell
        self._scanner: WalScanner | None = None
        self._scanned: tuple[int, int] | None = None
        """The segment that the scanner has read to its end."""

    def look_at(self, segment: ForeignSegment) -> None:
        """Read the segment before the run, so that the first one is seen to go on with it."""
        for file in segment.files:
            if file.is_partial:
                continue
            try:
                content = file.content(self._geometry.segment_size)
                for _ in checked_pieces(self._room.identity, segment.name, _pieces(content)):
                    pass
                self._read_records(segment.name, content)
                self._room.has_segment(segment.name, lambda: _pieces(content))  # noqa: B023
                return
            except PgwalError as error:
                # Whoever takes it says so.
                reason_to_refuse(error)
                self._scanner = None

    def take(self, segment: ForeignSegment) -> None:
        """Take a segment from the first of its files that is good; others must hold the same."""
        taken: bytes | None = None
        for file in segment.files:
            try:
                content = file.content(self._geometry.segment_size)
                if taken is not None:
                    self._note_other(file, content, taken)
                elif file.is_partial:
                    self._take_partial(segment.name, file, content)
                else:
                    self._take_whole(segment.name, file, content)
                    taken = content
            except PgwalError as error:
                self._note(file, Outcome.REFUSED, reason_to_refuse(error))

    def _note(self, file: ForeignFile, outcome: Outcome, reason: str = "") -> None:
        self.found.append(ImportedFile(file.path, outcome, reason))
        self._tell(file.size_bytes)

    def _note_other(self, file: ForeignFile, content: bytes, taken: bytes) -> None:
        # Behind what a receiver had written of a partial one there are zeros.
        is_same = taken.startswith(content.rstrip(b"\0")) if file.is_partial else content == taken
        if is_same:
            self._note(file, Outcome.DOUBLE)
        else:
            self._note(file, Outcome.REFUSED, "it differs from another file of the same segment")

    def _take_partial(self, segment: str, file: ForeignFile, content: bytes) -> None:
        padded = content.ljust(self._geometry.segment_size, b"\0")
        is_new = self._room.put_partial(segment, lambda: _pieces(padded), dry_run=self._run.dry_run)
        self.brought.append(self._geometry.parse_file_name(segment))
        self._note(file, Outcome.TAKEN if is_new else Outcome.THERE)

    def _take_whole(self, segment: str, file: ForeignFile, content: bytes) -> None:
        for _ in checked_pieces(self._room.identity, segment, _pieces(content)):
            pass
        goes_on = self._read_records(segment, content)
        timeline_id, segment_no = self._geometry.parse_file_name(segment)
        is_linked = goes_on and not self._room.archive.is_complete(timeline_id, segment_no + 1)

        def pieces() -> Iterable[bytes]:
            return _pieces(content)

        try:
            if self._run.dry_run:
                is_new = not self._room.has_segment(segment, pieces, is_linked=is_linked)
            else:
                is_new = self._room.put_segment(segment, pieces, is_linked=is_linked)
        except PgwalError:
            # The next one does not go on with what was not taken.
            self._scanned = None
            raise
        self.brought.append((timeline_id, segment_no))
        self._note(file, Outcome.TAKEN if is_new else Outcome.THERE)

    def _read_records(self, segment: str, content: bytes) -> bool:
        """Read all records of a segment, and tell whether they go on from those of the segment taken before.

        Raises PgwalError where they end before the segment does, though there is a later one of its timeline.
        """
        timeline_id, segment_no = self._geometry.parse_file_name(segment)
        start = self._geometry.segment_start(segment_no)
        goes_on = self._scanned == (timeline_id, segment_no - 1)
        scanner = self._scanner if goes_on else None
        if scanner is None:
            scanner = WalScanner(self._geometry.segment_size, start, derive_map_blocks=False)
        self._scanner = self._scanned = None
        for piece in _pieces(content):
            scanner.feed(piece)
            while (event := scanner.scan()) not in (NEED_DATA, END_OF_WAL):
                pass
            scanner.take_blocks()
            if event == END_OF_WAL:
                self._require_newest(segment, Lsn(scanner.position))
                return goes_on
        self._scanner, self._scanned = scanner, (timeline_id, segment_no)
        return goes_on

    def _require_newest(self, segment: str, lsn: Lsn) -> None:
        """Raise PgwalError for a segment whose records end, but for the last one of a timeline that was left."""
        _, segment_no = self._geometry.parse_file_name(segment)
        if lsn < self._geometry.segment_start(segment_no):
            raise PgwalError(f"it does not go on with the record at {lsn}, in the segment before it")
        if _next_name(segment, self._geometry) in self._run.names:
            raise PgwalError(f"it is damaged: there is no valid record at {lsn}, and WAL goes on behind it")


def _pieces(content: bytes) -> Iterable[bytes]:
    return (content[at : at + READ_BYTES] for at in range(0, len(content), READ_BYTES))
