"""What differs between PostgreSQL's major versions, one row each: nothing else in pgwal compares majors.

Each row is the one before it with what the version changed, so a row reads like the list of what came with it.  How a
new row is made: docs/new-major.md.  Sources, of each version: src/include/access/{xlog_internal,xlogrecord,xact,
heapam_xlog}.h, src/include/catalog/{pg_control,catversion}.h, src/backend/backup/basebackup.c,
src/backend/access/transam/{xlogbackup,xlogfuncs}.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from pgwal.errors import UnsupportedVersion


class CheckpointForm(Enum):
    """The fields of a CheckPoint, in CHECKPOINT records and in pg_control: ``wal/layout.py`` declares them."""

    WITHOUT_WAL_LEVEL = "13 to 16"
    WITH_WAL_LEVEL = "17 and 18"
    WITH_WIDE_MULTI_OFFSET = "19: offsets of multixacts have 64 bits, and it tells of logical decoding"


class WalFormat(NamedTuple):
    """The variant of the WAL format that one major version writes.

    ``magic`` stands at the start of each page.  ``overwrite_contrecord_flag`` is the page flag that discards a record
    which a crash cut off; ``page_flags`` are all that a page may have.  ``apply_image_bit`` and
    ``compressed_image_bits`` are flags of an image header's ``bimg_info``.  ``dbase_create_wal_log`` is None where
    CREATE DATABASE always copies files.  ``dropped_stats_item_size`` is the bytes of one item in a commit or abort
    record.  With ``clears_unnamed_map_blocks``, heap records may clear bits of visibility map blocks that they do not
    refer to.  ``record_names`` are those that other versions do not have, by (rmgr, operation).
    """

    major: int
    magic: int
    overwrite_contrecord_flag: int
    page_flags: int
    apply_image_bit: int
    compressed_image_bits: int
    has_top_level_xid: bool
    has_custom_rmgrs: bool
    dbase_create_file_copy: int
    dbase_create_wal_log: int | None
    dbase_drop: int
    has_checkpoint_redo: bool
    checkpoint: CheckpointForm
    dropped_stats_item_size: int
    clears_unnamed_map_blocks: bool
    record_names: Mapping[tuple[int, int], str]

    def __hash__(self) -> int:
        return self.magic


class ControlLayout(NamedTuple):
    """Offsets in pg_control, in bytes; those that all versions share are in ``control_file.py``.

    ``min_recovery`` is a u64 and a u32; ``block_sizes`` and ``wal_sizes`` are two u32 each.  ``checkpoint_time`` lies
    in the copy of the checkpoint record, which has ``checkpoint_size`` bytes.
    """

    version: int
    checkpoint_size: int
    checkpoint_time: int
    min_recovery: int
    wal_level: int
    block_sizes: int
    wal_sizes: int
    data_checksum_version: int
    crc: int


class BackupFunctions(NamedTuple):
    """The SQL functions that start and stop a backup: calls, and signatures as GRANT EXECUTE ON FUNCTION takes them."""

    start: str
    stop: str
    signatures: tuple[str, str]


class PostgresVersion(NamedTuple):
    """One major version.

    ``escapes_backslashes`` is of tablespace_map.  ``unlogged_in_global`` tells whether a base backup looks for unlogged
    relations in global too.  ``has_trigger_file`` tells of promote_trigger_file, ``reads_ahead_in_recovery`` of
    recovery_prefetch, ``has_invalidation_reason`` of that column of pg_replication_slots.  ``quiet_session`` are
    settings that keep a session from being ended, and from running event triggers, of those that 13 does not have.
    ``shows_in_hot_standby`` tells of the setting of that name.  ``lsn_digits`` is how many
    digits the low half of an LSN has at least in what the server writes.
    """

    major: int
    catalog_version: int
    control: ControlLayout
    wal: WalFormat
    manifest_version: int
    has_summaries: bool
    unlogged_in_global: bool
    escapes_backslashes: bool
    backup_functions: BackupFunctions
    has_read_replication_slot: bool
    reads_ahead_in_recovery: bool
    shows_in_hot_standby: bool
    has_trigger_file: bool
    has_invalidation_reason: bool
    quiet_session: Mapping[str, str]
    has_verify_heapam: bool
    lsn_digits: int

    def __hash__(self) -> int:
        return self.major

    def lsn_text(self, lsn: int) -> str:
        """Return an LSN as this version writes it; readers of every version take both spellings."""
        return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:0{self.lsn_digits}X}"


# --- the rows ---------------------------------------------------------------------------------------------------

_RM_XLOG, _RM_DBASE, _RM_HEAP2 = 0, 4, 9

# wait_for_archive is false in both: it is pgwal that keeps the WAL, and knows what it has.
_BACKUP_FUNCTIONS_BEFORE_15 = BackupFunctions(
    start="pg_start_backup(%(label)s, %(fast)s, exclusive => false)",
    stop="pg_stop_backup(exclusive => false, wait_for_archive => false)",
    signatures=("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"),
)

_13 = PostgresVersion(
    major=13,
    catalog_version=202007201,
    control=ControlLayout(
        version=1300,
        checkpoint_size=88,
        checkpoint_time=104,
        min_recovery=136,
        wal_level=172,
        block_sizes=216,
        wal_sizes=224,
        data_checksum_version=252,
        crc=288,
    ),
    wal=WalFormat(
        major=13,
        magic=0xD106,
        # From 13.5 and 14.1 on; before, and in none of their WAL, there is no such page.
        overwrite_contrecord_flag=0x0008,
        # 0x0004 is BKP_REMOVABLE, of which nothing follows.
        page_flags=0x000F,
        apply_image_bit=0x04,
        compressed_image_bits=0x02,
        has_top_level_xid=False,
        has_custom_rmgrs=False,
        dbase_create_file_copy=0x00,
        dbase_create_wal_log=None,
        dbase_drop=0x10,
        has_checkpoint_redo=False,
        checkpoint=CheckpointForm.WITHOUT_WAL_LEVEL,
        dropped_stats_item_size=12,
        clears_unnamed_map_blocks=True,
        record_names={
            (_RM_DBASE, 0x00): "CREATE",
            (_RM_DBASE, 0x10): "DROP",
            (_RM_HEAP2, 0x10): "CLEAN",
            (_RM_HEAP2, 0x20): "FREEZE_PAGE",
            (_RM_HEAP2, 0x30): "CLEANUP_INFO",
            (_RM_HEAP2, 0x40): "VISIBLE",
        },
    ),
    manifest_version=1,
    has_summaries=False,
    unlogged_in_global=False,
    escapes_backslashes=False,
    backup_functions=_BACKUP_FUNCTIONS_BEFORE_15,
    has_read_replication_slot=False,
    reads_ahead_in_recovery=False,
    shows_in_hot_standby=False,
    has_trigger_file=True,
    has_invalidation_reason=False,
    quiet_session={},
    has_verify_heapam=False,
    lsn_digits=1,
)

_14 = _13._replace(
    major=14,
    catalog_version=202107181,
    wal=_13.wal._replace(
        major=14,
        magic=0xD10D,
        has_top_level_xid=True,
        record_names={
            (_RM_DBASE, 0x00): "CREATE",
            (_RM_DBASE, 0x10): "DROP",
            (_RM_HEAP2, 0x10): "PRUNE",
            (_RM_HEAP2, 0x20): "VACUUM",
            (_RM_HEAP2, 0x30): "FREEZE_PAGE",
            (_RM_HEAP2, 0x40): "VISIBLE",
        },
    ),
    escapes_backslashes=True,
    shows_in_hot_standby=True,
    quiet_session={"idle_session_timeout": "0"},
    has_verify_heapam=True,
)

_DBASE_NAMES_SINCE_15 = {
    (_RM_DBASE, 0x00): "CREATE_FILE_COPY",
    (_RM_DBASE, 0x10): "CREATE_WAL_LOG",
    (_RM_DBASE, 0x20): "DROP",
}

_15 = _14._replace(
    major=15,
    catalog_version=202209061,
    wal=_14.wal._replace(
        major=15,
        magic=0xD110,
        apply_image_bit=0x02,
        compressed_image_bits=0x1C,
        has_custom_rmgrs=True,
        dbase_create_wal_log=0x10,
        dbase_drop=0x20,
        record_names={**_14.wal.record_names, **_DBASE_NAMES_SINCE_15},
    ),
    backup_functions=BackupFunctions(
        start="pg_backup_start(%(label)s, %(fast)s)",
        stop="pg_backup_stop(wait_for_archive => false)",
        signatures=("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"),
    ),
    has_read_replication_slot=True,
    reads_ahead_in_recovery=True,
)

_16 = _15._replace(
    major=16,
    catalog_version=202307071,
    wal=_15.wal._replace(major=16, magic=0xD113),
    has_trigger_file=False,
)

_PRUNE_NAMES_SINCE_17 = {
    (_RM_HEAP2, 0x10): "PRUNE_ON_ACCESS",
    (_RM_HEAP2, 0x20): "PRUNE_VACUUM_SCAN",
    (_RM_HEAP2, 0x30): "PRUNE_VACUUM_CLEANUP",
}

_17 = _16._replace(
    major=17,
    catalog_version=202406281,
    control=_16.control._replace(version=1700),
    wal=_16.wal._replace(
        major=17,
        magic=0xD116,
        has_checkpoint_redo=True,
        checkpoint=CheckpointForm.WITH_WAL_LEVEL,
        record_names={**_16.wal.record_names, **_PRUNE_NAMES_SINCE_17},
    ),
    manifest_version=2,
    has_summaries=True,
    unlogged_in_global=True,
    has_invalidation_reason=True,
    quiet_session={**_16.quiet_session, "event_triggers": "off", "transaction_timeout": "0"},
)

_18 = _17._replace(
    major=18,
    catalog_version=202506291,
    control=_17.control._replace(version=1800, crc=292),
    wal=_17.wal._replace(major=18, magic=0xD118, dropped_stats_item_size=16),
)

_19 = _18._replace(
    major=19,
    catalog_version=202610061,
    control=ControlLayout(
        version=1905,
        checkpoint_size=96,
        checkpoint_time=112,
        min_recovery=144,
        wal_level=180,
        block_sizes=224,
        # Between the two pairs stands slru_pages_per_segment.
        wal_sizes=236,
        data_checksum_version=268,
        crc=308,
    ),
    wal=_18.wal._replace(
        major=19,
        magic=0xD122,
        # BKP_REMOVABLE is gone, and its bit means this.
        overwrite_contrecord_flag=0x0004,
        page_flags=0x0007,
        checkpoint=CheckpointForm.WITH_WIDE_MULTI_OFFSET,
        clears_unnamed_map_blocks=False,
        record_names={
            **_DBASE_NAMES_SINCE_15,
            **_PRUNE_NAMES_SINCE_17,
            (_RM_XLOG, 0xC0): "ASSIGN_LSN",
            (_RM_XLOG, 0xF0): "LOGICAL_DECODING_STATUS_CHANGE",
        },
    ),
    lsn_digits=8,
)

VERSIONS = (_13, _14, _15, _16, _17, _18, _19)
"""The supported versions, oldest first."""

SUPPORTED = f"{VERSIONS[0].major} to {VERSIONS[-1].major}"
"""The range of majors for messages."""

_PRE_RELEASE_MAGICS = {0xD120: "19 beta 1 or 2", 0xD121: "19 beta 3"}

_NEWER_HINT = (
    "It is of a newer PostgreSQL, or of another release candidate than pgwal knows: install the newest pgwal. Until one"
    " knows it, take full backups with the server's own pg_basebackup."
)
_OLDER_HINT = f"It is older than what pgwal supports, or no file of PostgreSQL's: upgrade the server to {SUPPORTED}."
_PRE_RELEASE_HINT = (
    "What a beta wrote is not read: move the cluster to the release, as its release notes say, and start another"
    " repository."
)

# --- looking a row up -------------------------------------------------------------------------------------------


def version_of_major(major: int) -> PostgresVersion:
    """Return the row of a major version; raises UnsupportedVersion where there is none."""
    for version in VERSIONS:
        if version.major == major:
            return version
    raise UnsupportedVersion(
        f"PostgreSQL {major} is not supported, only {SUPPORTED} are",
        hint=_NEWER_HINT if major > VERSIONS[-1].major else _OLDER_HINT,
    )


def version_of_server(version_num: int) -> PostgresVersion:
    """Return the row of a server by its server_version_num, such as 170010."""
    return version_of_major(version_num // 10000)


def version_of_magic(magic: int, where: str) -> PostgresVersion:
    """Return the row of pages with this magic; raises UnsupportedVersion, which names ``where``, for another one."""
    for version in VERSIONS:
        if version.wal.magic == magic:
            return version
    if magic in _PRE_RELEASE_MAGICS:
        raise UnsupportedVersion(
            f"{where}: WAL page magic {magic:#06x} is that of PostgreSQL {_PRE_RELEASE_MAGICS[magic]}, no release",
            hint=_PRE_RELEASE_HINT,
        )
    raise UnsupportedVersion(
        f"{where}: WAL page magic {magic:#06x} is not of PostgreSQL {SUPPORTED}",
        hint=_NEWER_HINT if magic > VERSIONS[-1].wal.magic else _OLDER_HINT,
    )


def version_of_catalog(catalog_version: int, control_version: int, where: str) -> PostgresVersion:
    """Return the row of a cluster by the two versions that its pg_control bears.

    Raises UnsupportedVersion, which names ``where``, for any other pair: a pre-release has another one.
    """
    for version in VERSIONS:
        if (version.catalog_version, version.control.version) == (catalog_version, control_version):
            return version
    newer = catalog_version > VERSIONS[-1].catalog_version
    raise UnsupportedVersion(
        f"{where} is of version {control_version}, catalog version {catalog_version}, not of PostgreSQL {SUPPORTED}",
        hint=_NEWER_HINT if newer else f"It is of a pre-release or of an older version: use a release of {SUPPORTED}.",
    )
