"""pg_control: what a data directory says about itself.

Source of the format: src/include/catalog/pg_control.h, PostgreSQL 13 to 19.  The two versions tell the row of
``postgres_version.py`` that has the other offsets.

| offset, 13 to 18 | 19 | type | field |
|---|---|---|---|
| 0 | 0 | u64 | system_identifier |
| 8 | 8 | u32 | pg_control_version |
| 12 | 12 | u32 | catalog_version_no |
| 16 | 16 | u32 | state |
| 24 | 24 | i64 | when it was written, in seconds since 1970 |
| 32 | 32 | u64 | LSN of the latest checkpoint's record; on a standby, of the one of the last restart point |
| 40 | 40 | 88, 96 bytes | copy of that record's payload; in it, at 40 the redo LSN (u64), at 48 the timeline (u32) |
| 104 | 112 | i64 | in the copy: when the checkpoint was made |
| 136 | 144 | u64, u32 | minRecoveryPoint, and its timeline |
| 172 | 180 | i32 | wal_level |
| 180 | 188 | 5 i32 | the settings of RECOVERY_SETTINGS |
| 216 | 224 | u32, u32 | block size, blocks in a segment file of a relation |
| 224 | 236 | u32, u32 | WAL block size, WAL segment size |
| 252 | 268 | u32 | data_checksum_version |
| 288 (13-17), 292 (18) | 308 | u32 | CRC-32C of all bytes before it |
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pgwal.checksum import crc32c
from pgwal.errors import ChecksumMismatch, TruncatedInput
from pgwal.lsn import Lsn
from pgwal.postgres_version import VERSIONS, PostgresVersion, version_of_catalog

CONTROL_FILE_PATH = "global/pg_control"
CONTROL_FILE_SIZE = 8192

_CHECKPOINT_OFFSET = 40

# Up to the end of the longest: the file is padded far beyond that.
_LEAST_SIZE = max(version.control.crc for version in VERSIONS) + 4

RECOVERY_SETTINGS = (
    "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
    "max_locks_per_transaction",
)  # fmt: skip

# DB_SHUTDOWNED_IN_RECOVERY, DB_IN_CRASH_RECOVERY, DB_IN_ARCHIVE_RECOVERY
_RECOVERY_STATES = frozenset((2, 4, 5))


class ControlFile(NamedTuple):
    """The fields of pg_control that pgwal uses; sizes in bytes.

    ``redo_lsn`` and ``timeline_id`` are those of ``checkpoint``, the copy of the payload of the record at
    ``checkpoint_lsn``.  ``recovery_settings`` are those of the server that wrote it which one that recovers its WAL
    needs at least as high (CheckRequiredParameterValues in xlogrecovery.c).
    """

    system_identifier: int
    pg_control_version: int
    catalog_version_no: int
    state: int
    checkpoint_lsn: Lsn
    checkpoint: bytes
    redo_lsn: Lsn
    timeline_id: int
    min_recovery_lsn: Lsn
    min_recovery_timeline_id: int
    wal_level: int
    block_size: int
    blocks_per_file: int
    wal_page_size: int
    segment_size: int
    data_checksum_version: int
    recovery_settings: dict[str, int]

    @property
    def major(self) -> int:
        return _version(self.catalog_version_no, self.pg_control_version).major

    @property
    def in_recovery(self) -> bool:
        return self.state in _RECOVERY_STATES

    @classmethod
    def decode(cls, content: bytes) -> ControlFile:
        """Parse and verify the bytes of pg_control.

        Raises TruncatedInput, UnsupportedVersion, or ChecksumMismatch (a torn read: read it again).
        """
        if len(content) < _LEAST_SIZE:
            raise TruncatedInput(f"pg_control has {len(content)} bytes, at least {_LEAST_SIZE} are needed")
        system_identifier, version, catalog = struct.unpack_from("<QII", content)
        at = _version(catalog, version).control
        (stored,) = struct.unpack_from("<I", content, at.crc)
        if crc32c(content[: at.crc]) != stored:
            raise ChecksumMismatch("pg_control: its CRC does not match its contents")
        (state,) = struct.unpack_from("<I", content, 16)
        (checkpoint_lsn,) = struct.unpack_from("<Q", content, 32)
        checkpoint = bytes(content[_CHECKPOINT_OFFSET : _CHECKPOINT_OFFSET + at.checkpoint_size])
        redo, timeline_id = struct.unpack_from("<QI", checkpoint)
        min_recovery, min_recovery_timeline = struct.unpack_from("<QI", content, at.min_recovery)
        (wal_level,) = struct.unpack_from("<i", content, at.wal_level)
        recovery_settings = struct.unpack_from("<5i", content, at.wal_level + 8)
        block_size, blocks = struct.unpack_from("<II", content, at.block_sizes)
        wal_page, segment = struct.unpack_from("<II", content, at.wal_sizes)
        (checksum_version,) = struct.unpack_from("<I", content, at.data_checksum_version)
        return cls(
            system_identifier, version, catalog, state, Lsn(checkpoint_lsn), checkpoint, Lsn(redo), timeline_id,
            Lsn(min_recovery), min_recovery_timeline, wal_level, block_size, blocks, wal_page, segment,
            checksum_version, dict(zip(RECOVERY_SETTINGS, recovery_settings, strict=True)),
        )  # fmt: skip


class ControlStamp(NamedTuple):
    """What tells one state of pg_control from others: positions, and times in seconds since 1970.

    ``written_at_s`` is when pg_control was written, ``checkpoint_at_s`` when the checkpoint was made.
    """

    written_at_s: int
    checkpoint_lsn: Lsn
    redo_lsn: Lsn
    timeline_id: int
    checkpoint_at_s: int
    min_recovery_lsn: Lsn

    @classmethod
    def decode(cls, content: bytes) -> ControlStamp:
        """Parse the bytes of pg_control, and verify them as ``ControlFile.decode`` does."""
        control = ControlFile.decode(content)
        (written_at_s,) = struct.unpack_from("<q", content, 24)
        at = _version(control.catalog_version_no, control.pg_control_version).control
        (checkpoint_at_s,) = struct.unpack_from("<q", content, at.checkpoint_time)
        return cls(
            written_at_s,
            control.checkpoint_lsn,
            control.redo_lsn,
            control.timeline_id,
            checkpoint_at_s,
            control.min_recovery_lsn,
        )


def _version(catalog_version: int, control_version: int) -> PostgresVersion:
    return version_of_catalog(catalog_version, control_version, "pg_control")
