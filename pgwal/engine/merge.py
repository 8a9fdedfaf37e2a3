"""Make a full backup of an incremental one and those that it builds on, within the repository, so that these can go.

It holds what was backed up then, starts and stops at the same positions, and takes the incremental one's place: what
builds on that builds on it.  Until it is published nothing has changed; what is left of a merge that was interrupted is
that of an unfinished backup.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pgwal.backup.backup_file import BackupFile, BackupTotals
from pgwal.backup.backup_id import merged_ids
from pgwal.backup.chain import LATEST, is_superseded, newest, resolve_chain
from pgwal.backup.entry import BackupEntry, MergeNote
from pgwal.backup.file_table import FileTable
from pgwal.backup.label import BACKUP_LABEL_NAME, BackupLabel
from pgwal.backup.manifest import MANIFEST_NAME, FileChecksum, ManifestWriter
from pgwal.backup.merge_plan import merged_head
from pgwal.checksum import content_digest
from pgwal.engine.chain_source import of_chain
from pgwal.engine.manifest_checksums import ManifestChecksums
from pgwal.engine.merged_file import FileMerger, MergedFile
from pgwal.engine.rebuild_options import default_jobs
from pgwal.engine.writing_threads import WritingThreads
from pgwal.errors import FormatError, ObjectExists, RepositoryError
from pgwal.lsn import LsnRange
from pgwal.repository.backup_data import BackupData, start_of
from pgwal.repository.layout import BACKUP_DIRECTORY, UNFINISHED_SUFFIX
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.sealing import require_identity
from pgwal.repository.staged_backup import StagedBackup
from pgwal.repository.store import MOST_BYTES_READ, names_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """Which backup to make a full one of: an id, or "latest"."""

    place: Place
    backup: str = LATEST
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was made; bytes are of files: what was looked at, and what was stored and not carried over."""

    entry: BackupEntry
    merged: BackupEntry
    chain_length: int
    file_count: int
    bytes_read: int
    bytes_written: int


def merge_backup(request: MergeRequest, on_progress: Callable[[int, int], None] | None = None) -> MergeReport:
    """Make a full backup of one and what it builds on; it is in the catalogue then, durable.  Nothing is removed.

    Raises ObjectNotFound, ObjectExists for one that is full or has been merged, RepositoryLocked while a backup is
    taken, ChainError or FormatError when the chain is not whole or is damaged.
    """
    repository = Repository.open(request.place)
    with repository.lock_backups():
        for abandoned in repository.catalogue.clear_unfinished():
            logger.info("removed what was left of the unfinished backup %s", abandoned)
        entries = repository.catalogue.entries(request.backup)
        entry = _chosen(entries, request.backup)
        return merge_chain(repository, resolve_chain(entries, entry.backup_id), request.jobs, on_progress)


def _chosen(entries: Sequence[BackupEntry], wanted: str) -> BackupEntry:
    ids = {entry.backup_id for entry in entries}
    entry = newest(entries) if wanted == LATEST else resolve_chain(entries, wanted)[0]
    if entry.prior_id is None or is_superseded(entry, ids):
        how = "is a full backup already" if entry.prior_id is None else "has been merged into a full backup already"
        raise ObjectExists(
            f"backup {entry.backup_id} {how}: there is nothing to merge",
            hint="Name an incremental backup: pgwal list shows them.",
            backup_id=entry.backup_id,
        )
    return entry


