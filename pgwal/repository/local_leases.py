"""Leases of a repository in a local directory: locks of files (flock), which end with the process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pgwal.budget import LOCK_LOOK_S
from pgwal.errors import RepositoryLocked
from pgwal.repository.beneath import Beneath
from pgwal.repository.local_errors import translated_errors

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalLeases:
    """See pgwal.repository.lease.Leases."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._beneath = Beneath(root)

    @contextlib.contextmanager
    def lock(self, name: str, holder: str) -> Iterator[None]:
        path = self._root / name
        with translated_errors("lock", path):
            descriptor = self._beneath.open(name, os.O_RDWR | os.O_CREAT)
        try:
            with translated_errors("lock", path):
                self._take_lock(descriptor, path, holder)
            yield
        finally:
            os.close(descriptor)

    def _take_lock(self, descriptor: int, path: Path, holder: str) -> None:
        if not _is_taken(descriptor):
            other = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise RepositoryLocked(
                f"{path} is held by {other}",
                hint="Only one can work on a repository at a time: wait until that one has ended, or stop it.",
                path=str(path),
                holder=other,
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}, process {os.getpid()}\n".encode(), 0)

    @contextlib.contextmanager
    def hold(self, name: str, *, exclusive: bool = False) -> Iterator[None]:
        path = self._root / name
        # Over NFS an exclusive lock needs a file that is open for writing; a shared one works on read-only media.
        mode = os.O_RDWR if exclusive else os.O_RDONLY
        with translated_errors("lock", path):
            descriptor = self._beneath.open(name, mode)
        try:
            with translated_errors("lock", path):
                self._take_hold(descriptor, name, exclusive=exclusive)
            yield
        finally:
            os.close(descriptor)

    def _take_hold(self, descriptor: int, name: str, *, exclusive: bool) -> None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            by = "being read by a restore, a verification or a copy" if exclusive else "being removed"
            path = (self._root / name).parent
            raise RepositoryLocked(
                f"{path} is {by}", hint="Wait until that has ended.", path=str(path), holder="another process"
            ) from None
        except OSError as error:
            # Where there are no locks, nobody can take one to remove it either; a restore must go on.
            if exclusive or error.errno not in _NO_LOCKS:
                raise
        # It may have been removed, or moved away, between the two calls.
        if not os.path.samestat(os.fstat(descriptor), self._beneath.status(name)):
            raise FileNotFoundError(errno.ENOENT, "replaced")

    def confirm(self) -> None:
        """Nothing is left to prove: flock ends with the process, not before."""

    def is_locked(self, name: str) -> bool:
        try:
            descriptor = self._beneath.open(name, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def _is_taken(descriptor: int) -> bool:
    """Take the lock of an open file; False when another process keeps it."""
    deadline = time.monotonic() + LOCK_LOOK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOCK_LOOK_S / 10)
