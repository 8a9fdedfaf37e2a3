"""A file on its way into a backup: what is listed of it, what is planned to be copied, and what became of it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.incremental_file import IncrementalHeader, incremental_file_size, incremental_name
from pgwal.backup.manifest import FileChecksum
from pgwal.backup.plan import ChangedBlocks, IncrementalFile, WholeFile, plan_file
from pgwal.backup.source import SourceFile, WantedContent
from pgwal.budget import GROUP_BYTES, GROUP_FILES
from pgwal.checksum import content_digest
from pgwal.relation import BLOCK_SIZE, parse_relation_path
from pgwal.repository.written_file import WrittenFile


class Item(NamedTuple):
    """A file of the source, and how long the prior backup's is when reconstructed, None when there is none."""

    file: SourceFile
    prior_size_bytes: int | None


def grouped(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Put consecutive small files together: handing one over to a thread would cost more than copying it."""
    group: list[Item] = []
    size_bytes = 0
    for item in items:
        group.append(item)
        size_bytes += item.file.size_bytes
        if size_bytes >= GROUP_BYTES or len(group) == GROUP_FILES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


class GoneFile(NamedTuple):
    """A file that was listed, and was no longer there when it was read."""

    path: str


class PlannedFile(NamedTuple):
    """A file of the source, and what is to be copied of it."""

    file: SourceFile
    plan: WholeFile | IncrementalFile

    @classmethod
    def of(cls, file: SourceFile, prior_size_bytes: int | None, changes: ChangedBlocks | None) -> Self:
        """Plan a file; see ``plan_file``."""
        return cls(file, plan_file(file.path, file.size_bytes, prior_size_bytes, changes))

    @property
    def block_numbers(self) -> array[int] | None:
        """The blocks that are wanted, None when all of the file is."""
        return None if isinstance(self.plan, WholeFile) else self.plan.block_numbers

    @property
    def to_end(self) -> bool:
        """Whether the file is read to its end; of relation files WAL has what comes after the size listed."""
        return parse_relation_path(self.file.path) is None

    @property
    def wanted_bytes(self) -> int:
        """How much of the file is to be read, as it was listed."""
        block_numbers = self.block_numbers
        return self.file.size_bytes if block_numbers is None else len(block_numbers) * BLOCK_SIZE

    def wanted(self) -> WantedContent:
        """Return what is to be read."""
        return WantedContent(self.file.path, self.wanted_bytes, self.block_numbers, self.to_end)

    def as_read(self, size_bytes: int) -> Self:
        """Return the same for the size that the file had when it was read to its end."""
        return self._replace(file=self.file._replace(size_bytes=size_bytes))

    @property
    def stored_path(self) -> str:
        """The path at which the backup holds it."""
        return self.file.path if self.block_numbers is None else incremental_name(self.file.path)

    @property
    def stored_bytes(self) -> int:
        """How large it is there."""
        block_numbers = self.block_numbers
        return self.file.size_bytes if block_numbers is None else incremental_file_size(len(block_numbers))

    def header(self) -> bytes:
        """Return what is stored before that which is read."""
        if isinstance(self.plan, WholeFile):
            return b""
        return IncrementalHeader(self.plan.truncation_block_length, self.plan.block_numbers).encode()


class CopiedFile(NamedTuple):
    """What became of one file; sizes in bytes, numbers of blocks."""

    file: BackupFile
    checksum: FileChecksum
    block_count: int
    copied_block_count: int
    bytes_read: int
    bad_page_count: int

    @classmethod
    def of(cls, planned: PlannedFile, checksum: FileChecksum, written: WrittenFile, mode: int) -> Self:
        """Return what became of a file that was stored as planned, with the checksum of what is stored."""
        file, plan, wanted_bytes = planned.file, planned.plan, planned.wanted_bytes
        stored = BackupFile(
            file.path,
            file.size_bytes,
            planned.stored_bytes,
            mode,
            int(file.mtime_s),
            written.digest,
            extents=written.extents,
        )
        copied_block_count = wanted_bytes // BLOCK_SIZE
        if isinstance(plan, IncrementalFile):
            stored = stored._replace(
                truncation_block_length=plan.truncation_block_length,
                copied_block_count=copied_block_count,
                header_digest=content_digest(planned.header()) if copied_block_count else None,
            )
        return cls(stored, checksum, file.size_bytes // BLOCK_SIZE, copied_block_count, wanted_bytes, 0)
