"""What the backups of a chain store of a file, opened and checked where it lies.

Of the newest backup of a chain all that is stored is used, and its digest tells whether it is right.  Of an older one
some blocks are used: its header has a digest of its own, and pages have their checksums.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import lt
from pathlib import Path
from typing import Self

from pgwal.backup.file_table import StoredFile
from pgwal.backup.incremental_file import FIXED_SIZE, IncrementalHeader, incremental_name
from pgwal.backup.reconstruct import Run, StoredWhole
from pgwal.checksum import ContentDigest, content_digest
from pgwal.errors import (
    ChainError,
    ChecksumMismatch,
    FormatError,
    MissingPriorBackup,
    PgwalError,
    RepositoryError,
    TruncatedInput,
)
from pgwal.page import NEVER_TORN, find_bad_pages
from pgwal.relation import BLOCK_SIZE, parse_relation_path

logger = logging.getLogger(__name__)

ANOTHER_BACKUP = "Restore another backup."

_WARNINGS_PER_FILE = 5
_READ_SIZE = 1 << 20


class OpenFiles:
    """Stored files that are read, of which no more than ``limit`` are open at a time; a context, for one thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._descriptors: OrderedDict[tuple[str, str], int] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def descriptor(self, tree: StoredTree, path: str) -> int:
        """Return the descriptor of a file, which stays open until ``limit`` others have been asked for."""
        key = (tree.backup_id, path)
        if key in self._descriptors:
            self._descriptors.move_to_end(key)
        else:
            while len(self._descriptors) >= self.limit:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[key] = tree.open(path)
        return self._descriptors[key]


@dataclass(frozen=True, slots=True)
class ChainSource:
    """What one backup stores of a file."""

    tree: StoredTree
    path: str
    stored: StoredFile
    files: OpenFiles
    header: IncrementalHeader | StoredWhole

    @property
    def descriptor(self) -> int:
        """The open file; the next ones that are opened may close it: see OpenFiles."""
        return self.files.descriptor(self.tree, self.path)

    @classmethod
    def opened(cls, tree: StoredTree, path: str, stored: StoredFile, files: OpenFiles) -> ChainSource:
        """Return a file of a backup, of the size that its entry says, with its header.

        The header is checked as far as the entry tells its digest.  Raises FormatError or RepositoryError.
        """
        path = incremental_name(path) if stored.is_incremental else path
        descriptor = files.descriptor(tree, path)
        size = os.fstat(descriptor).st_size
        if size != stored.stored_size_bytes:
            raise wrong_size(tree, path, size, stored.stored_size_bytes)
        if not stored.is_incremental:
            return cls(tree, path, stored, files, StoredWhole(size))
        header, content = _read_header(tree.path(path), descriptor, size)
        if stored.header_digest is not None and content_digest(content) != stored.header_digest:
            raise damaged(tree, path, "the digest of its header does not match")
        return cls(tree, path, stored, files, header)

    def require_as_stored(self, buffer: memoryview) -> None:
        """Read all of it; raises ChecksumMismatch unless it is what was stored."""
        if not self.is_as_stored(buffer):
            raise damaged(self.tree, self.path)

    def is_as_stored(self, buffer: memoryview) -> bool:
        """Read all of it, and tell whether it is what was stored."""
        digest, offset, descriptor = ContentDigest(), 0, self.descriptor
        try:
            while size := os.preadv(descriptor, [buffer], offset):
                digest.update(buffer[:size])
                offset += size
        except OSError as error:
            raise unreadable(self.tree.path(self.path), error, "read") from error
        return digest.hexdigest() == self.stored.digest


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
        at, start = 0, -1
        for piece in pieces:
            if piece.source == 0:
                if start >= 0:
                    self._look(pieces, content, start, at)
                start = -1
            elif start < 0:
                start = at
            at += piece.length
        if start >= 0:
            self._look(pieces, content, start, at)

    def warn(self) -> None:
        """Say how many more pages are not right than were named."""
        more = self._bad_block_count - _WARNINGS_PER_FILE
        if more > 0:
            logger.warning("%d more blocks of file %s failed checksum verification when backed up", more, self._path)

    def _look(self, pieces: Sequence[Run], content: memoryview, start: int, end: int) -> None:
        first_block = (pieces[0].offset + start) // BLOCK_SIZE
        for place in find_bad_pages(content[start:end], self._first_block + first_block, NEVER_TORN):
            self._judge(pieces, first_block + place)

    def _judge(self, pieces: Sequence[Run], block_number: int) -> None:
        piece = next(p for p in pieces if p.offset <= block_number * BLOCK_SIZE < p.offset + p.length)
        assert piece.source is not None, "zeros are a page that is new"
        source = self._sources[piece.source]
        if piece.source not in self._as_stored:
            # Rare, so that it may cost a buffer; the thread's own holds what is being looked at.
            if not source.is_as_stored(memoryview(bytearray(_READ_SIZE))):
                raise damaged(
                    source.tree, source.path, f"the page of block {block_number} is not what its checksum says"
                )
            self._as_stored.add(piece.source)
        self._bad_block_count += 1
        if self._bad_block_count <= _WARNINGS_PER_FILE:
            logger.warning(
                "checksum verification failed in file %s, block %d: it is restored as the server had it when backup %s"
                " was taken",
                self._path,
                block_number,
                source.tree.backup_id,
            )


