"""A whole segment of an archive, held against what is received of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pgwal.errors import BrokenInvariant, HistoryMismatch
from pgwal.lsn import Lsn
from pgwal.repository.wal_archive import WalArchive


class ArchivedSegment:
    """See pgwal.repository.spool.Appender: what is written, from the start on, must be what is there.

    Raises HistoryMismatch for anything else, which names the first byte that differs, FormatError when the segment is
    damaged.  It is durable as it is.
    """

    is_held = False

    def __init__(self, archive: WalArchive, name: str) -> None:
        self._name = name
        self._timeline_id, segment_no = archive.geometry.parse_file_name(name)
        self._start = archive.geometry.segment_start(segment_no)
        self._pieces: Iterator[bytes] = archive.segment_pieces(name)
        self._ahead = b""
        self._position = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if offset != self._position:
            raise BrokenInvariant("a segment that is there is compared in order")
        stored = self._take(len(data))
        if stored != data:
            at = next((at for at, (a, b) in enumerate(zip(stored, data, strict=False)) if a != b), len(stored))
            lsn = Lsn(self._start + offset + at)
            raise HistoryMismatch(
                f"WAL of segment {self._name} that is received is not that of the repository, where it is whole: they"
                f" differ at {lsn}, and nothing was overwritten",
                timeline_id=self._timeline_id,
                lsn=lsn,
                hint="An archive_command has brought it, of another server or from another life of this one: see to"
                " which server each leads.",
            )

    def _take(self, size_bytes: int) -> bytes:
        while len(self._ahead) < size_bytes and (piece := next(self._pieces, b"")):
            self._ahead += piece
        taken, self._ahead = self._ahead[:size_bytes], self._ahead[size_bytes:]
        self._position += len(taken)
        return taken

    def require_same(self, pieces: Iterable[bytes]) -> None:
        """Raise HistoryMismatch unless a whole segment, in pieces, is the same."""
        for piece in pieces:
            self.write(self._position, piece)

    def clear_behind(self, offset: int) -> None:
        pass  # It is whole.

    def pieces(self) -> Iterator[bytes]:
        return iter(())

    def sync(self) -> None:
        pass

    def rename(self, name: str, *, is_read_soon: bool) -> None:
        pass

    def discard(self) -> None:
        pass

    def close(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
