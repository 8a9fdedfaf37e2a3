"""Write the files that a chain of backups holds: each block once, from the newest backup that has it."""

from __future__ import annotations

import logging
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import INCOMPLETE_NAME, TABLESPACE_DIRECTORY, tablespace_version_directory
from pgwal.backup.file_table import FileTable, StoredFile
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.manifest import FileChecksum
from pgwal.backup.reconstruct import Reconstruction, Run, reconstruct_file
from pgwal.backup.stored_digest import StoredDigest, digest_like
from pgwal.checksum import ContentDigest
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.datadir.owner import Owner, give_contents, give_directory, take_from_owner
from pgwal.disk.copy_method import CopyMethod
from pgwal.disk.new_file import PlacedFile
from pgwal.disk.tree_writer import TreeWriter
from pgwal.engine.chain_blocks import read_blocks
from pgwal.engine.chain_pieces import grouped_pieces, read_pieces
from pgwal.engine.chain_source import (
    ANOTHER_BACKUP,
    ChainSource,
    OlderPages,
    OpenFiles,
    damaged,
    fetched_bytes,
    of_chain,
    open_sources,
    opened,
    wrong_size,
)
from pgwal.engine.marking import mark_of
from pgwal.engine.rebuild_options import RebuildOptions, default_jobs, require_files
from pgwal.engine.rebuild_report import RebuildReport, RebuiltFile
from pgwal.engine.writing_threads import WritingThreads
from pgwal.errors import FormatError, LimitExceeded
from pgwal.relation import parse_relation_path
from pgwal.repository.backup_data import BackupData, StoredContent, start_of
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)

_MAX_STORED_CONTENT = 16 << 20


def _has_group_access(repository: Repository, backup_id: str) -> bool:
    """Tell whether a backup is of a cluster that its group may read: all files tell, the first as well as any."""
    files = repository.catalogue.files(backup_id)
    with closing(files):
        return any(file.mode & stat.S_IRGRP for file in islice(files, 1))