def _read_header(path: Path, descriptor: int, size: int) -> tuple[IncrementalHeader, bytes]:
    try:
        prefix = IncrementalHeader.decode_prefix(os.pread(descriptor, FIXED_SIZE, 0))
        content = os.pread(descriptor, prefix.header_size, 0)
        header = IncrementalHeader.decode(content, size)
        if not _is_strictly_ascending(header.block_numbers):
            raise FormatError("incremental file: its block numbers do not ascend")
    except FormatError as error:
        error.restate(f"{path}: {error}", hint=ANOTHER_BACKUP, path=str(path))
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    return header, content


def _is_strictly_ascending(numbers: array[int]) -> bool:
    return all(map(lt, numbers, numbers[1:]))


def wrong_size(tree: StoredTree, path: str, size: int, expected: int) -> PgwalError:
    """Return the error that says of a stored file that it is cut off, or too long."""
    return TruncatedInput(f"{path} of backup {tree.backup_id} has {size} bytes, not {expected}", hint=ANOTHER_BACKUP)


def damaged(tree: StoredTree, path: str, how: str = "its digest does not match") -> ChecksumMismatch:
    """Return the error that says of a stored file that it is not what was stored."""
    return ChecksumMismatch(f"{path} of backup {tree.backup_id} is damaged: {how}", hint=ANOTHER_BACKUP)


def unreadable(path: Path, error: OSError, action: str = "open") -> RepositoryError:
    """Return the error that says of a stored file that the file system refuses it."""
    hints = {
        errno.EIO: ANOTHER_BACKUP,
        errno.EACCES: "Run pgwal as the user that owns the repository.",
        errno.EMFILE: "Use fewer jobs (-j), or raise the limit (ulimit -n).",
    }
    return RepositoryError(f"cannot {action} {path}: {os.strerror(error.errno or 0)}", hint=hints.get(error.errno or 0))


def _refuse(error: OSError) -> None:
    raise unreadable(Path(os.fsdecode(error.filename)), error, "list") from error


class StoredTree:
    """The data of one backup; links and whatever else is not a file or directory of its own are refused."""

    def __init__(self, root: Path, backup_id: str) -> None:
        self.root = root
        self.backup_id = backup_id
        self._real_directories = {""}

    def path(self, path: str) -> Path:
        return self.root / path

    def directories(self) -> Iterator[str]:
        """Yield the directories, each before those in it."""
        for parent, names, _ in os.walk(self.root, onerror=_refuse):
            for name in names:
                path = os.path.relpath(Path(parent) / name, self.root)
                self._require_real_directory(path)
                yield path

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """Open a file for reading and give its descriptor; raises MissingPriorBackup, FormatError, RepositoryError."""
        descriptor = self.open(path)
        try:
            yield descriptor
        except OSError as error:
            # What is written meanwhile says so in errors of its own.
            raise unreadable(self.path(path), error, "read") from error
        finally:
            os.close(descriptor)

    def open(self, path: str) -> int:
        """Open a file for reading and return its descriptor; raises as ``opened`` does."""
        self._require_real_directory(path.rpartition("/")[0])
        try:
            # Without waiting for the other end of what is no file.
            descriptor = os.open(self.path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise MissingPriorBackup(f"{self.path(path)} is missing", hint=ANOTHER_BACKUP) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._foreign(path) from error
            raise unreadable(self.path(path), error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._foreign(path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _require_real_directory(self, path: str) -> None:
        if path in self._real_directories:
            return
        self._require_real_directory(path.rpartition("/")[0])
        try:
            if not stat.S_ISDIR(self.path(path).lstat().st_mode):
                raise self._foreign(path)
        except FileNotFoundError as error:
            raise MissingPriorBackup(f"{self.path(path)} is missing", hint=ANOTHER_BACKUP) from error
        except NotADirectoryError as error:
            raise self._foreign(path) from error
        except OSError as error:
            raise unreadable(self.path(path), error) from error
        self._real_directories.add(path)

    def _foreign(self, path: str) -> PgwalError:
        return ChainError(
            f"{self.path(path)} is not what pgwal stores: a link, or neither file nor directory", hint=ANOTHER_BACKUP
        )
