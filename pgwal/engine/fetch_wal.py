"""Give a restored server the WAL that it asks for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pgwal.errors import ObjectNotFound, TargetError
from pgwal.repository.repository import Repository
from pgwal.segment import is_history_name, is_segment_name


def fetch(repository: Repository, name: str, destination: Path) -> None:
    """Copy a segment or history file to ``destination``.

    A segment that is not complete is given as far as it was received: everything received can be recovered.
    Raises ObjectNotFound when the repository does not hold the file, RepositoryError or TargetError for failures.
    """
    if not is_segment_name(name) and not is_history_name(name):
        # Backup history files and the like: the server asks for them and goes on without.
        raise ObjectNotFound(f"{name} is neither a WAL segment nor a history file")
    content = repository.wal.read_file(name)
    temporary = destination.with_name(f"{destination.name}.pgwal")
    try:
        # The server takes a file of the right size for whole, so it must not be seen before it is.
        temporary.write_bytes(content)
        temporary.replace(destination)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise TargetError(f"cannot write {destination}: {os.strerror(error.errno or 0)}") from error
