"""Which files a backup lacks that WAL must account for: absent is not dropped.

A file may be missing because its relation was dropped, or because the disk that it lies on is not mounted.  Only WAL
tells which: that of the window for what the prior backup held, that of the backup itself for what goes while files are
copied.  Main and init forks are looked at; the other two do without.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.plan import ChangedBlocks
from pgwal.backup.source import SourceDirectory, SourceFile
from pgwal.relation import (
    BLOCKS_PER_FILE,
    Fork,
    RelationFile,
    RelFileLocator,
    parse_database_directory,
    parse_relation_path,
)

_VERSION_FILE = "PG_VERSION"
_FORKS = (Fork.MAIN, Fork.INIT)
_SUFFIXES = {Fork.MAIN: "", Fork.INIT: "_init"}
_SEGMENT_BITS = 17


class MissingFiles:
    """Collects, while files are listed and copied, what is missing, and takes away again what is accounted for.

    ``changes`` is the block map of the window, None for a full backup.
    """

    def __init__(self, changes: ChangedBlocks | None) -> None:
        self.databases: set[str] = set()
        """Directories of databases, below the data directory, in which files have been seen."""
        self._changes = changes
        # By directory, eight bytes a file: a database that is dropped meanwhile may have a million.
        self._files: dict[str, array[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._files)

    def see(self, item: SourceDirectory | SourceFile) -> None:
        """Take note of what is listed, in the order of ``walk``."""
        directory, _, name = item.path.rpartition("/")
        if name == _VERSION_FILE and parse_database_directory(directory) is not None:
            self.databases.add(directory)
        if directory in self._files and (file := parse_relation_path(item.path)) is not None and file.fork == Fork.INIT:
            # Of an unlogged relation, whose main fork is left out.  It was not yet known to be one when it was listed
            # for the prior backup.
            self._drop(directory, lambda other: other.fork == Fork.MAIN and other.locator == file.locator)

    def add_absent(self, file: BackupFile) -> None:
        """Add a file of the prior backup that is not listed, unless the window accounts for it."""
        relation_file = parse_relation_path(file.path)
        if relation_file is None or relation_file.fork not in _FORKS:
            return
        assert self._changes is not None
        if _is_dropped(relation_file, self._changes):
            return
        # What was dropped before the prior backup began may have left an empty file until the next checkpoint.
        if file.size_bytes or _is_changed(relation_file, self._changes):
            self._add(file.path, relation_file)

    def add_gone(self, path: str) -> None:
        """Add a file that was listed, and was no longer there when it was read."""
        relation_file = parse_relation_path(path)
        if relation_file is not None and relation_file.fork in _FORKS:
            self._add(path, relation_file)

    def account_for(self, changes: ChangedBlocks) -> None:
        """Take away what another range of WAL says was dropped."""
        for directory in list(self._files):
            self._drop(directory, lambda file: _is_dropped(file, changes))

    def account_for_database(self, directory: str) -> None:
        """Take away all files of a directory of a database that is known to have been dropped or moved."""
        self._files.pop(directory, None)

    def directories(self) -> list[str]:
        """Return the directories that lack something."""
        return list(self._files)

    def paths(self) -> Iterator[str]:
        """Yield the paths of what is missing."""
        for directory in self._files:
            for file in self._of(directory):
                segment = f".{file.segment}" if file.segment else ""
                yield f"{directory}/{file.locator.rel_number}{_SUFFIXES[file.fork]}{segment}"

    def _add(self, path: str, file: RelationFile) -> None:
        directory = path.rpartition("/")[0]
        self._files.setdefault(directory, array("Q")).append(_pack(file))

    def _of(self, directory: str) -> Iterator[RelationFile]:
        place = parse_database_directory(directory)
        assert place is not None
        return (_unpack(place, packed) for packed in self._files[directory])

    def _drop(self, directory: str, is_accounted_for: Callable[[RelationFile], bool]) -> None:
        left = array("Q", [_pack(file) for file in self._of(directory) if not is_accounted_for(file)])
        if left:
            self._files[directory] = left
        else:
            del self._files[directory]


def _pack(file: RelationFile) -> int:
    return (file.locator.rel_number << 2 | file.fork) << _SEGMENT_BITS | file.segment


def _unpack(place: tuple[int, int], packed: int) -> RelationFile:
    rest, segment = packed >> _SEGMENT_BITS, packed & ((1 << _SEGMENT_BITS) - 1)
    return RelationFile(RelFileLocator(*place, rest >> 2), Fork(rest & 3), segment)


def _is_dropped(file: RelationFile, changes: ChangedBlocks) -> bool:
    """Tell whether WAL says that the file may have gone: with its database, its relation, or the end of that."""
    if changes.database_copied(file.locator.spc_oid, file.locator.db_oid):
        return True
    return changes.limit_block(*file.locator, file.fork) <= file.first_block


def _is_changed(file: RelationFile, changes: ChangedBlocks) -> bool:
    first_block = file.first_block
    return bool(changes.blocks_between(*file.locator, file.fork, first_block, first_block + BLOCKS_PER_FILE))
