"""Copy one backup to another repository: its packs as they are stored, or its files, stored as that one stores files.

What is copied is held against the digests of the entry on the way.  Files go in parts: what a part holds is durable
before that is noted, and is not copied again by whoever goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from pgwal.backup.backup_file import BackupFile, BackupTotals, encode_file
from pgwal.backup.entry import BackupEntry
from pgwal.backup.entry_document import decode_contents, decode_entry, encode_entry
from pgwal.backup.label import BACKUP_LABEL_NAME
from pgwal.backup.manifest import MANIFEST_NAME
from pgwal.backup.manifest_reader import ManifestReader
from pgwal.backup.pack_table import Pack, PackedContents
from pgwal.backup.stored_digest import digest_like
from pgwal.budget import COPIED_PART_BYTES, COPIED_PART_FILES
from pgwal.engine.chain_source import damaged, of_chain, wrong_size
from pgwal.engine.copied_packs import PackCopier
from pgwal.engine.fleet import Fleet, crew
from pgwal.engine.writing_threads import WritingThreads
from pgwal.errors import BrokenInvariant, FormatError, ObjectNotFound, RepositoryError
from pgwal.repository.arriving_backup import ArrivingBackup
from pgwal.repository.backup_data import BackupDataWriter, chunks_of
from pgwal.repository.repository import Repository
from pgwal.repository.sealing import format_for_new_files
from pgwal.repository.storage_format import FileFormat


@dataclass(slots=True)
class _Copied:
    """What is there of a backup by parts: the packs, and how many files, with their sums."""

    packs: list[Pack] = field(default_factory=list)
    totals: BackupTotals = field(default_factory=BackupTotals)
    part_count: int = 0


class BackupCopier:
    """Copies backups from ``source`` to ``target``, one after the other; ``tell`` is told of each number of bytes.

    ``as_stored`` says that packs of the one can be read in the other.
    """

    def __init__(
        self,
        source: Repository,
        target: Repository,
        jobs: int,
        tell: Callable[[int], None],
        as_stored: bool,
        fleet: Fleet | None = None,
    ) -> None:
        """Packs that are copied as they are are copied by a fleet where there is one."""
        self._source = source
        self._target = target
        self._jobs = jobs
        self._fleet = fleet
        self._tell = tell
        self._format = format_for_new_files(target.store)
        self._as_stored = as_stored and self._format.files is FileFormat.PACKED
        self.packs = PackCopier(source, target)
        self.bytes_written = 0
        """Of files that were stored anew."""

    def goes_as_stored(self, entry: BackupEntry) -> bool:
        """Tell whether a backup goes with its packs."""
        return self._as_stored and entry.packed_size_bytes is not None

    def missing_bytes(self, entry: BackupEntry) -> int:
        """Return how much there is to copy of a backup, as far as that is known; raises FormatError for damage."""
        if not self.goes_as_stored(entry):
            return entry.totals.stored_size_bytes
        contents = self._source.catalogue.contents(entry.backup_id)
        return sum(pack.size_bytes for pack in self.packs.missing(contents.packs))

    def copy(self, entry: BackupEntry, before_it_counts: Callable[[], None]) -> None:
        """Copy a backup; it counts then, durable.  ``before_it_counts`` is called when all but its entry is there.

        Raises FormatError, ChainError or ObjectNotFound for what is damaged or missing in the source, of which nothing
        counts; RepositoryError.
        """
        arriving = ArrivingBackup(self._target.place, entry.backup_id)
        arriving.begin(str(self._source.place))
        copy = _Copy(self, arriving, entry)
        if self.goes_as_stored(entry):
            copy.copy_as_stored()
            before_it_counts()
            with self._source.catalogue.document(entry.backup_id) as lines:
                arriving.publish(lines)
        else:
            copy.copy_files()
            before_it_counts()
            arriving.publish(copy.document())


class _Copy:
    """One backup on its way."""

    def __init__(self, copier: BackupCopier, arriving: ArrivingBackup, entry: BackupEntry) -> None:
        self._copier = copier
        self._arriving = arriving
        self._entry = entry
        self._catalogue = copier._source.catalogue
        self._format = copier._format
        self._threads = WritingThreads(copier._jobs, 0, None)
        (self._data,) = self._catalogue.data(entry.backup_id, jobs=copier._jobs)
        self._copied = _Copied()
        self._directories: list[str] = []

    # -- as it is stored ---------------------------------------------------------------------------------------

    def copy_as_stored(self) -> None:
        contents = self._catalogue.contents(self._entry.backup_id)
        copier = self._copier
        with crew(copier._source, copier._tell, copier._jobs, copier._fleet, target=copier._target) as workers:
            copier.packs.copy(contents.packs, workers)
        writer = self._arriving.writer(self._format, 1)
        (label,) = [file for file in self._catalogue.files(self._entry.backup_id) if file.path == BACKUP_LABEL_NAME]
        self._copy_file(writer, label)
        self._copy_manifest(writer)
        writer.sync()

    # -- file by file ------------------------------------------------------------------------------------------

    def copy_files(self) -> None:
        self._data.require_places()
        files = self._catalogue.files(self._entry.backup_id)
        with closing(files):
            for part in _parts(self._rest(files)):
                self._copy_part(part)
        writer = self._arriving.writer(self._format, 1)
        with _discarding(writer):
            with of_chain(self._data):
                self._directories = sorted(self._data.directories())
            for path in self._directories:
                writer.make_directory(path)
            self._copy_manifest(writer)
            writer.sync()

    def _copy_part(self, files: Iterable[BackupFile]) -> None:
        writer = self._arriving.writer(self._format, self._copier._jobs)
        copied = list[BackupFile]()
        totals = BackupTotals()
        with _discarding(writer):
            for file in self._threads.write_all(lambda file: self._copy_file(writer, file), files):
                copied.append(file)
                totals = totals.plus(file)
            writer.sync()
        contents = writer.contents()
        head = replace(self._entry, totals=totals, packed_size_bytes=None if contents is None else contents.size_bytes)
        number = self._copied.part_count
        if contents is not None:
            self._copier.packs.note(contents.packs)
        self._arriving.add_part(number, encode_entry(head, map(encode_file, copied), contents))
        self._take(number, totals, () if contents is None else contents.packs)
        self._copier.bytes_written += totals.stored_size_bytes

    def _take(self, number: int, totals: BackupTotals, packs: Iterable[Pack]) -> None:
        """Count a part among what is there."""
        done = self._copied
        sums = (a + b for a, b in zip(done.totals, totals, strict=True))
        self._copied = _Copied([*done.packs, *packs], BackupTotals(*sums), number + 1)

    def _copy_file(self, writer: BackupDataWriter, file: BackupFile) -> BackupFile:
        """Store a file, and return it as it is there; raises FormatError unless it is what was stored."""
        path = file.stored_path

        def passing() -> Iterator[bytes]:
            digest = digest_like(file.digest)
            for chunk in chunks_of(self._data, path):
                digest.update(chunk)
                self._threads.count(read=len(chunk), written=len(chunk))
                self._copier._tell(len(chunk))
                yield chunk
            # Before the last of it is stored where that is done at once.
            if digest.hexdigest() != file.digest:
                raise damaged(self._data, path)

        with of_chain(self._data, path):
            written = self._arriving.write(writer, path, passing)
        if written.size_bytes != file.stored_size_bytes:
            raise wrong_size(self._data, path, written.size_bytes, file.stored_size_bytes)
        if self._copier.goes_as_stored(self._entry):
            return file
        return file._replace(digest=written.digest, extents=written.extents)

    def _copy_manifest(self, writer: BackupDataWriter) -> None:
        """Store the manifest, which has a checksum of its own."""

        def passing() -> Iterator[bytes]:
            reader = ManifestReader()
            for chunk in chunks_of(self._data, MANIFEST_NAME):
                reader.feed(chunk)
                yield chunk
            reader.finish()

        with of_chain(self._data, MANIFEST_NAME):
            try:
                self._arriving.write(writer, MANIFEST_NAME, passing)
            except FormatError as error:
                place = self._data.locate(MANIFEST_NAME)
                error.restate(f"{place} is damaged: {error}", path=place)
                raise

    # -- what is there already ---------------------------------------------------------------------------------

    def _rest(self, files: Iterator[BackupFile]) -> Iterator[BackupFile]:
        """Yield the files that no part has: those that it has must be the next ones, and its packs be there."""
        for number in self._arriving.part_numbers():
            held = list[BackupFile]()
            if number == self._copied.part_count and (part := self._read_part(number)) is not None:
                for own in part.files:
                    file = next(files, None)
                    held += [] if file is None else [file]
                    if file is None or not _is_same(file, own):
                        break
                else:
                    self._take(number, part.totals, part.packs)
                    self._copier._tell(part.totals.stored_size_bytes)
                    continue
            # What comes behind it was copied when it was there.
            self._arriving.drop_part(number)
            files = chain(held, files)
        return files

    def _read_part(self, number: int) -> _Part | None:
        """Return what a part says, None for one that does not count."""
        try:
            with self._arriving.part_lines(number) as lines:
                if self._format.files is FileFormat.PACKED:
                    head, contents, files = decode_contents(lines)
                    packs = list(contents.packs)
                else:
                    packs, (head, files) = [], decode_entry(lines)
                found = _Part(head.totals, packs, list(files))
            # Of another history there may be a backup of the same id.
            own = replace(self._entry, totals=head.totals, packed_size_bytes=head.packed_size_bytes)
            return found if head == own and not self._copier.packs.missing(packs) else None
        except (FormatError, ObjectNotFound):
            return None

    def document(self) -> Generator[bytes]:
        """Yield the lines of the entry, from those of the parts."""
        is_packed = self._format.files is FileFormat.PACKED
        contents = PackedContents(self._copied.packs, self._directories) if is_packed else None
        entry = replace(self._entry, packed_size_bytes=None if contents is None else contents.size_bytes)
        yield from _lines(encode_entry(entry, self._noted_files(), contents))

    def _noted_files(self) -> Iterator[bytes]:
        first = 0
        for number in range(self._copied.part_count):
            part = self._read_part(number)
            if part is None:
                raise BrokenInvariant(f"part {number} of backup {self._entry.backup_id} is gone")
            for file in part.files:
                extents = tuple(extent._replace(pack=extent.pack + first) for extent in file.extents)
                yield encode_file(file._replace(extents=extents))
            first += len(part.packs)


class _Part(NamedTuple):
    """What a part says."""

    totals: BackupTotals
    packs: list[Pack]
    files: list[BackupFile]


def _is_same(file: BackupFile, copied: BackupFile) -> bool:
    """Tell whether a file of a part is one of the source; where that has no xxh3-128, it has a digest of its own."""
    has_same_kind = len(copied.digest) == len(file.digest)
    digest = file.digest if has_same_kind else copied.digest
    return copied._replace(extents=()) == file._replace(digest=digest, extents=())


def _parts(files: Iterator[BackupFile]) -> Iterator[Iterator[BackupFile]]:
    """Yield files by parts, each of which must be taken to its end before the next."""
    for first in files:
        yield _part(first, files)


def _part(file: BackupFile | None, others: Iterator[BackupFile]) -> Iterator[BackupFile]:
    size_bytes = count = 0
    while file is not None:
        yield file
        size_bytes, count = size_bytes + file.stored_size_bytes, count + 1
        file = next(others, None) if size_bytes < COPIED_PART_BYTES and count < COPIED_PART_FILES else None


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what is in pieces of any length line by line."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).splitlines(keepends=True) or [b""]
        yield from lines
        if rest.endswith(b"\n"):
            yield rest
            rest = b""
    if rest:
        yield rest


@contextmanager
def _discarding(writer: BackupDataWriter) -> Iterator[None]:
    """End a writer, and remove what it has stored elsewhere than with the backup, when nothing comes of it."""
    try:
        yield
    except BaseException:
        writer.abandon()
        with suppress(RepositoryError):
            writer.discard()
        raise
