"""A file that a server, or somebody with an archive, hands over to be kept."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pgwal.budget import READ_BYTES
from pgwal.errors import ObjectNotFound, PgwalError

_MOST_BYTES = 1 << 20
"""More than a history file, or one that tells of a backup, has."""


class FileState(NamedTuple):
    """What tells whether a file is still the one that was read: another one, or a change, differs in some of it."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class HandedOver:
    """An open file, to be closed as a context; raises PgwalError for what cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        try:
            # Whatever has the name is not waited for.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            status = os.fstat(self._descriptor)
        except OSError as error:
            self.close()
            raise self._failed(error) from error
        self.state = FileState.of(status)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise PgwalError(f"{path} is not a regular file", path=str(path))

    @property
    def size_bytes(self) -> int:
        return self.state.size_bytes

    def __enter__(self) -> HandedOver:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def pieces(self) -> Iterator[bytes]:
        """Yield the content from its start, as often as it is asked for."""
        offset = 0
        while offset < self.size_bytes:
            try:
                piece = os.pread(self._descriptor, min(READ_BYTES, self.size_bytes - offset), offset)
            except OSError as error:
                raise self._failed(error) from error
            if not piece:
                raise self._changed()
            offset += len(piece)
            yield piece

    def content(self) -> bytes:
        """Return all of a small file."""
        if self.size_bytes > _MOST_BYTES:
            raise PgwalError(f"{self.path} has {self.size_bytes} bytes, and so is not of its kind", path=str(self.path))
        return b"".join(self.pieces())

    def require_unchanged(self) -> None:
        """Raise PgwalError when the file was changed while it was read."""
        try:
            state = FileState.of(os.fstat(self._descriptor))
        except OSError as error:
            raise self._failed(error) from error
        # A link that is made or removed changes the last one alone.
        if state[:-1] != self.state[:-1]:
            raise self._changed()

    def _changed(self) -> PgwalError:
        return PgwalError(f"{self.path} was changed while it was read", path=str(self.path))

    def _failed(self, error: OSError) -> PgwalError:
        kind = ObjectNotFound if isinstance(error, FileNotFoundError) else PgwalError
        return kind(f"cannot read {self.path}: {os.strerror(error.errno or 0)}", path=str(self.path))
