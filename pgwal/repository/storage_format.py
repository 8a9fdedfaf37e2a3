"""How a repository stores the files of backups: one by one, or in packs."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import NamedTuple

from pgwal.errors import FormatError, ObjectNotFound, UnsupportedVersion
from pgwal.repository.compression import DEFAULT_COMPRESSION, Compression, CompressionMethod
from pgwal.repository.layout import STORAGE_FORMAT_NAME
from pgwal.repository.store import ObjectStore

_VERSION = 1
_HINT = (
    'Write it again: {"pgwal-format": 1, "files": "packed" or "plain", "compression": "zstd:1" or "none"}; backups that'
    " are there say themselves how they are stored."
)


class FileFormat(StrEnum):
    """The names are those of ``pgwal init --format``."""

    PLAIN = "plain"
    PACKED = "packed"


_UNCOMPRESSED = Compression(CompressionMethod.NONE, 0)


class StorageFormat(NamedTuple):
    """``compression`` is that of packs, zstd or none; plain files are stored as they are."""

    files: FileFormat = FileFormat.PLAIN
    compression: Compression = _UNCOMPRESSED

    @property
    def level(self) -> int | None:
        """The level of zstd, None where nothing is compressed."""
        return None if self.compression.method is CompressionMethod.NONE else self.compression.level

    def __str__(self) -> str:
        return f"{self.files} ({self.compression})" if self.files is FileFormat.PACKED else str(self.files)

    def encode(self) -> bytes:
        """Return the content of format.json."""
        document = {"pgwal-format": _VERSION, "files": self.files.value, "compression": str(self.compression)}
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> StorageFormat:
        """Parse format.json; raises FormatError, or UnsupportedVersion for a newer format."""
        try:
            document = json.loads(content)
            version = document["pgwal-format"]
            if type(version) is not int:
                raise TypeError("its version is no number")
            if version != _VERSION:
                raise UnsupportedVersion(f"{STORAGE_FORMAT_NAME} has format {version}, this pgwal knows {_VERSION}")
            found = cls(FileFormat(document["files"]), _decode_compression(document["compression"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{STORAGE_FORMAT_NAME} cannot be read: {type(error).__name__}", hint=_HINT) from error
        if found.compression.method not in (CompressionMethod.NONE, CompressionMethod.ZSTD):
            raise FormatError(f"{STORAGE_FORMAT_NAME} is wrong: packs have zstd, or no compression", hint=_HINT)
        return found

    @classmethod
    def of(cls, store: ObjectStore) -> StorageFormat:
        """Return that of the repository in a store: plain unless it says otherwise."""
        try:
            return cls.decode(store.get(STORAGE_FORMAT_NAME))
        except ObjectNotFound:
            return cls()


def _decode_compression(text: str) -> Compression:
    try:
        return Compression.parse(text)
    except FormatError as error:
        raise ValueError(str(error)) from error


PLAIN_FORMAT = StorageFormat()
DEFAULT_PACKED_FORMAT = StorageFormat(FileFormat.PACKED, DEFAULT_COMPRESSION)
