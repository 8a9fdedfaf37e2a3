"""Take over the WAL that somebody else has archived, as far as it is of the repository's cluster and history.

Each file is taken, there already, a double of another one, or refused with the reason; nothing is guessed, and nothing
overwritten.  All records of a segment are read, so that damage shows before it counts.  Whatever was taken is there for
good: an import that was interrupted is simply begun again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from pgwal.engine.archive_wal import ArchiveRoom
from pgwal.engine.fitting_segment import checked_pieces
from pgwal.engine.foreign_archive import ForeignFile, foreign_files
from pgwal.errors import PgwalError, StorageFull, StoreUnavailable
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.compression import Compression
from pgwal.repository.place import Place
from pgwal.segment import is_history_name
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, WalScanner

_MOST_SMALL_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20


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


@dataclass(slots=True)
class ImportReport:
    """What became of each file, and which WAL is missing between the first and the last of what was brought."""

    files: list[ImportedFile] = field(default_factory=list)
    gaps: list[LsnRange] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        """Return of how many files this became."""
        return sum(file.outcome is outcome for file in self.files)


def import_wal(
    place: Place,
    directory: Path,
    compression: Compression,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Take the WAL in a directory into a repository, or with ``dry_run`` only say what would be.

    ``on_progress`` is told (bytes done, bytes to do) of the files.  Raises ObjectNotFound when there is no such
    directory, or repository; RepositoryError for what the repository's storage refuses.
    """
    room = ArchiveRoom(place, compression)
    return _Import(room, directory, foreign_files(directory), dry_run=dry_run, on_progress=on_progress).run()


