"""A file with a report, which is whole when it is there, and replaces an older one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pgwal.errors import TargetError


def require_writable(path: Path) -> None:
    """Raise TargetError for an absolute path at which no file can be written: better known before the work is done."""
    directory = path.parent
    if path.is_dir():
        raise TargetError(f"cannot write the report {path}: it is a directory", hint="Name a file.")
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        raise TargetError(
            f"cannot write the report {path}: {directory} is no directory that can be written",
            hint="Make the directory first, or name another one.",
        )


def write_whole(path: Path, content: str) -> None:
    """Write a file in the place of an older one, durably; raises TargetError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise TargetError(f"cannot write the report {path}: {error.strerror}") from error
