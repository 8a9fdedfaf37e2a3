"""An open file of a repository in a local directory, whose errors are pgwal's and name it."""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.repository.local_errors import translated_errors

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
