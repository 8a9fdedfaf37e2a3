"""Read the records of recorded WAL, decoded by construct, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgwal.errors import ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.relation import Fork, RelFileLocator
from pgwal.repository.local import LocalStore
from pgwal.repository.wal_directory import WalDirectory, open_wal_directory, split_segment_name
from pgwal.segment import is_segment_name
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
        only = path.name if path.is_file() else None
        if not path.exists():
            raise ObjectNotFound(f"{path} does not exist")
        self._store = LocalStore(path.parent if only else path)
        directory, self.wal_format = open_wal_directory(self._store, only=only)
        self._directory: WalDirectory = directory
        segments = [s for s in directory.segments() if timeline_id in (None, s.timeline_id)]
        if only:
            base = split_segment_name(only)[0]
            key = directory.geometry.parse_file_name(base) if is_segment_name(base) else None
            segments = [s for s in segments if (s.timeline_id, s.segment_no) == key]
        if not segments:
            raise ObjectNotFound(f"{path} holds no WAL of that timeline")
        self.timeline_id = timeline_id or segments[-1].timeline_id
        self._segments = [s.segment_no for s in segments if s.timeline_id == self.timeline_id]
        self.end: EndOfWal | None = None

    def records(self, wanted: RecordFilter) -> Iterator[WalRecord]:
        """Yield the records that are wanted, in order.

        Raises FormatError for a record whose CRC is right and whose contents are not.
        """
        geometry = self._directory.geometry
        start = Lsn(max(wanted.start or 0, geometry.segment_start(self._segments[0])))
        stop = geometry.segment_start(self._segments[-1] + 1)
        decoder = WalDecoder(geometry.segment_size, start, wal_format=self.wal_format)
        for data in self._directory.read(self.timeline_id, start):
            decoder.feed(data[: max(0, stop - decoder.feed_lsn)])
            while isinstance(record := decoder.next_record(), WalRecord):
                if wanted.end is not None and record.lsn >= wanted.end:
                    return
                if wanted.wants(record):
                    yield record
            if isinstance(record, EndOfWal):
                self.end = record
                return
