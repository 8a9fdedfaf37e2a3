"""Copy files from a source into a staged backup as planned, and note each in manifest and catalogue entry."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from types import TracebackType
from typing import NamedTuple, Self

from pgwal.backup.backup_file import BackupFile, BackupTotals
from pgwal.backup.manifest import MANIFEST_NAME, FileChecksum, ManifestWriter
from pgwal.backup.missing_files import MissingFiles
from pgwal.backup.page_check import PageCheck, pages
from pgwal.backup.plan import WholeFile, WholeReason
from pgwal.backup.source import BlockSource, SourceDirectory, SourceFile, Unread, read_wanted
from pgwal.backup.walk import with_prior_sizes
from pgwal.budget import COPY_ATTEMPTS, COPY_REREADS, REPLACED_ATTEMPTS, REREAD_PAUSE_S, SMALL_FILE_BYTES
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.disk.new_file import FILE_MODE
from pgwal.engine.audit_sample import AuditSample
from pgwal.engine.block_audit import BlockAudit
from pgwal.engine.copied_file import CopiedFile, GoneFile, Item, PlannedFile, grouped
from pgwal.engine.workers import Pace, Workers
from pgwal.errors import BrokenInvariant, FileReplaced
from pgwal.lsn import Lsn, LsnRange
from pgwal.page import page_lsn
from pgwal.relation import parse_relation_path
from pgwal.repository.staged_backup import StagedBackup
from pgwal.summary.block_map import BlockMap

logger = logging.getLogger(__name__)

_CONFIGURATION_NAMES = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")
_WARNINGS_PER_FILE = 5


class CopyRules(NamedTuple):
    """How files are copied.

    Of the directories ``emptied``, nothing but their names is.  ``checked_before`` is the backup's start where data
    pages have checksums, else None.  Other ``tablespaces`` than these are left out; None stands for all.
    """

    emptied: frozenset[str]
    manifest_checksums: str
    max_rate_bytes_per_s: int | None
    checked_before: Lsn | None
    tablespaces: frozenset[int] | None = None
    file_mode: int = FILE_MODE
    """What a restore gives the files; in the backup they are open to their owner alone."""


class _ReadFile(NamedTuple):
    """A file that was read, and is yet to be stored."""

    file: PlannedFile
    checksum: FileChecksum


class Copy:
    """One copy under way, over one source or several of the same data directory; the first one lists."""

    def __init__(
        self,
        sources: Sequence[BlockSource],
        changes: BlockMap | None,
        staged: StagedBackup,
        manifest: ManifestWriter,
        rules: CopyRules,
        on_progress: Callable[[int, int], None] | None,
        checks: Sequence[Callable[[], None]] = (),
        audit: tuple[BlockAudit, Lsn] | None = None,
    ) -> None:
        """``checks`` raise what makes the copy of no use; they are called after each file.

        ``audit`` looks at blocks that are not copied; with it comes where ``changes`` end.
        """
        self.data = staged.data
        self.totals = BackupTotals()
        self.block_count = 0
        self.copied_block_count = 0
        self.bytes_read = 0
        self.bad_page_count = 0
        self.absent_configuration = set(_CONFIGURATION_NAMES)
        """Files of the server's configuration that have not been seen in the data directory."""
        self.missing = MissingFiles(changes)
        self._sources = sources
        self._changes = changes
        self._staged = staged
        self._rules = rules
        self._progress = None if on_progress is None else _Progress(on_progress)
        on_passed = None if self._progress is None else self._progress.advance
        self._pace = Pace(rules.max_rate_bytes_per_s, on_passed)
        self._manifest = manifest
        self._checks = checks
        self._audit = audit
        self._manifest_file = self.data.create(MANIFEST_NAME)

    def __enter__(self) -> Self:
        self._manifest_file.write(self._manifest.header())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manifest_file.__exit__(kind, error, trace)

    def copy_all(self, prior_files: Callable[[], Iterable[BackupFile]]) -> None:
        """Copy everything but pg_control; ``prior_files`` gives the files of the prior backup as often as asked."""
        if self._progress is not None:
            sample = None if self._audit is None else self._audit[0].tally.sample
            self._progress.total_bytes = planned_bytes(self._listed(), prior_files(), self._changes, sample)
        # One source lists while the others read.
        readers = self._sources[1:] or self._sources
        # Closed before anything else is undone: until then, threads may still write.
        with closing(
            Workers(readers, self._pace, lambda source: source.cut()).map(
                self._copy_files, grouped(self._items(prior_files()))
            )
        ) as results:
            for copied in chain.from_iterable(results):
                for check in self._checks:
                    check()
                if isinstance(copied, GoneFile):
                    self.missing.add_gone(copied.path)
                else:
                    self._count(copied)
        if self._progress is not None:
            self._progress.finish()

    def copy_control_file(self) -> None:
        """Copy pg_control, which must come last: it says from where to where recovery must go at least."""
        content = self._sources[0].read_control_file()
        self.bytes_read += len(content)
        self.store(CONTROL_FILE_PATH, content)

    def store(self, path: str, content: bytes) -> None:
        """Store a file that is no file of the source as it is."""
        file = SourceFile(path, len(content), time.time())
        self._count(self._written(PlannedFile(file, WholeFile(WholeReason.NOT_A_RELATION_FILE)), [content], None))

    def write_manifest(self, wal_ranges: list[LsnRange]) -> None:
        """Finish the manifest; nothing can be stored after it."""
        self._manifest_file.write(self._manifest.finish(wal_ranges))
        self._manifest_file.close()

    # -- in the main thread ------------------------------------------------------------------------------------

    def _items(self, prior_files: Iterable[BackupFile]) -> Iterator[Item]:
        """Yield the files to look at, and make the directories."""
        for item, prior_size_bytes in with_prior_sizes(self._listed(), prior_files, self.missing.add_absent):
            self.missing.see(item)
            if isinstance(item, SourceDirectory):
                self.data.make_directory(item.path)
            else:
                self.absent_configuration.discard(item.path)
                yield Item(item, prior_size_bytes)

    def _listed(self) -> Iterator[SourceDirectory | SourceFile]:
        return self._sources[0].list(self._rules.emptied, self._rules.tablespaces)

    def _count(self, copied: CopiedFile) -> None:
        file, checksum = copied.file, copied.checksum
        self._staged.add_file(file)
        self.totals = self.totals.plus(file)
        self.block_count += copied.block_count
        self.copied_block_count += copied.copied_block_count
        self.bytes_read += copied.bytes_read
        self.bad_page_count += copied.bad_page_count
        self._manifest_file.write(
            self._manifest.file_entry(
                file.stored_path,
                file.stored_size_bytes,
                file.mtime_epoch_s,
                checksum.algorithm,
                checksum.hexdigest(),
            )
        )

    # -- in any thread -----------------------------------------------------------------------------------------

    def _copy_files(self, source: BlockSource, items: Sequence[Item]) -> list[CopiedFile | GoneFile]:
        """Copy some files, and return what became of each: the small ones together."""
        planned = [PlannedFile.of(item.file, item.prior_size_bytes, self._changes) for item in items]
        if self._audit is not None:
            audit, start_lsn = self._audit
            audit.look(source, list(zip(items, planned, strict=True)), start_lsn, self._pace.take)
        small = iter(self._copy_small(source, [file for file in planned if file.wanted_bytes <= SMALL_FILE_BYTES]))
        return [
            next(small) if file.wanted_bytes <= SMALL_FILE_BYTES else self._copy_file(source, file) for file in planned
        ]

    def _copy_small(self, source: BlockSource, planned: Sequence[PlannedFile]) -> list[CopiedFile | GoneFile]:
        """Copy files of which little is wanted, with one call to read and one to write them."""
        # Where nothing is wanted the file need not be looked at.
        wanted = [each for each in (file.wanted() for file in planned) if each.size_bytes or each.to_end]
        found = source.read_small(wanted)
        if len(found) != len(wanted):
            raise BrokenInvariant("the source has not read as many files as were wanted")
        read = iter(found)
        copied: list[CopiedFile | GoneFile | _ReadFile] = []
        written: list[tuple[str, bytes]] = []
        for listed in planned:
            file = listed
            content = next(read) if file.wanted_bytes or file.to_end else b""
            if content is None:
                copied.append(GoneFile(file.file.path))
                continue
            if isinstance(content, Unread):
                copied.append(self._copy_file(source, file))
                continue
            if file.to_end:
                file = file.as_read(len(content))
            check = self._page_check(file)
            if check is not None:
                check.feed(content)
                if check.bad_blocks:
                    copied.append(self._copy_file(source, file, content))
                    continue
            self._pace.take(len(content))
            stored = file.header() + content
            if len(stored) != file.stored_bytes:
                raise BrokenInvariant("a file was not stored with the length that was planned")
            checksum = FileChecksum(self._rules.manifest_checksums)
            checksum.update(stored)
            copied.append(_ReadFile(file, checksum))
            written.append((file.stored_path, stored))
        stored_files = iter(self.data.write_small(written))
        return [
            CopiedFile.of(each.file, each.checksum, next(stored_files), self._rules.file_mode)
            if isinstance(each, _ReadFile)
            else each
            for each in copied
        ]

    def _copy_file(
        self, source: BlockSource, planned: PlannedFile, content: bytes | None = None
    ) -> CopiedFile | GoneFile:
        """Copy one file, of which what is wanted may have been read already."""
        if planned.to_end:
            return self._copy_to_end(source, planned)
        path = planned.file.path
        attempt = 1
        while True:
            check = self._page_check(planned)
            chunks = read_wanted(source, planned.wanted()) if content is None else [content]
            if chunks is None:
                return GoneFile(path)
            copied = self._written(planned, chunks, check)
            if check is None or not check.bad_blocks:
                return copied
            bad_blocks, was_misread = _read_again(check, path, source, is_last=attempt == COPY_ATTEMPTS)
            if not was_misread:
                _warn_of_bad_pages(path, bad_blocks)
                return copied._replace(bad_page_count=len(bad_blocks))
            # What is stored is not what the file holds, and no WAL would make it right.
            self.data.remove(planned.stored_path)
            content = None
            attempt += 1

    def _copy_to_end(self, source: BlockSource, planned: PlannedFile) -> CopiedFile | GoneFile:
        """Copy a file that is no relation file, again where it was replaced while it was read."""
        attempt = 1
        while True:
            chunks = read_wanted(source, planned.wanted())
            if chunks is None:
                return GoneFile(planned.file.path)
            try:
                return self._written(planned, chunks, None)
            except FileReplaced:
                if attempt == REPLACED_ATTEMPTS:
                    raise
            self.data.remove(planned.stored_path)
            attempt += 1

    def _page_check(self, planned: PlannedFile) -> PageCheck | None:
        relation_file = parse_relation_path(planned.file.path)
        if self._rules.checked_before is None or relation_file is None:
            return None
        return PageCheck(relation_file, self._rules.checked_before, planned.block_numbers)

    def _written(self, planned: PlannedFile, chunks: Iterable[bytes], check: PageCheck | None) -> CopiedFile:
        checksum = FileChecksum(self._rules.manifest_checksums)
        stored = chain((planned.header(),), self._read(chunks, check))
        written = self.data.write(planned.stored_path, _passing(stored, checksum))
        if planned.to_end:
            planned = planned.as_read(written.size_bytes)
        if written.size_bytes != planned.stored_bytes:
            raise BrokenInvariant("a file was not stored with the length that was planned")
        return CopiedFile.of(planned, checksum, written, self._rules.file_mode)

    def _read(self, chunks: Iterable[bytes], check: PageCheck | None) -> Iterator[bytes]:
        """Pass on what is read, at the pace that is allowed, and look at its pages."""
        for chunk in chunks:
            self._pace.take(len(chunk))
            if check is not None:
                check.feed(chunk)
            yield chunk


