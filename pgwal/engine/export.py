"""Copy one backup out of a repository as the server's plain format: what pg_verifybackup and pg_combinebackup read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry import BackupEntry
from pgwal.backup.manifest import MANIFEST_NAME
from pgwal.checksum import ContentDigest
from pgwal.disk.tree_writer import TreeWriter
from pgwal.engine.chain_source import damaged, of_chain, wrong_size
from pgwal.engine.ordered_map import ordered_map
from pgwal.engine.rebuild_options import default_jobs
from pgwal.engine.restore import filling
from pgwal.engine.restore_places import require_places
from pgwal.repository.backup_data import BackupData, chunks_of
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository

_FILES_UNDER_WAY = 16


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Which backup to copy, and where; an incremental one is copied as it is, without what it builds on."""

    place: Place
    backup: str
    output: Path
    jobs: int | None = None
    sync: bool = True


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was copied; sizes in bytes."""

    entry: BackupEntry
    file_count: int
    bytes_written: int


def export_backup(request: ExportRequest, on_progress: Callable[[int, int], None] | None = None) -> ExportReport:
    """Copy a backup into a directory that is absent or empty; it is durable, and whole, on return.

    Each file is checked against its digest.  The manifest comes last.  Tablespaces are directories in pg_tblspc.
    Raises TargetError when the directory is not empty, ObjectNotFound for a backup that is not there, FormatError for
    damage.
    """
    repository = Repository.open(request.place)
    entry = repository.catalogue.entry(request.backup)
    require_places(repository, entry, request.output, {}, mapped={}, in_place=False)
    with filling(request.output, ()), repository.catalogue.hold(entry.backup_id):
        export = _Export(repository, entry, request, on_progress)
        export.run()
    return ExportReport(entry, export.file_count, export.bytes_written)


class _Export:
    """One export under way."""

    def __init__(
        self,
        repository: Repository,
        entry: BackupEntry,
        request: ExportRequest,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.file_count = 0
        self.bytes_written = 0
        self._entry = entry
        self._files = repository.catalogue.files(entry.backup_id)
        self._data: BackupData = repository.catalogue.data(entry.backup_id)
        self._writer = TreeWriter(request.output, durable=request.sync)
        self._jobs = request.jobs or default_jobs()
        self._sync = request.sync
        self._on_progress = on_progress
        self._is_over = threading.Event()

    def run(self) -> None:
        self._writer.make_root()
        with of_chain(self._data):
            for path in self._data.directories():
                self._writer.make_directory(path)
        ahead = self._jobs * _FILES_UNDER_WAY
        try:
            with (
                ThreadPoolExecutor(self._jobs) as pool,
                closing(ordered_map(pool, self._copy, self._files, ahead=ahead)) as sizes,
            ):
                for size_bytes in sizes:
                    self._count(size_bytes)
        finally:
            self._is_over.set()
        self._count(self._writer.write(MANIFEST_NAME, chunks_of(self._data, MANIFEST_NAME)))
        if self._sync:
            self._writer.sync()

    def _copy(self, file: BackupFile) -> int:
        digest = ContentDigest()
        with of_chain(self._data, file.stored_path):
            size_bytes = self._writer.write(file.stored_path, self._passing(file, digest))
        if size_bytes != file.stored_size_bytes:
            raise wrong_size(self._data, file.stored_path, size_bytes, file.stored_size_bytes)
        if digest.hexdigest() != file.digest:
            raise damaged(self._data, file.stored_path)
        return size_bytes

    def _passing(self, file: BackupFile, digest: ContentDigest) -> Iterator[bytes]:
        for chunk in chunks_of(self._data, file.stored_path):
            if self._is_over.is_set():
                return
            digest.update(chunk)
            yield chunk

    def _count(self, size_bytes: int) -> None:
        self.file_count += 1
        self.bytes_written += size_bytes
        if self._on_progress is not None:
            self._on_progress(self.bytes_written, max(self.bytes_written, self._entry.totals.stored_size_bytes))