def merge_chain(
    repository: Repository,
    chain: Sequence[BackupEntry],
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Do so with a chain, newest first, under the lock for backups, with nothing left of unfinished ones."""
    require_identity(repository.store)
    newest = chain[0]
    threads = WritingThreads(jobs or default_jobs(), newest.totals.size_bytes, on_progress)
    with repository.catalogue.stage(_free_id(repository, newest), threads.jobs) as staged:
        merge = _Merge(repository, chain, staged, threads)
        entry = merge.run()
    return MergeReport(entry, newest, len(chain), threads.file_count, threads.bytes_read, merge.bytes_written)


def _free_id(repository: Repository, entry: BackupEntry) -> str:
    """Return an id for what is merged; where one was given up, its name may be taken for good."""
    taken = {name.removesuffix(UNFINISHED_SUFFIX) for name in names_in(repository.store, BACKUP_DIRECTORY)}
    for backup_id in merged_ids(entry.backup_id):
        if backup_id not in taken:
            return backup_id
    raise RepositoryError(
        f"backup {entry.backup_id} was merged too often without success", hint="Take a full backup instead."
    )


class _Merge:
    """One merge under way."""

    def __init__(
        self, repository: Repository, chain: Sequence[BackupEntry], staged: StagedBackup, threads: WritingThreads
    ) -> None:
        self._chain = chain
        self._staged = staged
        self._threads = threads
        catalogue = repository.catalogue
        self._files = catalogue.files(chain[0].backup_id)
        self._stored = catalogue.data(*(entry.backup_id for entry in chain), jobs=threads.jobs)
        for data in self._stored:
            data.require_places()
        tables = [FileTable(catalogue.files(entry.backup_id)) for entry in chain[1:]]
        manifests = [ManifestChecksums(*each) for each in zip(self._stored, chain, strict=True)]
        self._merger = FileMerger(
            self._stored, tables, manifests, staged.data, threads, data_checksums=chain[0].data_checksums
        )
        self._algorithm = manifests[0].algorithm
        self._totals = BackupTotals()

    def run(self) -> BackupEntry:
        newest, data = self._chain[0], self._staged.data
        with of_chain(self._stored[0]):
            for path in self._stored[0].directories():
                data.make_directory(path)
        manifest = ManifestWriter(newest.major, newest.system_identifier)
        with data.create(MANIFEST_NAME) as manifest_file:
            manifest_file.write(manifest.header())
            with closing(self._merged()) as merged:
                for made in merged:
                    self._note(made)
                    manifest_file.write(_manifest_entry(manifest, made))
            wal_range = LsnRange(newest.start_timeline_id, newest.start_lsn, newest.stop_lsn)
            manifest_file.write(manifest.finish([wal_range]))
        data.sync()
        packed = self._staged.without_dead_frames()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = replace(
            merged_head(newest, self._staged.backup_id),
            totals=self._totals,
            checksum_failures=sum(entry.checksum_failures for entry in self._chain),
            packed_size_bytes=None if packed is None else packed.size_bytes,
            merge_note=MergeNote(now, tuple(entry.backup_id for entry in self._chain)),
        )
        self._staged.publish(entry)
        return entry

    @property
    def bytes_written(self) -> int:
        return self._merger.bytes_stored

    def _note(self, made: MergedFile) -> None:
        self._staged.add_file(made.file)
        self._totals = self._totals.plus(made.file)

    def _merged(self) -> Generator[MergedFile]:
        labels: list[BackupFile] = []
        yield from self._threads.write_all(self._merger.merge, self._all_but_label(labels))
        for label in labels:
            yield self._merge_label(label)

    def _all_but_label(self, labels: list[BackupFile]) -> Iterator[BackupFile]:
        for file in self._files:
            if file.path == BACKUP_LABEL_NAME:
                labels.append(file)
            else:
                yield file

    def _merge_label(self, file: BackupFile) -> MergedFile:
        """Store the label as that of a full backup."""
        content = _content(self._stored[0], file)
        content = BackupLabel.decode(content).without_incremental().encode()
        written = self._staged.data.write(BACKUP_LABEL_NAME, [content])
        checksum = FileChecksum(self._algorithm)
        checksum.update(content)
        size_bytes = len(content)
        made = BackupFile(file.path, size_bytes, size_bytes, file.mode, int(time.time()), written.digest)
        return MergedFile(made, checksum.algorithm, checksum.hexdigest())


def _content(data: BackupData, file: BackupFile) -> bytes:
    """Return a small file, checked against its digest."""
    with of_chain(data, file.path):
        content = start_of(data, file.path, MOST_BYTES_READ)
    if content_digest(content) != file.digest:
        raise FormatError(f"{data.locate(file.path)} is not what was stored: its digest does not match")
    return content


def _manifest_entry(manifest: ManifestWriter, made: MergedFile) -> bytes:
    file = made.file
    return manifest.file_entry(
        file.path, file.size_bytes, file.mtime_epoch_s, made.checksum_algorithm, made.checksum_hex
    )
