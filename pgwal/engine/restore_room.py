"""The room that a restore takes, in its data directory and in each tablespace, and whether there is that room."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.exclusion import TABLESPACE_DIRECTORY
from pgwal.disk.copy_method import CopyMethod
from pgwal.errors import TargetError
from pgwal.relation import parse_relation_path


class PlaceRoom(NamedTuple):
    """What a restore writes to one directory, in bytes; ``tablespace_oid`` is None for the data directory."""

    directory: Path
    tablespace_oid: int | None
    file_count: int
    size_bytes: int


class FileSystemRoom(NamedTuple):
    """A file system, by the places on it: what is written there, and what is free for whoever runs this, in bytes."""

    places: tuple[PlaceRoom, ...]
    needed_bytes: int
    free_bytes: int

    @property
    def is_enough(self) -> bool:
        return self.needed_bytes <= self.free_bytes


def room_needed(
    files: Iterable[BackupFile], data_directory: Path, tablespaces: Mapping[int, Path], method: CopyMethod
) -> list[FileSystemRoom]:
    """Return what the files of a backup take of each file system, at most: holes are written as such, and take nothing.

    What recovery adds is not in it: WAL, and what relations grow by.  Raises TargetError for a place of which the
    system tells nothing.
    """
    directories: dict[int | None, Path] = {None: data_directory}
    for oid, location in tablespaces.items():
        directories[oid] = location
    there = {place: _existing(directory) for place, directory in directories.items()}
    try:
        facts = {place: os.statvfs(directory) for place, directory in there.items()}
        devices = {place: directory.stat().st_dev for place, directory in there.items()}
    except OSError as error:
        raise TargetError(f"cannot tell how much room there is: {error.filename}: {error.strerror}") from error
    counts, sizes = dict.fromkeys(directories, 0), dict.fromkeys(directories, 0)
    for file in files:
        place = _tablespace_of(file.path)
        if place not in directories or _is_shared(file, method):
            continue
        block_size = facts[place].f_frsize
        counts[place] += 1
        sizes[place] += (file.size_bytes + block_size - 1) // block_size * block_size
    on_device = defaultdict(list)
    for place, directory in directories.items():
        on_device[devices[place]].append(PlaceRoom(directory, place, counts[place], sizes[place]))
    return [
        FileSystemRoom(tuple(places), sum(place.size_bytes for place in places), _free(facts[places[0].tablespace_oid]))
        for places in on_device.values()
    ]


def _tablespace_of(path: str) -> int | None:
    parts = path.split("/", 2)
    return int(parts[1]) if parts[0] == TABLESPACE_DIRECTORY and len(parts) > 1 and parts[1].isdigit() else None


def _is_shared(file: BackupFile, method: CopyMethod) -> bool:
    """Tell whether a file takes no room of its own: it comes whole from one backup, and is linked or cloned."""
    if file.is_incremental:
        return False
    return method is CopyMethod.CLONE or (method is CopyMethod.LINK and parse_relation_path(file.path) is not None)


def _existing(directory: Path) -> Path:
    """Return a directory, or the nearest one above it that is there."""
    place = Path(os.path.realpath(directory))
    while not place.exists():
        place = place.parent
    return place


def _free(facts: os.statvfs_result) -> int:
    # What is kept back for root is there for root.
    return facts.f_frsize * (facts.f_bfree if os.geteuid() == 0 else facts.f_bavail)
