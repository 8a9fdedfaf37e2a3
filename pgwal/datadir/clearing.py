"""Look through a directory that is there for what is not wanted in it, and remove that.

No link is followed, and nothing is entered by a path that somebody else could change meanwhile.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from pgwal.backup.stored_path import decode_path
from pgwal.disk.new_file import refused
from pgwal.errors import TargetError

logger = logging.getLogger(__name__)

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_NAMED = 5
_OF_FILE_SYSTEM = "lost+found"
"""What a file system makes in its own root directory, and wants there."""
_VERSION_DIRECTORY = re.compile(r"pg_tblspc/[0-9]+/PG_[0-9.]+_[0-9]+")
"""Of any major: a tablespace's directory may hold those of several clusters, as pg_upgrade leaves it."""


class Wanted(Protocol):
    """What a directory is to hold; paths are relative to the data directory, as a catalogue entry has them."""

    def is_file(self, path: str) -> bool: ...

    def is_directory(self, path: str) -> bool:
        """Tell whether a path is that of a directory, one with other places in it among them."""

    def is_place(self, path: str) -> bool:
        """Tell whether a path is that of a directory that is looked through by another path, as a tablespace's."""

    def link(self, path: str) -> Path | None:
        """Return where a symbolic link is to lead; None where there is to be none."""

    def is_rewritten(self, path: str) -> bool:
        """Tell whether a file is wanted, but made anew in any case: what is there goes before that."""


@dataclass
class Unwanted:
    """What is not wanted, with the paths of some of it; ``links`` are all symbolic links, and where they lead.

    Files that are ``rewritten`` are not among them: others come in their places.
    """

    file_count: int = 0
    size_bytes: int = 0
    directory_count: int = 0
    kept_file_count: int = 0
    links: dict[str, str] = field(default_factory=dict)
    rewritten: list[str] = field(default_factory=list)
    some: list[str] = field(default_factory=list)

    def add_file(self, path: str, size_bytes: int) -> None:
        """Count a file that is not wanted."""
        self.note(path)
        self.file_count += 1
        self.size_bytes += size_bytes

    def note(self, path: str) -> None:
        """Keep the path of something that is not wanted, if few are kept yet."""
        if len(self.some) < _MOST_NAMED:
            self.some.append(path)


class _Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"

    @classmethod
    def of(cls, entry: os.DirEntry[str]) -> _Kind:
        if entry.is_symlink():
            return cls.LINK
        if entry.is_dir(follow_symlinks=False):
            return cls.DIRECTORY
        return cls.FILE if entry.is_file(follow_symlinks=False) else cls.OTHER


class _Child(NamedTuple):
    name: str
    path: str
    kind: _Kind


