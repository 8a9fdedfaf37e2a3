"""postmaster.pid: what the data directory of a server that runs says about that server.

Source of the format: CreateLockFile in src/backend/utils/init/miscinit.c, PostgreSQL 13 to 19.  The lines are the
process id, the data directory, the start of the process in seconds since 1970, the port, and others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pgwal.errors import FormatError, ServerError

_NAME = "postmaster.pid"


class PostmasterFile(NamedTuple):
    """When the postmaster's process was started, in seconds since 1970, and its port."""

    started_at_s: int
    port: int

    @classmethod
    def decode(cls, content: bytes) -> PostmasterFile:
        """Parse the file; raises FormatError."""
        lines = content.split(b"\n")
        try:
            return cls(int(lines[2]), int(lines[3]))
        except (IndexError, ValueError) as error:
            raise FormatError(f"{_NAME} does not say when the server was started and on which port") from error


def read_postmaster_file(data_directory: Path) -> PostmasterFile | None:
    """Return what postmaster.pid says, None when it is not there: then no server runs on the directory.

    Raises ServerError when it cannot be read, FormatError when it is no such file.
    """
    path = data_directory / _NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerError(
            f"cannot read {path}: {os.strerror(error.errno or 0)}", hint="Run pgwal as the server's user."
        ) from error
    return PostmasterFile.decode(content)
