"""What a backup stores of each of its files, in 40 bytes a file: to look up by path while another list is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from xxhash import xxh3_128_digest

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.incremental_file import FIXED_SIZE
from pgwal.backup.record_table import RecordTable
from pgwal.backup.stored_path import encode_path

_INCREMENTAL_BIT = 1 << 63
_DIGEST_SIZE = 16


class StoredFile(NamedTuple):
    """What is stored of a file: the size and xxh3-128 digest (hex) of the stored bytes.

    ``header_digest`` is that of an incremental file's header; None where the entry does not tell it, and for a file
    that is stored whole.
    """

    is_incremental: bool
    stored_size_bytes: int
    digest: str
    header_digest: str | None = None

    @classmethod
    def of(cls, file: BackupFile) -> StoredFile:
        """Return what an entry says of a file."""
        header_digest = _header_digest(file.is_incremental, file.stored_size_bytes, file.digest, file.header_digest)
        return cls(file.is_incremental, file.stored_size_bytes, file.digest, header_digest)


def _header_digest(is_incremental: bool, size_bytes: int, digest: str, noted: str | None) -> str | None:
    # Of a file without blocks, as most are, the header is all.
    return digest if is_incremental and size_bytes == FIXED_SIZE else noted


class FileTable:
    """Looks up files of one backup; two paths with the same 128-bit digest do not happen."""

    def __init__(self, files: Iterable[BackupFile]) -> None:
        self._files = RecordTable("<16sQ")
        self._headers = RecordTable("<16s")
        """Of the incremental files that hold blocks: they are few, and the others need no room for it."""
        self._short_digests = RecordTable("<B")
        """How many bytes those have that are no xxh3-128 digests, and are filled up."""
        for file in files:
            key = xxh3_128_digest(encode_path(file.path))
            digest = bytes.fromhex(file.digest)
            size = file.stored_size_bytes | (_INCREMENTAL_BIT if file.is_incremental else 0)
            self._files.add(key, digest, size)
            if len(digest) < _DIGEST_SIZE:
                self._short_digests.add(key, len(digest))
            if file.header_digest is not None:
                self._headers.add(key, bytes.fromhex(file.header_digest))

    def find(self, path: str) -> StoredFile | None:
        key = xxh3_128_digest(encode_path(path))
        found = self._files.find(key)
        if found is None:
            return None
        size = found[1] & ~_INCREMENTAL_BIT
        short = self._short_digests.find(key)
        digest = found[0][: None if short is None else short[0]].hex()
        is_incremental = bool(found[1] & _INCREMENTAL_BIT)
        noted = self._headers.find(key) if is_incremental else None
        header_digest = _header_digest(is_incremental, size, digest, None if noted is None else noted[0].hex())
        return StoredFile(is_incremental, size, digest, header_digest)
