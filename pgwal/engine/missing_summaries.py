"""Write the summaries that a repository lacks of WAL that it has, in pieces that any worker of a fleet can do.

What one pass over the WAL would write does not depend on where that is cut into pieces.  A piece begins to write behind
the first place where a summary is cut, and reads on behind its own end up to where the next piece finds its first one:
so much is read twice.  Where WAL ends without a cut, the rest is left for when more has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from pgwal.budget import SUMMARY_PIECE_BYTES
from pgwal.engine.fleet import Crew, Fleet, Room, Tell, crew
from pgwal.engine.read_ahead import read_ahead
from pgwal.engine.recorded import WrittenSummary
from pgwal.engine.recorded_ranges import require_last_segment, timeline_switches
from pgwal.errors import ObjectNotFound
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.segment import WalGeometry
from pgwal.summary.codec import summary_file_name
from pgwal.summary.coverage import holes
from pgwal.summary.summarizer import Summarizer, Summary
from pgwal.wal.page_magic import WalFormat, wal_format_of_major

OnProgress = Callable[[int, int], None]


class SummaryPiece(NamedTuple):
    """WAL to summarize: ``range`` of what goes on up to ``end``, which is a cut where it ``is_closed``.

    ``is_first`` says that summaries begin with it.  ``was_minimal`` is whether wal_level was minimal before it, as far
    as that is not said at each cut.
    """

    range: LsnRange
    end: Lsn
    is_closed: bool
    is_first: bool
    was_minimal: bool | None


def write_missing_summaries(
    place: Place, *, jobs: int = 1, fleet: Fleet | None = None, on_progress: OnProgress | None = None
) -> list[WrittenSummary]:
    """Write summaries of all WAL in a repository that has none, and return what was written, by timeline and LSN.

    ``jobs`` threads read it, or a fleet.  Raises ObjectNotFound when there is no repository, or no WAL in it;
    RepositoryLocked while somebody receives WAL, who summarizes it, or removes some; FormatError where WAL is damaged
    before its end: summaries of WAL before that place stay.
    """
    repository = Repository.open(place)
    with repository.hold_all_backups(), repository.lock_receiver():
        wanted = list(_unsummarized(repository))
        total, done = sum(part.end - part.start for part, _ in wanted), 0

        def tell(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            if on_progress is not None:
                on_progress(min(done, total), total)

        written = dict[LsnRange, WrittenSummary]()
        with crew(repository, tell, jobs, fleet) as workers:
            pieces = _pieces(repository, wanted, workers, is_one=fleet is None and jobs == 1)
            with closing(workers.map(summarize_piece, pieces)) as results:
                for result in results:
                    written |= {each.range: each for each in result}
    return [written[part] for part in sorted(written)]


def _unsummarized(repository: Repository) -> Iterator[tuple[LsnRange, bool]]:
    """Yield WAL of which there are no summaries, and whether each ends where a summary would in any case."""
    geometry, summaries = repository.geometry, repository.summaries.ranges()
    begins, lefts = timeline_switches(repository.wal)
    for run in _whole_runs(repository):
        begin = max(run.start, begins.get(run.timeline_id, run.start))
        left = lefts.get(run.timeline_id, run.end)
        end = min(run.end, left)
        if begin >= end:
            continue
        is_left = run.timeline_id in lefts and end == left
        for part in holes(run._replace(start=begin, end=end), summaries, geometry):
            yield part, part.end < end or is_left


def _whole_runs(repository: Repository) -> Iterator[LsnRange]:
    """Yield what is in consecutive whole segments."""
    geometry = repository.geometry
    segments = [segment for segment in repository.wal.segments() if segment.complete]
    if not segments:
        raise ObjectNotFound(
            f"there is no whole WAL segment in {repository.place}", hint="Run pgwal stream, or pgwal import."
        )
    first = last = segments[0]
    for segment in (*segments[1:], None):
        if segment is None or segment[:2] != (last.timeline_id, last.segment_no + 1):
            bounds = map(geometry.segment_start, (first.segment_no, last.segment_no + 1))
            yield LsnRange(first.timeline_id, *bounds)
            first = segment or last
        last = segment or last


# ---- pieces


def _pieces(
    repository: Repository, wanted: Iterable[tuple[LsnRange, bool]], workers: Crew, *, is_one: bool
) -> Iterator[SummaryPiece]:
    """Cut WAL into pieces, or where they are for one thread, into none."""
    wal_format = wal_format_of_major(repository.identity.major)
    for part, is_closed in wanted:
        parts = [part] if is_one else list(_cut(part, repository.geometry))
        levels: Sequence[bool | None] = [None] * len(parts)
        if len(parts) > 1 and not wal_format.has_checkpoint_redo:
            # Which wal_level there is is said where it changes, and nowhere else.
            with closing(workers.map(last_level, parts)) as found:
                levels = _carried(found)
        for number, (piece, level) in enumerate(zip(parts, levels, strict=True)):
            yield SummaryPiece(piece, part.end, is_closed, number == 0, level)


def _cut(part: LsnRange, geometry: WalGeometry) -> Iterator[LsnRange]:
    step = max(geometry.segment_size, SUMMARY_PIECE_BYTES // geometry.segment_size * geometry.segment_size)
    start = part.start
    while start < part.end:
        end = min(Lsn((start // step + 1) * step), part.end)
        yield LsnRange(part.timeline_id, start, end)
        start = end


def _carried(levels: Iterable[bool | None]) -> list[bool | None]:
    """Return whether wal_level was minimal before each of consecutive pieces, from the last one that each announces."""
    carried = list[bool | None]([None])
    for level in levels:
        carried.append(carried[-1] if level is None else level)
    return carried[:-1]


def last_level(room: Room, tell: Tell, part: LsnRange) -> bool | None:  # noqa: ARG001
    """Return whether the last wal_level that a range announces is minimal, None where it does none: work for a crew."""
    summarizer = _summarizer(room.repository, part, part.end, is_first=True)
    found: bool | None = None
    for data in _fed(room.repository, summarizer, part):
        for summary in data:
            found = found if summary.minimal is None else summary.minimal
    summarizer.finish(summarizer.position)
    for summary in summarizer.take_pieces():
        found = found if summary.minimal is None else summary.minimal
    return found


# ---- the work


def summarize_piece(room: Room, tell: Tell, piece: SummaryPiece) -> list[WrittenSummary]:
    """Write the summaries that belong to a piece, and return their names: work for a crew.  Raises FormatError."""
    repository = room.repository
    summarizer = _summarizer(repository, piece.range, piece.end, is_first=piece.is_first)
    own = _Own(piece, repository)
    for summaries in _fed(repository, summarizer, piece.range):
        own.take(summaries)
        if own.is_done or own.begins_behind(summarizer.position):
            break
    else:
        _require_end(repository, summarizer, piece.range.timeline_id)
        if summarizer.complete and piece.is_closed:
            summarizer.finish(piece.end)
            own.take(summarizer.take_pieces())
    tell(piece.range.end - piece.range.start)
    return own.written


class _Own:
    """Writes those summaries of a pass that belong to a piece."""

    def __init__(self, piece: SummaryPiece, repository: Repository) -> None:
        self.written: list[WrittenSummary] = []
        self.is_done = False
        """Whether what comes now belongs to the next piece."""
        self._has_none = not piece.is_first
        """Whether all that has come belongs to the piece before."""
        self._repository = repository
        self._place = repository.geometry.first_record_position
        self._start, self._end = piece.range.start, piece.range.end
        self._cuts_at_segments = not wal_format_of_major(repository.identity.major).has_checkpoint_redo
        self._minimal = piece.was_minimal

    def begins_behind(self, position: Lsn) -> bool:
        """Tell whether the first summary behind a position belongs to a later piece, and none to this one."""
        return self._has_none and not self._cuts_at_segments and position >= self._end

    def take(self, summaries: Iterable[Summary]) -> None:
        for summary in summaries:
            if self.is_done:
                return
            self._minimal = self._minimal if summary.minimal is None else summary.minimal
            if self._has_none:
                # What goes on from before ends at the first cut, which before 17 lies behind the border itself.
                is_border = self._place(summary.range.end) == self._place(self._start)
                self._has_none = self._cuts_at_segments and is_border
                self.is_done = not self._cuts_at_segments and summary.range.end >= self._end
                continue
            self._write(summary)
            # A border is a cut itself before 17, where the next piece does not see it.
            reached = summary.range.start if self._cuts_at_segments else summary.range.end
            self.is_done = reached >= self._end

    def _write(self, summary: Summary) -> None:
        if self._minimal:
            # A hole in the summaries is what says that they are of no use.
            return
        self._repository.summaries.write_new(summary.range, summary.block_map, summary.link)
        name = summary_file_name(summary.range)
        self.written.append(WrittenSummary(summary.range, name, summary.block_map.block_count()))


def _summarizer(repository: Repository, part: LsnRange, stop: Lsn, *, is_first: bool) -> Summarizer:
    return Summarizer(
        part.timeline_id,
        _format(repository),
        repository.geometry,
        part.start,
        stop=stop,
        continues=not is_first,
        system_identifier=repository.identity.system_identifier,
    )


def _fed(repository: Repository, summarizer: Summarizer, part: LsnRange) -> Iterator[list[Summary]]:
    """Feed the WAL of a range and what comes behind it, and yield what is finished each time."""
    with closing(read_ahead(repository.wal.parts(part.timeline_id, part.start))) as parts:
        for source, data in parts:
            summarizer.feed(data)
            yield summarizer.take_pieces()
            if summarizer.complete or summarizer.end_of_wal is not None:
                return
            repository.wal.require_read(source)


def _require_end(repository: Repository, summarizer: Summarizer, timeline_id: int) -> None:
    """Raise FormatError where WAL that was read up to its end ends before the last segment."""
    if summarizer.end_of_wal is not None:
        require_last_segment(
            repository.wal, _format(repository), timeline_id, summarizer.end_of_wal, summarizer.feed_lsn
        )


def _format(repository: Repository) -> WalFormat:
    return wal_format_of_major(repository.identity.major)