class Rebuild:
    """Writes the files of the newest backup of a chain, all of them incremental or whole, below a directory.

    The digests of all bytes that belong to the newest backup are checked, and of those of an older one where all of a
    file is read; of other files of an older one, the headers, and pages where the cluster has checksums, unless what
    comes out of packs is proven already.  Nothing that a backup says leads out of the target.  pg_control comes last,
    by a rename of what marks the directory as incomplete.
    """

    def __init__(
        self,
        repository: Repository,
        chain: Sequence[BackupEntry],
        target: Path,
        options: RebuildOptions,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        checksum_algorithm: str | None = None,
    ) -> None:
        self.writer = TreeWriter(
            target, durable=options.sync, group_access=_has_group_access(repository, chain[0].backup_id)
        )
        self.linked_backups: set[str] = set()
        self._entry = chain[0]
        self._options = options
        self._threads = WritingThreads(options.jobs or default_jobs(), self._entry.totals.size_bytes, on_progress)
        self._catalogue = repository.catalogue
        self._stored = repository.catalogue.data(*(entry.backup_id for entry in chain), jobs=self._threads.jobs)
        if options.method is not CopyMethod.COPY:
            require_files(self._stored, options.method)
        self._tables = [FileTable(repository.catalogue.files(entry.backup_id)) for entry in chain[1:]]
        self._checksum_algorithm = checksum_algorithm
        self.wanted_blocks: Callable[[BackupFile], array[int] | None] | None = None
        """Tells which blocks of a file are written, and all others are holes; None for all of it."""
        self._control_file: BackupFile | None = None
        self._owners: dict[Path, Owner] = {}

    # -- the directory -----------------------------------------------------------------------------------------

    def make_directories(self, tablespaces: Mapping[int, Path], clear: Callable[[], None] | None = None) -> None:
        """Make all directories, and the symbolic links to those of tablespaces; mark the tree as incomplete.

        What root finds there is root's until all is done, and then its owner's again, with all that it holds.
        ``clear`` removes what must not be there, once the tree is marked.
        """
        for place in (self.writer.root, *tablespaces.values()):
            if self._options.method is not CopyMethod.LINK and (owner := take_from_owner(place)) is not None:
                self._owners[place] = owner
        self.writer.make_root()
        # Durable before anything else is there, for the next restore to tell what it finds.
        self.writer.replace(INCOMPLETE_NAME, mark_of(self._entry, tablespaces))
        if clear is not None:
            clear()
        for oid, location in tablespaces.items():
            self.writer.make_tablespace(f"pg_tblspc/{oid}", location)
        with of_chain(self._stored[0]):
            for path in self._stored[0].directories():
                self._require_in_place(path)
                self.writer.make_directory(path)

    def files(self) -> Iterator[BackupFile]:
        """Yield the files of the newest backup but pg_control; they are proven right only at the end."""
        for file in self._catalogue.files(self._entry.backup_id):
            self._require_in_place(file.path)
            if file.path == CONTROL_FILE_PATH:
                self._control_file = file
            elif file.path == INCOMPLETE_NAME:
                logger.warning("%s of the backup is left out: a restore had left it in the cluster", file.path)
            else:
                yield file
        if self._control_file is None:
            raise FormatError(f"backup {self._entry.backup_id} holds no {CONTROL_FILE_PATH}", hint=ANOTHER_BACKUP)

    @property
    def control_file(self) -> BackupFile:
        """pg_control; known when all other files have been yielded."""
        assert self._control_file is not None, "all files come first"
        return self._control_file

    def finish(self) -> None:
        """Make all of it durable, unless told otherwise, and then give pg_control its place and name."""
        self.writer.replace(INCOMPLETE_NAME, self.content(self.control_file))
        for place, owner in self._owners.items():
            give_contents(place, owner)
        self._sync()
        self.writer.rename(INCOMPLETE_NAME, CONTROL_FILE_PATH)
        for place, owner in self._owners.items():
            give_directory(place, owner)
        self._threads.count_file()

    def _require_in_place(self, path: str) -> None:
        """Refuse what would lie in a tablespace's directory beside what a cluster has there."""
        parts = path.split("/", 3)
        if len(parts) < 3 or parts[0] != TABLESPACE_DIRECTORY:
            return
        if parts[2] != tablespace_version_directory(self._entry.major):
            raise FormatError(
                f"{path} of backup {self._entry.backup_id} is not below what PostgreSQL has in a tablespace",
                hint=ANOTHER_BACKUP,
            )

    def report(self) -> RebuildReport:
        """Return what was done."""
        return RebuildReport(
            self._entry,
            len(self._stored),
            self._threads.file_count,
            self._threads.bytes_read,
            self._threads.bytes_written,
            tuple(sorted(self.linked_backups)),
            self._threads.bytes_kept,
            fetched_bytes(self._stored, self._threads.bytes_read),
        )

    def _sync(self) -> None:
        if self._options.sync:
            self.writer.sync()

    # -- files -------------------------------------------------------------------------------------------------

    def content(self, file: BackupFile) -> bytes:
        """Return a small file that is stored whole, checked against its digest."""
        if file.is_incremental or file.size_bytes > _MAX_STORED_CONTENT:
            raise FormatError(
                f"{file.path} of backup {self._entry.backup_id} cannot be a file of its name",
                backup_id=self._entry.backup_id,
                path=self._stored[0].locate(file.stored_path),
            )
        with of_chain(self._stored[0], file.stored_path):
            # One byte more tells that there is more; it may be without end.
            content = start_of(self._stored[0], file.stored_path, file.size_bytes + 1)
        digest = digest_like(file.digest)
        digest.update(content)
        self._check(self._stored[0], file.path, len(content), file.size_bytes, digest, file.digest)
        self._threads.count(read=len(content))
        return content

    def write_all(self, files: Iterable[BackupFile]) -> Iterator[RebuiltFile]:
        """Write files with several threads, and yield each, in order, when it is there."""
        return self._threads.write_all(self._write, files)

    def reconstructed(self, file: BackupFile) -> bytes:
        """Return a small file that may be made of what several backups store of it."""
        if file.size_bytes > _MAX_STORED_CONTENT:
            raise LimitExceeded(f"{file.path} of backup {self._entry.backup_id} has {file.size_bytes} bytes")
        content = bytearray(file.size_bytes)
        with OpenFiles(self._threads.files_per_thread()) as files:
            for offset, part in read_blocks(self._open_sources(file, files), None, self.writer.buffer()):
                content[offset : offset + len(part)] = part
        return bytes(content)

    def _write_some(self, file: BackupFile, blocks: array[int]) -> None:
        with OpenFiles(self._threads.files_per_thread()) as files:
            sources = self._open_sources(file, files)
            with self.writer.place(file.path, file.size_bytes) as target:
                for offset, part in read_blocks(sources, blocks, self.writer.buffer()):
                    target.write(part, offset)
                    self._threads.count(read=len(part), written=len(part))

    def _write(self, file: BackupFile) -> RebuiltFile:
        checksum = None if self._checksum_algorithm is None else FileChecksum(self._checksum_algorithm)
        blocks = None if self.wanted_blocks is None else self.wanted_blocks(file)
        if blocks is not None:
            self._write_some(file, blocks)
        elif file.is_incremental:
            self._write_incremental(file, checksum)
        else:
            stored = StoredFile.of(file)
            self._write_whole(file, self._stored[0], stored, checksum)
        self._threads.count_file()
        return RebuiltFile(file, checksum)

    def _write_whole(
        self, file: BackupFile, data: BackupData, stored: StoredFile, checksum: FileChecksum | None
    ) -> None:
        """Write a file that comes whole from one backup."""
        if stored.stored_size_bytes != file.size_bytes:
            raise wrong_size(data, file.path, stored.stored_size_bytes, file.size_bytes)
        with opened(data, file.path) as source:
            size = source.size_bytes
            if size != file.size_bytes:
                raise wrong_size(data, file.path, size, file.size_bytes)
            if not self._is_shared(file, data, source):
                with self.writer.place(file.path, size) as target:
                    self._copy_checked(data, file, stored.digest, source, target, checksum)
            elif checksum is not None:
                # A manifest promises what the bytes are.
                self._copy_checked(data, file, stored.digest, source, None, checksum)
            else:
                self._threads.count(written=size)

    def _is_shared(self, file: BackupFile, data: BackupData, source: StoredContent) -> bool:
        """Link, clone or have copied a whole file, as the options say; False when its bytes are to be read instead."""
        method = self._options.method
        if method is CopyMethod.COPY:
            return False
        path, descriptor = data.path(file.path), source.descriptor
        assert path is not None
        assert descriptor is not None
        # Files that are not of relations are small and may be edited: each gets its own.
        if method is CopyMethod.LINK and parse_relation_path(file.path) is None:
            return False
        if method is CopyMethod.LINK:
            self.writer.link(file.path, path)
            self.linked_backups.add(data.backup_id)
            return True
        with self.writer.place(file.path, source.size_bytes) as target:
            if method is CopyMethod.CLONE:
                target.clone(descriptor, path)
            else:
                target.copy_range(descriptor, path, 0, source.size_bytes, 0)
        return True

    def _copy_checked(
        self,
        data: BackupData,
        file: BackupFile,
        expected_digest: str,
        source: StoredContent,
        target: PlacedFile | None,
        checksum: FileChecksum | None,
    ) -> None:
        digest = digest_like(expected_digest)
        buffer = self.writer.buffer()
        offset = 0
        while size := source.read_into(offset, buffer):
            part = buffer[:size]
            digest.update(part)
            if checksum is not None:
                checksum.update(bytes(part))
            if target is not None:
                target.write(part, offset)
            offset += size
            self._threads.count(read=size, written=size)
        self._check(data, file.path, offset, file.size_bytes, digest, expected_digest)

    def _write_incremental(self, file: BackupFile, checksum: FileChecksum | None) -> None:
        with OpenFiles(self._threads.files_per_thread()) as files:
            sources = self._open_sources(file, files)
            headers = [source.header for source in sources]
            plan = reconstruct_file(headers)
            if plan.size_bytes != file.size_bytes:
                raise wrong_size(self._stored[0], file.path, plan.size_bytes, file.size_bytes)
            whole = sources[-1]
            if plan.runs == (Run(0, file.size_bytes, len(sources) - 1, 0),) and _size_of(whole) == file.size_bytes:
                self._check_header(sources[0])
                self._write_whole(file, whole.data, whole.stored, checksum)
                return
            with self.writer.place(file.path, file.size_bytes) as target:
                if self._options.method is CopyMethod.COPY_FILE_RANGE and checksum is None:
                    self._check_header(sources[0])
                    self._copy_runs(plan, sources, target)
                else:
                    self._write_runs(file, plan, sources, target, checksum)

    def _open_sources(self, file: BackupFile, files: OpenFiles) -> list[ChainSource]:
        return open_sources(self._stored, self._tables, file, files, self._check_header)

    def _check_header(self, source: ChainSource) -> None:
        """Check a header whose digest the entry does not tell, of an incremental file of which not all is read."""
        if source.stored.header_digest is None:
            source.require_as_stored(self.writer.buffer())

    def _write_runs(
        self,
        file: BackupFile,
        plan: Reconstruction,
        sources: list[ChainSource],
        target: PlacedFile,
        checksum: FileChecksum | None,
    ) -> None:
        # Each block of the newest backup's incremental file is used, in stored order.
        digest, newest = ContentDigest(), sources[0]
        assert isinstance(newest.header, IncrementalHeader)
        digest.update(newest.header.encode())
        are_proven = all(source.content.is_proven for source in sources[1:])
        older = OlderPages(file.path, sources) if self._entry.data_checksums and not are_proven else None
        buffer = self.writer.buffer()
        for offset, pieces in grouped_pieces(plan.runs, len(buffer)):
            written = read_pieces(pieces, sources, buffer)
            self._threads.count(read=sum(piece.length for piece in pieces if piece.source is not None))
            at = 0
            for piece in pieces:
                if piece.source == 0:
                    digest.update(written[at : at + piece.length])
                at += piece.length
            if older is not None:
                older.check(pieces, written)
            if checksum is not None:
                checksum.update(bytes(written))
            target.write(written, offset)
            self._threads.count(written=len(written))
        if digest.hexdigest() != file.digest:
            raise damaged(newest.data, newest.path)
        if older is not None:
            older.warn()

    def _copy_runs(self, plan: Reconstruction, sources: list[ChainSource], target: PlacedFile) -> None:
        for run in plan.runs:
            if run.source is not None:
                source = sources[run.source]
                path, descriptor = source.data.path(source.path), source.content.descriptor
                assert path is not None
                assert descriptor is not None
                target.copy_range(descriptor, path, run.source_offset, run.length, run.offset)
            self._threads.count(written=run.length)

    def _check(
        self,
        data: BackupData,
        path: str,
        size: int,
        expected_size: int,
        digest: StoredDigest,
        expected: str,
    ) -> None:
        if size != expected_size:
            raise wrong_size(data, path, size, expected_size)
        if digest.hexdigest() != expected:
            raise damaged(data, path)


def _size_of(source: ChainSource) -> int:
    return source.stored.stored_size_bytes
