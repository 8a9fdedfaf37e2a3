"""Names of what a repository holds, and the file that says whose it is."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from pgwal.errors import FormatError, UnsupportedVersion
from pgwal.postgres_version import version_of_major
from pgwal.segment import WalGeometry

IDENTITY_NAME = "pgwal.json"
STORAGE_FORMAT_NAME = "format.json"
WAL_DIRECTORY = "wal"
SUMMARY_DIRECTORY = "summaries"
BACKUP_DIRECTORY = "backups"
PACK_DIRECTORY = "packs"
MOVED_FRAMES_DIRECTORY = "moved_frames"
KEY_DIRECTORY = "keys"
PIN_DIRECTORY = "pins"
LONG_TERM_DIRECTORY = "long_term"
COPIED_DIRECTORY = "copied"
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
BACKUP_ARRIVAL_DIRECTORY = "arriving"
"""Of a backup that comes from another repository: what is noted of it until all of it is there."""
UNFINISHED_SUFFIX = ".unfinished"
"""Of a backup that is being taken, or was abandoned: such a directory is no backup."""

_FORMAT_VERSION = 1
_ENCRYPTED_VERSION = 2
"""Of what an older pgwal must not write, or read, as if it were in clear."""
_ENCRYPTION_ID = re.compile(r"[0-9a-f]{32}")


class RepositoryIdentity(NamedTuple):
    """Which cluster a repository belongs to."""

    system_identifier: int
    segment_size: int
    major: int
    encryption_id: str | None = None
    """The id of the repository's keys, None where it is not encrypted."""

    def cluster(self) -> dict[str, int]:
        """Return what it says of the cluster, by names."""
        return {
            "system_identifier": self.system_identifier,
            "segment_size": self.segment_size,
            "major": self.major,
        }

    @property
    def geometry(self) -> WalGeometry:
        return WalGeometry(self.segment_size)

    def encode(self) -> bytes:
        document: dict[str, object] = {
            "pgwal-repository": _FORMAT_VERSION if self.encryption_id is None else _ENCRYPTED_VERSION,
            "system_identifier": str(self.system_identifier),
            "wal_segment_size": self.segment_size,
            "major": self.major,
        }
        if self.encryption_id is not None:
            document["encrypted"] = self.encryption_id
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> RepositoryIdentity:
        """Parse pgwal.json; raises FormatError, or UnsupportedVersion for a newer format."""
        try:
            document = json.loads(content)
            version = document["pgwal-repository"]
            identity = cls(
                int(document["system_identifier"]),
                int(document["wal_segment_size"]),
                int(document["major"]),
                decode_encryption_id(document) if version == _ENCRYPTED_VERSION else None,
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FormatError(f"{IDENTITY_NAME} cannot be read: {type(error).__name__}") from error
        if not 0 < identity.system_identifier < 1 << 64:
            raise FormatError(f"{IDENTITY_NAME} holds no system identifier")
        if version not in (_FORMAT_VERSION, _ENCRYPTED_VERSION):
            raise UnsupportedVersion(f"{IDENTITY_NAME} has format {version}, this pgwal knows {_ENCRYPTED_VERSION}")
        version_of_major(identity.major)
        WalGeometry(identity.segment_size)
        return identity


def decode_encryption_id(document: Any) -> str:
    """Return the id of the keys of an encrypted repository; raises KeyError, TypeError, ValueError."""
    found = document["encrypted"]
    if not isinstance(found, str):
        raise TypeError("no id of keys")
    if _ENCRYPTION_ID.fullmatch(found) is None:
        raise ValueError("no id of keys")
    return found
