"""Refuse a place for a repository that a backup would copy along with the cluster."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pgwal.errors import RepositoryError

_TABLESPACE_VERSION = re.compile(r"PG_[0-9]+_[0-9]{9}")


def require_outside_data_directories(repository: Path) -> None:
    """Raise RepositoryError when a path leads into a data directory, any server's, or into one of its tablespaces."""
    for directory in Path(os.path.realpath(repository)).parents:
        if _TABLESPACE_VERSION.fullmatch(directory.name) or _is_data_directory(directory):
            raise RepositoryError(
                f"the repository {repository} would lie in the data directory {directory}: it would be backed up along"
                " with it, and lost with it",
                hint="Choose a place outside of it, best on another machine.",
            )


def _is_data_directory(directory: Path) -> bool:
    # Not Path.exists, which raises where the user may not look: there it can be no place of this user's either.
    return all(os.path.lexists(directory / name) for name in ("PG_VERSION", "global/pg_control"))
