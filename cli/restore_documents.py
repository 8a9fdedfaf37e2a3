"""What ``--json`` prints of restores and verifications, and what ``verify --report`` leaves."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from pgwal_cli.documents import ErrorMembers, GapDocument, Kind, ProblemDocument, RangeDocument, Version


class RebuildMembers(TypedDict):
    backup: str
    backup_count: int
    file_count: int
    read_bytes: int
    written_bytes: int


class CombineDocument(RebuildMembers):
    version: Version
    linked_backups: list[str]


class RestoreDocument(CombineDocument):
    kept_bytes: int
    fetched_bytes: int
    recovery: dict[str, str]
    standby: bool


class ReplayDocument(RangeDocument):
    last_transaction_at: str | None
    wal_bytes: int
    segment_count: int
    first_segment: str
    last_segment: str
    gap: GapDocument | None


class CreatedTablespaceDocument(TypedDict):
    tablespace_oid: int
    path: str
    lsn: str


class RestorePlaceDocument(TypedDict):
    path: str
    tablespace_oid: int | None
    file_count: int
    size_bytes: int


class FileSystemDocument(TypedDict):
    places: list[RestorePlaceDocument]
    needed_bytes: int
    free_bytes: int
    enough: bool


class OverwritingDocument(TypedDict):
    path: str
    description: str
    kept_file_count: int
    changed_file_count: int
    new_file_count: int
    kept_bytes: int
    written_bytes: int
    removed_file_count: int
    removed_directory_count: int
    removed_link_count: int
    removed_bytes: int
    lost_wal: str | None


class RestoreForecastDocument(TypedDict):
    version: Version
    backup: str
    chain: list[str]
    stop_lsn: str
    finished_at: str
    recovery: dict[str, str]
    replay: ReplayDocument | None
    created_tablespaces: list[CreatedTablespaceDocument]
    file_systems: list[FileSystemDocument]
    overwriting: OverwritingDocument | None


# ---- verifications


class TrialDocument(TypedDict):
    backup: str
    end_lsn: str | None
    stopped_before_lsn: str | None
    database_count: int
    table_count: int
    index_count: int
    unchecked_indexes: list[str]
    seconds: float
    messages: list[str]


class VerifyDocument(TypedDict):
    version: Version
    verified_backups: list[str]
    read_bytes: int
    opens_files: bool
    wal_ranges: list[RangeDocument]
    problems: list[ProblemDocument]
    trial: TrialDocument | None


class FailureDocument(TypedDict):
    kind: str
    message: str


class AskedDocument(TypedDict):
    backup: str | None
    restore: bool
    recovery: dict[str, str] | None


class VerifiedBackupDocument(TypedDict):
    id: str
    kind: NotRequired[Kind]
    prior: NotRequired[str | None]
    start_lsn: NotRequired[str]
    stop_lsn: NotRequired[str]
    timeline: NotRequired[int]
    stop_timeline: NotRequired[int]
    finished_at: NotRequired[str]
    label: NotRequired[str]
    file_count: NotRequired[int]
    stored_bytes: NotRequired[int]
    data_checksums: NotRequired[bool]
    entry_sha256: NotRequired[str | None]


class VerifiedDocument(TypedDict):
    backups: list[VerifiedBackupDocument]
    wal_ranges: list[RangeDocument]
    read_bytes: int
    opens_files: bool
    file_digests: str
    problem_count: int
    seconds: float


class RestoredDocument(RebuildMembers):
    seconds: float


class ReplayedDocument(TypedDict):
    expected: ReplayDocument
    recovery: dict[str, str]
    stopped_before_tablespace: str | None
    server_version: str | None
    replayed_lsn: str | None
    last_transaction_at: str | None
    seconds: float


class CheckedDatabaseDocument(TypedDict):
    database: str
    table_count: int
    index_count: int
    unchecked_indexes: list[str]
    messages: list[str]
    seconds: float


class CheckedDocument(TypedDict):
    by: Literal["amcheck"]
    databases: list[CheckedDatabaseDocument]
    table_count: int
    index_count: int
    seconds: float


class VerificationReportDocument(TypedDict):
    version: Version
    verdict: Literal["passed", "failed"]
    failure: ErrorMembers | FailureDocument | None
    messages: list[str]
    started_at: str
    finished_at: str
    seconds: float
    pgwal_version: str
    host: str
    user: str
    repository: str
    system_identifier: str | None
    major: int | None
    wal_segment_bytes: int | None
    asked: AskedDocument
    verified: VerifiedDocument | None
    restored: RestoredDocument | None
    replayed: ReplayedDocument | None
    checked: CheckedDocument | None
