"""Reach what lies beneath a directory by descriptors, one part of a name after the other, and through no symbolic link.

Whoever can put a link into a directory would otherwise choose what is truncated, overwritten or emptied by those who
trust it.  The directory itself is named by the user, and may be reached through links.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
NO_FILE = getattr(errno, "EFTYPE", errno.ENOEXEC)
"""The errno of what is no regular file where one is wanted; elsewhere than on BSD, one that opening never gives."""


class Beneath:
    """Names beneath ``root``: relative paths with ``/``, of which none leads upwards; raises OSError.

    A symbolic link is ELOOP, and what is no regular file where one is wanted is NO_FILE.  With ``follow_links``, for
    directories that are no repositories and are only read, links count as what they lead to.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root = root
        self._follows = follow_links

    @contextmanager
    def directory(self, name: str) -> Iterator[int]:
        """Give a descriptor of a directory, of the root where the name is empty."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in _parts(name):
                inner = self._open_directory(part, descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_directory(self, name: str, parent: int) -> int:
        try:
            no_follow = 0 if self._follows else os.O_NOFOLLOW
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_follow, dir_fd=parent)
        except NotADirectoryError:
            # What Linux says of a link as well.
            if not self._follows and stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
            raise

    @contextmanager
    def parent(self, name: str) -> Iterator[tuple[int, str]]:
        """Give a descriptor of the directory that a name is in, and its last part."""
        *parts, last = _parts(name) or [""]
        directory = "/".join(parts)
        with self.directory(directory) as descriptor:
            yield descriptor, last

    def open(self, name: str, flags: int) -> int:
        """Open a regular file, made 0600 if the flags say so, and return its descriptor; never waits for a fifo."""
        flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if self._follows else os.O_NOFOLLOW)
        with self.parent(name) as (directory, last):
            descriptor = os.open(last, flags, FILE_MODE, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(NO_FILE, "not a regular file")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def status(self, name: str) -> os.stat_result:
        """Return the status of whatever has a name, of a link itself."""
        if not name:
            return os.stat(self.root)  # noqa: PTH116 (beside those by descriptor)
        with self.parent(name) as (directory, last):
            return os.stat(last, dir_fd=directory, follow_symlinks=self._follows)

    def make_directories(self, name: str) -> None:
        """Make a directory and those above it up to the root, durably; they may be there already."""
        parts = _parts(name)
        for count, part in enumerate(parts):
            with self.directory("/".join(parts[:count])) as parent:
                with suppress(FileExistsError):
                    os.mkdir(part, DIRECTORY_MODE, dir_fd=parent)
                    os.fsync(parent)
                os.close(self._open_directory(part, parent))

    def rename(self, old: str, new: str, *, durable: bool = True) -> None:
        """Give something a new name, durably unless told otherwise; a file of that name is replaced."""
        with self._parents(old, new) as ((old_directory, old_last), (new_directory, new_last)):
            os.rename(old_last, new_last, src_dir_fd=old_directory, dst_dir_fd=new_directory)
            if durable:
                os.fsync(new_directory)
            if durable and old_directory != new_directory:
                os.fsync(old_directory)

    def link(self, old: str, new: str) -> None:
        """Give a file another name, which must be free, beside the one that it has; not durable."""
        with self._parents(old, new) as ((old_directory, old_last), (new_directory, new_last)):
            os.link(old_last, new_last, src_dir_fd=old_directory, dst_dir_fd=new_directory, follow_symlinks=False)

    @contextmanager
    def _parents(self, old: str, new: str) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
        """Give ``parent`` of both names, with one descriptor where they are in one directory."""
        with self.parent(old) as (old_directory, old_last):
            folder, _, new_last = new.rpartition("/")
            if folder == old.rpartition("/")[0] and new_last not in ("", ".", ".."):
                yield (old_directory, old_last), (old_directory, new_last)
            else:
                with self.parent(new) as inner:
                    yield (old_directory, old_last), inner

    def unlink(self, name: str) -> None:
        """Remove a name that is not a directory's."""
        with self.parent(name) as (directory, last):
            os.unlink(last, dir_fd=directory)

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable."""
        with self.directory(name) as descriptor:
            os.fsync(descriptor)


def _parts(name: str) -> list[str]:
    parts = name.split("/") if name else []
    if any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return parts
