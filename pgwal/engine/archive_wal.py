"""Archive a file that a server hands over: what its archive_command calls.

The server removes what it is told is archived.  So success is told of what is durable in the repository and holds the
same; all else leaves the file where it is, to be tried again.  Nothing here overwrites anything, and no lock is taken:
a receiver may write the same segments at the same time, see WalWriter.

A server waits for each file: what takes long to import is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.budget import SEGMENT_IN_MEMORY_BYTES
from pgwal.engine.fitting_segment import OTHER_HISTORY_HINT, FittingSegment, checked_pieces
from pgwal.engine.handed_over import HandedOver
from pgwal.errors import (
    FormatError,
    HistoryMismatch,
    KeyRequired,
    ObjectExists,
    ObjectNotFound,
    RepositoryError,
    WrongCluster,
)
from pgwal.lsn import Lsn
from pgwal.repository.layout import IDENTITY_NAME, WAL_DIRECTORY, RepositoryIdentity
from pgwal.repository.sealing import sealed_place
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_file_name import PARTIAL_SUFFIX, partial_name, split_segment_name
from pgwal.segment import is_backup_history_name, is_history_name, is_segment_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgwal.repository.compression import Compression
    from pgwal.repository.place import Place


class ArchiveRoom:
    """The WAL of a repository, for whoever brings some of it that a server, or another archive, has.

    Raises ObjectNotFound when there is no repository, RepositoryError for one that this user may not write.
    """

    def __init__(self, place: Place, compression: Compression) -> None:
        try:
            self.identity = RepositoryIdentity.decode(place.store.get(IDENTITY_NAME))
        except ObjectNotFound as error:
            # Never made here: it may be that its disk is not mounted.
            raise ObjectNotFound(
                f"there is no repository in {place}",
                hint="pgwal full, backup and stream make one; see that its disk is mounted, and --repo or PGWAL_REPO.",
            ) from error
        place.require_trusted()
        place.require_own()
        self._compression = compression
        self._is_near = place.directory is not None
        self._spool = place.spool
        self._store = sealed_place(place, self.identity).store
        self.archive = WalArchive(self._store, self.identity.geometry)

    def archive_file(self, path: Path, *, is_linked: bool = False, packed: bytes = b"") -> bool:
        """Keep a file under the name that it has, and tell whether it was not there yet.

        ``is_linked`` says that what lies in front of it came from the same place; ``packed`` is what ``packed`` has
        made of it, if it was asked.  Raises kinds of PgwalError: nothing
        of it is stored then.
        """
        name = path.name
        with HandedOver(path) as file:
            if is_segment_name(name):
                stored = self._archive_segment(name, file, is_linked=is_linked, packed=packed)
            elif is_segment_name(name.removesuffix(PARTIAL_SUFFIX)):
                stored = self.put_partial(name.removesuffix(PARTIAL_SUFFIX), file.pieces)
            elif is_history_name(name) or is_backup_history_name(name):
                stored = self.put_small(name, file.content())
            else:
                raise FormatError(
                    f"{name} is no file that a server archives",
                    hint="archive_command is pgwal archive-wal %p, with the path of a file of pg_wal.",
                    path=str(path),
                )
            file.require_unchanged()
        return stored

    def stored_path(self, name: str) -> str:
        """Return the path of the file that a whole segment is in, nothing where that is none of this machine's."""
        if not self._is_near:
            return ""
        whole = (found for found in self.archive.files_of(name) if split_segment_name(found)[2])
        return next((self._store.locate(f"{WAL_DIRECTORY}/{found}") for found in whole), "")

    # -- segments ----------------------------------------------------------------------------------------------

    def packed(self, path: Path) -> bytes:
        """Return a segment as it is to be stored, which is of the cluster; nothing where there is a whole one already.

        May be called by several threads.  Raises kinds of PgwalError.
        """
        if any(split_segment_name(found)[2] for found in self.archive.files_of(path.name)):
            return b""
        with HandedOver(path) as file:
            content = b"".join(self._compressed(self._checked(path.name, file)))
            file.require_unchanged()
        return content

    def _checked(self, name: str, file: HandedOver) -> Iterator[bytes]:
        try:
            yield from checked_pieces(self.identity, name, file.pieces())
        except (FormatError, WrongCluster) as error:
            error.restate(f"{file.path} is not segment {name} of the repository's cluster: {error}")
            raise

    def _archive_segment(self, name: str, file: HandedOver, *, is_linked: bool, packed: bytes) -> bool:
        if not packed:
            for _ in self._checked(name, file):
                pass
        return self.put_segment(name, file.pieces, is_linked=is_linked, packed=packed)

    def put_segment(
        self, name: str, content: Callable[[], Iterable[bytes]], *, is_linked: bool = False, packed: bytes = b""
    ) -> bool:
        """Store a segment that is known to be the cluster's, durably, and tell whether it was not there yet.

        Raises HistoryMismatch for one that is not of the archive's history, RepositoryError.
        """
        segment = self._segment(name, content)
        if self.has_segment(name, content, is_linked=is_linked):
            return False
        path = f"{WAL_DIRECTORY}/{name}{self._compression.suffix}"
        try:
            self._put(path, [packed] if packed else self._compressed(content()))
        except ObjectExists:
            self._require_same(segment)
            return False
        self._require_alone(segment, path)
        return True

    def has_segment(self, name: str, content: Callable[[], Iterable[bytes]], *, is_linked: bool = False) -> bool:
        """Tell whether a segment is there; raises HistoryMismatch for one that is not of the archive's history."""
        segment, there = self._segment(name, content), self.archive.files_of(name)
        if any(split_segment_name(found)[2] for found in there):
            self._require_same(segment)
            return True
        if not is_linked:
            segment.require_linked()
        if not is_linked or there:
            segment.require_compatible()
        return False

    def _segment(self, name: str, content: Callable[[], Iterable[bytes]]) -> FittingSegment:
        return FittingSegment(self.archive, *self.identity.geometry.parse_file_name(name), content)

    def _compressed(self, content: Iterable[bytes]) -> Iterator[bytes]:
        # Not above: most who come here find that it is there.
        from pgwal.repository.wal_compressor import compressed_pieces

        return compressed_pieces(content, self._compression, self.identity.geometry.segment_size)

    def _put(self, path: str, pieces: Iterable[bytes]) -> None:
        # Over a network only what comes in one piece is never put over something else.
        is_streamed = self._is_near or self.identity.geometry.segment_size > SEGMENT_IN_MEMORY_BYTES
        self._store.put(path, pieces if is_streamed else b"".join(pieces))

    def _require_same(self, segment: FittingSegment) -> None:
        """Raise HistoryMismatch unless the archive has the same, durably."""
        try:
            segment.require_same()
        except KeyRequired as error:
            error.restate(
                f"segment {segment.name} is in the repository, and this machine cannot read it to compare: {error}",
                hint="A receiver on another machine has stored it. Give an identity (--identity, PGWAL_IDENTITY), or"
                " archive from one machine alone.",
            )
            raise
        # Whoever stored it may not have come to make its name durable.
        self._spool.settle(WAL_DIRECTORY)

    def _require_alone(self, segment: FittingSegment, path: str) -> None:
        """Take back what was stored if a receiver has meanwhile completed the segment otherwise."""
        found = [name for name in self.archive.files_of(segment.name) if split_segment_name(name)[2]]
        if [f"{WAL_DIRECTORY}/{name}" for name in found] in ([path], []):
            return
        try:
            segment.require_same()
        except (HistoryMismatch, FormatError):
            with suppress(ObjectNotFound):
                self._store.delete(path)
            raise

    def put_partial(self, name: str, content: Callable[[], Iterable[bytes]], *, dry_run: bool = False) -> bool:
        """Keep what there is of a segment that is not whole, and tell whether that was not there yet.

        It never counts as a whole one, whatever is in it, and its name tells up to where it goes.  Raises as
        ``put_segment``.
        """
        for _ in checked_pieces(self.identity, name, content(), complete=False):
            pass
        timeline_id, segment_no = self.identity.geometry.parse_file_name(name)
        end, start = self._end_of_records(segment_no, content()), self.identity.geometry.segment_start(segment_no)
        self._segment(name, content).require_compatible(end)
        if self.archive.is_complete(timeline_id, segment_no) or end <= start:
            # The whole one has all that is in it.
            return False
        from pgwal.repository.wal_compressor import compressed_pieces

        path = f"{WAL_DIRECTORY}/{partial_name(name, end, self._compression.suffix)}"
        if dry_run:
            return not self._store.exists(path)
        counts = b"".join(content())[: end - start]
        try:
            self._store.put(path, b"".join(compressed_pieces([counts], self._compression, len(counts))))
        except ObjectExists:
            # It was compared with what is there, up to where that counts.
            self._spool.settle(WAL_DIRECTORY)
            return False
        return True

    def _end_of_records(self, segment_no: int, pieces: Iterable[bytes]) -> Lsn:
        from pgwal.wal.scan import END_OF_WAL, NEED_DATA, WalScanner

        geometry = self.identity.geometry
        scanner = WalScanner(geometry.segment_size, geometry.segment_start(segment_no), derive_map_blocks=False)
        for piece in pieces:
            scanner.feed(piece)
            while (event := scanner.scan()) not in (NEED_DATA, END_OF_WAL):
                pass
            scanner.take_blocks()
            if event == END_OF_WAL:
                break
        return min(Lsn(scanner.position), geometry.segment_start(segment_no + 1))

    # -- small files -------------------------------------------------------------------------------------------

    def put_small(self, name: str, content: bytes, *, dry_run: bool = False) -> bool:
        """Keep a timeline history, or a file that tells of a backup, and tell whether it was not there yet.

        Raises HistoryMismatch for a history of other timelines than the archive's, RepositoryError.
        """
        if is_history_name(name):
            self._require_history(int(name[:8], 16), content)
        path = f"{WAL_DIRECTORY}/{name}"
        if dry_run and not self._store.exists(path):
            return True
        try:
            if not dry_run:
                self._store.put(path, content)
                return True
        except ObjectExists:
            self._spool.settle(WAL_DIRECTORY)
        if self._store.get(path) != content:
            raise RepositoryError(
                f"{name} is in the repository with other content: nothing was overwritten",
                hint=OTHER_HISTORY_HINT,
                path=self._store.locate(path),
            )
        return False

    def _require_history(self, timeline_id: int, content: bytes) -> None:
        from pgwal.engine.start_point import require_one_history
        from pgwal.timeline import TimelineHistory

        stored = {number: self.archive.history_content(number) for number in self.archive.history_timelines()}
        require_one_history(TimelineHistory.decode(timeline_id, content), content, stored)
