"""Read blocks that a backup leaves out, and note those whose pages say that they changed in its window.

A page's LSN is where the last record ends that changed the page.  Of a block that is left out that record lies before
the window, or behind what the block map covers; any other one has been missed, or something else has become of the
file: ``pgwal.engine.missed_blocks`` tells.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pgwal.backup.source import BlockSource, WantedContent
from pgwal.budget import SMALL_FILE_BYTES
from pgwal.engine.audit_sample import AuditSample, unchanged_block_count
from pgwal.engine.copied_file import Item, PlannedFile
from pgwal.engine.missed_blocks import Judge, MissedBlock, Suspects
from pgwal.errors import BrokenInvariant, VerificationFailed
from pgwal.lsn import Lsn
from pgwal.page import find_newer_pages, page_lsn
from pgwal.relation import BLOCK_SIZE, parse_relation_path
from pgwal.summary.block_map import BlockMap
from pgwal.wal.page_magic import wal_format_of_major

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class AuditTally:
    """What an audit looked at, and what it found; blocks in numbers."""

    sample: AuditSample
    unchanged_block_count: int = 0
    """How many the block map, by which the audit began to look at their files, calls unchanged."""
    block_count: int = 0
    """How many of them were read."""
    newer_block_count: int = 0
    """How many of those had changed since the window started, as blocks do that change while the audit runs."""
    missed: list[MissedBlock] = field(default_factory=list)
    """The first ones."""
    missed_count: int = 0

    @property
    def bytes_read(self) -> int:
        return self.block_count * BLOCK_SIZE


class BlockAudit:
    """An audit under way; files are looked at by any number of threads."""

    def __init__(self, sample: AuditSample, start_lsn: Lsn) -> None:
        """``start_lsn`` is where the window starts."""
        self.tally = AuditTally(sample)
        self.start_lsn = start_lsn
        self._lock = threading.Lock()
        self._suspects: list[Suspects] = []
        self.suspect_count = 0

    def look(
        self,
        source: BlockSource,
        files: Sequence[tuple[Item, PlannedFile]],
        mapped_until: Lsn,
        take: Callable[[int], None],
    ) -> None:
        """Read the sample of some files, planned by a block map that ends at ``mapped_until``.

        ``take`` is told of each number of bytes that was read.
        """
        small: list[WantedContent] = []
        for item, planned in files:
            path, block_numbers = item.file.path, self.tally.sample.blocks(item, planned)
            with self._lock:
                self.tally.unchanged_block_count += unchanged_block_count(planned)
            size_bytes = len(block_numbers) * BLOCK_SIZE
            wanted = WantedContent(path, size_bytes, block_numbers)
            if size_bytes > SMALL_FILE_BYTES:
                self._examine(wanted, source.read_blocks(path, block_numbers), mapped_until, take)
            elif size_bytes:
                small.append(wanted)
        if small:
            for wanted, content in zip(small, source.read_small(small), strict=True):
                self._examine(wanted, [content] if isinstance(content, bytes) else None, mapped_until, take)

    def settle(self, judge: Judge, source: BlockSource, later: Iterable[BlockMap]) -> None:
        """Have it judged what was noted so far; see ``Judge.judge``."""
        with self._lock:
            suspects, self._suspects = self._suspects, []
            self.suspect_count = 0
        if not suspects:
            return
        judge.judge(suspects, source, later)
        self.tally.missed, self.tally.missed_count = judge.missed, judge.missed_count

    def _examine(
        self,
        wanted: WantedContent,
        chunks: Iterable[bytes] | None,
        mapped_until: Lsn,
        take: Callable[[int], None],
    ) -> None:
        """Note the blocks of a file whose pages are newer than the window's start; None is one that is gone."""
        relation_file, block_numbers = parse_relation_path(wanted.path), wanted.block_numbers
        if relation_file is None or block_numbers is None:
            raise BrokenInvariant("an audit reads blocks of relation files")
        found: list[tuple[int, int]] = []
        passed = 0
        for chunk in chunks or ():
            take(len(chunk))
            for place in find_newer_pages(chunk, self.start_lsn):
                at = place * BLOCK_SIZE
                found.append((block_numbers[passed + place], page_lsn(chunk[at : at + 8])))
            passed += len(chunk) // BLOCK_SIZE
        with self._lock:
            self.tally.block_count += passed
            if found:
                self._suspects.append(Suspects.of(wanted.path, relation_file, mapped_until, found))
                self.suspect_count += len(found)
                self.tally.newer_block_count += len(found)


def require_none_missed(tally: AuditTally, major: int) -> None:
    """Raise VerificationFailed, which names the first block, when blocks were missed; the others are logged."""
    if not tally.missed_count:
        return
    texts = [block.text(wal_format_of_major(major)) for block in tally.missed]
    for text in texts:
        logger.error("missed: %s", text)
    raise VerificationFailed(
        f"the audit found {tally.missed_count} blocks that have changed and that the block map lacks; the first is"
        f" {texts[0]}",
        hint="The backup is not published: rows would be missing from it. Run pgwal verify, and delete a summary that"
        " it finds fault with: WAL is read in its place. Else take a full backup, and report this.",
        path=tally.missed[0].path,
        lsn=tally.missed[0].page_lsn,
    )
