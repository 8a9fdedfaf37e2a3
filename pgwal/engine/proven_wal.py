"""Prove WAL segments as they are copied: page headers, the CRC of each record, and its link to the one before.

A record may reach into the next segment: that is read as far as it takes, before the first one counts as proven.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, contextmanager

import zstandard

from pgwal.budget import INFLATED_READ_BYTES
from pgwal.engine.stored_wal import segment_decoder
from pgwal.errors import ChecksumMismatch, FormatError, PgwalError
from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal.repository.segment_reader import REPLACE_HINT
from pgwal.repository.store import ObjectOpener
from pgwal.segment import WAL_PAGE_SIZE
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, WalScanner
from pgwal.wal.segment_check import SegmentCheck


@contextmanager
def naming_damage(place: str) -> Iterator[None]:
    """Say of a damaged segment which one it is."""
    try:
        yield
    except FormatError as error:
        error.restate(f"WAL segment {place} is damaged: {error}", hint=error.hint or REPLACE_HINT, path=place)
        raise


class SegmentContent:
    """What a segment file holds, from the pieces of what is stored; ``opener`` is for one that is sealed."""

    def __init__(self, compression: str, opener: ObjectOpener | None) -> None:
        self._decoder = segment_decoder(compression) if compression else None
        self._opener = opener

    def inflated(self, piece: bytes) -> Iterator[bytes]:
        """Yield what is in the next piece; raises FormatError."""
        yield from self._decoded(piece if self._opener is None else self._opener.open(piece))

    def rest(self) -> Iterator[bytes]:
        """Yield the rest, when there are no more pieces; raises FormatError, for a file that is cut off, too."""
        if self._opener is not None:
            yield from self._decoded(self._opener.finish())
        if self._decoder is not None and not self._decoder.eof:
            raise FormatError("it is cut off")

    def _decoded(self, content: bytes) -> Iterator[bytes]:
        if self._decoder is None:
            yield content
            return
        for at in range(0, len(content), INFLATED_READ_BYTES):
            try:
                data = self._decoder.decompress(content[at : at + INFLATED_READ_BYTES])
            except (RuntimeError, EOFError, zlib.error, zstandard.ZstdError) as error:
                raise ChecksumMismatch(f"it cannot be decompressed: {error}") from error
            if self._decoder.unused_data:
                raise FormatError("bytes follow its end")
            yield data


class WalProof:
    """Takes whole segments of a timeline, of which consecutive ones are proven to go on behind each other.

    For each: ``begin``, ``take`` with all that it holds, in pieces, and ``end``.  ``there`` are the numbers of the
    segments that the repository has of the timeline, ``left_at`` the positions at which others left it.
    """

    def __init__(
        self, repository: Repository, timeline_id: int, there: Collection[int], left_at: Collection[Lsn]
    ) -> None:
        self._repository = repository
        self._geometry = repository.geometry
        self._timeline_id = timeline_id
        self._there = there
        self._left_at = left_at
        self._scanner: WalScanner | None = None
        """None where the rest of a segment cannot be walked, though nothing shows that it is damaged."""
        self._is_at_end = False
        self._segment_no = -1
        self._fed_ahead = b""
        """What was read of the segment already, for the last record of the one before."""

    def begin(self, segment_no: int) -> None:
        goes_on = segment_no == self._segment_no + 1 and self._scanner is not None and not self._is_at_end
        self._segment_no = segment_no
        self._check = SegmentCheck(
            self._geometry,
            self._timeline_id,
            segment_no,
            self._repository.identity.system_identifier,
            complete=True,
        )
        self._size_bytes = 0
        self._unchecked = b""
        if goes_on:
            return
        self._fed_ahead = b""
        before = segment_no - 1
        self._start_scan(before if before in self._there else segment_no)
        if before in self._there:
            self._read_before(before)

    def _start_scan(self, segment_no: int) -> None:
        start = self._geometry.segment_start(segment_no)
        identifier = self._repository.identity.system_identifier
        self._scanner = WalScanner(
            self._geometry.segment_size, start, system_identifier=identifier, derive_map_blocks=False
        )
        self._is_at_end = False

    def _read_before(self, segment_no: int) -> None:
        """Walk the segment before, from which a record may come; where that cannot be done, begin behind it."""
        try:
            for piece in self._pieces_of(segment_no):
                self._scan(piece)
        except (FormatError, PgwalError):
            self._is_at_end = True
        if self._is_at_end or self._scanner is None:
            self._start_scan(segment_no + 1)

    def _pieces_of(self, segment_no: int) -> Generator[bytes]:
        left = self._geometry.segment_size
        for piece in self._repository.wal.read(self._timeline_id, self._geometry.segment_start(segment_no)):
            yield piece[:left]
            left -= len(piece[:left])
            if not left:
                return

    def take(self, data: bytes) -> None:
        """Take the next bytes; raises FormatError, or ChecksumMismatch, when they cannot be what was stored."""
        self._size_bytes += len(data)
        if self._size_bytes > self._geometry.segment_size:
            raise FormatError(f"it holds more than the {self._geometry.segment_size} bytes of a segment")
        content = self._unchecked + data if self._unchecked else data
        whole = len(content) - len(content) % WAL_PAGE_SIZE
        self._unchecked = content[whole:]
        if whole:
            self._check.feed(content[:whole])
        known = min(len(self._fed_ahead), len(data))
        if data[:known] != self._fed_ahead[:known]:
            raise ChecksumMismatch("it was read twice, and was not the same")
        self._fed_ahead = self._fed_ahead[known:]
        self._scan(data[known:])

    def end(self) -> None:
        """Raise FormatError, or ChecksumMismatch, unless all of the segment is proven."""
        if self._size_bytes != self._geometry.segment_size:
            raise FormatError(f"it holds {self._size_bytes} bytes, a segment has {self._geometry.segment_size}")
        if not self._is_at_end:
            self._read_ahead()
        if self._is_at_end and self._scanner is not None and not self._may_end_at(Lsn(self._scanner.position)):
            reason = self._scanner.end_reason
            raise ChecksumMismatch(
                f"there is no record at {Lsn(self._scanner.position)}{f': {reason.describe()}' if reason else ''}"
            )

    def _read_ahead(self) -> None:
        """Read the next segment as far as a record goes that begins in this one."""
        end, following = self._geometry.segment_start(self._segment_no + 1), self._segment_no + 1
        if following not in self._there or self._is_walked_to(end):
            return
        try:
            with closing(self._pieces_of(following)) as pieces:
                for piece in pieces:
                    self._fed_ahead += piece
                    self._scan(piece)
                    if self._is_at_end or self._is_walked_to(end):
                        return
        except PgwalError:
            # Of the next one, which nobody can read: with that this one is as good as it can be.
            self._scanner = None

    def _is_walked_to(self, end: Lsn) -> bool:
        return self._scanner is None or self._scanner.position >= end

    def _may_end_at(self, position: Lsn) -> bool:
        """Tell whether the WAL of the timeline may end in this segment, at a position."""
        start, end = map(self._geometry.segment_start, (self._segment_no, self._segment_no + 1))
        if position >= end:
            # It is the next one that is damaged.
            return True
        if self._segment_no + 1 in self._there or not self._left_at:
            return False
        place = self._geometry.first_record_position
        within = [lsn for lsn in self._left_at if start <= lsn <= end]
        return all(place(position) >= place(lsn) for lsn in within) and (bool(within) or min(self._left_at) < start)

    def _scan(self, data: bytes) -> None:
        if self._is_at_end or self._scanner is None or not data:
            return
        try:
            self._scanner.feed(data)
            while (event := self._scanner.scan()) not in (NEED_DATA, END_OF_WAL):
                pass
            self._scanner.take_blocks()
        except FormatError:
            # Its CRC is right: what this pgwal does not understand is not damage.
            self._scanner = None
            return
        self._is_at_end = event == END_OF_WAL
