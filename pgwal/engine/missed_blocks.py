"""Tell of blocks whose pages are newer than the block map says whether they have been missed, and by which record.

A page that changed after the map's end is named by WAL behind that; one of a file that was shortened, dropped or copied
meanwhile is no longer what was looked at, and WAL says so too.  What neither explains has been missed, if the record
that ends at the page's LSN is in the archive, or the page says the same when it is read again.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from pgwal.backup.page_check import pages
from pgwal.backup.source import BlockSource
from pgwal.budget import AUDIT_REREADS, REREAD_PAUSE_S
from pgwal.errors import FormatError, KeyRequired
from pgwal.lsn import Lsn, LsnRange
from pgwal.page import NEVER_TORN, find_bad_pages, page_lsn
from pgwal.relation import BLOCKS_PER_FILE, Fork, RelationFile, RelFileLocator
from pgwal.repository.repository import Repository
from pgwal.segment import WAL_PAGE_SIZE
from pgwal.summary.block_map import BlockMap

if TYPE_CHECKING:
    from pgwal.wal.page_magic import WalFormat
    from pgwal.wal.record import WalRecord

MOST_NAMED = 100
"""So many missed blocks are named, with their records; what has lost more has lost all trust."""

_PAGES_BACK = (1, 2, 16, 256, 1024)
"""How far before a record's end its start is looked for: 8 MiB are more than a record with 33 blocks has."""


class Suspects(NamedTuple):
    """Blocks of a file that the block map up to ``mapped_until`` leaves out, though the pages changed since its start.

    ``block_numbers`` are counted from the start of the file, and ``lsns`` are what the pages said.
    """

    path: str
    relation_file: RelationFile
    mapped_until: Lsn
    block_numbers: array[int]
    lsns: array[int]

    @classmethod
    def of(cls, path: str, relation_file: RelationFile, mapped_until: Lsn, found: Iterable[tuple[int, int]]) -> Self:
        """Return suspects by pairs of block number and LSN."""
        block_numbers, lsns = array("I"), array("Q")
        for block_number, lsn in found:
            block_numbers.append(block_number)
            lsns.append(lsn)
        return cls(path, relation_file, mapped_until, block_numbers, lsns)

    def found(self) -> Iterator[tuple[int, Lsn]]:
        """Yield pairs of block number and LSN."""
        return zip(self.block_numbers, map(Lsn, self.lsns), strict=True)

    def with_found(self, found: Iterable[tuple[int, int]]) -> Self:
        """Return the same file with other pairs."""
        return self.of(self.path, self.relation_file, self.mapped_until, found)

    def unexplained_by(self, changes: BlockMap) -> Self:
        """Return those that WAL gives no reason for; ``changes`` hold what it says from ``mapped_until`` on."""
        (spc_oid, db_oid, rel_number), fork, _ = self.relation_file
        first_block = self.relation_file.first_block
        if changes.database_copied(spc_oid, db_oid):
            return self.with_found(())
        limit_block = changes.limit_block(spc_oid, db_oid, rel_number, fork)
        end_block = first_block + BLOCKS_PER_FILE
        named = set(changes.blocks_between(spc_oid, db_oid, rel_number, fork, first_block, end_block))
        return self.with_found(
            (number, lsn)
            for number, lsn in self.found()
            # That a block changed once more is no reason for an LSN that the first map covers.
            if first_block + number < limit_block and not (lsn > self.mapped_until and first_block + number in named)
        )


class MissedBlock(NamedTuple):
    """A block that changed in the window and is not in its block map; ``block_no`` is in the whole fork."""

    path: str
    locator: RelFileLocator
    fork: Fork
    block_no: int
    page_lsn: Lsn
    timeline_id: int
    record: WalRecord | None
    """The record that ends at the page's LSN; None where there is none."""
    has_wal: bool
    """Whether WAL of that position is in the archive."""
    is_damaged: bool
    """Whether the page differs from its checksum, so that its LSN may say nothing."""
    needs_identity: bool = False
    """Whether the record could not be looked for, as WAL is encrypted and no identity was given."""

    @property
    def is_named(self) -> bool:
        """Whether the record names the block."""
        record = self.record
        return record is not None and any(
            (block.locator, block.fork, block.block_no) == (self.locator, self.fork, self.block_no)
            for block in record.blocks
        )

    def text(self, wal_format: WalFormat) -> str:
        """Say which block it is, and what there is in WAL."""
        from pgwal.wal.describe import record_line

        what = f"{self.path}, fork {self.fork.name.lower()}, block {self.block_no}: its page LSN is {self.page_lsn}"
        if self.is_damaged:
            what += ", and it differs from its checksum"
        if self.needs_identity:
            return f"{what}; WAL of there is encrypted: with --identity, the record is looked for"
        if self.record is None:
            return f"{what}; {'no record ends there' if self.has_wal else 'WAL of there is not in the archive'}"
        verb = "is" if self.is_named else "does not name the block, is"
        return f"{what}; the record that ends there {verb} {record_line(wal_format, self.record)}"


