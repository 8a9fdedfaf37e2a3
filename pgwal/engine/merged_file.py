"""Make the files of a merged backup: those that come whole from one backup are carried over, of others what changed.

In packs, a file with changed blocks is that of before but for the frames in which something changed: only these are
read, and written; where they hold little that changed, not even that, and the blocks are referred to where they lie.
Elsewhere it is written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from threading import Lock
from typing import NamedTuple

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.file_table import FileTable, StoredFile
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.manifest import FileChecksum
from pgwal.backup.pack_table import FRAME_SIZE, Extent
from pgwal.backup.patched_checksum import PatchedChecksum
from pgwal.backup.reconstruct import Run, reconstruct_file
from pgwal.backup.stored_digest import NO_DIGEST, PATCHED_ALGORITHM, StoredDigest, digest_like
from pgwal.budget import DENSE_FACTOR, FRAME_PIECES
from pgwal.checksum import ContentDigest
from pgwal.engine.chain_pieces import grouped_pieces, read_pieces
from pgwal.engine.chain_source import ChainSource, OlderPages, OpenFiles, damaged, of_chain, open_sources, wrong_size
from pgwal.engine.manifest_checksums import ManifestChecksums
from pgwal.engine.writing_threads import WritingThreads
from pgwal.repository.backup_data import BackupData, BackupDataWriter, chunks_of
from pgwal.repository.written_file import WrittenFile

_Group = tuple[int, list[Run]]


class MergedFile(NamedTuple):
    """A file of the merged backup, and its checksum for the manifest."""

    file: BackupFile
    checksum_algorithm: str
    checksum_hex: str | None


class FileMerger:
    """Makes files in any number of threads; what is stored, and told, of a chain is given newest first."""

    def __init__(
        self,
        stored: Sequence[BackupData],
        tables: Sequence[FileTable],
        manifests: Sequence[ManifestChecksums],
        target: BackupDataWriter,
        threads: WritingThreads,
        *,
        data_checksums: bool,
    ) -> None:
        """``tables`` are of all backups but the newest."""
        self._stored = stored
        self._tables = tables
        self._manifests = manifests
        self._target = target
        self._threads = threads
        self._data_checksums = data_checksums
        self._lock = Lock()
        self.bytes_stored = 0
        """How many bytes of files were stored, and not carried over."""

    def merge(self, file: BackupFile) -> MergedFile:
        """Make one file of the newest backup whole; raises FormatError, ChainError or RepositoryError."""
        made = self._merge_incremental(file) if file.is_incremental else self._carry(file, 0, StoredFile.of(file))
        self._threads.count_file()
        self._threads.count(written=file.size_bytes)
        return made

    def _merge_incremental(self, file: BackupFile) -> MergedFile:
        with OpenFiles(self._threads.files_per_thread()) as files:
            sources = open_sources(self._stored, self._tables, file, files, _require_header)
            plan = reconstruct_file([source.header for source in sources])
            if plan.size_bytes != file.size_bytes:
                raise wrong_size(self._stored[0], file.path, plan.size_bytes, file.size_bytes)
            whole = sources[-1]
            if plan.runs == (Run(0, file.size_bytes, len(sources) - 1, 0),) and _size_of(whole) == file.size_bytes:
                _require_header(sources[0])
                return self._carry(file, len(sources) - 1, whole.stored)
            change = _Change(file, plan.runs, sources, data_checksums=self._data_checksums)
            # With nothing of it carried over, this says whether any of it can be.
            if self._target.carry(whole.data, whole.path, 0, 0) is None:
                return self._write(change)
            algorithm, checksum = self._manifests[len(sources) - 1].of(file.path)
            if algorithm == PATCHED_ALGORITHM and checksum is not None and change.is_dense():
                return self._patch(change, checksum) if change.is_small() else self._write(change)
            return self._refer(change)

    def _carry(self, file: BackupFile, number: int, stored: StoredFile) -> MergedFile:
        """Take a file over from the backup that stores it whole."""
        data, path, size_bytes = self._stored[number], file.path, file.size_bytes
        algorithm, checksum = self._manifests[number].of(path)
        with of_chain(data, path):
            extents = self._target.carry(data, path, 0, size_bytes)
        digest_hex = stored.digest
        if extents is None:
            digest, found = digest_like(stored.digest), FileChecksum(self._manifests[0].algorithm)
            with of_chain(data, path):
                written = self._store(path, self._passing(chunks_of(data, path), digest, found))
            if checksum is None:
                algorithm, checksum = found.algorithm, found.hexdigest()
            if written.size_bytes != size_bytes:
                raise wrong_size(data, path, written.size_bytes, size_bytes)
            if digest.hexdigest() != stored.digest:
                raise damaged(data, path)
            digest_hex, extents = written.digest, written.extents
        return MergedFile(_whole(file, digest_hex, extents), algorithm, checksum)

    def _store(self, path: str, chunks: Iterable[bytes]) -> WrittenFile:
        written = self._target.write(path, chunks)
        with self._lock:
            self.bytes_stored += written.size_bytes
        return written

    def _passing(self, chunks: Iterable[bytes], *digests: StoredDigest) -> Iterator[bytes]:
        for chunk in chunks:
            self._threads.count(read=len(chunk))
            for digest in digests:
                digest.update(chunk)
            yield chunk

    def _write(self, change: _Change) -> MergedFile:
        """Store all of a changed file."""
        checksum = FileChecksum(self._manifests[0].algorithm)
        written = self._store(change.file.path, self._passing(change.contents(change.groups), checksum))
        change.finish()
        return MergedFile(
            _whole(change.file, written.digest, written.extents), checksum.algorithm, checksum.hexdigest()
        )

    def _patch(self, change: _Change, checksum_hex: str) -> MergedFile:
        """Refer to the frames in which nothing changed, and store the others."""
        whole, file = change.sources[-1], change.file
        checksum = PatchedChecksum(checksum_hex, _size_of(whole), file.size_bytes)
        for offset in range(file.size_bytes, _size_of(whole), FRAME_SIZE):
            checksum.drop(whole.content.read_at(offset, FRAME_SIZE))
        extents: list[Extent] = []
        for is_stored, some in groupby(change.groups, lambda group: self._parts(change, group, changed=False) is None):
            groups = list(some)
            if is_stored:
                extents += self._store(file.path, self._replacing(change, groups, checksum)).extents
            else:
                start = groups[0][0]
                length = sum(map(_length, groups))
                extents += self._target.carry(whole.data, whole.path, start, length) or ()
        change.finish()
        digest_hex = checksum.hexdigest()
        return MergedFile(_whole(file, digest_hex, tuple(extents)), PATCHED_ALGORITHM, digest_hex)

    def _refer(self, change: _Change) -> MergedFile:
        """Refer to changed blocks, too, where they are stored; store what would be in too many pieces.

        What was there before is not read, and so no checksum follows.
        """
        parts = [(group, self._parts(change, group)) for group in change.groups]
        if 2 * sum(_length(group) for group, extents in parts if extents is None) >= change.file.size_bytes:
            return self._write(change)
        found: list[Extent] = []
        for is_stored, some in groupby(parts, lambda part: part[1] is None):
            here = list(some)
            if is_stored:
                groups = [group for group, _ in here]
                found += self._store(change.file.path, self._passing(change.contents(groups))).extents
            else:
                found += [extent for _, extents in here for extent in extents or ()]
        return MergedFile(_whole(change.file, NO_DIGEST, tuple(found)), "NONE", None)

    def _parts(self, change: _Change, group: _Group, *, changed: bool = True) -> list[Extent] | None:
        """Return where a group's pieces lie, None for one that is to be stored anew.

        Those in which something changed are unless they may be referred to, too: ``changed``.
        """
        if not changed and change.is_changed(group):
            return None
        found: list[Extent] = []
        for _, length, number, offset in group[1]:
            source = None if number is None else change.sources[number]
            extents = None if source is None else self._target.carry(source.data, source.path, offset, length)
            if extents is None or len(found) + len(extents) > FRAME_PIECES:
                return None
            found += extents
        return found

    def _replacing(self, change: _Change, groups: list[_Group], checksum: PatchedChecksum) -> Iterator[bytes]:
        """Yield what groups hold now, and have the checksum follow."""
        whole = change.sources[-1]
        for (start, _), content in zip(groups, change.contents(groups), strict=True):
            before = whole.content.read_at(start, len(content)) if start < _size_of(whole) else b""
            self._threads.count(read=len(before) + len(content))
            checksum.replace(start, before, content)
            yield content


class _Change:
    """A file of which some blocks changed: where each part of it lies, by groups of at most a frame's size."""

    def __init__(
        self, file: BackupFile, runs: Sequence[Run], sources: list[ChainSource], *, data_checksums: bool
    ) -> None:
        self.file = file
        self.sources = sources
        self.groups = list(grouped_pieces(runs, FRAME_SIZE))
        self._digest = ContentDigest()
        newest = sources[0].header
        if isinstance(newest, IncrementalHeader):
            self._digest.update(newest.encode())
        are_proven = all(source.content.is_proven for source in sources[1:])
        self._older = OlderPages(file.path, sources) if data_checksums and not are_proven else None

    def is_changed(self, group: _Group) -> bool:
        return any(piece.source != len(self.sources) - 1 for piece in group[1])

    def is_dense(self) -> bool:
        """Tell whether the frames in which something changed hold little else."""
        pieces = [piece for group in self.groups if self.is_changed(group) for piece in group[1]]
        changed = sum(piece.length for piece in pieces if piece.source != len(self.sources) - 1)
        return sum(piece.length for piece in pieces) <= DENSE_FACTOR * changed

    def is_small(self) -> bool:
        """Tell whether less than half as much is read and written of what changed as would be of all."""
        changed = sum(_length(group) for group in self.groups if self.is_changed(group))
        dropped = max(0, _size_of(self.sources[-1]) - self.file.size_bytes)
        return 2 * (changed + dropped) < self.file.size_bytes

    def contents(self, groups: Iterable[_Group]) -> Iterator[bytes]:
        """Yield what groups hold, in order; each block that the newest backup stores must be among them once."""
        buffer = memoryview(bytearray(FRAME_SIZE))
        for _, pieces in groups:
            content = read_pieces(pieces, self.sources, buffer)
            at = 0
            for piece in pieces:
                if piece.source == 0:
                    self._digest.update(content[at : at + piece.length])
                at += piece.length
            if self._older is not None:
                self._older.check(pieces, content)
            yield bytes(content)

    def finish(self) -> None:
        """Raise ChecksumMismatch unless what was used of the newest backup is what it stored."""
        newest = self.sources[0]
        if self._digest.hexdigest() != newest.stored.digest:
            raise damaged(newest.data, newest.path)
        if self._older is not None:
            self._older.warn()


def _whole(file: BackupFile, digest: str, extents: tuple[Extent, ...]) -> BackupFile:
    return BackupFile(
        file.path, file.size_bytes, file.size_bytes, file.mode, file.mtime_epoch_s, digest, extents=extents
    )


def _require_header(source: ChainSource) -> None:
    """Check a header whose digest the entry does not tell, of an incremental file of which not all is read."""
    if source.stored.header_digest is None:
        source.require_as_stored(memoryview(bytearray(FRAME_SIZE)))


def _length(group: _Group) -> int:
    return sum(piece.length for piece in group[1])


def _size_of(source: ChainSource) -> int:
    return source.stored.stored_size_bytes
