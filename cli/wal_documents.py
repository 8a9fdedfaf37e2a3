"""What ``--json`` prints of WAL: records, changed blocks, summaries, imported files, and what an audit found."""

from __future__ import annotations

from typing import Any, TypedDict

from pgwal_cli.documents import GapDocument, RangeDocument, TallyDocument, Version


class BlockReferenceDocument(TypedDict):
    block_id: int
    tablespace_oid: int
    database_oid: int
    relation_number: int
    fork: str
    block_no: int
    image_bytes: int
    will_init: bool


class RecordMembers(TypedDict):
    lsn: str
    end_lsn: str
    prev_lsn: str
    rmgr: str
    record_type: str
    info: int
    xid: int
    size_bytes: int
    image_bytes: int
    block_references: list[BlockReferenceDocument]
    data: dict[str, Any] | None


class RecordDocument(RecordMembers):
    version: Version


class RecordTypeDocument(TypedDict):
    rmgr: str
    record_type: str
    record_count: int
    record_bytes: int
    image_bytes: int


class RecordStatisticsDocument(TypedDict):
    version: Version
    record_types: list[RecordTypeDocument]


class ChangedForkDocument(TypedDict):
    tablespace_oid: int
    database_oid: int
    relation_number: int
    fork: str
    limit_block_no: int | None
    block_ranges: list[list[int]]


class MapDocument(TypedDict):
    version: Version
    forks: list[ChangedForkDocument]


class SummaryDocument(RangeDocument):
    block_count: int
    name: str


class SummarizeDocument(TypedDict):
    version: Version
    summaries: list[SummaryDocument]


class ImportedFileDocument(TypedDict):
    path: str
    outcome: str
    reason: str | None


class ImportDocument(TypedDict):
    version: Version
    dry_run: bool
    files: list[ImportedFileDocument]
    gaps: list[GapDocument]


class MissedBlockDocument(TypedDict):
    path: str
    tablespace_oid: int
    database_oid: int
    relation_number: int
    fork: str
    block_no: int
    page_lsn: str
    timeline: int
    damaged: bool
    wal_archived: bool
    wal_encrypted: bool
    named_by_record: bool
    record: RecordMembers | None


class AuditDocument(TallyDocument):
    version: Version
    prior: str
    window: list[RangeDocument]
    flushed_lsn: str
    seconds: float
    missed_blocks: list[MissedBlockDocument]
