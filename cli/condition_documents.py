"""What ``--json`` prints of how things stand: status, check, config, and what is put together of several clusters."""

from __future__ import annotations

from typing import Literal, TypedDict

from pgwal_cli.documents import (
    ErrorMembers,
    ExpireDocument,
    Kind,
    ListDocument,
    RangeDocument,
    UnreadableBackupDocument,
    Version,
)
from pgwal_cli.restore_documents import VerifyDocument


class ReceiverDocument(TypedDict):
    running: bool
    timeline: int | None
    received_lsn: str | None
    flushed_lsn: str | None
    summarized_lsn: str | None
    spooled_bytes: int | None
    slot: str | None
    updated_at: str | None
    level_at: str | None


class SlotDocument(TypedDict):
    slot: str
    exists: bool
    active: bool
    restart_lsn: str | None
    retained_bytes: int | None
    wal_status: str | None
    safe_wal_bytes: int | None
    max_retained_bytes: int | None
    retention: str | None


class ServerDocument(TypedDict):
    timeline: int
    flush_lsn: str
    in_recovery: bool
    replication_slot: SlotDocument | None


class LagDocument(TypedDict):
    wal_bytes: int
    seconds: float | None


class CoverageDocument(TypedDict):
    timeline: int
    wal_ranges: list[RangeDocument]
    wal_gaps: list[RangeDocument]
    summary_ranges: list[RangeDocument]
    summary_gaps: list[RangeDocument]


class NewestBackupDocument(TypedDict):
    id: str
    kind: Kind
    start_lsn: str
    timeline: int
    finished_at: str
    window_gaps: list[RangeDocument]
    chain_problem: str | None


class StatusDocument(TypedDict):
    version: Version
    repository: str
    system_identifier: str
    major: int
    receiver: ReceiverDocument
    server: ServerDocument | None
    server_error: str | None
    lag: LagDocument | None
    coverage: list[CoverageDocument]
    unreadable_backups: list[UnreadableBackupDocument]
    newest_backup: NewestBackupDocument | None


class FindingDocument(TypedDict):
    name: str
    status: Literal["ok", "warning", "lacking"]
    message: str
    hint: str | None


class CheckDocument(TypedDict):
    version: Version
    role: str
    database: str
    lacking: bool
    findings: list[FindingDocument]


class MistakeDocument(TypedDict):
    message: str
    hint: str | None


class ConfigCheckDocument(TypedDict):
    version: Version
    path: str
    cluster_names: list[str]
    mistakes: list[MistakeDocument]


class ConfiguredOptionDocument(TypedDict):
    command: str | None
    option: str
    value: str
    origin: str


class ConfiguredClusterDocument(TypedDict):
    cluster: str | None
    options: list[ConfiguredOptionDocument]


class ConfigShowDocument(TypedDict):
    version: Version
    path: str
    clusters: list[ConfiguredClusterDocument]


class OfOneClusterDocument(TypedDict):
    cluster: str
    exit_code: int
    result: ListDocument | StatusDocument | VerifyDocument | ExpireDocument | CheckDocument | None
    error: ErrorMembers | None


class AllClustersDocument(TypedDict):
    version: Version
    clusters: list[OfOneClusterDocument]
