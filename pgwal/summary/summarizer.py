"""WAL bytes of one timeline in, block maps of ranges of it out.

Follows SummarizeWAL in src/backend/postmaster/walsummarizer.c, PostgreSQL 17 and 18.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from pgwal.errors import FormatError
from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import Fork
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.wal import layout
from pgwal.wal.page_magic import WalFormat
from pgwal.wal.record import EndOfWal, EndReason
from pgwal.wal.rmgr import shortenings, wal_level_of
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, SPECIAL, STOP, WalScanner

_CUTTING_OPERATIONS = (
    layout.XLOG_CHECKPOINT_REDO,
    layout.XLOG_CHECKPOINT_SHUTDOWN,
    layout.XLOG_PARAMETER_CHANGE,
    layout.XLOG_END_OF_RECOVERY,
)


class Summary(NamedTuple):
    """What changed in a range of WAL."""

    range: LsnRange
    block_map: BlockMap


class ChangeReader:
    """Reads what changed in [start, stop) of one timeline, and nothing else, into one map.

    ``position`` is how far the map is complete; ``complete`` once it reaches ``stop``.  ``minimal_lsn`` is where
    WAL written with wal_level = minimal begins, if it does: the map misses changes from there on.
    """

    def __init__(
        self, wal_format: WalFormat, geometry: WalGeometry, start: Lsn, stop: Lsn, *, system_identifier: int = 0
    ) -> None:
        self.block_map = BlockMap()
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

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the WAL that follows; what lies after the range is passed over.

        Raises FormatError, with the position, for a record that cannot be understood.
        """
        if self.complete or self.end_of_wal is not None:
            return
        self._scanner.feed(data)
        while (event := self._scanner.scan()) == SPECIAL:
            _absorb_blocks(self._scanner, self.block_map)
            _apply_special(self._scanner, self._wal_format, self.block_map)
            level = _announced_wal_level(self._scanner, self._wal_format)
            if level == layout.WAL_LEVEL_MINIMAL and self.minimal_lsn is None:
                self.minimal_lsn = Lsn(self._scanner.special_lsn)
        _absorb_blocks(self._scanner, self.block_map)
        self.complete = event == STOP
        if event == END_OF_WAL:
            self.end_of_wal = _end_of_wal(self._scanner)


class Summarizer:
    """Cuts the WAL of one timeline into summaries as it arrives.

    From 17 on they are cut where the server cuts its own: before the record of each redo point, shutdown
    checkpoint, parameter change and end of recovery.  Before 17 they are cut at the end of each segment; the record
    that crosses it belongs to the range in which it starts.  Ranges written with wal_level = minimal are left out:
    a hole in the summaries is what says that they are unusable.
    """

    def __init__(
        self,
        timeline_id: int,
        wal_format: WalFormat,
        geometry: WalGeometry,
        start: Lsn,
        *,
        system_identifier: int = 0,
    ) -> None:
        self._timeline_id = timeline_id
        self._wal_format = wal_format
        self._geometry = geometry
        self._scanner = _scanner(wal_format, geometry, start, system_identifier)
        self._start = geometry.first_record_position(start)
        self._minimal = False
        self._block_map = BlockMap()
        self._finished: deque[Summary] = deque()
        if not wal_format.has_checkpoint_redo:
            self._scanner.stop_lsn = self._next_segment_start(start)

    @property
    def feed_lsn(self) -> Lsn:
        """The position of the next byte to feed."""
        return Lsn(self._scanner.feed_lsn)

    @property
    def position(self) -> Lsn:
        """Up to where every record is in a map, finished or not."""
        return Lsn(self._scanner.position)

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the WAL that follows, which is known to be valid.

        Raises FormatError, with the position, when it is not, or holds a record that cannot be understood.
        """
        self._scanner.feed(data)
        while (event := self._scanner.scan()) != NEED_DATA:
            if event == END_OF_WAL:
                raise FormatError(
                    f"timeline {self._timeline_id}: {_end_of_wal(self._scanner)}, but more was received"
                )
            _absorb_blocks(self._scanner, self._block_map)
            if event == STOP:
                self._cut(Lsn(self._scanner.stop_lsn))
                self._scanner.stop_lsn = self._next_segment_start(Lsn(self._scanner.stop_lsn))
            else:
                self._take_special()
        _absorb_blocks(self._scanner, self._block_map)

    def take_finished(self) -> list[Summary]:
        """Return the summaries finished since the last call, in LSN order."""
        finished = list(self._finished)
        self._finished.clear()
        return finished

    def finish_at_switch(self, switch_lsn: Lsn) -> list[Summary]:
        """End the timeline at ``switch_lsn`` and return the summaries not taken yet."""
        self._cut(switch_lsn)
        return self.take_finished()

    def _take_special(self) -> None:
        scanner = self._scanner
        level = _announced_wal_level(scanner, self._wal_format)
        if level is not None and self._is_cut(scanner.special_rmid, scanner.special_info):
            self._cut(Lsn(scanner.special_lsn))
            self._minimal = level == layout.WAL_LEVEL_MINIMAL
        _apply_special(scanner, self._wal_format, self._block_map)

    def _is_cut(self, rmid: int, info: int) -> bool:
        return rmid == layout.RM_XLOG and info & layout.INFO_RMGR_MASK in _CUTTING_OPERATIONS

    def _cut(self, end: Lsn) -> None:
        """Finish the range at ``end``, where the next one starts."""
        if end > self._start:
            if not self._minimal:
                summary_range = LsnRange(self._timeline_id, self._start, end)
                self._finished.append(Summary(summary_range, self._block_map))
            self._block_map = BlockMap()
            self._start = end

    def _next_segment_start(self, lsn: Lsn) -> Lsn:
        return self._geometry.segment_start(self._geometry.segment_no(lsn) + 1)


def _scanner(wal_format: WalFormat, geometry: WalGeometry, start: Lsn, system_identifier: int) -> WalScanner:
    return WalScanner(geometry.segment_size, start, magic=wal_format.magic, system_identifier=system_identifier)


def _end_of_wal(scanner: WalScanner) -> EndOfWal:
    return EndOfWal(Lsn(scanner.position), EndReason(scanner.end_reason))


def _absorb_blocks(scanner: WalScanner, block_map: BlockMap) -> None:
    """Move the blocks seen since the last call into the map; the FSM is never in it (it is not fully logged)."""
    for key, block_numbers in scanner.take_blocks():
        if key[3] != Fork.FSM:
            block_map.mark(RelationFork(*key), block_numbers)


def _apply_special(scanner: WalScanner, wal_format: WalFormat, block_map: BlockMap) -> None:
    found = shortenings(
        wal_format, scanner.special_lsn, scanner.special_rmid, scanner.special_info, scanner.special_main
    )
    for spc_oid, db_oid, rel_number, fork, limit_block in found:
        block_map.set_limit(RelationFork(spc_oid, db_oid, rel_number, fork), limit_block)


def _announced_wal_level(scanner: WalScanner, wal_format: WalFormat) -> int | None:
    if scanner.special_rmid != layout.RM_XLOG:
        return None
    return wal_level_of(wal_format, scanner.special_lsn, scanner.special_info, scanner.special_main)
