"""How the files of a chain are written: by which method, with how many threads, and whether they are synced."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from pgwal.budget import MOST_DEFAULT_JOBS
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.disk.copy_method import CopyMethod
from pgwal.errors import TargetError
from pgwal.repository.backup_data import BackupData


def default_jobs() -> int:
    """Return how many threads copy when nothing is said: one for each processor, at most four."""
    return min(os.cpu_count() or 1, MOST_DEFAULT_JOBS)


@dataclass(frozen=True, slots=True)
class RebuildOptions:
    """How files are written: ``method`` is for those that come whole from one backup."""

    method: CopyMethod = CopyMethod.COPY
    jobs: int | None = None
    sync: bool = True


def require_files(stored: Iterable[BackupData], method: CopyMethod) -> None:
    """Raise TargetError for backups that are not stored as files of this machine, before anything is made."""
    for data in stored:
        if data.path(CONTROL_FILE_PATH) is None:
            raise TargetError(
                f"backup {data.backup_id} has no files of this machine, which --{method} needs",
                hint="Use --copy: it reads what is stored in packs, too.",
            )
