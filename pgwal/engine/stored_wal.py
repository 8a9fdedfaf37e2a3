"""Read the WAL and the summaries that backups need, and tell everything that is wrong with them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, cast

import lz4.frame
import zstandard

from pgwal.engine.record_chain import unlinked
from pgwal.engine.stored_backup import Problem
from pgwal.engine.summarize import wal_gap
from pgwal.errors import FormatError, PgwalError, StoreUnavailable
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.object_reader import open_object
from pgwal.repository.repository import Repository
from pgwal.repository.store import as_sealing
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.summary.block_map import BlockMap
from pgwal.summary.codec import summary_file_name
from pgwal.summary.coverage import cover
from pgwal.summary.link import UNKNOWN, Link
from pgwal.summary.summarizer import ChangeReader, Summarizer
from pgwal.wal.page_magic import wal_format_of_major

# Small, because a piece of zeros that has been compressed becomes a thousand times as large.
COMPRESSED_READ_SIZE = 1024


class StoredWal:
    """The WAL of a range of one timeline, to verify; ``problems`` is what was found so far."""

    def __init__(self, repository: Repository, wanted: LsnRange) -> None:
        self.problems: list[Problem] = []
        self._repository = repository
        self._geometry = repository.geometry
        self._format = wal_format_of_major(repository.identity.major)
        self._wanted = wanted
        pieces = cover(wanted, repository.summaries.ranges(), repository.geometry)
        self._summaries = {piece.range for piece in pieces if piece.summarised}
        self._links: dict[LsnRange, Link] = {}

    def verify(self, tell: Callable[[int], None]) -> None:
        """Check each record's CRC and its link to the one before, and hold the summaries against what WAL says.

        ``tell`` is told the sizes of WAL that has been read.
        """
        position, place = self._wanted.start, self._geometry.first_record_position
        while place(position) < place(self._wanted.end):
            position = self._read_from(position, tell)
        for summary_range in sorted(self._summaries):
            self._compare(summary_range, *self._scan(summary_range))
        self._check_links()
        self._check_compressed_files()

    def verify_unread(self) -> None:
        """Check, without an identity, that each segment is there and looks as it was stored; and the summaries."""
        archive, timeline_id = self._repository.wal, self._wanted.timeline_id
        first, last = self._geometry.segment_no(self._wanted.start), self._geometry.last_segment_no(self._wanted.end)
        missing = archive.first_missing(timeline_id, range(first, last + 1), whole=range(first, last))
        if missing is not None:
            name = self._geometry.file_name(timeline_id, missing)
            self._note(f"{WAL_DIRECTORY}/{name}", "it is missing, or not whole")
        sealing = as_sealing(self._repository.store)
        for segment in archive.segments():
            if segment.timeline_id == timeline_id and first <= segment.segment_no <= last and sealing is not None:
                name = f"{WAL_DIRECTORY}/{segment.name}"
                try:
                    sealing.require_form(name)
                except FormatError as error:
                    self._note(name, str(error))
        for summary_range in sorted(self._summaries):
            self._compare(summary_range, None, UNKNOWN)
        self._check_links()

    def _read_from(self, position: Lsn, tell: Callable[[int], None]) -> Lsn:
        """Read on to the end, or to something that is wrong, and return from where to go on behind that."""
        timeline_id, end = self._wanted.timeline_id, self._wanted.end
        summarizer = Summarizer(
            timeline_id,
            self._format,
            self._geometry,
            position,
            stop=end,
            system_identifier=self._repository.identity.system_identifier,
        )
        try:
            for data in self._repository.wal.read(timeline_id, position):
                summarizer.feed(data)
                tell(len(data))
                self._compare_finished(summarizer)
                if summarizer.complete or summarizer.end_of_wal is not None:
                    break
        except FormatError as error:
            name = self._geometry.file_name(timeline_id, self._geometry.segment_no(summarizer.feed_lsn))
            self._note(f"{WAL_DIRECTORY}/{name}", str(error))
            return self._geometry.segment_start(self._geometry.segment_no(summarizer.feed_lsn) + 1)
        if summarizer.complete:
            summarizer.finish(end)
            self._compare_finished(summarizer)
            return end
        unread = LsnRange(timeline_id, max(position, summarizer.position), end)
        number = self._geometry.segment_no(unread.start)
        self._note(
            f"{WAL_DIRECTORY}/{self._geometry.file_name(timeline_id, number)}",
            str(wal_gap(self._repository, unread, summarizer.end_of_wal)),
        )
        if summarizer.end_of_wal is not None:
            return self._geometry.segment_start(self._geometry.last_segment_no(summarizer.feed_lsn) + 1)
        return self._next_segment_start(summarizer.feed_lsn)

    def _next_segment_start(self, lsn: Lsn) -> Lsn:
        """Return where the next segment that is there begins."""
        starts = (
            self._geometry.segment_start(segment.segment_no)
            for segment in self._repository.wal.segments()
            if segment.timeline_id == self._wanted.timeline_id
        )
        return min((start for start in starts if start > lsn), default=self._wanted.end)

    # -- summaries ---------------------------------------------------------------------------------------------

    def _compare_finished(self, summarizer: Summarizer) -> None:
        for summary in summarizer.take_finished():
            if summary.range in self._summaries:
                self._summaries.remove(summary.range)
                self._compare(summary.range, summary.block_map, summary.link)

    def _scan(self, summary_range: LsnRange) -> tuple[BlockMap | None, Link]:
        """Return what WAL says of a range, None where it cannot be read, which has been noted."""
        reader = ChangeReader(
            self._format,
            self._geometry,
            summary_range.start,
            summary_range.end,
            system_identifier=self._repository.identity.system_identifier,
        )
        try:
            for data in self._repository.wal.read(summary_range.timeline_id, summary_range.start):
                reader.feed(data)
                if reader.complete or reader.end_of_wal is not None:
                    break
        except FormatError:
            return None, UNKNOWN
        return (reader.block_map, reader.link) if reader.complete else (None, UNKNOWN)

    def _compare(self, summary_range: LsnRange, changes: BlockMap | None, link: Link) -> None:
        """Hold a summary against WAL; one of an older pgwal has no link."""
        name = f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}"
        try:
            stored, stored_link = self._repository.summaries.read_linked(summary_range)
        except StoreUnavailable:
            raise
        except PgwalError as error:
            self._note(name, str(error))
            return
        if changes is not None and stored != changes:
            self._note(name, "it does not hold what the WAL of its range says")
        if stored_link is None:
            return
        self._links[summary_range] = stored_link
        if changes is not None and link not in (UNKNOWN, stored_link):
            self._note(
                name,
                f"it follows the record at {stored_link.prev_lsn} and ends with the one at {stored_link.last_lsn}, but"
                f" WAL of its range the one at {link.prev_lsn}, with the one at {link.last_lsn}",
            )

    def _check_links(self) -> None:
        """Note each summary that does not go on behind the one that ends where it begins, with WAL and without."""
        place = self._geometry.first_record_position
        for before, after in pairwise(sorted(self._links)):
            earlier, later = self._links[before], self._links[after]
            if place(before.end) == place(after.start) and not later.follows(earlier.last_lsn):
                error = unlinked(after, later, earlier.last_lsn, summarised=True)
                self._note(f"{SUMMARY_DIRECTORY}/{summary_file_name(after)}", str(error))

    # -- compressed segments -----------------------------------------------------------------------------------

    def _check_compressed_files(self) -> None:
        """Read compressed segments to their ends: their own checksums cover what no record does."""
        first, last = map(self._geometry.segment_no, (self._wanted.start, self._wanted.end - 1))
        for segment in self._repository.wal.segments():
            if segment.timeline_id != self._wanted.timeline_id or not first <= segment.segment_no <= last:
                continue
            _, compression, complete = split_segment_name(segment.name)
            if compression and complete:
                self._check_compressed_file(f"{WAL_DIRECTORY}/{segment.name}", compression)

    def _check_compressed_file(self, name: str, compression: str) -> None:
        decoder = segment_decoder(compression)
        size_bytes = 0
        try:
            with open_object(self._repository.store, name) as file:
                # Little at a time: of some bytes may become a thousand times as many, or more.
                while data := file.read(COMPRESSED_READ_SIZE):
                    size_bytes += len(decoder.decompress(data))
                    if size_bytes > self._geometry.segment_size:
                        raise FormatError(f"it holds more than the {self._geometry.segment_size} bytes of a segment")
                    if decoder.unused_data:
                        raise FormatError("bytes follow its end")
            if not decoder.eof:
                raise FormatError("it is cut off")
            if size_bytes != self._geometry.segment_size:
                raise FormatError(f"it holds {size_bytes} bytes, a segment has {self._geometry.segment_size}")
        except (PgwalError, OSError, RuntimeError, EOFError, zlib.error, zstandard.ZstdError) as error:
            self._note(name, f"it is damaged: {error}")

    def _note(self, path: str, message: str) -> None:
        self.problems.append(Problem(None, path, message))


class Decoder(Protocol):
    """What the decoders of all formats have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def segment_decoder(compression: str) -> Decoder:
    """Return what inflates a segment file of a compression; raises errors of the libraries."""
    decoders: dict[str, Callable[[], Decoder]] = {
        ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
        ".lz4": lambda: cast(Decoder, lz4.frame.LZ4FrameDecompressor()),
        ".gz": lambda: zlib.decompressobj(wbits=31),
    }
    return decoders[compression]()
