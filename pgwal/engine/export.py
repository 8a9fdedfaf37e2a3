"""Copy one backup out of a repository as the server's plain format: what pg_verifybackup and pg_combinebackup read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry import BackupEntry
from pgwal.backup.manifest import MANIFEST_NAME, FileChecksum, ManifestWriter, manifest_time
from pgwal.backup.manifest_reader import ManifestReader
from pgwal.backup.stored_digest import NO_DIGEST, PATCHED_ALGORITHM, StoredDigest, digest_like
from pgwal.checksum import ContentDigest
from pgwal.disk.tree_writer import TreeWriter
from pgwal.engine.chain_source import damaged, of_chain, wrong_size
from pgwal.engine.rebuild_options import default_jobs
from pgwal.engine.restore import filling
from pgwal.engine.restore_places import require_places
from pgwal.engine.writing_threads import WritingThreads
from pgwal.repository.backup_data import chunks_of
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.sealing import require_identity


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
    require_identity(repository.store)
    entry = repository.catalogue.entry(request.backup)
    require_places(repository, entry, request.output, {}, mapped={}, in_place=False)
    with filling(request.output, ()), repository.catalogue.hold(entry.backup_id):
        export = _Export(repository, entry, request, on_progress)
        export.run()
    return ExportReport(entry, export.threads.file_count, export.threads.bytes_written)


class _Export:
    """One export under way."""

    def __init__(
        self,
        repository: Repository,
        entry: BackupEntry,
        request: ExportRequest,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        jobs = request.jobs or default_jobs()
        self._entry = entry
        self.threads = WritingThreads(jobs, entry.totals.stored_size_bytes, on_progress)
        self._files = repository.catalogue.files(entry.backup_id)
        (self._data,) = repository.catalogue.data(entry.backup_id, jobs=jobs)
        self._writer = TreeWriter(request.output, durable=request.sync)
        self._sync = request.sync
        self._made: dict[str, FileChecksum] = {}
        """Of files that a merge made of parts without reading them: neither entry nor manifest has a checksum."""

    def run(self) -> None:
        self._writer.make_root()
        with of_chain(self._data):
            for path in self._data.directories():
                self._writer.make_directory(path)
        for _ in self.threads.write_all(self._copy, self._files):
            pass
        self._write_manifest()
        if self._sync:
            self._writer.sync()

    def _write_manifest(self) -> None:
        """Copy the manifest; where files have been read for the first time, with their checksums."""
        if not self._made:
            self._write(MANIFEST_NAME, ContentDigest())
            return
        with of_chain(self._data, MANIFEST_NAME):
            self._writer.write(MANIFEST_NAME, self._completed_manifest())
        self.threads.count_file()

    def _completed_manifest(self) -> Iterator[bytes]:
        reader = ManifestReader()
        writer = ManifestWriter(self._entry.major, self._entry.system_identifier)
        yield writer.header()
        for chunk in chunks_of(self._data, MANIFEST_NAME):
            for file in reader.feed(chunk):
                algorithm, checksum = file.checksum_algorithm, file.checksum_hex
                if (made := self._made.get(file.path)) is not None:
                    algorithm, checksum = made.algorithm, made.hexdigest()
                modified_s = manifest_time(file.last_modified)
                yield writer.file_entry(file.path, file.size, modified_s, algorithm, checksum)
        yield writer.finish(reader.finish().wal_ranges)

    def _copy(self, file: BackupFile) -> None:
        digest = digest_like(file.digest)
        if file.digest == NO_DIGEST:
            checksum = self._made[file.path] = FileChecksum(PATCHED_ALGORITHM)
            with of_chain(self._data, file.stored_path):
                size_bytes = self._write(file.stored_path, checksum)
            self._require_size(file, size_bytes)
            return
        with of_chain(self._data, file.stored_path):
            size_bytes = self._write(file.stored_path, digest)
        self._require_size(file, size_bytes)
        if digest.hexdigest() != file.digest:
            raise damaged(self._data, file.stored_path)

    def _require_size(self, file: BackupFile, size_bytes: int) -> None:
        if size_bytes != file.stored_size_bytes:
            raise wrong_size(self._data, file.stored_path, size_bytes, file.stored_size_bytes)

    def _write(self, path: str, digest: StoredDigest) -> int:
        size_bytes = self._writer.write(path, self._passing(path, digest))
        self.threads.count_file()
        return size_bytes

    def _passing(self, path: str, digest: StoredDigest) -> Iterator[bytes]:
        for chunk in chunks_of(self._data, path):
            self.threads.count(written=len(chunk))
            digest.update(chunk)
            yield chunk
