"""pg_control: what a data directory says about itself.

Source of the format: src/include/catalog/pg_control.h, PostgreSQL 13 to 18.

| offset | type | field |
|---|---|---|
| 0 | u64 | system_identifier |
| 8 | u32 | pg_control_version |
| 12 | u32 | catalog_version_no |
| 16 | u32 | state |
| 32 | u64 | LSN of the latest checkpoint's record; on a standby, of the one that the last restart point goes back to |
| 40 | 88 | copy of that record's payload; in it, at 40 the redo LSN (u64), at 48 the timeline (u32) |
| 136 | u64 | minRecoveryPoint |
| 144 | u32 | timeline of minRecoveryPoint |
| 172 | i32 | wal_level |
| 216 | u32 | block size |
| 220 | u32 | blocks in a segment file of a relation |
| 224 | u32 | WAL block size |
| 228 | u32 | WAL segment size |
| 252 | u32 | data_checksum_version |
| 288 (13-17), 292 (18) | u32 | CRC-32C of all bytes before it |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pgwal.checksum import crc32c
from pgwal.errors import ChecksumMismatch, TruncatedInput, UnsupportedVersion
from pgwal.lsn import Lsn

CONTROL_FILE_PATH = "global/pg_control"
CONTROL_FILE_SIZE = 8192

MAJOR_BY_CATALOG_VERSION = {
    202007201: 13,
    202107181: 14,
    202209061: 15,
    202307071: 16,
    202406281: 17,
    202506291: 18,
}
_CRC_OFFSET = {1300: 288, 1700: 288, 1800: 292}
_CHECKPOINT_SIZE = {1300: 88, 1700: 88, 1800: 88}

# DB_SHUTDOWNED_IN_RECOVERY, DB_IN_CRASH_RECOVERY, DB_IN_ARCHIVE_RECOVERY
_RECOVERY_STATES = frozenset((2, 4, 5))


@dataclass(frozen=True, slots=True)
class ControlFile:
    """The fields of pg_control that pgwal uses; sizes in bytes.

    ``redo_lsn`` and ``timeline_id`` are those of ``checkpoint``, the copy of the payload of the record at
    ``checkpoint_lsn``.
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

    @property
    def major(self) -> int:
        return MAJOR_BY_CATALOG_VERSION[self.catalog_version_no]

    @property
    def in_recovery(self) -> bool:
        return self.state in _RECOVERY_STATES

    @classmethod
    def decode(cls, content: bytes) -> ControlFile:
        """Parse and verify the bytes of pg_control.

        Raises TruncatedInput, UnsupportedVersion, or ChecksumMismatch (a torn read: read it again).
        """
        if len(content) < 296:
            raise TruncatedInput(f"pg_control has {len(content)} bytes, at least 296 are needed")
        system_identifier, version, catalog = struct.unpack_from("<QII", content)
        if version not in _CRC_OFFSET or catalog not in MAJOR_BY_CATALOG_VERSION:
            raise UnsupportedVersion(
                f"pg_control version {version}, catalog version {catalog} is not of PostgreSQL 13 to 18"
            )
        crc_offset = _CRC_OFFSET[version]
        (stored,) = struct.unpack_from("<I", content, crc_offset)
        if crc32c(content[:crc_offset]) != stored:
            raise ChecksumMismatch("pg_control: its CRC does not match its contents")
        (state,) = struct.unpack_from("<I", content, 16)
        (checkpoint_lsn,) = struct.unpack_from("<Q", content, 32)
        checkpoint = bytes(content[40 : 40 + _CHECKPOINT_SIZE[version]])
        redo, timeline_id = struct.unpack_from("<QI", checkpoint)
        min_recovery, min_recovery_timeline = struct.unpack_from("<QI", content, 136)
        (wal_level,) = struct.unpack_from("<i", content, 172)
        block_size, blocks, wal_page, segment = struct.unpack_from("<IIII", content, 216)
        (checksum_version,) = struct.unpack_from("<I", content, 252)
        return cls(
            system_identifier, version, catalog, state, Lsn(checkpoint_lsn), checkpoint, Lsn(redo), timeline_id,
            Lsn(min_recovery), min_recovery_timeline, wal_level, block_size, blocks, wal_page, segment,
            checksum_version,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ControlStamp:
    """What tells one state of pg_control from others: positions, and times in seconds since 1970.

    ``written_at_s`` is the i64 at offset 24, ``checkpoint_at_s`` that at 104, in the copy of the checkpoint's record.
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
        (checkpoint_at_s,) = struct.unpack_from("<q", content, 104)
        return cls(
            written_at_s,
            control.checkpoint_lsn,
            control.redo_lsn,
            control.timeline_id,
            checkpoint_at_s,
            control.min_recovery_lsn,
        )
