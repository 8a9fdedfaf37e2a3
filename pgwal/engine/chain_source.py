"""What the backups of a chain store of a file, opened and checked where it lies.

Of the newest backup of a chain all that is stored is used, and its digest tells whether it is right.  Of an older one
some blocks are used: its header has a digest of its own, and pages have their checksums, unless they come out of packs,
of which each frame has a digest.
"""

from __future__ import annotations

import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from operator import lt
from typing import Self

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.file_table import FileTable, StoredFile
from pgwal.backup.incremental_file import FIXED_SIZE, IncrementalHeader, incremental_name
from pgwal.backup.reconstruct import Run, StoredWhole
from pgwal.backup.stored_digest import digest_like
from pgwal.budget import READ_BYTES
from pgwal.checksum import content_digest
from pgwal.errors import (
    ChainError,
    ChecksumMismatch,
    ForeignObject,
    FormatError,
    MissingPriorBackup,
    ObjectNotFound,
    PgwalError,
    TruncatedInput,
)
from pgwal.page import NEVER_TORN, find_bad_pages
from pgwal.relation import BLOCK_SIZE, parse_relation_path
from pgwal.repository.backup_data import BackupData, StoredContent

logger = logging.getLogger(__name__)

ANOTHER_BACKUP = "Restore another backup."

_WARNINGS_PER_FILE = 5


@contextmanager
def of_chain(data: BackupData, path: str | None = None) -> Iterator[None]:
    """Say of a stored file that is missing, or foreign, that this chain cannot be used; of any without a ``path``."""
    try:
        yield
    except (ObjectNotFound, ForeignObject) as error:
        kind = MissingPriorBackup if isinstance(error, ObjectNotFound) else ChainError
        unusable = kind(str(error), hint=ANOTHER_BACKUP, backup_id=data.backup_id)
        unusable.facts.update(error.facts if path is None else {"path": data.locate(path)})
        raise unusable from error


@contextmanager
def opened(data: BackupData, path: str) -> Iterator[StoredContent]:
    """Open a stored file; raises MissingPriorBackup or ChainError where it cannot be one, RepositoryError."""
    with of_chain(data, path):
        content = data.open(path)
    with closing(content):
        yield content