class Judge:
    """Decides on suspects; ``missed`` are the first of those that were missed, ``missed_count`` how many there are."""

    def __init__(self, repository: Repository, window: Sequence[LsnRange], *, data_checksums: bool) -> None:
        """``window`` has one range for each timeline, oldest first; what is behind it is of the last one."""
        self.missed: list[MissedBlock] = []
        self.missed_count = 0
        self._repository = repository
        self._segment_size = repository.geometry.segment_size
        self._window = window
        self._data_checksums = data_checksums

    def judge(self, suspects: list[Suspects], source: BlockSource, later: Iterable[BlockMap]) -> None:
        """Decide on suspects that were read from ``source``.

        Each of the maps ``later`` holds what WAL says from where the suspects' maps end up to where the server is when
        it is asked for.  Of blocks that go on changing until there are no more maps nothing can be told.
        """
        for changes in later:
            left = [unexplained for each in suspects if (unexplained := each.unexplained_by(changes)).block_numbers]
            suspects = [again for each in left if (again := self._confirm(each, source)).block_numbers]
            if not suspects:
                return

    def _confirm(self, suspects: Suspects, source: BlockSource) -> Suspects:
        """Count the blocks that were missed, and return those whose pages have changed since."""
        now: dict[int, tuple[Lsn, bool]] | None = None
        again: list[tuple[int, int]] = []
        for number, lsn in suspects.found():
            block = self._described(suspects, number, lsn)
            if block.record is None:
                # Perhaps it has been misread.  Else the page was as new as that, whatever has become of it since.
                if now is None:
                    now = self._read_again(suspects, source)
                lsn_now, is_damaged = now.get(number, (Lsn(0), False))
                if lsn_now <= self._window[0].start:
                    continue
                if lsn_now != lsn:
                    again.append((number, lsn_now))
                    continue
                block = block._replace(is_damaged=is_damaged)
            self.missed_count += 1
            if len(self.missed) < MOST_NAMED:
                self.missed.append(block)
        return suspects.with_found(again)

    def _described(self, suspects: Suspects, number: int, lsn: Lsn) -> MissedBlock:
        locator, fork, _ = suspects.relation_file
        block_no = suspects.relation_file.first_block + number
        timelines = (part.timeline_id for part in self._window if lsn <= part.end)
        timeline_id = next(timelines, self._window[-1].timeline_id)
        record, has_wal, needs_identity = None, False, False
        if len(self.missed) < MOST_NAMED:
            try:
                record = self._record_that_ends_at(timeline_id, lsn)
            except KeyRequired:
                # A host that takes backups cannot read what it stored long ago; what the page says needs no record.
                needs_identity = True
            segment_no = self._repository.geometry.segment_no(lsn - 1)
            has_wal = record is not None or self._repository.wal.first_missing(timeline_id, [segment_no]) is None
        return MissedBlock(
            suspects.path, locator, fork, block_no, lsn, timeline_id, record, has_wal, False, needs_identity
        )

    def _record_that_ends_at(self, timeline_id: int, lsn: Lsn) -> WalRecord | None:
        # Not above: it takes long to import, and is wanted when something has gone wrong.
        from pgwal.engine.record_chain import records
        from pgwal.wal.record import EndOfWal

        for start in self._starts_before(lsn):
            last_end = Lsn(0)
            try:
                for found in records(self._repository, timeline_id, start):
                    if isinstance(found, EndOfWal) or found.lsn >= lsn:
                        break
                    last_end = found.end_lsn
                    if last_end == lsn:
                        return found
            except FormatError:
                return None
            if last_end:
                # Within a record that was found, or between two.
                return None
        return None

    def _starts_before(self, end: Lsn) -> Iterator[Lsn]:
        """Yield from where on to look for the record that ends at a position: pages, further and further away."""
        page, segment_start = (end - 1) // WAL_PAGE_SIZE, (end - 1) // self._segment_size * self._segment_size
        was_in_segment = True
        for pages_back in _PAGES_BACK:
            start = max(page + 1 - pages_back, 0) * WAL_PAGE_SIZE
            if was_in_segment and start < segment_start:
                # Before a segment there may be nothing but zeros, behind which records are found from its start alone.
                yield Lsn(segment_start)
            was_in_segment = start >= segment_start
            yield Lsn(start)

    def _read_again(self, suspects: Suspects, source: BlockSource) -> dict[int, tuple[Lsn, bool]]:
        """Return the LSN of each block's page now, and whether the page is damaged; nothing of a file that is gone.

        A page that the server is writing is read until it is whole.
        """
        first_block = suspects.relation_file.first_block
        found: dict[int, tuple[Lsn, bool]] = {}
        wanted = suspects.block_numbers
        for attempt in range(AUDIT_REREADS):
            if attempt:
                time.sleep(REREAD_PAUSE_S)
            chunks = source.read_blocks(suspects.path, wanted)
            if chunks is None:
                return {}
            damaged = array("I")
            for number, page in zip(wanted, (page for chunk in chunks for page in pages(chunk)), strict=True):
                is_damaged = self._data_checksums and bool(find_bad_pages(page, first_block + number, NEVER_TORN))
                found[number] = Lsn(page_lsn(page)), is_damaged
                if is_damaged:
                    damaged.append(number)
            if not damaged:
                break
            wanted = damaged
        return found
