"""Copy the WAL that backups need to another repository: segments, timeline histories, and what was summarised.

Nothing is stored over what is there; that it is of the same history is for ``same_history`` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import NamedTuple

from pgwal.budget import PART_BYTES, SEGMENTS_IN_A_RUN
from pgwal.engine.copied_segments import SegmentRun, copy_run
from pgwal.engine.fleet import Crew, Room, Tell
from pgwal.errors import FormatError, ObjectExists, ObjectNotFound, ObjectRetained
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.compression import Compression
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.place import address_of
from pgwal.repository.repository import Repository
from pgwal.repository.store import SealingStore, as_sealing, objects_in
from pgwal.repository.wal_compressor import compressed_pieces
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.repository.wal_file_name import partial_end, partial_name, split_segment_name
from pgwal.segment import is_segment_name
from pgwal.summary.codec import MAX_READ_SUMMARY_BYTES, decode_summary, summary_file_name
from pgwal.timeline import history_file_name

Needs = Callable[[LsnRange], bool]


class MissingWal(NamedTuple):
    """What is to be copied; sizes are those of files as stored in the source."""

    segments: list[WalSegmentFile]
    partial: list[WalSegmentFile]
    summaries: list[LsnRange]
    size_bytes: int


def find_missing_wal(source: Repository, target: Repository | None, needs: Needs) -> MissingWal:
    """Return what is needed, and is not in the target, where there is one."""
    geometry = source.geometry

    def is_needed(segment: WalSegmentFile) -> bool:
        bounds = map(geometry.segment_start, (segment.segment_no, segment.segment_no + 1))
        return needs(LsnRange(segment.timeline_id, *bounds))

    whole, summarised = set[tuple[int, int]](), set[LsnRange]()
    if target is not None:
        whole = {(each.timeline_id, each.segment_no) for each in target.wal.segments() if each.complete}
        summarised = set(target.summaries.ranges())
    segments = [each for each in source.wal.segments() if (each.timeline_id, each.segment_no) not in whole]
    wanted = [segment for segment in segments if is_needed(segment)]
    sizes = dict(objects_in(source.store, WAL_DIRECTORY))
    return MissingWal(
        [segment for segment in wanted if segment.complete],
        [segment for segment in wanted if not segment.complete],
        [part for part in source.summaries.ranges() if needs(part) and part not in summarised],
        sum(sizes.get(segment.name, 0) for segment in wanted if segment.complete),
    )


class WalCopier:
    """Copies WAL from ``source`` to ``target``; only under the receiver's lock of the latter.

    ``as_stored`` says that what is encrypted in the one can be read in the other: it is not sealed anew, and without an
    identity not opened, so that nothing but its form is proven.  ``opens`` says that there is an identity, where one is
    needed.
    """

    def __init__(
        self,
        source: Repository,
        target: Repository,
        *,
        as_stored: bool,
        opens: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._geometry = source.geometry
        sealing, target_sealing = as_sealing(source.store), as_sealing(target.store)
        self._sealing: SealingStore | None = None
        self._from, self._to = source.store, target.store
        if as_stored and sealing is not None and target_sealing is not None:
            self._sealing = sealing
            self._from, self._to = sealing.as_stored, target_sealing.as_stored
        self._opens = opens
        self.segment_count = 0
        self.bytes_copied = 0
        self.summary_count = 0
        self.problems: list[tuple[str, str]] = []
        """Names of damaged segments of the source, which were not copied, and what is wrong."""

    # -- what there is -----------------------------------------------------------------------------------------

    @cached_property
    def _there(self) -> dict[tuple[int, int], WalSegmentFile]:
        return {(segment.timeline_id, segment.segment_no): segment for segment in self._source.wal.segments()}

    @cached_property
    def _left_at(self) -> dict[int, set[Lsn]]:
        found: dict[int, set[Lsn]] = {}
        for history in self._source.wal.histories():
            for timeline_id, lsn in history.switches:
                found.setdefault(timeline_id, set()).add(lsn)
        return found

    # -- copying -----------------------------------------------------------------------------------------------

    def copy(self, missing: MissingWal, workers: Crew) -> None:
        """Copy what is missing, durably; what is damaged in the source is among the ``problems`` then."""
        self._copy_histories()
        runs = list(self._runs(missing.segments))
        with closing(workers.map(copy_run, runs)) as verdicts:
            for run, verdict in zip(runs, verdicts, strict=True):
                self.segment_count += len(verdict.sizes_bytes)
                self.bytes_copied += sum(verdict.sizes_bytes.values())
                self.problems += verdict.problems
                for segment in run.segments:
                    if segment.name in verdict.sizes_bytes:
                        self._drop_partials(split_segment_name(segment.name)[0])
        for segment in missing.partial:
            self._copy_partial(segment)
        to = address_of(self._target.place)
        with closing(workers.map(copy_summary, (SummaryToCopy(to, part) for part in missing.summaries))) as copied:
            for _ in copied:
                self.summary_count += 1

    def _runs(self, segments: Sequence[WalSegmentFile]) -> Iterator[SegmentRun]:
        """Yield consecutive segments together, as many as one worker is to copy."""
        to, run = address_of(self._target.place), list[WalSegmentFile]()
        for segment in (*segments, None):
            if run and (segment is None or len(run) == SEGMENTS_IN_A_RUN or not _follows(run[-1], segment)):
                timeline_id, first, last = run[0].timeline_id, run[0].segment_no, run[-1].segment_no
                there = [number for number in range(first - 1, last + 2) if (timeline_id, number) in self._there]
                left_at = sorted(self._left_at.get(timeline_id, ()))
                yield SegmentRun(to, run, there, left_at, self._sealing is not None, self._opens)
                run = []
            if segment is not None:
                run.append(segment)

    def _copy_histories(self) -> None:
        for timeline_id in sorted(
            set(self._source.wal.history_timelines()) - set(self._target.wal.history_timelines())
        ):
            content = self._source.wal.history_content(timeline_id)
            self._target.store.put(f"{WAL_DIRECTORY}/{history_file_name(timeline_id)}", content)

    # -- what is being received --------------------------------------------------------------------------------

    def _copy_partial(self, segment: WalSegmentFile) -> None:
        """Copy a segment that is being received, as far as its records are whole; it comes again when it has grown."""
        if not self._opens:
            self._copy_partial_as_stored(segment)
            return
        base = self._geometry.file_name(segment.timeline_id, segment.segment_no)
        start = self._geometry.segment_start(segment.segment_no)
        before = self._there.get((segment.timeline_id, segment.segment_no - 1))
        try:
            end, _ = self._source.wal.end_of_records(segment, *([before] if before is not None else []))
            size_bytes = end - start
            if size_bytes <= 0 or end <= self._partial_end(base):
                return
            method = Compression()
            with self._source.wal.open_segment(segment) as reader:
                pieces = (reader.read(min(PART_BYTES, size_bytes - at)) for at in range(0, size_bytes, PART_BYTES))
                content = compressed_pieces(pieces, method, size_bytes)
                name = partial_name(base, end, method.suffix)
                self._target.store.put(f"{WAL_DIRECTORY}/{name}", content)
        except (ObjectNotFound, ObjectExists):
            # It has become whole meanwhile, or was copied before.
            return
        self.bytes_copied += size_bytes
        self._drop_partials(base, but=name)

    def _copy_partial_as_stored(self, segment: WalSegmentFile) -> None:
        base, end = split_segment_name(segment.name)[0], partial_end(segment.name)
        path = f"{WAL_DIRECTORY}/{segment.name}"
        if end is None or self._sealing is None or end <= self._partial_end(base):
            return
        with suppress(ObjectNotFound, ObjectExists):
            self._sealing.require_form(path)
            content = self._from.get(path, most_bytes=self._from.size(path))
            self._to.put(path, content)
            self.bytes_copied += len(content)
            self._drop_partials(base, but=segment.name)

    def _partial_end(self, base: str) -> Lsn:
        """Return up to where the target has a segment that is not whole there."""
        return max((partial_end(name) or Lsn(0) for name in self._partials.get(base, ())), default=Lsn(0))

    @cached_property
    def _partials(self) -> dict[str, list[str]]:
        """The files of segments that are not whole in the target, where their names tell up to where they count."""
        found: dict[str, list[str]] = {}
        for name, _ in objects_in(self._target.store, WAL_DIRECTORY):
            base, _, complete = split_segment_name(name)
            if is_segment_name(base) and not complete and partial_end(name) is not None:
                found.setdefault(base, []).append(name)
        return found

    def _drop_partials(self, base: str, *, but: str = "") -> None:
        for name in self._partials.get(base, ()):
            if name != but:
                with suppress(ObjectNotFound, ObjectRetained):
                    self._to.delete(f"{WAL_DIRECTORY}/{name}")


def _follows(before: WalSegmentFile, after: WalSegmentFile) -> bool:
    return (before.timeline_id, before.segment_no + 1) == (after.timeline_id, after.segment_no)


class SummaryToCopy(NamedTuple):
    """A summary, and the address of the repository to copy it to."""

    to: str
    part: LsnRange


def copy_summary(room: Room, tell: Tell, piece: SummaryToCopy) -> None:  # noqa: ARG001
    """Copy a summary: work for a crew."""
    name = f"{SUMMARY_DIRECTORY}/{summary_file_name(piece.part)}"
    try:
        content = room.repository.store.get(name, most_bytes=MAX_READ_SUMMARY_BYTES)
        decode_summary(content, name)
    except (ObjectNotFound, FormatError):
        # It is made again from WAL, which is there.
        return
    with suppress(ObjectExists):
        room.target(piece.to).store.put(name, content)
