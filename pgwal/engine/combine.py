"""Make a synthetic full backup of a chain: what pg_combinebackup makes, for servers before 17 too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgwal.backup.chain import resolve_chain
from pgwal.backup.entry import BackupFile
from pgwal.backup.label import BACKUP_LABEL_NAME, BackupLabel
from pgwal.backup.manifest import MANIFEST_NAME, FileChecksum, ManifestWriter
from pgwal.engine.rebuild import Rebuild, RebuildOptions, RebuildReport, RebuiltFile
from pgwal.engine.restore import filling, tablespace_locations
from pgwal.lsn import LsnRange
from pgwal.repository.repository import Repository

_CHECKSUM_ALGORITHM = "CRC32C"


@dataclass(frozen=True, slots=True)
class CombineRequest:
    """Which backup to make whole, and where; ``tablespaces`` maps old absolute locations to new ones."""

    repository_path: Path
    backup: str
    output: Path
    tablespaces: Mapping[str, str] = field(default_factory=dict)
    options: RebuildOptions = field(default_factory=RebuildOptions)


def combine_backups(request: CombineRequest, on_progress: Callable[[int, int], None] | None = None) -> RebuildReport:
    """Make a full backup of a backup and those it builds on; it is durable, and has its manifest, on return.

    All bytes of it are read for the manifest, however they are copied.  Raises TargetError when the directory is not
    empty, ObjectNotFound, ChainError or FormatError when the chain is not whole.
    """
    repository = Repository.open(request.repository_path)
    chain = resolve_chain(repository.catalogue.entries(), request.backup)
    entry = chain[0]
    locations = tablespace_locations(entry, request.tablespaces)
    with filling(request.output, locations.values()), repository.catalogue.hold(chain[0].backup_id):
        rebuild = Rebuild(
            repository, chain, request.output, request.options, on_progress, checksum_algorithm=_CHECKSUM_ALGORITHM
        )
        rebuild.make_directories(locations)
        manifest = ManifestWriter(entry.major, entry.system_identifier)
        with rebuild.writer.create(MANIFEST_NAME) as manifest_file:
            manifest_file.write(manifest.header())
            labels: list[BackupFile] = []
            for rebuilt in rebuild.write_all(_all_but_label(rebuild, labels)):
                manifest_file.write(_manifest_entry(manifest, rebuilt))
            for label in labels:
                manifest_file.write(_write_label(rebuild, label, manifest))
            manifest_file.write(_manifest_entry(manifest, _checked(rebuild, rebuild.control_file)))
            wal_range = LsnRange(entry.start_timeline_id, entry.start_lsn, entry.stop_lsn)
            manifest_file.write(manifest.finish([wal_range]))
        rebuild.finish()
    return rebuild.report()


def _all_but_label(rebuild: Rebuild, labels: list[BackupFile]) -> Iterator[BackupFile]:
    for file in rebuild.files():
        if file.path == BACKUP_LABEL_NAME:
            labels.append(file)
        else:
            yield file


def _checked(rebuild: Rebuild, file: BackupFile) -> RebuiltFile:
    checksum = FileChecksum(_CHECKSUM_ALGORITHM)
    checksum.update(rebuild.content(file))
    return RebuiltFile(file, checksum)


def _write_label(rebuild: Rebuild, file: BackupFile, manifest: ManifestWriter) -> bytes:
    """Write backup_label as that of a full backup and return its entry in the manifest."""
    content = BackupLabel.decode(rebuild.content(file)).without_incremental().encode()
    rebuild.writer.write(BACKUP_LABEL_NAME, [content])
    checksum = FileChecksum(_CHECKSUM_ALGORITHM)
    checksum.update(content)
    return manifest.file_entry(BACKUP_LABEL_NAME, len(content), time.time(), checksum.algorithm, checksum.hexdigest())


def _manifest_entry(manifest: ManifestWriter, rebuilt: RebuiltFile) -> bytes:
    file, checksum = rebuilt
    assert checksum is not None
    return manifest.file_entry(file.path, file.size_bytes, file.mtime_epoch_s, checksum.algorithm, checksum.hexdigest())
