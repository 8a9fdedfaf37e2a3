"""What a rebuild of a data directory tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry import BackupEntry
from pgwal.backup.manifest import FileChecksum


class RebuiltFile(NamedTuple):
    """A file that was written; the checksum is None unless one was asked for."""

    file: BackupFile
    checksum: FileChecksum | None


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was rebuilt; sizes in bytes.  A change to what was made would change files of ``linked_backups``.

    ``bytes_kept`` were there before, ``bytes_fetched`` were read of the repository, out of packs as they are stored.
    """

    entry: BackupEntry
    chain_length: int
    file_count: int
    bytes_read: int
    bytes_written: int
    linked_backups: tuple[str, ...]
    bytes_kept: int = 0
    bytes_fetched: int = 0
