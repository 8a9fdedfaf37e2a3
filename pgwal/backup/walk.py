"""Walk over a data directory: what of it belongs into a backup, for every source of files alike.

A reader says what a directory holds; the rules are in ``pgwal.backup.exclusion``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import Enum
from itertools import filterfalse
from typing import NamedTuple, Protocol

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.exclusion import (
    TABLESPACE_DIRECTORY,
    WAL_DIRECTORY,
    Inclusion,
    excluded_relation_files,
    inclusion,
    tablespace_oid,
    wal_directories,
)
from pgwal.backup.source import SourceDirectory, SourceFile
from pgwal.backup.stored_path import check_path
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.errors import FormatError

_CONTROL_FILE_DIRECTORY, _, _CONTROL_FILE_NAME = CONTROL_FILE_PATH.rpartition("/")


class EntryKind(Enum):
    """What a name in a directory stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    OTHER = "neither a file nor a directory"


class EntryStatus(NamedTuple):
    """What a name in a directory stands for, and size and time of a file."""

    kind: EntryKind
    size_bytes: int
    mtime_s: float


class DirectoryReader(Protocol):
    """Looks into directories; paths are relative to the data directory, which itself is the empty path."""

    def names(self, directory: str) -> list[str]:
        """Return the names of what a directory holds, in any order; none when the directory is gone."""

    def statuses(self, directory: str, names: Sequence[str]) -> Iterator[EntryStatus | None]:
        """Yield the status of each name in turn, None for one that is gone.

        Is asked for one after the other, with the whole walk through a directory in between.
        """


class _Rules(NamedTuple):
    """What ``walk`` was told."""

    major: int
    on_skipped: Callable[[str], None]
    emptied: Collection[str]
    tablespaces: Collection[int] | None

    def takes_tablespace(self, name: str) -> bool:
        """Tell whether a name in pg_tblspc is that of a tablespace which is wanted; of others no link is followed."""
        oid = tablespace_oid(name)
        if oid is None:
            self.on_skipped(f"{TABLESPACE_DIRECTORY}/{name}")
            return False
        return self.tablespaces is None or oid in self.tablespaces


def walk(
    reader: DirectoryReader,
    major: int,
    on_skipped: Callable[[str], None],
    emptied: Collection[str] = (),
    tablespaces: Collection[int] | None = None,
) -> Iterator[SourceDirectory | SourceFile]:
    """Yield what belongs into a backup, directories before what is in them, sorted by name in each.

    pg_control is not among it: it is read last.  ``on_skipped`` is told of what is neither file nor directory, and of
    what has no tablespace's name in pg_tblspc.
    For ``emptied`` see pgwal.backup.exclusion.inclusion.  Of ``tablespaces``, all where it is None, others are left
    out altogether: they are newer than the backup's start, and WAL makes them.
    Raises FormatError for a name that would lead out of the directory it is listed in.
    """
    yield from _walk("", reader, _Rules(major, on_skipped, emptied, tablespaces))


def _ignore(_: BackupFile) -> None:
    pass


def with_prior_sizes(
    listed: Iterable[SourceDirectory | SourceFile],
    prior_files: Iterable[BackupFile],
    on_absent: Callable[[BackupFile], None] = _ignore,
) -> Iterator[tuple[SourceDirectory | SourceFile, int | None]]:
    """Give each file its reconstructed size in the prior backup, None when that does not hold it.

    Both come in the order of ``walk``, in which a backup notes its files, so that neither is held.  A file that is out
    of order is taken for one that the prior backup does not hold, and so is copied whole.  ``prior_files`` is taken to
    its end: only there it is proven.  ``on_absent`` is told of each file of the prior backup that is not listed, or is
    out of order.
    """
    prior = iter(prior_files)
    found, place = _next_place(prior)
    for item in listed:
        size_bytes = None
        if isinstance(item, SourceFile):
            wanted = item.path.split("/")
            while found is not None and place < wanted:
                on_absent(found)
                found, place = _next_place(prior)
            if found is not None and found.path == item.path:
                size_bytes = found.size_bytes
                found, place = _next_place(prior)
        yield item, size_bytes
    while found is not None:
        on_absent(found)
        found, place = _next_place(prior)


def _next_place(files: Iterator[BackupFile]) -> tuple[BackupFile | None, list[str]]:
    """Return the next file and what says where in the walk it comes."""
    file = next(files, None)
    return file, [] if file is None else file.path.split("/")


def _walk(directory: str, reader: DirectoryReader, rules: _Rules) -> Iterator[SourceDirectory | SourceFile]:
    major = rules.major
    names = _belonging(directory, reader.names(directory), rules)
    for name, status in zip(names, reader.statuses(directory, names), strict=True):
        if status is None:
            # Dropped since; WAL has its end.
            continue
        path = _joined(directory, name)
        verdict = inclusion(path, major, is_directory=status.kind is EntryKind.DIRECTORY, emptied=rules.emptied)
        if verdict is Inclusion.EMPTY:
            yield SourceDirectory(path)
            if path == WAL_DIRECTORY:
                yield from map(SourceDirectory, wal_directories(major))
        elif verdict is Inclusion.EXCLUDED:
            continue
        elif status.kind is EntryKind.FILE:
            yield SourceFile(path, status.size_bytes, status.mtime_s)
        elif status.kind is EntryKind.DIRECTORY:
            yield SourceDirectory(path)
            yield from _walk(path, reader, rules)
        else:
            rules.on_skipped(path)


def _belonging(directory: str, names: list[str], rules: _Rules) -> list[str]:
    """Return the names of one directory, sorted, but for what is left out whatever it is."""
    excluded = excluded_relation_files(directory, names, rules.major)
    if directory == _CONTROL_FILE_DIRECTORY:
        excluded.add(_CONTROL_FILE_NAME)
    if directory == TABLESPACE_DIRECTORY:
        excluded |= set(filterfalse(rules.takes_tablespace, names))
    # Not always a second list, for it may be a million long.
    kept = [name for name in names if name not in excluded] if excluded else names
    for name in kept:
        if "/" in name:
            raise FormatError(f"{directory or 'the data directory'} lists {name!r}, which is not a plain name")
        check_path(_joined(directory, name))
    kept.sort()
    return kept


def _joined(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name