def _read_again(check: PageCheck, path: str, source: BlockSource, *, is_last: bool) -> tuple[list[int], bool]:
    """Return which of the bad blocks stay bad, and whether what was read first is not what the file holds.

    A page that the server was writing is whole by now, and its LSN says that WAL has it.  One that is right now and was
    not changed has been misread; with ``is_last`` it counts as bad.
    """
    suspected, misread = check.bad_blocks, False
    for attempt in range(COPY_REREADS):
        if attempt:
            time.sleep(REREAD_PAUSE_S)
        chunks = source.read_blocks(path, array("I", suspected))
        if chunks is None:
            return [], False
        still_bad = []
        for number, page in zip(suspected, (page for chunk in chunks for page in pages(chunk)), strict=True):
            is_bad = check.is_bad(number, page)
            was_misread = not is_bad and page_lsn(page) < check.checked_before
            misread |= was_misread
            if is_bad or (was_misread and is_last):
                still_bad.append(number)
        suspected = still_bad
        if not suspected:
            break
    return suspected, misread and not is_last


class _Progress:
    """Adds up what is done; told of it by one thread at a time."""

    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self.total_bytes = 0
        self._on_progress = on_progress
        self._done_bytes = 0

    def advance(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        self._on_progress(min(self._done_bytes, self.total_bytes), self.total_bytes)

    def finish(self) -> None:
        """Say that all is done: files may have changed since they were added up."""
        self._on_progress(self.total_bytes, self.total_bytes)


def planned_bytes(
    listed: Iterable[SourceDirectory | SourceFile],
    prior_files: Iterable[BackupFile],
    changes: BlockMap | None,
    sample: AuditSample | None = None,
) -> int:
    """Return how many bytes are to be read, those of an audit, of which that is not exact, among them."""
    total = 0
    for item, prior_size_bytes in with_prior_sizes(listed, prior_files):
        if isinstance(item, SourceFile):
            planned = PlannedFile.of(item, prior_size_bytes, changes)
            total += planned.wanted_bytes + (0 if sample is None else sample.expected_bytes(planned))
    return total


def _warn_of_bad_pages(path: str, bad_blocks: Sequence[int]) -> None:
    for block in bad_blocks[:_WARNINGS_PER_FILE]:
        logger.warning("checksum verification failed in file %s, block %d", path, block)
    if len(bad_blocks) > _WARNINGS_PER_FILE:
        more = len(bad_blocks) - _WARNINGS_PER_FILE
        logger.warning("checksum verification failed in %d more blocks of file %s", more, path)


def _passing(chunks: Iterable[bytes], checksum: FileChecksum) -> Iterator[bytes]:
    """Pass chunks on, and take them into a checksum."""
    for chunk in chunks:
        checksum.update(chunk)
        yield chunk
