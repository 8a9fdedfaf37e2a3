"""What a restore would keep, write and remove in a data directory that is there."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.exclusion import TABLESPACE_DIRECTORY
from pgwal.backup.stored_path import encode_path
from pgwal.engine.overwritten import Overwriting


class PresentPart(NamedTuple):
    """A file that is there, and how many bytes of it digests prove to be those that are wanted."""

    size_bytes: int
    proven_bytes: int


@dataclass
class OverwritingForecast:
    """Counts of files and bytes of the backup; a file is kept when all of it is right, else changed, or new.

    What no digest proves counts as written, although it may turn out to be right.
    """

    overwriting: Overwriting
    kept_file_count: int = 0
    changed_file_count: int = 0
    new_file_count: int = 0
    kept_bytes: int = 0
    written_bytes: int = 0

    def add(self, file: BackupFile, size_bytes: int, present: PresentPart | None) -> None:
        """Count a file of which ``size_bytes`` are to be there."""
        proven = 0 if present is None else present.proven_bytes
        if present is None:
            self.new_file_count += 1
        elif proven == file.size_bytes == present.size_bytes and size_bytes == file.size_bytes:
            self.kept_file_count += 1
        else:
            self.changed_file_count += 1
        self.kept_bytes += proven
        self.written_bytes += size_bytes - proven


class PresentPlaces:
    """Finds where files of a backup lie; through no link, for a restore removes those before it looks for files."""

    def __init__(self, root: Path, tablespaces: Mapping[int, Path]) -> None:
        self._root = root
        self._tablespaces = {f"{TABLESPACE_DIRECTORY}/{oid}": location for oid, location in tablespaces.items()}
        self._directories: dict[str, Path | None] = {}

    def find(self, path: str) -> Path | None:
        """Return the place of a file in a directory that is there; None where the way to it would be made anew."""
        above, _, name = path.rpartition("/")
        if above not in self._directories:
            self._directories[above] = self._directory(above)
        directory = self._directories[above]
        return None if directory is None else directory / os.fsdecode(encode_path(name))

    def room_taken(self, path: str) -> int:
        """Return the room on disk that a file takes which stays or is removed, in bytes."""
        place = self.find(path)
        try:
            status = None if place is None else place.lstat()
        except OSError:
            return 0
        is_file = status is not None and stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        return status.st_blocks * 512 if status is not None and is_file else 0

    def _directory(self, path: str) -> Path | None:
        root, below = self._root, path
        for tablespace, location in self._tablespaces.items():
            if path == tablespace or path.startswith(f"{tablespace}/"):
                root, below = location, path.removeprefix(tablespace).lstrip("/")
        real = Path(os.path.realpath(root))
        directory = real / os.fsdecode(encode_path(below))
        return directory if directory.is_dir() and Path(os.path.realpath(directory)) == directory else None
