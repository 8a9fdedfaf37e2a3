"""How the files of a chain are written: by which method, with how many threads, and whether they are synced."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pgwal.disk.copy_method import CopyMethod

_MAX_DEFAULT_JOBS = 4


def default_jobs() -> int:
    """Return how many threads copy when nothing is said: one for each processor, at most four."""
    return min(os.cpu_count() or 1, _MAX_DEFAULT_JOBS)


@dataclass(frozen=True, slots=True)
class RebuildOptions:
    """How files are written: ``method`` is for those that come whole from one backup."""

    method: CopyMethod = CopyMethod.COPY
    jobs: int | None = None
    sync: bool = True
