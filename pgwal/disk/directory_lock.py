"""Keeps two processes from filling one directory at the same time; the system ends it with the process."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from pgwal.disk.new_file import refused
from pgwal.errors import TargetError

_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""How file systems refuse to lock a directory, such as NFS: there nothing keeps anybody away."""


class DirectoryLock:
    """The lock of a directory that is there, until it is closed, or at the end of a context.

    Raises TargetError when another process has it.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise refused("open", directory, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise TargetError(
                f"another process is restoring into {directory}", hint="Wait until it has ended.", path=str(directory)
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self.close()
                raise refused("lock", directory, error) from error

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