class Clearing:
    """Looks through directories for what is not ``wanted``, and only ``removes`` it if it is told so.

    Then it also gives the directories that stay ``directory_mode``, and to root, if root runs this, so that nobody can
    put a link in the way of what is written there.  Raises TargetError for what cannot be looked at or removed, and for
    another file system that is mounted on what is not wanted.
    """

    def __init__(self, wanted: Wanted, *, removes: bool, directory_mode: int = 0o700) -> None:
        self.found = Unwanted()
        self._wanted = wanted
        self._removes = removes
        self._directory_mode = directory_mode

    def clear(self, root: Path, path: str = "") -> None:
        """Go through a directory that stays, which is ``path`` in the data directory; it may be absent."""
        try:
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise refused("look into", root, error) from error
        try:
            self._clear(descriptor, root, path, is_root=True)
        finally:
            os.close(descriptor)

    def _clear(self, descriptor: int, directory: Path, path: str, *, is_root: bool = False) -> None:
        self._take(descriptor, directory)
        for child in _children(descriptor, directory, path):
            place = directory / child.name
            if child.kind is _Kind.DIRECTORY and self._stays(child, is_root=is_root):
                if not self._wanted.is_place(child.path) and self._wanted.is_directory(child.path):
                    with self._entered(descriptor, child, place) as entered:
                        if entered is not None:
                            self._clear(entered, place, child.path)
            elif child.kind is _Kind.FILE and self._wanted.is_file(child.path):
                self.found.kept_file_count += 1
            elif child.kind is _Kind.LINK and self._is_wanted_link(descriptor, child):
                continue
            else:
                self._remove(descriptor, child, place)

    def _stays(self, child: _Child, *, is_root: bool) -> bool:
        if self._wanted.link(child.path) is not None:
            return False
        if self._wanted.is_directory(child.path) or self._wanted.is_place(child.path):
            return True
        if is_root and _VERSION_DIRECTORY.fullmatch(child.path):
            if not self._removes:
                logger.warning("%s is of another version's cluster, and stays", child.path)
            return True
        return child.name == _OF_FILE_SYSTEM

    def _is_wanted_link(self, descriptor: int, child: _Child) -> bool:
        location = self._wanted.link(child.path)
        return location is not None and os.readlink(child.name, dir_fd=descriptor) == str(location)

    def _take(self, descriptor: int, directory: Path) -> None:
        """Make a directory that stays root's, if root runs this, and give it the mode of its kind."""
        if not self._removes:
            return
        try:
            status = os.fstat(descriptor)
            if os.geteuid() == 0 and status.st_uid != 0:
                os.fchown(descriptor, 0, 0)
            if stat.S_IMODE(status.st_mode) != self._directory_mode:
                os.fchmod(descriptor, self._directory_mode)
        except OSError as error:
            raise refused("take over", directory, error) from error

    def _remove(self, descriptor: int, child: _Child, place: Path) -> None:
        """Count what is not wanted, and remove it."""
        if child.kind is _Kind.FILE and self._wanted.is_rewritten(child.path):
            self.found.rewritten.append(child.path)
            self._remove_one(descriptor, child, place)
            return
        self.found.note(child.path)
        self._remove_all(descriptor, child, place)

    def _remove_all(self, descriptor: int, child: _Child, place: Path) -> None:
        if child.kind is _Kind.DIRECTORY:
            self.found.directory_count += 1
            with self._entered(descriptor, child, place) as entered:
                if entered is not None:
                    if os.fstat(entered).st_dev != os.fstat(descriptor).st_dev:
                        raise TargetError(
                            f"{place} is another file system, which the backup does not have there",
                            hint="Unmount it, or restore into another directory.",
                            path=str(place),
                        )
                    for each in _children(entered, place, child.path):
                        self._remove_all(entered, each, place / each.name)
        elif child.kind is _Kind.LINK:
            with suppress(OSError):
                self.found.links[child.path] = os.readlink(child.name, dir_fd=descriptor)
        else:
            self.found.file_count += 1
            with suppress(OSError):
                self.found.size_bytes += os.stat(child.name, dir_fd=descriptor, follow_symlinks=False).st_size
        self._remove_one(descriptor, child, place)

    def _remove_one(self, descriptor: int, child: _Child, place: Path) -> None:
        if not self._removes:
            return
        try:
            if child.kind is _Kind.DIRECTORY:
                os.rmdir(child.name, dir_fd=descriptor)
            else:
                os.unlink(child.name, dir_fd=descriptor)
        except OSError as error:
            raise refused("remove", place, error) from error

    @contextmanager
    def _entered(self, descriptor: int, child: _Child, place: Path) -> Iterator[int | None]:
        """Open a directory, whatever its mode; None where only a change of that would open it, and nothing changes."""
        try:
            try:
                entered = os.open(child.name, _OPEN, dir_fd=descriptor)
            except PermissionError:
                if not self._removes:
                    yield None
                    return
                os.chmod(child.name, 0o700, dir_fd=descriptor)
                entered = os.open(child.name, _OPEN, dir_fd=descriptor)
        except OSError as error:
            raise refused("look into", place, error) from error
        try:
            yield entered
        finally:
            os.close(entered)


def _children(descriptor: int, directory: Path, path: str) -> list[_Child]:
    """Return what a directory holds, as a list, for some of it is removed before the next is looked at."""
    above = f"{path}/" if path else ""
    try:
        with os.scandir(descriptor) as entries:
            return [
                _Child(entry.name, above + decode_path(os.fsencode(entry.name)), _Kind.of(entry)) for entry in entries
            ]
    except OSError as error:
        raise refused("look into", directory, error) from error
