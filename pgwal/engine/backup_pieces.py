"""Pieces of a stored backup that any worker of a fleet can verify: some of its files, some of its packs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.label import BACKUP_LABEL_NAME
from pgwal.backup.manifest import MANIFEST_NAME, FileChecksum
from pgwal.backup.manifest_reader import ManifestFile
from pgwal.backup.stored_digest import digest_like
from pgwal.budget import BACKUP_PIECE_BYTES, BACKUP_PIECE_FILES, PIECE_PACKS, PIECE_READ_PACKS
from pgwal.checksum import ContentDigest
from pgwal.engine.fleet import Room, Tell
from pgwal.engine.problem import Problem, reason
from pgwal.engine.stored_file import bad_pages_text, read_stored
from pgwal.errors import FormatError, PgwalError, StoreUnavailable
from pgwal.lsn import Lsn
from pgwal.repository.backup_data import BackupData
from pgwal.repository.layout import BACKUP_DATA_DIRECTORY, BACKUP_DIRECTORY, BACKUP_ENTRY_NAME


class ListedFile(NamedTuple):
    """A stored file, with its size, as the entry, the manifest, or both list it."""

    path: str
    size_bytes: int
    file: BackupFile | None
    listed: ManifestFile | None


class FilePiece(NamedTuple):
    """Some files of a backup, whose pages have checksums where there is a start ``checked_before``.

    Without ``opens_files``, what takes an identity to read is passed over.
    """

    backup_id: str
    files: Sequence[ListedFile]
    checked_before: Lsn | None
    opens_files: bool


class PackPiece(NamedTuple):
    """Some packs of a backup, by their numbers; ``is_read`` where all of them is held against digests."""

    backup_id: str
    first: int
    end: int
    is_read: bool


def file_pieces(
    backup_id: str, files: Iterable[ListedFile], checked_before: Lsn | None, *, opens_files: bool
) -> Iterator[FilePiece]:
    """Put files together that lie together, as far as they are small."""
    some, size_bytes = list[ListedFile](), 0
    for file in files:
        some.append(file)
        size_bytes += file.size_bytes
        if size_bytes >= BACKUP_PIECE_BYTES or len(some) == BACKUP_PIECE_FILES:
            yield FilePiece(backup_id, some, checked_before, opens_files)
            some, size_bytes = [], 0
    if some:
        yield FilePiece(backup_id, some, checked_before, opens_files)


def pack_pieces(backup_id: str, pack_count: int, *, is_read: bool) -> Iterator[PackPiece]:
    """Cut the packs of a backup into pieces of some of them."""
    step = PIECE_READ_PACKS if is_read else PIECE_PACKS
    for first in range(0, pack_count, step):
        yield PackPiece(backup_id, first, min(first + step, pack_count), is_read)


def verify_files(room: Room, tell: Tell, piece: FilePiece) -> list[Problem]:
    """Read files, and return what is wrong with them: work for a crew.  Raises StoreUnavailable."""
    data, found = room.data(piece.backup_id), list[Problem]()
    for listed in piece.files:
        # The label is in clear, and tells where the backup starts.
        if not piece.opens_files and listed.path != BACKUP_LABEL_NAME:
            continue
        name = f"{BACKUP_DIRECTORY}/{piece.backup_id}/{BACKUP_DATA_DIRECTORY}/{listed.path}"
        if listed.listed is not None and listed.listed.size != listed.size_bytes:
            message = f"{MANIFEST_NAME} says {listed.listed.size} bytes, {BACKUP_ENTRY_NAME} {listed.size_bytes}"
            found.append(Problem(piece.backup_id, name, message))
        try:
            _check_file(data, listed, piece.checked_before)
        except StoreUnavailable:
            raise
        except PgwalError as error:
            found.append(Problem(piece.backup_id, name, reason(error)))
        tell(listed.size_bytes)
    return found


def _check_file(data: BackupData, wanted: ListedFile, checked_before: Lsn | None) -> None:
    """Read a stored file, and hold it against what each list says of it, and pages against their checksums.

    Raises FormatError for what is wrong.
    """
    path, size_bytes, file, listed = wanted
    digest = ContentDigest() if file is None else digest_like(file.digest)
    checksum = FileChecksum(listed.checksum_algorithm if listed is not None else "NONE")
    with closing(data.open(path)) as stored:
        if stored.size_bytes != size_bytes:
            raise FormatError(f"it has {stored.size_bytes} bytes, {size_bytes} were stored")
        pages = read_stored(stored, file, checked_before, (digest, checksum))
    if file is not None and digest.hexdigest() != file.digest:
        raise FormatError("it is not what was stored: its digest does not match")
    if listed is not None and checksum.hexdigest() != listed.checksum_hex:
        raise FormatError(f"its {checksum.algorithm} checksum is not the one in {MANIFEST_NAME}")
    if pages is not None and pages.bad_blocks:
        # The file is as it was stored: this is what the server had.
        raise FormatError(bad_pages_text(pages.bad_blocks))


def verify_packs(room: Room, tell: Tell, piece: PackPiece) -> list[Problem]:  # noqa: ARG001
    """Look at packs, and return what reading files would not show: work for a crew.  Raises StoreUnavailable."""
    data = room.data(piece.backup_id)
    numbers = range(piece.first, piece.end)
    return [
        Problem(piece.backup_id, name, reason(error)) for name, error in data.damage(numbers, of_unread=piece.is_read)
    ]
