"""How a repository stores the files of backups: one by one, or in packs."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import NamedTuple

from pgwal.errors import FormatError, ObjectNotFound, UnsupportedVersion
from pgwal.repository.compression import DEFAULT_COMPRESSION, Compression, CompressionMethod
from pgwal.repository.layout import STORAGE_FORMAT_NAME, decode_encryption_id
from pgwal.repository.store import ObjectStore

_VERSION = 1
_ENCRYPTED_VERSION = 2
"""Of what an older pgwal must not write, or read, as if it were in clear."""
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
    """``compression`` is that of packs, zstd or none; plain files are stored as they are.

    ``encryption_id`` is that of the repository's keys, None where it is not encrypted.
    """

    files: FileFormat = FileFormat.PLAIN
    compression: Compression = _UNCOMPRESSED
    encryption_id: str | None = None

    @property
    def level(self) -> int | None:
        """The level of zstd, None where nothing is compressed."""
        return None if self.compression.method is CompressionMethod.NONE else self.compression.level

    def __str__(self) -> str:
        if self.files is FileFormat.PLAIN:
            return str(self.files)
        encrypted = "" if self.encryption_id is None else ", encrypted"
        return f"{self.files} ({self.compression}{encrypted})"

    def encode(self) -> bytes:
        """Return the content of format.json."""
        document = {"pgwal-format": _VERSION, "files": self.files.value, "compression": str(self.compression)}
        if self.encryption_id is not None:
            document |= {"pgwal-format": _ENCRYPTED_VERSION, "encrypted": self.encryption_id}
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> StorageFormat:
        """Parse format.json; raises FormatError, or UnsupportedVersion for a newer format."""
        try:
            document = json.loads(content)
            version = document["pgwal-format"]
            if type(version) is not int:
                raise TypeError("its version is no number")
            if version not in (_VERSION, _ENCRYPTED_VERSION):
                raise UnsupportedVersion(
                    f"{STORAGE_FORMAT_NAME} has format {version}, this pgwal knows {_ENCRYPTED_VERSION}"
                )
            encryption_id = decode_encryption_id(document) if version == _ENCRYPTED_VERSION else None
            found = cls(FileFormat(document["files"]), _decode_compression(document["compression"]), encryption_id)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{STORAGE_FORMAT_NAME} cannot be read: {type(error).__name__}", hint=_HINT) from error
        if found.compression.method not in (CompressionMethod.NONE, CompressionMethod.ZSTD):
            raise FormatError(f"{STORAGE_FORMAT_NAME} is wrong: packs have zstd, or no compression", hint=_HINT)
        if found.encryption_id is not None and found.files is FileFormat.PLAIN:
            raise FormatError(f"{STORAGE_FORMAT_NAME} is wrong: an encrypted repository is packed", hint=_HINT)
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
