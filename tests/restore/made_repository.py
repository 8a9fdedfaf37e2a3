"""Repositories made by hand, without a server: what they hold can be anything, true or not."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fix_formats import new_repository

from pgwal.backup.backup_file import BackupFile, BackupTotals
from pgwal.backup.backup_id import BackupKind, format_backup_id
from pgwal.backup.entry import BackupEntry
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.checksum import content_digest
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.lsn import Lsn
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import Repository
from pgwal.repository.staged_backup import StagedBackup
from pgwal.repository.storage_format import PLAIN_FORMAT, StorageFormat

SYSTEM_IDENTIFIER = 7_000_000_000_000_000_001
SEGMENT_SIZE = 1 << 20
LABEL = b"""START WAL LOCATION: 0/100028 (file 000000010000000000000001)
CHECKPOINT LOCATION: 0/100080
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-22 12:49:32 UTC
LABEL: made
START TIMELINE: 1
"""


@dataclass(frozen=True)
class Blocks:
    """An incremental copy: the length that still counts, and blocks by number."""

    truncation_block_length: int
    blocks: Mapping[int, bytes]

    def header(self) -> IncrementalHeader:
        return IncrementalHeader(self.truncation_block_length, array("I", sorted(self.blocks)))

    def content(self) -> bytes:
        return self.header().encode() + b"".join(self.blocks[number] for number in sorted(self.blocks))


Content = bytes | Blocks


def block(letter: str) -> bytes:
    return letter.encode() * BLOCK_SIZE


@dataclass
class MadeRepository:
    """A repository with as many backups as are added, each built on the one before, and WAL for all of them."""

    path: Path
    ids: list[str] = field(default_factory=list)
    data_checksums: bool = False
    """Whether data pages have checksums, and are not bytes of any kind."""
    notes_header_digests: bool = True
    storage_format: StorageFormat = PLAIN_FORMAT

    def __post_init__(self) -> None:
        new_repository(self.path, self.storage_format)
        identity = RepositoryIdentity(SYSTEM_IDENTIFIER, SEGMENT_SIZE, 18)
        self._repository = Repository.open_or_create(self.path, identity)

    def data(self, backup_id: str) -> Path:
        return self.path / "backups" / backup_id / "data"

    def add(self, files: Mapping[str, Content], *, tablespaces: Mapping[int, str] | None = None) -> str:
        """Add a backup with these files, and those that every backup has."""
        number = len(self.ids)
        kind = BackupKind.INCREMENTAL if number else BackupKind.FULL
        backup_id = format_backup_id(1_800_000_000 + number, kind)
        every = {"PG_VERSION": b"18\n", "backup_label": LABEL, CONTROL_FILE_PATH: b"control" * 100}
        start = Lsn((number + 1) * SEGMENT_SIZE + 40)
        totals = BackupTotals()
        with self._repository.catalogue.stage(backup_id) as staged:
            for path, content in {**every, **files}.items():
                file = self._store(staged, path, content)
                staged.add_file(file)
                totals = totals.plus(file)
            staged.data.sync()
            entry = BackupEntry(
                backup_id=backup_id,
                kind=kind,
                prior_id=self.ids[-1] if number else None,
                system_identifier=SYSTEM_IDENTIFIER,
                major=18,
                start_lsn=start,
                start_timeline_id=1,
                stop_lsn=Lsn(start + 200),
                stop_timeline_id=1,
                label="made",
                started_at=f"2026-11-22T10:00:{number:02}+00:00",
                finished_at=f"2026-11-22T10:00:{number:02}+00:00",
                wal_segment_size=SEGMENT_SIZE,
                data_checksums=self.data_checksums,
                tablespaces=tablespaces or {},
                totals=totals,
                packed_size_bytes=None if (packed := staged.data.contents()) is None else packed.size_bytes,
            )
            staged.publish(entry)
        with (self.path / "wal" / f"0000000100000000{number + 1:08X}").open("wb") as segment:
            segment.truncate(SEGMENT_SIZE)
        self.ids.append(backup_id)
        return backup_id

    def _store(self, staged: StagedBackup, path: str, content: Content) -> BackupFile:
        if isinstance(content, Blocks):
            stored, header = content.content(), content.header()
            size, extra = header.reconstructed_block_count * BLOCK_SIZE, (header.truncation_block_length,)
            counts: tuple[int, ...] = (*extra, len(header.block_numbers))
        else:
            stored, size, counts = content, len(content), ()
        file = BackupFile(path, size, len(stored), 0o600, 1_800_000_000, content_digest(stored), *counts)
        if self.notes_header_digests and file.copied_block_count:
            assert isinstance(content, Blocks)
            file = file._replace(header_digest=content_digest(content.header().encode()))
        staged.data.make_directory(file.stored_path.rpartition("/")[0])
        return file._replace(extents=staged.data.write(file.stored_path, [stored]).extents)
