"""Read a data directory of this machine while its server runs."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pgwal.backup.exclusion import TABLESPACE_DIRECTORY
from pgwal.backup.source import SourceDirectory, SourceFile, Unread, WantedContent, read_until_whole
from pgwal.backup.walk import EntryKind, EntryStatus, walk
from pgwal.budget import BLOCKS_AT_ONCE, READ_BYTES
from pgwal.control_file import CONTROL_FILE_PATH, CONTROL_FILE_SIZE, ControlFile
from pgwal.disk.block_reads import read_blocks
from pgwal.disk.small_files import read_small_files
from pgwal.errors import ServerError

logger = logging.getLogger(__name__)


class LocalDataDirectory:
    """A data directory as a source of files and blocks; see pgwal.backup.source.BlockSource.

    Raises ServerError for what cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read_control_file(self) -> bytes:
        return read_until_whole(self._read_control_file_once, lambda: time.sleep(0.01))

    def list(
        self, emptied: Collection[str] = (), tablespaces: Collection[int] | None = None
    ) -> Iterator[SourceDirectory | SourceFile]:
        major = ControlFile.decode(self.read_control_file()).major
        yield from walk(_Directories(self.root), major, _warn_skipped, emptied, tablespaces)

    def cut(self) -> None:
        # What reads a file waits for no more than the disk.
        pass

    def names(self, directory: str) -> Sequence[str]:
        return _Directories(self.root).names(directory)

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        descriptor = self._open(path)
        return None if descriptor is None else self._chunks(descriptor, path, size_bytes)

    def read_to_end(self, path: str, size_bytes: int) -> Iterator[bytes] | None:  # noqa: ARG002 (asked of the system)
        descriptor = self._open(path)
        return None if descriptor is None else self._chunks_to_end(descriptor, path)

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        descriptor = self._open(path)
        return None if descriptor is None else self._blocks(descriptor, path, block_numbers)

    def read_small(self, wanted: Sequence[WantedContent]) -> Sequence[bytes | Unread | None]:
        root = f"{self.root}/"
        try:
            return read_small_files(
                [root + file.path for file in wanted],
                [file.size_bytes for file in wanted],
                [file.block_numbers for file in wanted],
                [file.to_end for file in wanted],
            )
        except OSError as error:
            raise _unreadable(Path(error.filename), error) from error

    def _read_control_file_once(self) -> bytes:
        chunks = self.read_file(CONTROL_FILE_PATH, CONTROL_FILE_SIZE)
        if chunks is None:
            raise ServerError(
                f"{self.root} is not a data directory: it has no {CONTROL_FILE_PATH}",
                hint="--pgdata names the data directory of the server that -h and -p name.",
                path=str(self.root),
            )
        return b"".join(chunks)

    def _open(self, path: str) -> int | None:
        try:
            # Without waiting for the other end of what is no file any more.
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.root / path, error) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ServerError(
                f"cannot read {self.root / path}: it is not a regular file",
                hint="Nothing but the server may change its data directory.",
                path=str(self.root / path),
            )
        return descriptor

    def _chunks(self, descriptor: int, path: str, size_bytes: int) -> Iterator[bytes]:
        """Yield the bytes of a file, zeros beyond its end, and close it."""
        try:
            for offset in range(0, size_bytes, READ_BYTES):
                size = min(READ_BYTES, size_bytes - offset)
                data = os.pread(descriptor, size, offset)
                while len(data) < size:
                    more = os.pread(descriptor, size - len(data), offset + len(data))
                    # Shortened since it was listed: WAL says so, and replaying it makes it right.
                    data += more or bytes(size - len(data))
                yield data
        except OSError as error:
            raise _unreadable(self.root / path, error) from error
        finally:
            os.close(descriptor)

    def _chunks_to_end(self, descriptor: int, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file up to the end that it has now, and close it.

        Whoever replaces the file meanwhile leaves this one as it is; one that grows without end, as a log does, is not
        followed.
        """
        try:
            left = os.fstat(descriptor).st_size
            while left and (data := os.read(descriptor, min(READ_BYTES, left))):
                left -= len(data)
                yield data
        except OSError as error:
            raise _unreadable(self.root / path, error) from error
        finally:
            os.close(descriptor)

    def _blocks(self, descriptor: int, path: str, block_numbers: array[int]) -> Iterator[bytes]:
        """Yield blocks of a file, zeros beyond its end, and close it."""
        try:
            for at in range(0, len(block_numbers), BLOCKS_AT_ONCE):
                yield read_blocks(descriptor, block_numbers[at : at + BLOCKS_AT_ONCE])
        except OSError as error:
            raise _unreadable(self.root / path, error) from error
        finally:
            os.close(descriptor)


class _Directories:
    """What the directories hold; see pgwal.backup.walk.DirectoryReader."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, directory: str) -> list[str]:
        try:
            with os.scandir(self._root / directory) as entries:
                return [entry.name for entry in entries]
        except FileNotFoundError:
            # A database that was dropped since; WAL has its end.
            return []
        except OSError as error:
            raise _unreadable(self._root / directory, error) from error

    def statuses(self, directory: str, names: Sequence[str]) -> Iterator[EntryStatus | None]:
        # Only the links of tablespaces are followed; those of directories that are sent empty need not be.
        follow = directory == TABLESPACE_DIRECTORY
        prefix = f"{self._root / directory}/"
        for name in names:
            try:
                status = os.stat(prefix + name, follow_symlinks=follow)  # noqa: PTH116 (no Path for each of a million files)
            except FileNotFoundError:
                yield None
            except OSError as error:
                raise _unreadable(Path(prefix + name), error) from error
            else:
                yield EntryStatus(_kind(status.st_mode), status.st_size, status.st_mtime)


def _kind(mode: int) -> EntryKind:
    if stat.S_ISDIR(mode):
        return EntryKind.DIRECTORY
    return EntryKind.FILE if stat.S_ISREG(mode) else EntryKind.OTHER


def _warn_skipped(path: str) -> None:
    logger.warning("skipping %s: it is neither a file, nor a directory, nor the link of a tablespace", path)


def _unreadable(path: Path, error: OSError) -> ServerError:
    number = error.errno or 0
    text, hint = os.strerror(number), "Run pgwal as the server's user; --pgdata names the server's data directory."
    if number == errno.ELOOP:
        text = "it has been exchanged for a symbolic link since it was listed"
        hint = "Nothing but the server may change its data directory. Take the backup again."
    name = errno.errorcode.get(number, str(number))
    return ServerError(f"cannot read {path}: {text}", hint=hint, path=str(path), errno=name)
