"""What a backup stores of each of its files, in 40 bytes a file: to look up by path while another list is read."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from xxhash import xxh3_128_digest

from pgwal.backup.entry import BackupFile
from pgwal.backup.stored_path import encode_path

_RECORD = struct.Struct("<16s16sQ")
_BUCKET_COUNT = 4096
_INCREMENTAL_BIT = 1 << 63


class StoredFile(NamedTuple):
    """What is stored of a file: the size and xxh3-128 digest (hex) of the stored bytes."""

    is_incremental: bool
    stored_size_bytes: int
    digest: str


class FileTable:
    """Looks up files of one backup; two paths with the same 128-bit digest do not happen."""

    def __init__(self, files: Iterable[BackupFile]) -> None:
        self._buckets: dict[int, bytearray] = {}
        for file in files:
            key = xxh3_128_digest(encode_path(file.path))
            size = file.stored_size_bytes | (_INCREMENTAL_BIT if file.is_incremental else 0)
            self._buckets.setdefault(_bucket_number(key), bytearray()).extend(
                _RECORD.pack(key, bytes.fromhex(file.digest), size)
            )

    def find(self, path: str) -> StoredFile | None:
        key = xxh3_128_digest(encode_path(path))
        bucket = self._buckets.get(_bucket_number(key), b"")
        at = bucket.find(key)
        while at >= 0:
            if at % _RECORD.size == 0:
                _, digest, size = _RECORD.unpack_from(bucket, at)
                return StoredFile(bool(size & _INCREMENTAL_BIT), size & ~_INCREMENTAL_BIT, digest.hex())
            at = bucket.find(key, at + 1)
        return None


def _bucket_number(key: bytes) -> int:
    return int.from_bytes(key[:2], "little") % _BUCKET_COUNT
