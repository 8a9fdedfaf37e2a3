"""An open file of a repository in a local directory, whose errors are pgwal's and name it."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.repository.local_errors import translated_errors
from pgwal.repository.store import MOST_BYTES_READ, too_large

if TYPE_CHECKING:
    from typing_extensions import Buffer


class LocalFile(FileIO):
    """An open file; raises kinds of RepositoryError."""

    def __init__(self, descriptor: int, path: Path, mode: str = "r") -> None:
        super().__init__(descriptor, mode)
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        with translated_errors("read", self._path):
            return super().read(-1 if size is None else size)

    def readinto(self, buffer: Buffer, /) -> int:
        with translated_errors("read", self._path):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with translated_errors("read", self._path):
            return super().readall()

    def write(self, data: Buffer, /) -> int:
        with translated_errors("write", self._path):
            return super().write(data)


def read_bounded(file: FileIO, name: str, most_bytes: int) -> bytes:
    """Return all that a file holds; raises FormatError, which names it, for more than ``most_bytes``."""
    content = bytearray()
    size_bytes = os.fstat(file.fileno()).st_size
    # What is no regular file, or grows, shows only when it is read that it has more.
    while size_bytes <= most_bytes and (data := file.read(min(MOST_BYTES_READ, most_bytes + 1 - len(content)))):
        content += data
        size_bytes = max(size_bytes, len(content))
    if size_bytes > most_bytes:
        raise too_large(name, most_bytes)
    return bytes(content)
