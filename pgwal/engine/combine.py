"""Make a synthetic full backup of a chain: what pg_combinebackup makes, for servers before 17 too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.chain import resolve_chain
from pgwal.backup.entry import BackupEntry
from pgwal.backup.label import BACKUP_LABEL_NAME, BackupLabel
from pgwal.backup.manifest import MANIFEST_NAME, FileChecksum, ManifestWriter
from pgwal.backup.manifest_reader import system_identifier_of_head
from pgwal.budget import HEAD_BYTES
from pgwal.disk.directory_lock import DirectoryLock
from pgwal.disk.new_file import GrowingFile
from pgwal.engine.rebuild import Rebuild
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.rebuild_report import RebuildReport, RebuiltFile
from pgwal.engine.restore import filling, tablespace_locations
from pgwal.engine.restore_places import require_places
from pgwal.errors import ObjectNotFound, WrongCluster
from pgwal.lsn import LsnRange
from pgwal.repository.layout import BACKUP_DATA_DIRECTORY, BACKUP_DIRECTORY
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.sealing import require_identity
from pgwal.repository.store import ByteRange


@dataclass(frozen=True, slots=True)
class CombineRequest:
    """Which backup to make whole, and where; ``tablespaces`` maps old absolute locations to new ones.

    ``manifest_checksums`` is the algorithm of the manifest's checksums; it is None for no manifest at all.
    """

    place: Place
    backup: str
    output: Path
    tablespaces: Mapping[str, str] = field(default_factory=dict)
    options: RebuildOptions = field(default_factory=RebuildOptions)
    allow_tablespaces_in_place: bool = False
    manifest_checksums: str | None = "CRC32C"


def combine_backups(request: CombineRequest, on_progress: Callable[[int, int], None] | None = None) -> RebuildReport:
    """Make a full backup of a backup and those it builds on; it is durable, and has its manifest, on return.

    All bytes of it are read for the manifest, if there is to be one, however they are copied.  Raises TargetError when
    the directory is not empty, ObjectNotFound, ChainError or FormatError when the chain is not whole, WrongCluster when
    a manifest in it is another cluster's.
    """
    repository = Repository.open(request.place)
    require_identity(repository.store)
    chain = resolve_chain(repository.catalogue.entries(request.backup), request.backup)
    entry = chain[0]
    locations = tablespace_locations(entry, request.tablespaces)
    require_places(
        repository,
        entry,
        request.output,
        locations,
        mapped=request.tablespaces,
        in_place=request.allow_tablespaces_in_place,
    )
    _require_own_manifests(repository, chain)
    algorithm = request.manifest_checksums
    with filling(request.output, locations.values()) as held, repository.catalogue.hold(entry.backup_id):
        rebuild = Rebuild(repository, chain, request.output, request.options, on_progress, checksum_algorithm=algorithm)
        rebuild.make_directories(locations)
        held.enter_context(DirectoryLock(request.output))
        if algorithm is None:
            _write(rebuild)
        else:
            with rebuild.writer.create(MANIFEST_NAME) as manifest_file:
                _write_with_manifest(rebuild, manifest_file, entry, algorithm)
        rebuild.finish()
    return rebuild.report()


def _require_own_manifests(repository: Repository, chain: Iterable[BackupEntry]) -> None:
    """Raise WrongCluster for a directory that holds the manifest of another cluster, as far as manifests tell (17)."""
    for entry in chain:
        name = f"{BACKUP_DIRECTORY}/{entry.backup_id}/{BACKUP_DATA_DIRECTORY}/{MANIFEST_NAME}"
        try:
            (head,) = repository.store.get_ranges(name, [ByteRange(0, HEAD_BYTES)])
        except ObjectNotFound:
            continue
        identifier = system_identifier_of_head(head)
        if identifier not in (None, entry.system_identifier):
            raise WrongCluster(
                f"{repository.store.locate(name)} is of the cluster with system identifier {identifier}, the backup's"
                f" is {entry.system_identifier}",
                hint="Somebody has exchanged files of this backup: verify it, and combine another.",
            )


def _write(rebuild: Rebuild) -> None:
    labels: list[BackupFile] = []
    for _ in rebuild.write_all(_all_but_label(rebuild, labels)):
        pass
    for label in labels:
        _write_label(rebuild, label)


def _write_with_manifest(rebuild: Rebuild, manifest_file: GrowingFile, entry: BackupEntry, algorithm: str) -> None:
    manifest = ManifestWriter(entry.major, entry.system_identifier)
    manifest_file.write(manifest.header())
    labels: list[BackupFile] = []
    for rebuilt in rebuild.write_all(_all_but_label(rebuild, labels)):
        manifest_file.write(_manifest_entry(manifest, rebuilt))
    for label in labels:
        content = _write_label(rebuild, label)
        checksum = _checksum(algorithm, content)
        manifest_file.write(
            manifest.file_entry(BACKUP_LABEL_NAME, len(content), time.time(), checksum.algorithm, checksum.hexdigest())
        )
    control = RebuiltFile(rebuild.control_file, _checksum(algorithm, rebuild.content(rebuild.control_file)))
    manifest_file.write(_manifest_entry(manifest, control))
    manifest_file.write(manifest.finish([LsnRange(entry.start_timeline_id, entry.start_lsn, entry.stop_lsn)]))


def _all_but_label(rebuild: Rebuild, labels: list[BackupFile]) -> Iterator[BackupFile]:
    for file in rebuild.files():
        if file.path == BACKUP_LABEL_NAME:
            labels.append(file)
        else:
            yield file


def _write_label(rebuild: Rebuild, file: BackupFile) -> bytes:
    """Write backup_label as that of a full backup, and return it."""
    content = BackupLabel.decode(rebuild.content(file)).without_incremental().encode()
    rebuild.writer.write(BACKUP_LABEL_NAME, [content])
    return content


def _checksum(algorithm: str, content: bytes) -> FileChecksum:
    checksum = FileChecksum(algorithm)
    checksum.update(content)
    return checksum


def _manifest_entry(manifest: ManifestWriter, rebuilt: RebuiltFile) -> bytes:
    file, checksum = rebuilt
    assert checksum is not None
    return manifest.file_entry(file.path, file.size_bytes, file.mtime_epoch_s, checksum.algorithm, checksum.hexdigest())
