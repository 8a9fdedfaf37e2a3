"""The directory that a restore makes what a backup says: whose it is, and what is lost there, before anything changes.

It is known by its pg_control, or by the mark that a restore leaves there before it makes anything else: either has the
system identifier.  Nothing that is not of the backup's cluster is touched.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import INCOMPLETE_NAME, TABLESPACE_DIRECTORY, WAL_DIRECTORY
from pgwal.backup.incomplete_mark import IncompleteMark
from pgwal.backup.stored_path import encode_path
from pgwal.control_file import CONTROL_FILE_PATH, CONTROL_FILE_SIZE, ControlFile, ControlStamp
from pgwal.datadir.clearing import Unwanted
from pgwal.datadir.running_server import require_stopped
from pgwal.disk.directory_lock import DirectoryLock
from pgwal.engine.marking import read_mark
from pgwal.errors import FormatError, TargetError, WrongCluster
from pgwal.repository.layout import BACKUP_DATA_DIRECTORY, BACKUP_ENTRY_NAME
from pgwal.repository.repository import Repository
from pgwal.segment import is_segment_name

logger = logging.getLogger(__name__)

_IDENTIFIER = struct.Struct("<Q")
_PAGE_ADDRESS = struct.Struct("<8xQ")
"""In the header of a WAL page: see pgwal.wal.layout."""
_SHUT_DOWN = (1, 2)
"""DB_SHUTDOWNED, DB_SHUTDOWNED_IN_RECOVERY."""
_ASIDE_SUFFIX = ".pgwal"
_MARKS = {INCOMPLETE_NAME, f"{INCOMPLETE_NAME}.new"}
_ANOTHER_DIRECTORY = "Restore into another directory, or empty this one if nothing in it is needed."


class Overwriting(NamedTuple):
    """What is told before a directory is changed: what it is, what of it goes, and WAL that is nowhere else."""

    directory: Path
    description: str
    unwanted: Unwanted
    lost_wal: str | None


class OverwrittenDirectory:
    """A directory that is there and no server runs on, with the tablespaces that belong to it."""

    def __init__(self, root: Path, entry: BackupEntry, mark: IncompleteMark | None, control: bytes | None) -> None:
        self.root = root
        self._entry = entry
        self._mark = mark
        self._control = control
        self.begun = False
        """Whether something has changed."""
        self.dropped: dict[str, Path] = {}
        """Places of tablespaces that WAL creates again, which are to be empty; by path in the data directory."""

    @classmethod
    def find(cls, root: Path, entry: BackupEntry, locations: Mapping[int, Path]) -> OverwrittenDirectory | None:
        """Return the directory at ``root``; None where there is nothing, so that a restore makes all of it.

        Raises TargetError for a directory that may not be overwritten, WrongCluster for one of another cluster.
        """
        try:
            names = set(os.listdir(root))  # noqa: PTH208 (names alone)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TargetError(f"cannot use {root}: {os.strerror(error.errno or 0)}") from error
        if not names:
            return None
        require_stopped(root)
        found = cls(root, entry, read_mark(root), _read_control(root))
        if names - _MARKS:
            found._require_own()
        for oid, location in sorted(locations.items()):
            found.require_free(oid, location)
        return found

    def _require_own(self) -> None:
        identifiers = [] if self._mark is None else [self._mark.system_identifier]
        if self._control is not None:
            identifiers.append(_IDENTIFIER.unpack_from(self._control)[0])
        if not identifiers:
            raise TargetError(
                f"{self.root} is no data directory that --delta can overwrite: it has neither {CONTROL_FILE_PATH} nor"
                f" the mark of a restore that was interrupted",
                hint=_ANOTHER_DIRECTORY,
                path=str(self.root),
            )
        other = next((each for each in identifiers if each != self._entry.system_identifier), None)
        if other is not None:
            raise WrongCluster(
                f"{self.root} is of the cluster with system identifier {other}, the backup's is"
                f" {self._entry.system_identifier}",
                hint=_ANOTHER_DIRECTORY,
                path=str(self.root),
            )
        real = Path(os.path.realpath(self.root))
        if real.name == BACKUP_DATA_DIRECTORY and os.path.lexists(real.parent / BACKUP_ENTRY_NAME):
            raise TargetError(f"{self.root} is a backup in a repository", hint="Restore into another directory.")

    def require_free(self, oid: int, location: Path) -> None:
        """Raise TargetError unless the directory of a tablespace is absent or empty, or belongs to this one."""
        try:
            if not os.listdir(location) or self.owns(location):  # noqa: PTH208 (names alone)
                return
        except FileNotFoundError:
            return
        except OSError as error:
            raise TargetError(f"cannot use {location}: {os.strerror(error.errno or 0)}") from error
        raise TargetError(
            f"tablespace {oid} goes to {location}, which is not empty, and no tablespace of {self.root}",
            hint="Empty it if nothing in it is needed, or map the tablespace to another place with -T OLD=NEW.",
            path=str(location),
        )

    def owns(self, location: Path) -> bool:
        """Tell whether a directory is a tablespace of this one, by a link there, or by what the mark says."""
        marked: list[Path] = []
        if self._mark is not None and self._mark.system_identifier == self._entry.system_identifier:
            marked = [Path(os.fsdecode(encode_path(path))) for path in self._mark.tablespaces.values()]
        return any(_is_same(place, location) for place in (*marked, *self._linked()))

    def _linked(self) -> Iterator[Path]:
        links = self.root / TABLESPACE_DIRECTORY
        with suppress(OSError):
            for entry in os.scandir(links):
                if entry.is_symlink():
                    yield Path(entry.path)

    def description(self) -> str:
        """Return what people call it."""
        try:
            assert self._control is not None
            control, stamp = ControlFile.decode(self._control), ControlStamp.decode(self._control)
        except (AssertionError, FormatError):
            damaged = "a data directory whose pg_control is damaged"
            return damaged if self._control is not None else "a restore that was interrupted"
        time = datetime.fromtimestamp(stamp.checkpoint_at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        state = "" if control.state in _SHUT_DOWN else ", which was not shut down"
        return (
            f"a cluster of PostgreSQL {control.major} with its last checkpoint at {time} ({stamp.redo_lsn} on timeline"
            f" {stamp.timeline_id}){state}"
        )

    def lost_wal(self, repository: Repository) -> str | None:
        """Return the newest WAL segment here if it is newer than all of the repository; its tail is nowhere else."""
        geometry = repository.geometry
        here = [geometry.parse_file_name(name) for name in self._segments()]
        real = [
            (timeline_id, number)
            for timeline_id, number in here
            if self._begins_at(geometry.file_name(timeline_id, number), geometry.segment_start(number))
        ]
        if not real:
            return None
        newest = max(real)
        stored = max(((each.timeline_id, each.segment_no) for each in repository.wal.segments()), default=(0, 0))
        return geometry.file_name(*newest) if newest > stored else None

    def _segments(self) -> Iterable[str]:
        try:
            return [name for name in os.listdir(self.root / WAL_DIRECTORY) if is_segment_name(name)]  # noqa: PTH208
        except OSError:
            return []

    def _begins_at(self, name: str, start: int) -> bool:
        """Tell whether a segment has WAL of its own: one that is kept for later has that of an older one."""
        content = _read(self.root / WAL_DIRECTORY / name, _PAGE_ADDRESS.size)
        return content is not None and len(content) == _PAGE_ADDRESS.size and _PAGE_ADDRESS.unpack(content)[0] == start

    @contextmanager
    def changing(self) -> Iterator[ExitStack]:
        """Keep others out while a restore makes it what it is to be; what fails in between cannot be started."""
        with DirectoryLock(self.root), ExitStack() as stack:
            try:
                yield stack
            except BaseException:
                if self.begun:
                    with suppress(OSError):
                        (self.root / CONTROL_FILE_PATH).unlink()
                    logger.warning(
                        "%s is incomplete and cannot be started: restore into it again with --delta", self.root
                    )
                raise

    def make_unstartable(self) -> None:
        """Remove pg_control, durably; raises TargetError when a server was started meanwhile, and leaves it its own."""
        path = self.root / CONTROL_FILE_PATH
        aside = path.with_name(f"{path.name}{_ASIDE_SUFFIX}")
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                path.rename(aside)
            try:
                # Since the last look: from here on none can be started.
                require_stopped(self.root)
            except TargetError:
                with suppress(FileNotFoundError, NotADirectoryError):
                    aside.rename(path)
                (self.root / INCOMPLETE_NAME).unlink(missing_ok=True)
                raise
            self.begun = True
            with suppress(FileNotFoundError, NotADirectoryError):
                aside.unlink(missing_ok=True)
                _sync(path.parent)
        except OSError as error:
            raise TargetError(f"cannot remove {path}: {os.strerror(error.errno or 0)}", path=str(path)) from error


def _read_control(root: Path) -> bytes | None:
    """Return pg_control, damaged or not; None where there is nothing that could be one."""
    content = _read(root / CONTROL_FILE_PATH, CONTROL_FILE_SIZE)
    return content if content is not None and len(content) >= _IDENTIFIER.size else None


def _read(path: Path, size: int) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor)
            return file.read(size) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
