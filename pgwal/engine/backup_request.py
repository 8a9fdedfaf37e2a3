"""What is asked of a backup, or of a forecast of one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pgwal.engine.audit_sample import AuditSample
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.place import Place


class BackupRequest(NamedTuple):
    """What to back up, and how.

    ``data_directory`` is read locally; when it is None, the server's is read over SQL.  ``since`` is None for a full
    backup.  ``max_rate_bytes_per_s`` is over all jobs together.  With ``fails_on_bad_page``, a backup that met a page
    which differs from its checksum is none.  ``audit`` is what is read besides of blocks that are not copied.
    """

    place: Place
    parameters: ConnectionParameters
    data_directory: Path | None = None
    since: Lsn | str | None = None
    label: str = "pgwal base backup"
    fast: bool = False
    manifest_checksums: str = "CRC32C"
    slot: str | None = None
    jobs: int = 1
    max_rate_bytes_per_s: int | None = None
    fails_on_bad_page: bool = False
    audit: AuditSample | None = None
