"""Read a data directory of this machine while its server runs."""

from __future__ import annotations

import builtins
import logging
import os
import stat
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

from pgwal.backup.exclusion import Inclusion, excluded_relation_files, inclusion, wal_directories
from pgwal.backup.source import SourceDirectory, SourceFile
from pgwal.control_file import CONTROL_FILE_PATH, CONTROL_FILE_SIZE, ControlFile
from pgwal.errors import ChecksumMismatch, ServerError
from pgwal.relation import BLOCK_SIZE

logger = logging.getLogger(__name__)

_READ_SIZE = 1 << 20
_CONTROL_FILE_ATTEMPTS = 50


class LocalDataDirectory:
    """A data directory as a source of files and blocks; see pgwal.backup.source.BlockSource.

    Raises ServerError for what cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read_control_file(self) -> bytes:
        for attempt in range(_CONTROL_FILE_ATTEMPTS):
            chunks = self.read_file(CONTROL_FILE_PATH, CONTROL_FILE_SIZE)
            if chunks is None:
                raise ServerError(
                    f"{self.root} is not a data directory: it has no {CONTROL_FILE_PATH}",
                    hint="--pgdata names the data directory of the server that -h and -p name.",
                )
            content = b"".join(chunks)
            try:
                ControlFile.decode(content)
            except ChecksumMismatch:
                # The server may be writing it at this moment; that takes far less than the time of all attempts.
                if attempt == _CONTROL_FILE_ATTEMPTS - 1:
                    raise
                time.sleep(0.01)
            else:
                return content
        raise AssertionError

    def list(self) -> Iterator[SourceDirectory | SourceFile]:
        major = ControlFile.decode(self.read_control_file()).major
        yield from self._list("", major)

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        descriptor = self._open(path)
        return None if descriptor is None else self._chunks(descriptor, path, [(0, size_bytes)])

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        descriptor = self._open(path)
        return None if descriptor is None else self._chunks(descriptor, path, _extents(block_numbers))

    # -- listing -----------------------------------------------------------------------------------------------

    def _list(self, directory: str, major: int) -> Iterator[SourceDirectory | SourceFile]:
        entries = self._scan(directory)
        excluded = excluded_relation_files(directory, {entry.name for entry in entries}, major)
        for entry in entries:
            path = f"{directory}/{entry.name}" if directory else entry.name
            if entry.name in excluded or path == CONTROL_FILE_PATH:
                continue
            # Only the links of tablespaces are followed; those of directories that are sent empty need not be.
            follow = directory == "pg_tblspc"
            try:
                status = entry.stat(follow_symlinks=follow)
            except FileNotFoundError:
                continue
            verdict = inclusion(path, major, is_directory=stat.S_ISDIR(status.st_mode))
            if verdict is Inclusion.INCLUDED:
                yield from self._list_entry(path, status, major)
            elif verdict is Inclusion.EMPTY:
                yield SourceDirectory(path)
                if path == "pg_wal":
                    yield from map(SourceDirectory, wal_directories(major))

    def _list_entry(self, path: str, status: os.stat_result, major: int) -> Iterator[SourceDirectory | SourceFile]:
        if stat.S_ISDIR(status.st_mode):
            yield SourceDirectory(path)
            yield from self._list(path, major)
        elif stat.S_ISREG(status.st_mode):
            yield SourceFile(path, status.st_size, status.st_mtime)
        else:
            logger.warning("skipping %s: it is neither a file nor a directory", path)

    def _scan(self, directory: str) -> builtins.list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / directory) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            # A database that was dropped since; WAL has its end.
            return []
        except OSError as error:
            raise self._unreadable(directory, error) from error

    # -- reading -----------------------------------------------------------------------------------------------

    def _open(self, path: str) -> int | None:
        try:
            return os.open(self.root / path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _chunks(self, descriptor: int, path: str, extents: builtins.list[tuple[int, int]]) -> Iterator[bytes]:
        """Yield the bytes of (offset, length) extents, zeros beyond the end of the file, and close it."""
        try:
            for start, length in extents:
                offset, end = start, start + length
                while offset < end:
                    data = os.pread(descriptor, min(_READ_SIZE, end - offset), offset)
                    if not data:
                        # Shortened since it was listed: WAL says so, and replaying it makes it right.
                        data = bytes(min(_READ_SIZE, end - offset))
                    offset += len(data)
                    yield data
        except OSError as error:
            raise self._unreadable(path, error) from error
        finally:
            os.close(descriptor)

    def _unreadable(self, path: str, error: OSError) -> ServerError:
        return ServerError(
            f"cannot read {self.root / path}: {os.strerror(error.errno or 0)}",
            hint="Run pgwal as the server's user; --pgdata names the server's data directory.",
        )


def _extents(block_numbers: array[int]) -> list[tuple[int, int]]:
    """Join consecutive blocks to (offset, length) in bytes."""
    extents: list[tuple[int, int]] = []
    for block_no in block_numbers:
        offset = block_no * BLOCK_SIZE
        if extents and sum(extents[-1]) == offset:
            extents[-1] = (extents[-1][0], extents[-1][1] + BLOCK_SIZE)
        else:
            extents.append((offset, BLOCK_SIZE))
    return extents