class _Import:
    def __init__(
        self,
        room: ArchiveRoom,
        directory: Path,
        files: Sequence[ForeignFile],
        *,
        dry_run: bool,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._room = room
        self._geometry = room.identity.geometry
        self._directory = directory
        self._files = files
        self._dry_run = dry_run
        self._on_progress = on_progress
        self._done, self._total = 0, sum(file.size_bytes for file in files)
        self._report = ImportReport()
        self._scanner: WalScanner | None = None
        self._would_be: set[tuple[int, int]] = set()

    def run(self) -> ImportReport:
        self._take_small(file for file in self._files if file.name is not None and is_history_name(file.name))
        for segment, files in sorted(self._by_segment().items()):
            self._take_segment(segment, files)
        self._take_small(
            file
            for file in self._files
            if file.name is not None and file.segment is None and not is_history_name(file.name)
        )
        for file in self._files:
            if file.name is None:
                self._note(file, Outcome.NO_WAL)
        self._report.files.sort()
        self._report.gaps = self._gaps()
        return self._report

    def _by_segment(self) -> Mapping[str, list[ForeignFile]]:
        """Return the files of each segment, whole ones first."""
        found: dict[str, list[ForeignFile]] = {}
        for file in sorted(self._files, key=lambda file: (file.is_partial, file.path)):
            if file.segment is not None:
                found.setdefault(file.segment, []).append(file)
        return found

    def _note(self, file: ForeignFile, outcome: Outcome, reason: str = "") -> None:
        self._report.files.append(ImportedFile(str(file.path.relative_to(self._directory)), outcome, reason))
        self._done += file.size_bytes
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)

    def _refuse(self, file: ForeignFile, error: PgwalError) -> None:
        # What the storage refuses is no fault of the file's.
        if isinstance(error, StorageFull | StoreUnavailable):
            raise error
        self._note(file, Outcome.REFUSED, str(error))

    def _take_small(self, files: Iterable[ForeignFile]) -> None:
        for file in files:
            try:
                content = file.content(_MOST_SMALL_BYTES)
                is_new = self._room.put_small(file.name or "", content, dry_run=self._dry_run)
            except PgwalError as error:
                self._refuse(file, error)
            else:
                self._note(file, Outcome.TAKEN if is_new else Outcome.THERE)

    # -- segments ----------------------------------------------------------------------------------------------

    def _take_segment(self, segment: str, files: Sequence[ForeignFile]) -> None:
        """Take a segment from the first of its files that is good; others must hold the same."""
        taken: bytes | None = None
        for file in files:
            try:
                content = file.content(self._geometry.segment_size)
                if taken is not None:
                    self._note_other(file, content, taken)
                elif file.is_partial:
                    padded = content.ljust(self._geometry.segment_size, b"\0")
                    is_new = self._room.put_partial(segment, lambda: _pieces(padded), dry_run=self._dry_run)  # noqa: B023
                    self._would_be.add(self._geometry.parse_file_name(segment))
                    self._note(file, Outcome.TAKEN if is_new else Outcome.THERE)
                else:
                    self._take_whole(segment, file, content)
                    taken = content
            except PgwalError as error:
                self._refuse(file, error)

    def _note_other(self, file: ForeignFile, content: bytes, taken: bytes) -> None:
        # Behind what a receiver had written of a partial one there are zeros.
        is_same = taken.startswith(content.rstrip(b"\0")) if file.is_partial else content == taken
        if is_same:
            self._note(file, Outcome.DOUBLE)
        else:
            self._note(file, Outcome.REFUSED, "it differs from another file of the same segment")

    def _take_whole(self, segment: str, file: ForeignFile, content: bytes) -> None:
        for _ in checked_pieces(self._room.identity, segment, _pieces(content)):
            pass
        goes_on = self._read_records(segment, content)
        timeline_id, segment_no = self._geometry.parse_file_name(segment)
        is_linked = goes_on and not self._room.archive.is_complete(timeline_id, segment_no + 1)

        def pieces() -> Iterable[bytes]:
            return _pieces(content)

        if self._dry_run:
            is_new = not self._room.has_segment(segment, pieces, is_linked=is_linked)
        else:
            is_new = self._room.put_segment(segment, pieces, is_linked=is_linked)
        self._would_be.add((timeline_id, segment_no))
        self._note(file, Outcome.TAKEN if is_new else Outcome.THERE)

    def _read_records(self, segment: str, content: bytes) -> bool:
        """Read all records of a segment, and tell whether they go on from those of the segment taken before.

        Raises PgwalError where they end before the segment does, though there is a later one of its timeline.
        """
        timeline_id, segment_no = self._geometry.parse_file_name(segment)
        start = self._geometry.segment_start(segment_no)
        goes_on = (timeline_id, segment_no - 1) in self._would_be and self._scanner is not None
        scanner = self._scanner if goes_on else None
        if scanner is None:
            scanner = WalScanner(self._geometry.segment_size, start, derive_map_blocks=False)
        self._scanner = None
        for piece in _pieces(content):
            scanner.feed(piece)
            while (event := scanner.scan()) not in (NEED_DATA, END_OF_WAL):
                pass
            scanner.take_blocks()
            if event == END_OF_WAL:
                self._require_newest(timeline_id, segment_no, Lsn(scanner.position))
                return goes_on
        self._scanner = scanner
        return goes_on

    def _require_newest(self, timeline_id: int, segment_no: int, lsn: Lsn) -> None:
        """Raise PgwalError for a segment whose records end, but for the last one of a timeline that was left."""
        later = self._geometry.file_name(timeline_id, segment_no + 1)
        names = {file.segment for file in self._files}
        if lsn < self._geometry.segment_start(segment_no):
            raise PgwalError(f"it does not go on with the record at {lsn}, in the segment before it")
        if later in names or self._room.archive.is_complete(timeline_id, segment_no + 1):
            raise PgwalError(f"it is damaged: there is no valid record at {lsn}, and WAL goes on behind it")

    def _gaps(self) -> list[LsnRange]:
        """Return what is missing from the first segment of each timeline that was brought on, up to its last one."""
        brought = self._would_be
        archived = {(s.timeline_id, s.segment_no) for s in self._room.archive.segments()} | brought
        gaps: list[LsnRange] = []
        for timeline_id in sorted({timeline_id for timeline_id, _ in brought}):
            numbers = [number for of_timeline, number in brought if of_timeline == timeline_id]
            last = max(number for of_timeline, number in (*brought, *archived) if of_timeline == timeline_id)
            there = sorted(n for of_timeline, n in archived if of_timeline == timeline_id and n >= min(numbers))
            position = min(numbers)
            for number in (*there, last + 1):
                if number > position:
                    start, end = map(self._geometry.segment_start, (position, number))
                    gaps.append(LsnRange(timeline_id, start, end))
                position = number + 1
        return gaps


def _pieces(content: bytes) -> Iterable[bytes]:
    return (content[at : at + _PIECE_BYTES] for at in range(0, len(content), _PIECE_BYTES))
