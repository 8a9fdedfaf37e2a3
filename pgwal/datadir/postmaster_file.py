"""postmaster.pid: what the data directory of a server that runs says about that server.

Source of the format: CreateLockFile in src/backend/utils/init/miscinit.c, PostgreSQL 13 to 19.  The lines are the
process id, the data directory, the start of the process in seconds since 1970, the port, and others.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from pgwal.errors import FormatError, ServerError

_NAME = "postmaster.pid"
_LINES = re.compile(rb"[^\n]*\n[^\n]*\n([0-9]{1,11})\n([0-9]{1,5})\n")
_MOST_BYTES = 1 << 16
"""Of which a path can take a few thousand."""


class PostmasterFile(NamedTuple):
    """When the postmaster's process was started, in seconds since 1970, and its port."""

    started_at_s: int
    port: int

    @classmethod
    def decode(cls, content: bytes) -> PostmasterFile:
        """Parse the file; raises FormatError."""
        match = _LINES.match(content)
        if match is None:
            raise FormatError(f"{_NAME} does not say when the server was started and on which port")
        return cls(int(match[1]), int(match[2]))


def read_postmaster_file(data_directory: Path) -> PostmasterFile | None:
    """Return what postmaster.pid says, None when it is not there: then no server runs on the directory.

    Raises ServerError when it cannot be read, FormatError when it is no such file.
    """
    path = data_directory / _NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 (a descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FormatError(f"{path} is not a regular file")
            content = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerError(
            f"cannot read {path}: {os.strerror(error.errno or 0)}", hint="Run pgwal as the server's user."
        ) from error
    return PostmasterFile.decode(content)
