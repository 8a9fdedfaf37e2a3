"""What a backup did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgwal.backup.entry import BackupEntry
from pgwal.engine.block_audit import AuditTally
from pgwal.lsn import LsnRange


@dataclass(slots=True)
class BackupReport:
    """What a backup did; sizes in bytes, times in seconds.

    ``requests`` are how often an object store was asked, by kinds, None where there is none.  ``audit`` is None where
    none was made.
    """

    entry: BackupEntry
    window: list[LsnRange]
    changed_block_count: int
    copied_block_count: int
    block_count: int
    bytes_read: int
    bytes_written: int
    seconds: dict[str, float] = field(default_factory=dict)
    requests: Mapping[str, int] | None = None
    audit: AuditTally | None = None
