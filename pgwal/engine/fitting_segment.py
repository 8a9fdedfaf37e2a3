"""Does a segment that somebody hands over belong to an archive: to its cluster, to its name, and to its history?

Nothing follows from a name, or from a system identifier that is the same: a copy of the cluster, and one that was put
back to an earlier state, have both, and write other WAL.  So bytes are compared where the archive has the same
positions, and records where it has what lies in front of them, or behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import islice
from typing import TYPE_CHECKING

from pgwal.budget import PIECES_BEHIND_BORDER
from pgwal.errors import FormatError, HistoryMismatch, ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.postgres_version import version_of_major
from pgwal.repository.archived_segment import ArchivedSegment
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry
from pgwal.timeline import TimelineHistory
from pgwal.wal.segment_check import SegmentCheck

if TYPE_CHECKING:
    from pgwal.repository.layout import RepositoryIdentity
    from pgwal.repository.wal_archive import WalArchive

OTHER_HISTORY_HINT = (
    "Nothing was stored. A cluster that was put back, a copy that runs, or a second one that was promoted writes other"
    " WAL under the same names: give each a repository of its own. If the archive's WAL is of a history that is lost,"
    " pgwal stream --accept-new-history moves it aside."
)


def checked_pieces(
    identity: RepositoryIdentity, name: str, pieces: Iterable[bytes], *, complete: bool = True
) -> Iterator[bytes]:
    """Yield the pieces of a segment, each of whole pages, that is of the identity's cluster and is what its name says.

    Raises WrongCluster, or FormatError for what is no such segment, before the piece that shows it is yielded.
    """
    geometry = identity.geometry
    timeline_id, segment_no = geometry.parse_file_name(name)
    check = SegmentCheck(geometry, timeline_id, segment_no, identity.system_identifier, complete=complete)
    magic = version_of_major(identity.major).wal.magic
    newest, size_bytes = 0, 0
    for piece in pieces:
        check.feed(piece)
        found = int.from_bytes(piece[:2], "little")
        if not size_bytes and found != magic:
            raise FormatError(f"its pages have magic {found:04X}, those of PostgreSQL {identity.major} {magic:04X}")
        if complete:
            newest = _newest_timeline(piece, newest)
            if newest > timeline_id:
                raise FormatError(f"it holds a page of timeline {newest}")
        size_bytes += len(piece)
        yield piece
    if size_bytes != geometry.segment_size:
        raise FormatError(f"it has {size_bytes} bytes, a segment has {geometry.segment_size}")


def _newest_timeline(pages: bytes, before: int) -> int:
    """Return the newest timeline of some pages, after one of ``before``; raises FormatError for one that is older.

    Pages of zeros, as they follow a switch of segments, have none.
    """
    found = list(filter(None, memoryview(pages).cast("I")[1 :: WAL_PAGE_SIZE // 4].tolist()))
    if found != sorted(found) or (found and found[0] < before):
        raise FormatError("it holds pages of an older timeline behind those of a newer one")
    return found[-1] if found else before


class FittingSegment:
    """Holds one segment against what an archive has of its history; ``content`` gives it from its start, each time."""

    def __init__(
        self, archive: WalArchive, timeline_id: int, segment_no: int, content: Callable[[], Iterable[bytes]]
    ) -> None:
        self._archive = archive
        self._geometry: WalGeometry = archive.geometry
        self._timeline_id = timeline_id
        self._segment_no = segment_no
        self._content = content
        self.name = self._geometry.file_name(timeline_id, segment_no)

    def require_same(self) -> None:
        """Raise HistoryMismatch unless the archive's whole segment of this name holds the same.

        Raises ObjectNotFound when it is gone, FormatError when it is damaged.
        """
        try:
            with closing(ArchivedSegment(self._archive, self.name)) as stored:
                stored.require_same(self._content())
        except HistoryMismatch as error:
            raise self._mismatch(Lsn(error.lsn), "the archive holds other WAL under that name") from error

    def require_compatible(self, end: Lsn | None = None) -> None:
        """Raise HistoryMismatch where the archive has other WAL of the same positions, whatever file that is in.

        ``end`` is up to where the segment counts, its end by default.  WAL of an ancestor, with which a timeline's
        first segment begins, and what was received of the segment so far are compared as well.
        """
        from pgwal.engine.archive_comparison import ArchiveComparison

        position = self._geometry.segment_start(self._segment_no)
        stop = self._geometry.segment_start(self._segment_no + 1) if end is None else end
        comparison = ArchiveComparison(self._archive, self.history(), self._timeline_id, position)
        try:
            for piece in self._content():
                if position >= stop:
                    break
                comparison.compare(position, memoryview(piece)[: stop - position])
                position = Lsn(position + len(piece))
        except HistoryMismatch as error:
            raise self._mismatch(Lsn(error.lsn), "the archive holds other WAL there") from error
        finally:
            comparison.close()

    def require_linked(self) -> None:
        """Raise HistoryMismatch unless it goes on with the whole segment in front of it, and the one behind with it.

        Where the archive lacks those, or they cannot be read, nothing stands against it.
        """
        before = self._in_front()
        if before is not None:
            self._require_continued(self._pieces_of(before), self._content(), self._segment_no - 1)
        behind = self._geometry.file_name(self._timeline_id, self._segment_no + 1)
        if self._archive.is_complete(self._timeline_id, self._segment_no + 1):
            self._require_continued(self._content(), self._pieces_of(behind), self._segment_no)

    def history(self) -> TimelineHistory:
        """Return the history of the segment's timeline, one that knows no other where the archive has none."""
        with suppress(ObjectNotFound):
            return self._archive.history(self._timeline_id)
        return TimelineHistory(self._timeline_id)

    def _in_front(self) -> str | None:
        """Return the name of the archive's whole segment in front of this one, of its timeline or an ancestor."""
        number = self._segment_no - 1
        if number < 0:
            return None
        start = self._geometry.segment_start(self._segment_no)
        ancestors = [timeline_id for timeline_id, end in reversed(self.history().switches) if end >= start]
        for timeline_id in (self._timeline_id, *ancestors):
            if self._archive.is_complete(timeline_id, number):
                return self._geometry.file_name(timeline_id, number)
        return None

    def _pieces_of(self, name: str) -> Iterator[bytes]:
        return self._archive.segment_pieces(name)

    def _require_continued(self, before: Iterable[bytes], behind: Iterable[bytes], first_no: int) -> None:
        from pgwal.wal.scan import END_OF_WAL, NEED_DATA, WalScanner

        border = self._geometry.segment_start(first_no + 1)
        scanner = WalScanner(self._geometry.segment_size, border - self._geometry.segment_size, derive_map_blocks=False)
        with suppress(FormatError, ObjectNotFound):
            for piece in (*before, *islice(behind, PIECES_BEHIND_BORDER)):
                scanner.feed(piece)
                while (event := scanner.scan()) not in (NEED_DATA, END_OF_WAL):
                    pass
                scanner.take_blocks()
                if event == END_OF_WAL:
                    # What ends before the border is damage, or was left there: whoever reads it will say so.
                    if scanner.feed_lsn > border:
                        raise self._mismatch(Lsn(scanner.position), "there records do not go on from one to the next")
                    return
                if scanner.last_record_lsn >= border:
                    return

    def _mismatch(self, lsn: Lsn, why: str) -> HistoryMismatch:
        return HistoryMismatch(
            f"WAL segment {self.name} is not of the archive's history: at {lsn} {why}",
            timeline_id=self._timeline_id,
            lsn=lsn,
            hint=OTHER_HISTORY_HINT,
        )
