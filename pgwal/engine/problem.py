"""Something that is wrong with what a repository holds, as verifying and copying tell it."""

from __future__ import annotations

import os
from typing import NamedTuple

from pgwal.errors import ForeignObject, ObjectNotFound, PgwalError, RepositoryError


class Problem(NamedTuple):
    """Something that is wrong: ``path`` is relative to the repository, ``backup_id`` None for WAL and summaries."""

    backup_id: str | None
    path: str
    message: str


def reason(error: PgwalError) -> str:
    """Say what is wrong with something whose name stands before it."""
    if isinstance(error, ObjectNotFound):
        return "it is missing"
    if isinstance(error, ForeignObject):
        return "it is a link, or no regular file"
    if isinstance(error, RepositoryError) and isinstance(error.__cause__, OSError):
        return f"it cannot be read: {os.strerror(error.__cause__.errno or 0)}"
    return str(error)
