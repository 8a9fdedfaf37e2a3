"""Read the records of recorded WAL, decoded by construct, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgwal.engine.recorded import open_recorded_wal
from pgwal.engine.recorded_ranges import require_contiguous, require_last_segment
from pgwal.errors import ObjectNotFound, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import Fork, RelFileLocator
from pgwal.wal.decoder import WalDecoder
from pgwal.wal.names import rmgr_name
from pgwal.wal.record import EndOfWal, WalRecord


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records are wanted: those that start in [start, end) and match all that is not None."""

    start: Lsn | None = None
    end: Lsn | None = None
    rmgr: str | None = None
    relation: RelFileLocator | None = None
    fork: Fork | None = None
    block_no: int | None = None

    def wants(self, record: WalRecord) -> bool:
        if self.rmgr is not None and rmgr_name(record.rmid).lower() != self.rmgr.lower():
            return False
        if self.relation is None and self.fork is None and self.block_no is None:
            return True
        return any(
            (self.relation is None or block.locator == self.relation)
            and (self.fork is None or block.fork == self.fork)
            and (self.block_no is None or block.block_no == self.block_no)
            for block in record.blocks
        )


class RecordedWal:
    """The records of a directory of segments, or of one segment; ``end`` tells why they end where they do."""

    def __init__(self, path: Path, timeline_id: int | None = None) -> None:
        """Open recorded WAL; raises ObjectNotFound when there is none, or none of the timeline."""
        self._directory, self.wal_format = open_recorded_wal(path)
        segments = [s for s in self._directory.written_segments() if timeline_id in (None, s.timeline_id)]
        if not segments:
            raise ObjectNotFound(f"{path} holds no WAL{'' if timeline_id is None else f' of timeline {timeline_id}'}")
        self.timeline_id = segments[-1].timeline_id
        self._segments = [s for s in segments if s.timeline_id == self.timeline_id]
        self._path = path
        self.end: EndOfWal | None = None

    def records(self, wanted: RecordFilter) -> Iterator[WalRecord]:
        """Yield the records that are wanted, in order.

        Raises FormatError for a record whose CRC is right and whose contents are not, and when WAL ends before its
        last segment; TimelineMismatch where another history goes on there; WalGap when there is none at the start, or
        segments are missing before the end.
        """
        whole = self._range()
        start = whole.start if wanted.start is None else wanted.start
        if not whole.start <= start < whole.end:
            raise WalGap(f"{self._path} holds WAL {whole}, not of {start}")
        decoder = WalDecoder(self._directory.geometry.segment_size, start, wal_format=self.wal_format)
        for data in self._directory.read(self.timeline_id, start):
            decoder.feed(data)
            while isinstance(record := decoder.next_record(), WalRecord):
                if wanted.end is not None and record.lsn >= wanted.end:
                    return
                if wanted.wants(record):
                    yield record
            if isinstance(record, EndOfWal):
                require_last_segment(self._directory, self.wal_format, self.timeline_id, record, decoder.feed_lsn)
                self.end = record
                return
        if decoder.feed_lsn < (whole.end if wanted.end is None else min(whole.end, wanted.end)):
            require_contiguous(self._directory, self._segments)

    def _range(self) -> LsnRange:
        geometry = self._directory.geometry
        first, last = self._segments[0].segment_no, self._segments[-1].segment_no
        return LsnRange(self.timeline_id, geometry.segment_start(first), geometry.segment_start(last + 1))
