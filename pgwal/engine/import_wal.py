"""Take over the WAL that somebody else has archived, as far as it is of the repository's cluster and history.

Each file is taken, there already, a double of another one, or refused with the reason; nothing is guessed, and nothing
overwritten.  All records of a segment are read, so that damage shows before it counts.  Whatever was taken is there for
good: an import that was interrupted is simply begun again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pgwal.budget import SEGMENTS_IN_A_RUN
from pgwal.engine.archive_wal import ArchiveRoom
from pgwal.engine.fleet import Fleet, crew
from pgwal.engine.foreign_archive import ForeignFile, foreign_files
from pgwal.engine.imported_segments import ImportedFile, Outcome, cut_into_runs, import_run, reason_to_refuse
from pgwal.errors import PgwalError
from pgwal.lsn import LsnRange
from pgwal.repository.compression import Compression
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.segment import is_history_name

_MOST_SMALL_BYTES = 1 << 20


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
    archive: Path | Place,
    compression: Compression,
    *,
    dry_run: bool = False,
    fleet: Fleet | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Take the WAL in a directory into a repository, or with ``dry_run`` only say what would be.

    It may be a place in an object store, too, which is where a ``fleet`` of other machines can read it.
    ``on_progress`` is told (bytes done, bytes to do) of the files.  Raises ObjectNotFound when there is no such
    directory, or repository; RepositoryError for what the repository's storage refuses.
    """
    room = ArchiveRoom(place, compression)
    return _Import(room, archive, compression, dry_run=dry_run, on_progress=on_progress).run(place, fleet)


class _Import:
    def __init__(
        self,
        room: ArchiveRoom,
        archive: Path | Place,
        compression: Compression,
        *,
        dry_run: bool,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._room = room
        self._geometry = room.identity.geometry
        self._files = foreign_files(archive)
        self._compression = compression
        self._dry_run = dry_run
        self._on_progress = on_progress
        self._done, self._total = 0, sum(file.size_bytes for file in self._files)
        self._report = ImportReport()
        self._brought = set[tuple[int, int]]()

    def run(self, place: Place, fleet: Fleet | None) -> ImportReport:
        self._take_small(file for file in self._files if file.name is not None and is_history_name(file.name))
        self._take_segments(place, fleet)
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

    def _take_segments(self, place: Place, fleet: Fleet | None) -> None:
        # By one thread all in one go: it knows what is before each.
        most = None if fleet is None else SEGMENTS_IN_A_RUN
        runs = cut_into_runs(
            self._by_segment(), self._geometry, most, self._room.archive, self._compression, dry_run=self._dry_run
        )
        with (
            crew(Repository.open(place), self._tell, 1, fleet) as workers,
            closing(workers.map(import_run, runs)) as verdicts,
        ):
            for verdict in verdicts:
                self._report.files += verdict.files
                self._brought.update(verdict.brought)

    def _tell(self, size_bytes: int) -> None:
        self._done += size_bytes
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)

    def _by_segment(self) -> Mapping[str, list[ForeignFile]]:
        """Return the files of each segment, whole ones first."""
        found: dict[str, list[ForeignFile]] = {}
        for file in sorted(self._files, key=lambda file: (file.is_partial, file.path)):
            if file.segment is not None:
                found.setdefault(file.segment, []).append(file)
        return found

    def _note(self, file: ForeignFile, outcome: Outcome, reason: str = "") -> None:
        self._report.files.append(ImportedFile(file.path, outcome, reason))
        self._tell(file.size_bytes)

    def _refuse(self, file: ForeignFile, error: PgwalError) -> None:
        self._note(file, Outcome.REFUSED, reason_to_refuse(error))

    def _take_small(self, files: Iterable[ForeignFile]) -> None:
        for file in files:
            try:
                content = file.content(_MOST_SMALL_BYTES)
                is_new = self._room.put_small(file.name or "", content, dry_run=self._dry_run)
            except PgwalError as error:
                self._refuse(file, error)
            else:
                self._note(file, Outcome.TAKEN if is_new else Outcome.THERE)

    def _gaps(self) -> list[LsnRange]:
        """Return what is missing from the first segment of each timeline that was brought on, up to its last one."""
        brought = self._brought
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
