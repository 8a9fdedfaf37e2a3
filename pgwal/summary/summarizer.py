"""WAL bytes of one timeline in, block maps of ranges of it out.

Follows SummarizeWAL in src/backend/postmaster/walsummarizer.c, PostgreSQL 17 to 19.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pgwal.budget import UNMEASURED_REFERENCES, UNTAKEN_BLOCKS
from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import Fork
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.codec import require_size
from pgwal.summary.link import UNKNOWN, Link
from pgwal.wal import layout
from pgwal.wal.page_magic import WalFormat
from pgwal.wal.record import EndOfWal
from pgwal.wal.rmgr import HEAP_BLOCKS_PER_VM_BLOCK, shortenings, wal_level_of
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, SPECIAL, STOP, WalScanner, WalSource

_CUTTING_OPERATIONS = (
    layout.XLOG_CHECKPOINT_REDO,
    layout.XLOG_CHECKPOINT_SHUTDOWN,
    layout.XLOG_PARAMETER_CHANGE,
    layout.XLOG_END_OF_RECOVERY,
)


class Summary(NamedTuple):
    """What changed in a range of WAL, and what links it to the ranges before and behind it.

    ``minimal`` tells whether the range was written with wal_level = minimal, and so misses changes; None when nothing
    in it or before it said so.
    """

    range: LsnRange
    block_map: BlockMap
    link: Link
    minimal: bool | None = None


class ChangeReader:
    """Reads what changed in [start, stop) of one timeline, and nothing else, into one map.

    ``position`` is how far the map is complete; ``complete`` once it reaches ``stop``.  ``minimal_lsn`` is where
    WAL written with wal_level = minimal begins, if it does: the map misses changes from there on.  ``derived`` holds
    the visibility-map blocks that records change without referring to them.
    """

    def __init__(
        self, wal_format: WalFormat, geometry: WalGeometry, start: Lsn, stop: Lsn, *, system_identifier: int = 0
    ) -> None:
        self.block_map = BlockMap()
        self.derived = BlockMap()
        self.complete = False
        self.end_of_wal: EndOfWal | None = None
        self.minimal_lsn: Lsn | None = None
        self._wal_format = wal_format
        self._scanner = _scanner(wal_format, geometry, start, system_identifier)
        self._scanner.stop_lsn = stop

    @property
    def feed_lsn(self) -> Lsn:
        """The position of the next byte to feed: at first the start of the page that holds the range's start."""
        return Lsn(self._scanner.feed_lsn)

    @property
    def position(self) -> Lsn:
        return Lsn(self._scanner.position)

    @property
    def first_record_lsn(self) -> Lsn:
        """Where the first record of the range starts; 0 before one is found."""
        return Lsn(self._scanner.first_record_lsn)

    @property
    def link(self) -> Link:
        """What links the range to the WAL before and behind it, when it is ``complete``."""
        last_lsn = Lsn(self._scanner.last_record_lsn)
        return Link(Lsn(self._scanner.first_prev_lsn) if self._scanner.record_count else last_lsn, last_lsn)

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the WAL that follows; what lies after the range is passed over.

        Raises FormatError, with the position, for a record that cannot be understood.
        """
        if self.complete or self.end_of_wal is not None:
            return
        self._scanner.feed(data)
        while (event := self._scanner.scan()) == SPECIAL:
            self._absorb()
            _apply_special(self._scanner, self._wal_format, self.block_map, self.derived)
            level = _announced_wal_level(self._scanner, self._wal_format)
            if level == layout.WAL_LEVEL_MINIMAL and self.minimal_lsn is None:
                self.minimal_lsn = Lsn(self._scanner.special_lsn)
        self._absorb()
        self.complete = event == STOP
        if event == END_OF_WAL:
            self.end_of_wal = _end_of_wal(self._scanner)

    def _absorb(self) -> None:
        _absorb_changes(self._scanner, self.block_map)
        for key, block_numbers in self._scanner.take_derived_blocks():
            self.derived.mark(RelationFork(*key), block_numbers)


class Summarizer:
    """Cuts the WAL of one timeline into summaries as it arrives.

    From 17 on they are cut where the server cuts its own: before the record of each redo point, shutdown
    checkpoint, parameter change and end of recovery.  Before 17 they are cut at the end of each segment, behind the
    record that crosses it.  So each begins and ends where records do.  Ranges written with wal_level = minimal are left
    out: a hole in the summaries is what says that they are unusable.

    ``end_of_wal`` tells when what was fed is no record, or none that links to the one before it: only the caller knows
    whether that is damage.
    """

    def __init__(
        self,
        timeline_id: int,
        wal_format: WalFormat,
        geometry: WalGeometry,
        start: Lsn,
        *,
        stop: Lsn | None = None,
        prev_lsn: Lsn | None = None,
        continues: bool = False,
        system_identifier: int = 0,
    ) -> None:
        """``prev_lsn`` is where the record before ``start`` starts: the first one must link to it.

        Where that is not known, WAL is summarised from the first record that starts at or after ``start``.
        ``continues``: what was written before ``start`` is summarised elsewhere, and joined by join_pieces.
        """
        self.end_of_wal: EndOfWal | None = None
        self.complete = False
        self._timeline_id = timeline_id
        self._wal_format = wal_format
        self._geometry = geometry
        self._prev_lsn = prev_lsn or Lsn(0)
        self._scanner = _scanner(
            wal_format, geometry, start, system_identifier, prev_lsn=self._prev_lsn, derive_map_blocks=False
        )
        self._start = start if continues else geometry.first_record_position(start)
        self._continues = continues
        self._stop = stop
        self._minimal: bool | None = None
        self._block_map = BlockMap(keep_forgotten=continues)
        self._finished: list[Summary] = []
        self._measured_count = 0
        self._set_next_stop(start)

    @property
    def feed_lsn(self) -> Lsn:
        """The position of the next byte to feed."""
        return Lsn(self._scanner.feed_lsn)

    @property
    def position(self) -> Lsn:
        """Up to where every record will be in a summary when that is finished."""
        return Lsn(self._scanner.position)

    @property
    def first_record_lsn(self) -> Lsn:
        """Where the first record starts that was summarised; 0 before there is one."""
        return Lsn(self._scanner.first_record_lsn)

    @property
    def link(self) -> Link:
        """What links all that was summarised so far to the WAL before and behind it."""
        if not self._scanner.record_count:
            return Link(self._prev_lsn, self._prev_lsn)
        return Link(Lsn(self._scanner.first_prev_lsn), Lsn(self._scanner.last_record_lsn))

    def feed(self, data: bytes | memoryview | WalSource) -> None:
        """Take in the WAL that follows, up to the stop if there is one; a source is read no further than that.

        Raises FormatError, with the position, for a record that cannot be understood; LimitExceeded for more changes
        than fit into a summary.
        """
        if self.complete or self.end_of_wal is not None:
            return
        if isinstance(data, WalSource):
            self._scanner.read(data)
        else:
            self._scanner.feed(data)
        while (event := self._scanner.scan()) != NEED_DATA:
            self._absorb()
            if event == SPECIAL:
                self._take_special()
                continue
            if event == END_OF_WAL:
                self.end_of_wal = _end_of_wal(self._scanner)
                return
            self.complete = self._scanner.stop_lsn == self._stop
            if self.complete:
                return
            self._cut(self.position, self.link.last_lsn)
            self._set_next_stop(self.position)
        if self._scanner.untaken_count >= UNTAKEN_BLOCKS:
            self._absorb()

    @property
    def has_finished(self) -> bool:
        """Whether summaries were finished since they were taken last."""
        return bool(self._finished)

    def take_finished(self) -> list[Summary]:
        """Return the usable summaries finished since the last call, in LSN order."""
        return [summary for summary in self.take_pieces() if not summary.minimal]

    def take_pieces(self) -> list[Summary]:
        """Return all summaries finished since the last call, those of wal_level = minimal among them."""
        finished, self._finished = self._finished, []
        return finished

    def finish(self, end: Lsn) -> None:
        """Finish the last summary at ``end``, where the timeline or what is known of it ends.

        With a stop that was reached, it ends behind the record that is there.
        """
        _absorb_changes(self._scanner, self._block_map)
        self._cut(max(end, self.position) if self.complete else end, self.link.last_lsn)

    def _absorb(self) -> None:
        _absorb_changes(self._scanner, self._block_map)
        count = self._scanner.block_reference_count
        if count - self._measured_count >= UNMEASURED_REFERENCES:
            self._measured_count = count
            require_size(self._block_map, f"WAL {LsnRange(self._timeline_id, self._start, self.position)}")

    def _take_special(self) -> None:
        scanner = self._scanner
        level = _announced_wal_level(scanner, self._wal_format)
        if level is not None and scanner.special_info & layout.INFO_RMGR_MASK in _CUTTING_OPERATIONS:
            self._cut(Lsn(scanner.special_lsn), Lsn(scanner.special_prev_lsn))
            self._minimal = level == layout.WAL_LEVEL_MINIMAL
        _apply_special(scanner, self._wal_format, self._block_map)

    def _cut(self, end: Lsn, last_lsn: Lsn) -> None:
        """Finish the range at ``end``, before which ``last_lsn`` is the last record; there the next one starts.

        One without room for a record is none.
        """
        place = self._geometry.first_record_position
        if not self._prev_lsn and self._scanner.record_count:
            # The first record: what is before it belongs to a record that starts before ``start``.
            self._prev_lsn = Lsn(self._scanner.first_prev_lsn)
            self._start = max(self._start, Lsn(self._scanner.first_record_lsn))
        link = Link(self._prev_lsn, last_lsn)
        # What goes on with the range before it tells that this one ends here, even when it adds nothing.
        if self._continues or (place(end) > place(self._start) and link != UNKNOWN):
            summary_range = LsnRange(self._timeline_id, self._start, end)
            self._finished.append(Summary(summary_range, self._block_map, link, self._minimal))
            self._block_map = BlockMap()
            self._start = end
            self._continues = False
        self._prev_lsn = last_lsn

    def _set_next_stop(self, lsn: Lsn) -> None:
        """Have the scanner stop at the next segment end, where that is a cut, and at the stop."""
        stops = [] if self._stop is None else [self._stop]
        if not self._wal_format.has_checkpoint_redo:
            stops.append(self._geometry.segment_start(self._geometry.segment_no(lsn) + 1))
        if stops:
            self._scanner.stop_lsn = min(stops)


def join_pieces(parts: Iterable[list[Summary]], *, cut_at_joints: bool) -> Iterator[Summary]:
    """Join what consecutive parts of a timeline gave to the usable summaries that one pass would have given.

    Unless ``cut_at_joints``, the first summary of a part, which ``continues``, goes on with the last one of the part
    before.  Each summary is yielded as soon as it is whole.  The caller has seen that the parts link to each other.
    """
    last: Summary | None = None
    for pieces in parts:
        for number, piece in enumerate(pieces):
            if last is None:
                # What only ends a range that began in no part before, where a record goes over all of them, is none.
                last = piece if piece.range.start < piece.range.end and piece.link != UNKNOWN else None
            elif number == 0 and not cut_at_joints:
                last = _continued(last, piece)
            else:
                if not last.minimal:
                    yield last
                last = _following(last, piece)
    if last is not None and not last.minimal:
        yield last


def _continued(last: Summary, piece: Summary) -> Summary:
    """Return a summary with the piece that goes on with it."""
    last.block_map.merge(piece.block_map)
    # A piece that lies within one record ends before that does.
    end = max(last.range.end, piece.range.end)
    link = Link(last.link.prev_lsn, piece.link.last_lsn or last.link.last_lsn)
    return last._replace(range=last.range._replace(end=end), link=link)


def _following(last: Summary, piece: Summary) -> Summary:
    """Return the summary after ``last``: it starts where that ends, and the same wal_level holds until it changes."""
    minimal = last.minimal if piece.minimal is None else piece.minimal
    return piece._replace(range=piece.range._replace(start=last.range.end), minimal=minimal)


def _scanner(
    wal_format: WalFormat,
    geometry: WalGeometry,
    start: Lsn,
    system_identifier: int,
    *,
    prev_lsn: int = 0,
    derive_map_blocks: bool = True,
) -> WalScanner:
    return WalScanner(
        geometry.segment_size,
        start,
        magic=wal_format.magic,
        system_identifier=system_identifier,
        prev_lsn=prev_lsn,
        derive_map_blocks=derive_map_blocks,
        decode_shortenings=True,
    )


def _end_of_wal(scanner: WalScanner) -> EndOfWal:
    assert scanner.end_reason is not None
    return EndOfWal(Lsn(scanner.position), scanner.end_reason)


def _absorb_changes(scanner: WalScanner, block_map: BlockMap) -> None:
    """Move what changed since the last call into the map."""
    block_map.apply(scanner.take_changes())


# What the scanner hands over: records that announce a wal_level, and those that are not as a server writes them.
def _apply_special(
    scanner: WalScanner, wal_format: WalFormat, block_map: BlockMap, derived: BlockMap | None = None
) -> None:
    found = shortenings(
        wal_format, scanner.special_lsn, scanner.special_rmid, scanner.special_info, scanner.special_main
    )
    for spc_oid, db_oid, rel_number, fork, limit_block in found:
        block_map.set_limit(RelationFork(spc_oid, db_oid, rel_number, fork), limit_block)
        # The map's page that holds bits of both kept and truncated blocks is cleared in part, and seldom logged.
        if derived is not None and fork == Fork.MAIN and limit_block % HEAP_BLOCKS_PER_VM_BLOCK:
            vm = RelationFork(spc_oid, db_oid, rel_number, Fork.VM)
            derived.mark(vm, (limit_block // HEAP_BLOCKS_PER_VM_BLOCK,))


def _announced_wal_level(scanner: WalScanner, wal_format: WalFormat) -> int | None:
    if scanner.special_rmid != layout.RM_XLOG:
        return None
    return wal_level_of(wal_format, scanner.special_lsn, scanner.special_info, scanner.special_main)
