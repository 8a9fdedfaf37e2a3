"""Read one stored file from front to back, through sums, and look at its pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.incremental_file import FIXED_SIZE, IncrementalHeader
from pgwal.backup.page_check import PageCheck
from pgwal.backup.stored_digest import StoredDigest
from pgwal.budget import READ_BYTES
from pgwal.checksum import content_digest
from pgwal.errors import FormatError
from pgwal.lsn import Lsn
from pgwal.relation import BLOCK_SIZE, parse_relation_path
from pgwal.repository.backup_data import StoredContent

_BLOCKS_NAMED = 5


class _Front:
    """Reads a stored file from front to back."""

    def __init__(self, content: StoredContent) -> None:
        self._content = content
        self._offset = 0

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer at the end alone."""
        data = self._content.read_at(self._offset, size)
        self._offset += len(data)
        return data


def read_stored(
    content: StoredContent,
    file: BackupFile | None,
    checked_before: Lsn | None,
    sums: Iterable[StoredDigest],
) -> PageCheck | None:
    """Read a stored file through the sums, and return what was seen of its pages, None when they are not checked.

    Raises FormatError for the header of an incremental file that is not as ``file`` says, RepositoryError.
    """
    stored = _Front(content)
    relation_file = parse_relation_path(file.path) if file is not None else None
    block_numbers = None
    if file is not None and file.is_incremental:
        encoded, header = _read_header(stored.read, file)
        block_numbers = header.block_numbers
        for each in sums:
            each.update(encoded)
    check = None
    if relation_file is not None and checked_before is not None:
        check = PageCheck(relation_file, checked_before, block_numbers)
    # What is left of a relation file are its blocks, of an incremental one those that the header numbers.
    while data := stored.read(READ_BYTES):
        for each in sums:
            each.update(data)
        if check is not None:
            check.feed(data)
    return check


def bad_pages_text(blocks: list[int]) -> str:
    """Return what is to be said of pages that differ from their checksums."""
    more = f" and {len(blocks) - _BLOCKS_NAMED} more" if len(blocks) > _BLOCKS_NAMED else ""
    named = ", ".join(map(str, blocks[:_BLOCKS_NAMED]))
    return f"the server's data page in block {named}{more} differed from its checksum when it was backed up"


def _read_header(read: Callable[[int], bytes], file: BackupFile) -> tuple[bytes, IncrementalHeader]:
    """Read and check the header of an incremental file; raises FormatError unless it is as the entry says."""
    content = read(FIXED_SIZE)
    prefix = IncrementalHeader.decode_prefix(content)
    content += read(prefix.header_size - len(content))
    header = IncrementalHeader.decode(content, file.stored_size_bytes)
    found = (header.truncation_block_length, len(header.block_numbers))
    if found != (file.truncation_block_length, file.copied_block_count):
        raise FormatError(f"its header says truncation block length {found[0]} and {found[1]} blocks, its entry not")
    if file.header_digest is not None and content_digest(content) != file.header_digest:
        raise FormatError("its header is not what was stored: its digest does not match")
    if header.reconstructed_block_count * BLOCK_SIZE != file.size_bytes:
        raise FormatError(f"its header makes {header.reconstructed_block_count} blocks, its entry another size")
    return content, header
