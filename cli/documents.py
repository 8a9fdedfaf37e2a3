"""What ``--json`` prints, as types: the one place that says which members each document has.

The schemas in docs/schemas are printed from these types, and docs/json.md has the meaning of each name, which is the
same wherever it stands.  How a member looks follows from its name: an LSN is ``lsn`` or ``..._lsn``, as text;
``..._bytes`` and ``..._count`` are whole numbers; a time is ``..._at``, as RFC 3339 has it; a duration ``seconds`` or
``..._seconds``; an OID ``..._oid``.  ``version`` rises when a member goes, or comes to mean something else; members
may be added without that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

Version = Literal[1]
Kind = Literal["full", "incremental"]


# ---- parts of several documents


class RangeDocument(TypedDict):
    timeline: int
    start_lsn: str
    end_lsn: str


class GapDocument(RangeDocument):
    first_segment: str
    last_segment: str


class ProblemDocument(TypedDict):
    backup: str | None
    path: str | None
    message: str


class UnreadableBackupDocument(TypedDict):
    backup: str
    message: str


class ReasonDocument(TypedDict):
    rule: str
    detail: str


class FactsDocument(TypedDict, total=False):
    path: str
    offset_bytes: int
    size_bytes: int
    expected_size_bytes: int
    errno: str
    timeline: int
    lsn: str
    end_lsn: str
    backup: str
    holder: str
    setting: str
    slot: str
    role: str
    store_code: str


class ErrorMembers(TypedDict):
    kind: str
    message: str
    hint: str | None
    exit_code: int
    transient: bool
    facts: FactsDocument


class ErrorDocument(TypedDict):
    version: Version
    error: ErrorMembers


# ---- backups


class RecoverableDocument(TypedDict):
    timeline: int
    start_lsn: str
    start_at: str
    end_lsn: str
    whole: bool
    long_term: bool


class BackupMembers(TypedDict):
    id: str
    kind: Kind
    prior: str | None
    chain: list[str]
    start_lsn: str
    stop_lsn: str
    timeline: int
    stop_timeline: int
    prior_timeline: int | None
    prior_lsn: str | None
    label: str
    started_at: str
    finished_at: str
    seconds: float
    file_count: int
    incremental_file_count: int
    size_bytes: int
    stored_bytes: int
    format: Literal["plain", "packed"]
    pinned: bool
    merged_at: str | None
    merged_backups: list[str]
    recoverable: RecoverableDocument | None


class ListedBackupDocument(BackupMembers):
    why: list[ReasonDocument] | None


class ListDocument(TypedDict):
    version: Version
    backups: list[ListedBackupDocument]


class TablespaceDocument(TypedDict):
    tablespace_oid: int
    path: str


class ShowDocument(BackupMembers):
    version: Version
    built_on_it: list[str]
    system_identifier: str
    major: int
    data_checksums: bool
    checksum_failure_count: int
    wal_segment_bytes: int
    tablespaces: list[TablespaceDocument]


class TallyDocument(TypedDict):
    percent: float
    seed: int
    unchanged_block_count: int
    read_block_count: int
    read_bytes: int
    newer_block_count: int
    missed_block_count: int


class BackupDocument(TypedDict):
    version: Version
    id: str
    kind: Kind
    prior: str | None
    start_lsn: str
    stop_lsn: str
    timeline: int
    window: list[RangeDocument]
    changed_block_count: int
    copied_block_count: int
    block_count: int
    read_bytes: int
    written_bytes: int
    checksum_failure_count: int
    audit: TallyDocument | None
    phase_seconds: dict[str, float]
    requests: Mapping[str, int] | None


class ForecastRelationDocument(TypedDict):
    relation: str | None
    database: str | None
    path: str
    block_count: int
    size_bytes: int


class BackupForecastDocument(TypedDict):
    version: Version
    kind: Kind
    prior: str | None
    window: list[RangeDocument]
    server_lsn: str
    relations: list[ForecastRelationDocument]
    other_file_count: int
    other_bytes: int
    block_count: int
    size_bytes: int
    cluster_bytes: int


class MergeDocument(TypedDict):
    version: Version
    id: str
    backup: str
    backup_count: int
    file_count: int
    size_bytes: int
    read_bytes: int
    written_bytes: int


class ExportDocument(TypedDict):
    version: Version
    backup: str
    kind: Kind
    file_count: int
    written_bytes: int


class PinDocument(TypedDict):
    version: Version
    backup: str
    pinned: bool
    changed: bool


# ---- retention and copies


class StoredFileDocument(TypedDict):
    name: str
    stored_bytes: int


class WornPackDocument(StoredFileDocument):
    needed_bytes: int


class ExpiredBackupDocument(TypedDict):
    id: str
    stored_bytes: int


class KeptBackupDocument(TypedDict):
    id: str
    why: list[ReasonDocument]


class ExpireDocument(TypedDict):
    version: Version
    dry_run: bool
    expired_backups: list[ExpiredBackupDocument]
    kept_backups: list[KeptBackupDocument]
    merged_backups: list[str]
    long_term_backups: list[str]
    broken_backups: list[str]
    unreadable_backups: list[UnreadableBackupDocument]
    unfinished_backups: list[str]
    kept_wal_lsn: str | None
    removed_packs: list[StoredFileDocument]
    rewritten_packs: list[WornPackDocument]
    waiting_packs: list[WornPackDocument]
    removed_wal: list[StoredFileDocument]
    removed_summaries: list[StoredFileDocument]
    removed_bytes: int


class DeleteDocument(TypedDict):
    version: Version
    dry_run: bool
    deleted_backups: list[ExpiredBackupDocument]
    none_restorable: bool
    removed_packs: list[StoredFileDocument]
    removed_bytes: int


class CopyDocument(TypedDict):
    version: Version
    dry_run: bool
    copied_backups: list[str]
    left_out_backups: list[str]
    pack_count: int
    backup_bytes: int
    segment_count: int
    wal_bytes: int
    summary_count: int
    opens_files: bool
    problems: list[ProblemDocument]
    requests: Mapping[str, int] | None


# ---- keys, the server, the demo


class InitDocument(TypedDict):
    version: Version
    repository: str
    format: Literal["plain", "packed"]
    compression: str
    encrypted: bool


class IdentityDocument(TypedDict):
    version: Version
    path: str
    recipient: str


class KeysDocument(TypedDict):
    version: Version
    encryption_id: str
    recipients: list[str]
    generation: int
    metadata_key_path: str | None


class GrantsDocument(TypedDict):
    version: Version
    role: str
    database: str
    statements: list[str]


class DemoStepDocument(TypedDict):
    step: str
    seconds: float
    read_bytes: int | None
    written_bytes: int | None
    copied_block_count: int | None
    block_count: int | None


class DemoDocument(TypedDict):
    version: Version
    equal: bool
    table_count: int
    steps: list[DemoStepDocument]
