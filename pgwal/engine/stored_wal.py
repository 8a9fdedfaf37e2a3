"""Read the WAL and the summaries that backups need, and tell everything that is wrong with them.

It goes in pieces of some segments, cut where summaries are or segments begin, which any worker of a fleet can read;
that each goes on behind the one before it is seen from their verdicts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple, Protocol, cast

import lz4.frame
import zstandard

from pgwal.budget import COMPRESSED_READ_BYTES, MOST_LOOKS, WAL_PIECE_BYTES
from pgwal.engine.fleet import Room, Tell
from pgwal.engine.problem import Problem
from pgwal.engine.record_chain import unlinked
from pgwal.engine.summarize import wal_gap
from pgwal.errors import BrokenInvariant, FormatError, ObjectNotFound, PgwalError, RepositoryError, StoreUnavailable
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.object_reader import open_object
from pgwal.repository.repository import Repository
from pgwal.repository.store import SealingStore, as_sealing
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap
from pgwal.summary.codec import summary_file_name
from pgwal.summary.coverage import Piece, cover
from pgwal.summary.link import UNKNOWN, Link
from pgwal.summary.summarizer import ChangeReader, Summarizer
from pgwal.wal.page_magic import wal_format_of_major


class WalPiece(NamedTuple):
    """Some WAL of one timeline to verify, with the ``summaries`` that lie in it, and the names of its ``segments``.

    ``follows`` says that the piece before it ends where it begins.
    """

    range: LsnRange
    summaries: Sequence[LsnRange]
    segments: Sequence[str]
    follows: bool
    opens_files: bool


class WalVerdict(NamedTuple):
    """What is wrong with a piece, and what ties it to those before and behind it, as far as that could be read."""

    problems: Sequence[Problem]
    link: Link
    first_summary: tuple[LsnRange, Link] | None
    last_summary: tuple[LsnRange, Link] | None


def wal_pieces(repository: Repository, ranges: Iterable[LsnRange], *, opens_files: bool) -> Iterator[WalPiece]:
    """Cut ranges into pieces of some segments, each summary whole in one of them; WAL that is missing is in one, too.

    Raises RepositoryError.
    """
    geometry, summaries, segments = repository.geometry, repository.summaries.ranges(), repository.wal.segments()
    for wanted in ranges:
        own = {each.segment_no: each.name for each in segments if each.timeline_id == wanted.timeline_id}
        found, last_no = list[LsnRange](), -1
        start = wanted.start
        for part, is_summarised in _cut_at_segments(cover(wanted, summaries, geometry), geometry):
            if part.start - start >= WAL_PIECE_BYTES and geometry.segment_no(part.start) in own:
                piece = LsnRange(wanted.timeline_id, start, part.start)
                names, last_no = _names(own, geometry, piece, last_no)
                yield WalPiece(piece, found, names, start > wanted.start, opens_files)
                found, start = [], part.start
            if is_summarised:
                found.append(part)
        piece = LsnRange(wanted.timeline_id, start, wanted.end)
        yield WalPiece(piece, found, _names(own, geometry, piece, last_no)[0], start > wanted.start, opens_files)


def _cut_at_segments(pieces: Iterable[Piece], geometry: WalGeometry) -> Iterator[Piece]:
    """Yield summaries as they are, and what none covers cut where segments begin."""
    for part, is_summarised in pieces:
        position = part.start
        while not is_summarised and (border := geometry.segment_start(geometry.segment_no(position) + 1)) < part.end:
            yield Piece(LsnRange(part.timeline_id, position, border), summarised=False)
            position = border
        yield Piece(part._replace(start=position), is_summarised)


def _names(own: Mapping[int, str], geometry: WalGeometry, piece: LsnRange, last_no: int) -> tuple[list[str], int]:
    """Return the names of the segments of a piece behind the last one of the piece before it, and its own last one."""
    last = geometry.last_segment_no(piece.end)
    numbers = range(max(geometry.segment_no(piece.start), last_no + 1), last + 1)
    return [own[number] for number in numbers if number in own], last


def verify_wal(room: Room, tell: Tell, piece: WalPiece) -> WalVerdict:
    """Verify a piece of WAL: work for a crew.  Raises StoreUnavailable."""
    stored = StoredWal(room.repository, piece.range, piece.summaries, piece.segments)
    try:
        if piece.opens_files:
            stored.verify(tell)
        else:
            stored.verify_unread()
    except StoreUnavailable:
        raise
    except RepositoryError as error:
        # A directory that cannot be read; the rest is looked at all the same.
        stored.problems.append(Problem(None, WAL_DIRECTORY, str(error)))
    links = stored.summary_links
    return WalVerdict(stored.problems, stored.link, *((links[0], links[-1]) if links else (None, None)))


def all_problems(repository: Repository, verdicts: Iterable[tuple[WalPiece, WalVerdict]]) -> Iterator[Problem]:
    """Yield what is wrong with consecutive pieces, and where one does not go on behind the one before it; each once."""
    seen = set[Problem]()
    before: WalVerdict | None = None
    for piece, verdict in verdicts:
        found = list(verdict.problems)
        if piece.follows and before is not None:
            found += _between(repository, piece, before, verdict)
        yield from (problem for problem in found if problem not in seen)
        seen = set(found)
        before = verdict


def _between(repository: Repository, piece: WalPiece, before: WalVerdict, after: WalVerdict) -> Iterator[Problem]:
    geometry, last_lsn = repository.geometry, before.link.last_lsn
    if last_lsn and after.link.prev_lsn and not after.link.follows(last_lsn):
        name = geometry.file_name(piece.range.timeline_id, geometry.segment_no(piece.range.start))
        error = unlinked(piece.range, after.link, last_lsn, summarised=False)
        yield Problem(None, f"{WAL_DIRECTORY}/{name}", str(error))
    if before.last_summary is not None and after.first_summary is not None:
        yield from _unlinked_summaries([before.last_summary, after.first_summary], geometry)


def _unlinked_summaries(links: Sequence[tuple[LsnRange, Link]], geometry: WalGeometry) -> Iterator[Problem]:
    """Yield each summary that does not go on behind the one that ends where it begins, with WAL and without."""
    place = geometry.first_record_position
    for (before, earlier), (after, later) in pairwise(links):
        if place(before.end) == place(after.start) and not later.follows(earlier.last_lsn):
            error = unlinked(after, later, earlier.last_lsn, summarised=True)
            yield Problem(None, f"{SUMMARY_DIRECTORY}/{summary_file_name(after)}", str(error))


class StoredWal:
    """The WAL of a range of one timeline, to verify; ``problems`` is what was found so far."""

    def __init__(
        self, repository: Repository, wanted: LsnRange, summaries: Iterable[LsnRange], segments: Sequence[str]
    ) -> None:
        """``summaries`` are those that lie in the range, ``segments`` the names of files to be read to their ends."""
        self.problems: list[Problem] = []
        self._repository = repository
        self._geometry = repository.geometry
        self._format = wal_format_of_major(repository.identity.major)
        self._wanted = wanted
        self._summaries = set(summaries)
        self._segments = segments
        self._links: dict[LsnRange, Link] = {}
        self.link = UNKNOWN
        """What ties WAL of the range to that before and behind it, as far as it could be read."""

    @property
    def summary_links(self) -> list[tuple[LsnRange, Link]]:
        """What the summaries say that ties them to each other, by range."""
        return sorted(self._links.items())

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
        if sealing is None:
            raise BrokenInvariant("what is not encrypted is read")
        for segment in self._segments:
            try:
                self._require_form(sealing, segment)
            except (FormatError, ObjectNotFound) as error:
                self._note(f"{WAL_DIRECTORY}/{segment}", str(error))
        for summary_range in sorted(self._summaries):
            self._compare(summary_range, None, UNKNOWN)
        self._check_links()

    def _require_form(self, sealing: SealingStore, segment: str) -> None:
        """Check what there is of a segment by now: a receiver may have stored more of it since it was listed."""
        for _ in range(MOST_LOOKS):
            with suppress(ObjectNotFound):
                sealing.require_form(f"{WAL_DIRECTORY}/{segment}")
                return
            found = self._repository.wal.files_of(split_segment_name(segment)[0])
            segment = found[0] if found else segment
        sealing.require_form(f"{WAL_DIRECTORY}/{segment}")

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
        if position == self._wanted.start:
            self.link = self.link._replace(prev_lsn=summarizer.link.prev_lsn)
        if summarizer.complete:
            self.link = self.link._replace(last_lsn=summarizer.link.last_lsn)
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
        self.problems += _unlinked_summaries(self.summary_links, self._geometry)

    # -- compressed segments -----------------------------------------------------------------------------------

    def _check_compressed_files(self) -> None:
        """Read compressed segments to their ends: their own checksums cover what no record does."""
        for name in self._segments:
            _, compression, complete = split_segment_name(name)
            if compression and complete:
                self._check_compressed_file(f"{WAL_DIRECTORY}/{name}", compression)

    def _check_compressed_file(self, name: str, compression: str) -> None:
        decoder = segment_decoder(compression)
        size_bytes = 0
        try:
            with open_object(self._repository.store, name) as file:
                # Little at a time: of some bytes may become a thousand times as many, or more.
                while data := file.read(COMPRESSED_READ_BYTES):
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
