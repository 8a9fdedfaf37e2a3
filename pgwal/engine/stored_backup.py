"""Hold what is stored of one backup against what its catalogue entry and its manifest say.

Everything is read once, by a crew, and everything that is wrong is told; what is held in memory grows by some bytes a
file.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import zip_longest

from xxhash import xxh3_64_intdigest

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.chain import check_link
from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import required_directories
from pgwal.backup.label import BACKUP_LABEL_NAME, BackupLabel
from pgwal.backup.manifest import MANIFEST_NAME, manifest_version
from pgwal.backup.manifest_reader import ManifestFile, ManifestReader
from pgwal.backup.stored_path import encode_path
from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.engine.backup_pieces import ListedFile, file_pieces, pack_pieces, verify_files, verify_packs
from pgwal.engine.fleet import Crew
from pgwal.engine.problem import Problem, reason
from pgwal.errors import (
    ChainError,
    FormatError,
    PgwalError,
    StoreUnavailable,
)
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.backup_data import chunks_of, start_of
from pgwal.repository.layout import (
    BACKUP_ARRIVAL_DIRECTORY,
    BACKUP_CLAIM_NAME,
    BACKUP_DATA_DIRECTORY,
    BACKUP_DIRECTORIES_NAME,
    BACKUP_DIRECTORY,
    BACKUP_ENTRY_NAME,
)
from pgwal.repository.store import MOST_BYTES_READ, ByteRange, names_in, too_large

# Readers take other spellings of the checksums as well; what is written is this, and what differs was changed.
_LAST_LINES = {
    MANIFEST_NAME: re.compile(rb'"Manifest-Checksum": "[0-9a-f]{64}"\}\n'),
    BACKUP_ENTRY_NAME: re.compile(rb'"digest": "xxh3-128:[0-9a-f]{32}"\}\n'),
}
_LAST_LINE_SIZE = 128
_OF_A_BACKUP = {
    BACKUP_ARRIVAL_DIRECTORY,
    BACKUP_CLAIM_NAME,
    BACKUP_DATA_DIRECTORY,
    BACKUP_DIRECTORIES_NAME,
    BACKUP_ENTRY_NAME,
}


class StoredBackup:
    """One backup to verify; ``problems`` is what was found so far, ``control`` and ``label`` are what could be read."""

    def __init__(self, crew: Crew, backup_id: str, *, opens_files: bool = True) -> None:
        """``crew`` reads what is large.

        Without ``opens_files``, what takes an identity to read is held against the digests of what is stored.
        """
        self._crew = crew
        self._opens_files = opens_files
        self.problems: list[Problem] = []
        self.control: ControlFile | None = None
        self.label: BackupLabel | None = None
        self._repository = crew.room.repository
        self._backup_id = backup_id
        self._folder = f"{BACKUP_DIRECTORY}/{backup_id}"
        self._entry_name = f"{self._folder}/{BACKUP_ENTRY_NAME}"
        self._data = crew.room.data(backup_id)
        self._listed = array("Q")
        """Digests of the stored paths that a list names; of two in a billion billion, two may be equal."""
        self._entry_is_whole = self._manifest_is_whole = False
        self._places_are_known = False
        """Whether files can be found: of a packed backup they cannot where its entry is damaged, which is said once."""

    def verify(self, entry: BackupEntry | None, prior: BackupEntry | None) -> None:
        """Look at everything; ``entry`` is None when it cannot be read, and so is ``prior``."""
        with self._noting(self._entry_name):
            self._data.require_places()
            self._places_are_known = True
        self._check_files(entry)
        for name in _LAST_LINES:
            self._check_last_line(name)
        if not self._places_are_known:
            return
        if self._entry_is_whole or self._manifest_is_whole:
            self._find_extra_files()
        if self._entry_is_whole:
            self._check_packs()
        if entry is not None:
            self._check_facts(entry, prior)
            self._check_directories(entry)
        if entry is not None and prior is not None and self._entry_is_whole:
            self._check_prior_files(prior)

    # -- files -------------------------------------------------------------------------------------------------

    def _check_files(self, entry: BackupEntry | None) -> None:
        checked_before = entry.start_lsn if entry is not None and entry.data_checksums else None
        pieces = file_pieces(self._backup_id, self._listed_files(), checked_before, opens_files=self._opens_files)
        # What the lists say comes first, however far they are read ahead.
        found = list[Problem]()
        with closing(self._crew.map(verify_files, pieces)) as verdicts:
            for problems in verdicts:
                found += problems
        self.problems += found

    def _check_packs(self) -> None:
        pieces = pack_pieces(self._backup_id, self._data.pack_count, is_read=not self._opens_files)
        with closing(self._crew.map(verify_packs, pieces)) as verdicts:
            for problems in verdicts:
                self.problems += problems

    def _listed_files(self) -> Iterator[ListedFile]:
        """Yield what is listed, noting what the one list has and the other has not."""
        if not self._places_are_known:
            for _ in self._manifest_files():
                pass
            return
        for file, listed in _paired(self._entry_files(), self._manifest_files()):
            path = file.stored_path if file is not None else listed.path if listed is not None else ""
            size_bytes = file.stored_size_bytes if file is not None else listed.size if listed is not None else 0
            self._listed.append(xxh3_64_intdigest(encode_path(path)))
            if file is None and self._entry_is_whole:
                self._note(path, f"{MANIFEST_NAME} lists it, and {BACKUP_ENTRY_NAME} does not")
            if listed is None and self._manifest_is_whole:
                self._note(path, f"{BACKUP_ENTRY_NAME} lists it, and {MANIFEST_NAME} does not")
            yield ListedFile(path, size_bytes, file, listed)

    def _entry_files(self) -> Iterator[BackupFile]:
        """Yield the files of the entry; what is wrong with it ends them."""
        with self._noting(self._entry_name):
            self._repository.catalogue.entry(self._backup_id)
            yield from self._repository.catalogue.files(self._backup_id)
            self._entry_is_whole = True

    def _manifest_files(self) -> Iterator[ManifestFile]:
        """Yield the files of the manifest; what is wrong with it ends them."""
        with self._noting_data(MANIFEST_NAME):
            reader = ManifestReader()
            for data in chunks_of(self._data, MANIFEST_NAME):
                yield from reader.feed(data)
            end = reader.finish()
            identity = self._repository.identity
            if end.version != manifest_version(identity.major):
                self._note(MANIFEST_NAME, f"version {end.version} is not that of PostgreSQL {identity.major}")
            if end.system_identifier not in (None, identity.system_identifier):
                self._note(MANIFEST_NAME, f"it is of the cluster with system identifier {end.system_identifier}")
            self._manifest_is_whole = True

    # -- what lies around them ---------------------------------------------------------------------------------

    def _check_last_line(self, name: str) -> None:
        if not (self._manifest_is_whole if name == MANIFEST_NAME else self._entry_is_whole):
            return
        name_in_store = f"{self._folder}/{BACKUP_DATA_DIRECTORY}/{name}" if name == MANIFEST_NAME else self._entry_name
        with self._noting(name_in_store):
            (end,) = self._repository.store.get_ranges(name_in_store, [ByteRange(-_LAST_LINE_SIZE)])
            if _LAST_LINES[name].fullmatch(end.splitlines(keepends=True)[-1]) is None:
                raise FormatError("its last line is not spelled as it was written")

    def _find_extra_files(self) -> None:
        """Note what lies in the folder of the backup without being in a list."""
        listed = array("Q", sorted(self._listed))
        with self._noting(self._folder):
            for name in names_in(self._repository.store, self._folder):
                if name not in _OF_A_BACKUP:
                    self._note_at(f"{self._folder}/{name}", "it does not belong to the backup")
        for path in self._data.paths(lambda path, error: self._note(path, reason(error))):
            digest = xxh3_64_intdigest(os.fsencode(path))
            at = bisect_left(listed, digest)
            if path != MANIFEST_NAME and (at == len(listed) or listed[at] != digest):
                self._note(path, "it is in no list of the backup")

    def _check_directories(self, entry: BackupEntry) -> None:
        tablespaces = tuple(f"pg_tblspc/{oid}" for oid in sorted(entry.tablespaces))
        for directory in (*required_directories(entry.major), *tablespaces):
            with self._noting_data(directory):
                if not self._data.has_directory(directory):
                    self._note(directory, "the directory is missing")

    def _check_facts(self, entry: BackupEntry, prior: BackupEntry | None) -> None:
        """Hold the entry against the repository, pg_control, backup_label and PG_VERSION."""
        identity = self._repository.identity
        of_repository = (identity.system_identifier, identity.major, identity.segment_size)
        if (entry.system_identifier, entry.major, entry.wal_segment_size) != of_repository:
            self._note_at(self._entry_name, "it is not of the cluster that the repository belongs to")
        if prior is not None:
            try:
                check_link(entry, prior)
            except ChainError as error:
                self._note_at(self._entry_name, str(error))
        if self._opens_files:
            self._check_control_and_version(entry)
        with self._noting_data(BACKUP_LABEL_NAME):
            label = BackupLabel.decode(self._content(BACKUP_LABEL_NAME))
            if (label.start_lsn, label.start_timeline_id) != (entry.start_lsn, entry.start_timeline_id):
                raise FormatError(
                    f"it says that the backup started at {label.start_lsn} on timeline {label.start_timeline_id}"
                )
            built_on = (prior.start_lsn, prior.start_timeline_id) if prior is not None else None
            if (prior is not None or entry.prior_id is None) and label.incremental_from != built_on:
                raise FormatError("it names another prior backup")
            self.label = label

    def _check_control_and_version(self, entry: BackupEntry) -> None:
        with self._noting_data(CONTROL_FILE_PATH):
            control = ControlFile.decode(self._content(CONTROL_FILE_PATH))
            of_control = (control.system_identifier, control.major, control.segment_size)
            if of_control != (entry.system_identifier, entry.major, entry.wal_segment_size):
                raise FormatError(f"it is of another cluster: system identifier {control.system_identifier}")
            if bool(control.data_checksum_version) != entry.data_checksums:
                raise FormatError(f"it and {BACKUP_ENTRY_NAME} differ on whether data checksums are on")
            self.control = control
        with self._noting_data("PG_VERSION"):
            if self._content("PG_VERSION") != f"{entry.major}\n".encode():
                raise FormatError(f"it is not that of PostgreSQL {entry.major}")

    def _content(self, path: str) -> bytes:
        content = start_of(self._data, path, MOST_BYTES_READ + 1)
        if len(content) > MOST_BYTES_READ:
            raise too_large("it", MOST_BYTES_READ)
        return content

    def _check_prior_files(self, prior: BackupEntry) -> None:
        """Check that the prior backup holds each file that blocks are missing of, as long as is relied on."""
        relied_on = {
            xxh3_64_intdigest(encode_path(file.path)): file.truncation_block_length or 0
            for file in self._repository.catalogue.files(self._backup_id)
            if file.is_incremental
        }
        try:
            for file in self._repository.catalogue.files(prior.backup_id):
                needed = relied_on.pop(xxh3_64_intdigest(encode_path(file.path)), 0)
                if file.size_bytes < needed * BLOCK_SIZE:
                    self._note(file.path, f"relies on {needed} blocks of {prior.backup_id}, which has fewer")
        except StoreUnavailable:
            raise
        except PgwalError:
            return  # Noted where that backup is verified.
        for file in self._repository.catalogue.files(self._backup_id) if relied_on else ():
            if file.is_incremental and xxh3_64_intdigest(encode_path(file.path)) in relied_on:
                self._note(file.stored_path, f"it builds on a file that {prior.backup_id} does not hold")

    # -- noting ------------------------------------------------------------------------------------------------

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Note an error of the formats or of the storage instead of raising it."""
        try:
            yield
        except StoreUnavailable:
            raise
        except PgwalError as error:
            self._note_at(name, reason(error))

    def _noting_data(self, path: str) -> AbstractContextManager[None]:
        return self._noting(f"{self._folder}/{BACKUP_DATA_DIRECTORY}/{path}")

    def _note(self, path: str, message: str) -> None:
        self._note_at(f"{self._folder}/{BACKUP_DATA_DIRECTORY}/{path}".removesuffix("/."), message)

    def _note_at(self, name: str, message: str) -> None:
        self.problems.append(Problem(self._backup_id, name, message))


_Paired = tuple[BackupFile | None, ManifestFile | None]


def _paired(files: Iterable[BackupFile], listed: Iterable[ManifestFile]) -> Iterator[_Paired]:
    """Pair the files of both lists; what is in one alone comes last.  In the same order they cost no memory."""
    files_left: dict[str, BackupFile] = {}
    listed_left: dict[str, ManifestFile] = {}
    for file, other in zip_longest(files, listed):
        if file is not None:
            files_left[file.stored_path] = file
        if other is not None:
            listed_left[other.path] = other
        for path in {item for item in (file and file.stored_path, other and other.path) if item is not None}:
            if path in files_left and path in listed_left:
                yield files_left.pop(path), listed_left.pop(path)
    for left in files_left.values():
        yield left, None
    for left_listed in listed_left.values():
        yield None, left_listed
