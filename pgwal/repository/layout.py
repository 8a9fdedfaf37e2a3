"""Names of what a repository holds, and the file that says whose it is."""

from __future__ import annotations

import json
from typing import NamedTuple

from pgwal.errors import FormatError, UnsupportedVersion
from pgwal.postgres_version import version_of_major
from pgwal.segment import WalGeometry

IDENTITY_NAME = "pgwal.json"
STORAGE_FORMAT_NAME = "format.json"
WAL_DIRECTORY = "wal"
SUMMARY_DIRECTORY = "summaries"
BACKUP_DIRECTORY = "backups"
PACK_DIRECTORY = "packs"
PIN_DIRECTORY = "pins"
LONG_TERM_DIRECTORY = "long_term"
SET_ASIDE_DIRECTORY = "set_aside"
RECEIVER_STATE_NAME = "receiver.json"
RECEIVER_LOCK_NAME = "receiver.lock"
BACKUP_LOCK_NAME = "backup.lock"

BACKUP_DATA_DIRECTORY = "data"
BACKUP_ENTRY_NAME = "backup.json"
BACKUP_DIRECTORIES_NAME = "directories.json"
"""The directories of the data, where a store has none: a list of paths."""
BACKUP_CLAIM_NAME = "unfinished.json"
"""Of a backup that is being taken, or was abandoned, where folders cannot be renamed."""
UNFINISHED_SUFFIX = ".unfinished"
"""Of a backup that is being taken, or was abandoned: such a directory is no backup."""

_FORMAT_VERSION = 1


class RepositoryIdentity(NamedTuple):
    """Which cluster a repository belongs to."""

    system_identifier: int
    segment_size: int
    major: int

    @property
    def geometry(self) -> WalGeometry:
        return WalGeometry(self.segment_size)

    def encode(self) -> bytes:
        document = {
            "pgwal-repository": _FORMAT_VERSION,
            "system_identifier": str(self.system_identifier),
            "wal_segment_size": self.segment_size,
            "major": self.major,
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> RepositoryIdentity:
        """Parse pgwal.json; raises FormatError, or UnsupportedVersion for a newer format."""
        try:
            document = json.loads(content)
            version = document["pgwal-repository"]
            identity = cls(
                int(document["system_identifier"]), int(document["wal_segment_size"]), int(document["major"])
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FormatError(f"{IDENTITY_NAME} cannot be read: {type(error).__name__}") from error
        if not 0 < identity.system_identifier < 1 << 64:
            raise FormatError(f"{IDENTITY_NAME} holds no system identifier")
        if version != _FORMAT_VERSION:
            raise UnsupportedVersion(f"{IDENTITY_NAME} has format {version}, this pgwal knows {_FORMAT_VERSION}")
        version_of_major(identity.major)
        WalGeometry(identity.segment_size)
        return identity