class OpenFiles:
    """Stored files that are read, of which no more than ``limit`` are open at a time; a context, for one thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._contents: OrderedDict[tuple[str, str], StoredContent] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._contents:
            self._contents.popitem()[1].close()

    def content(self, data: BackupData, path: str) -> StoredContent:
        """Return a file, which stays open until ``limit`` others have been asked for."""
        key = (data.backup_id, path)
        if key in self._contents:
            self._contents.move_to_end(key)
        else:
            while len(self._contents) >= self.limit:
                self._contents.popitem(last=False)[1].close()
            with of_chain(data, path):
                self._contents[key] = data.open(path)
        return self._contents[key]


@dataclass(frozen=True, slots=True)
class ChainSource:
    """What one backup stores of a file."""

    data: BackupData
    path: str
    stored: StoredFile
    files: OpenFiles
    header: IncrementalHeader | StoredWhole

    @property
    def content(self) -> StoredContent:
        """The open file; the next ones that are opened may close it: see OpenFiles."""
        return self.files.content(self.data, self.path)

    @classmethod
    def opened(cls, data: BackupData, path: str, stored: StoredFile, files: OpenFiles) -> ChainSource:
        """Return a file of a backup, of the size that its entry says, with its header.

        The header is checked as far as the entry tells its digest.  Raises FormatError or RepositoryError.
        """
        path = incremental_name(path) if stored.is_incremental else path
        content = files.content(data, path)
        size = content.size_bytes
        if size != stored.stored_size_bytes:
            raise wrong_size(data, path, size, stored.stored_size_bytes)
        if not stored.is_incremental:
            return cls(data, path, stored, files, StoredWhole(size))
        header, encoded = _read_header(data, path, content)
        if stored.header_digest is not None and content_digest(encoded) != stored.header_digest:
            raise damaged(data, path, "the digest of its header does not match")
        return cls(data, path, stored, files, header)

    def require_as_stored(self, buffer: memoryview) -> None:
        """Read all of it; raises ChecksumMismatch unless it is what was stored."""
        if not self.is_as_stored(buffer):
            raise damaged(self.data, self.path)

    def is_as_stored(self, buffer: memoryview) -> bool:
        """Read all of it, and tell whether it is what was stored."""
        digest, offset, content = digest_like(self.stored.digest), 0, self.content
        while size := content.read_into(offset, buffer):
            digest.update(buffer[:size])
            offset += size
        return digest.hexdigest() == self.stored.digest


def open_sources(
    stored: Sequence[BackupData],
    tables: Sequence[FileTable],
    file: BackupFile,
    files: OpenFiles,
    check_header: Callable[[ChainSource], None],
) -> list[ChainSource]:
    """Open what each backup of a chain stores of an incremental file, newest first, down to the whole copy.

    ``tables`` are of all but the newest one; ``check_header`` looks at headers of which the entry has no digest.
    Raises MissingPriorBackup, FormatError or RepositoryError.
    """
    found: list[ChainSource] = []
    of_backup: StoredFile | None = StoredFile.of(file)
    for number, data in enumerate(stored):
        if number:
            of_backup = tables[number - 1].find(file.path)
        if of_backup is None:
            raise MissingPriorBackup(
                f"backup {data.backup_id} holds no {file.path}, which a later one builds on",
                hint=ANOTHER_BACKUP,
                backup_id=data.backup_id,
                path=data.locate(file.path),
            )
        source = ChainSource.opened(data, file.path, of_backup, files)
        found.append(source)
        if not of_backup.is_incremental:
            break
        if number:
            check_header(source)
    return found


class OlderPages:
    """Checks the pages of a file that come from older backups of a chain against their checksums.

    Not one of them may be torn: a page that was changed after its backup had started is in the window of the next one,
    and is not used.  A page that is not right is damage, unless the stored file is what was stored, to the last byte:
    then it is what the server had, as the backup has noted, and is restored with a warning.
    """

    def __init__(self, path: str, sources: Sequence[ChainSource]) -> None:
        relation_file = parse_relation_path(path)
        assert relation_file is not None, "no other files are incremental"
        self._path = path
        self._sources = sources
        self._first_block = relation_file.first_block
        self._as_stored: set[int] = set()
        self._bad_block_count = 0

    def check(self, pieces: Sequence[Run], content: memoryview) -> None:
        """Look at pieces that follow each other, given what they hold; raises ChecksumMismatch for damage."""
        if all(piece.source == 0 for piece in pieces):
            return
        first_block = pieces[0].offset // BLOCK_SIZE
        # Those of the newest backup as well: to look at each piece on its own would take longer.
        for place in find_bad_pages(content, self._first_block + first_block, NEVER_TORN):
            self._judge(pieces, first_block + place)

    def warn(self) -> None:
        """Say how many more pages are not right than were named."""
        more = self._bad_block_count - _WARNINGS_PER_FILE
        if more > 0:
            logger.warning("%d more blocks of file %s failed checksum verification when backed up", more, self._path)

    def _judge(self, pieces: Sequence[Run], block_number: int) -> None:
        piece = next(p for p in pieces if p.offset <= block_number * BLOCK_SIZE < p.offset + p.length)
        if piece.source == 0:
            return
        assert piece.source is not None, "zeros are a page that is new"
        source = self._sources[piece.source]
        if piece.source not in self._as_stored:
            # Rare, so that it may cost a buffer; the thread's own holds what is being looked at.
            if not source.is_as_stored(memoryview(bytearray(READ_BYTES))):
                error = damaged(
                    source.data, source.path, f"the page of block {block_number} is not what its checksum says"
                )
                error.facts["offset_bytes"] = piece.source_offset + block_number * BLOCK_SIZE - piece.offset
                raise error
            self._as_stored.add(piece.source)
        self._bad_block_count += 1
        if self._bad_block_count <= _WARNINGS_PER_FILE:
            logger.warning(
                "checksum verification failed in file %s, block %d: it is restored as the server had it when backup %s"
                " was taken",
                self._path,
                block_number,
                source.data.backup_id,
            )


def fetched_bytes(stored: Sequence[BackupData], bytes_read: int) -> int:
    """Return how much was fetched of a chain, given what was read of its files.

    Backups in packs count together what they fetch; where some files are in none, what was read of them tells.
    """
    fetched = [data.fetched_bytes for data in stored]
    return bytes_read if None in fetched else max(filter(None, fetched), default=0)


def _read_header(data: BackupData, path: str, content: StoredContent) -> tuple[IncrementalHeader, bytes]:
    try:
        prefix = IncrementalHeader.decode_prefix(content.read_at(0, FIXED_SIZE))
        encoded = content.read_at(0, prefix.header_size)
        header = IncrementalHeader.decode(encoded, content.size_bytes)
        if not _is_strictly_ascending(header.block_numbers):
            raise FormatError("incremental file: its block numbers do not ascend")
    except FormatError as error:
        place = data.locate(path)
        error.restate(f"{place}: {error}", hint=ANOTHER_BACKUP, backup_id=data.backup_id, path=place)
        raise
    return header, encoded


def _is_strictly_ascending(numbers: array[int]) -> bool:
    return all(map(lt, numbers, numbers[1:]))


def wrong_size(data: BackupData, path: str, size: int, expected: int) -> PgwalError:
    """Return the error that says of a stored file that it is cut off, or too long."""
    return TruncatedInput(
        f"{path} of backup {data.backup_id} has {size} bytes, not {expected}",
        hint=ANOTHER_BACKUP,
        backup_id=data.backup_id,
        path=data.locate(path),
        size_bytes=size,
        expected_size_bytes=expected,
    )


def damaged(data: BackupData, path: str, how: str = "its digest does not match") -> ChecksumMismatch:
    """Return the error that says of a stored file that it is not what was stored."""
    return ChecksumMismatch(
        f"{path} of backup {data.backup_id} is damaged: {how}",
        hint=ANOTHER_BACKUP,
        backup_id=data.backup_id,
        path=data.locate(path),
    )
