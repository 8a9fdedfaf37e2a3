"""The document of a report: all that its page shows, as values, with a version.

Positions are LSNs as PostgreSQL prints them, times Unix times in seconds, sizes bytes.  Texts of unknown origin are as
``shown`` makes them.  A time that is estimated from its LSN is said to be so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

DOCUMENT_VERSION = 1


@dataclass(frozen=True, slots=True)
class FindingPart:
    """``severity`` is critical, warning, notice or ok."""

    severity: str
    subject: str
    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class SpanPart:
    """A range of WAL, and of time; ``is_exact`` when both times are known, and none is estimated."""

    start_lsn: str
    end_lsn: str
    start_s: float
    end_s: float
    is_exact: bool = False


@dataclass(frozen=True, slots=True)
class ChainPart:
    """A full backup and what builds on it: what can be recovered from them, and behind it from no backup at all."""

    chain_id: str
    backup_ids: list[str]
    unusable_ids: list[str]
    pinned_ids: list[str]
    spans: list[SpanPart]
    holes: list[SpanPart]


@dataclass(frozen=True, slots=True)
class CommitPart:
    """The newest transaction that can be recovered: where its record starts, and when it ended."""

    lsn: str
    time_s: float
    timeline: int
    backup_id: str


@dataclass(frozen=True, slots=True)
class TimelinePart:
    """What there is of a timeline; ``parent`` and ``switch_lsn`` say where it began, None when that is not known."""

    timeline: int
    parent: int | None
    switch_lsn: str | None
    wal: list[SpanPart]
    wal_holes: list[SpanPart]
    summaries: list[SpanPart]
    summary_holes: list[SpanPart]


@dataclass(frozen=True, slots=True)
class BackupPart:
    """``state`` is usable, long-term, unusable (``problem`` says why), unreadable, unfinished or running.

    Of the last three hardly more than the id is known.
    """

    backup_id: str
    state: str
    kind: str | None = None
    prior_id: str | None = None
    label: str | None = None
    start_lsn: str | None = None
    timeline: int | None = None
    started_s: float | None = None
    finished_s: float | None = None
    size_bytes: int | None = None
    stored_bytes: int | None = None
    checksum_failures: int = 0
    is_pinned: bool = False
    is_merged: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RelationPart:
    """A relation's churn: ``by_bucket`` has pairs of bucket and block changes; ``heat`` counts by ``heat_width``.

    ``name`` is as the server knows it; None where it was not asked, or knows it not.
    """

    tablespace: int
    database: int
    relation: int
    name: str | None
    database_name: str | None
    block_count: int
    last_s: float | None
    by_bucket: list[tuple[int, int]]
    heat_width: int
    heat: list[int]


@dataclass(frozen=True, slots=True)
class ChurnPart:
    """Block changes by time: bucket n begins at ``start_s`` + n x ``bucket_s``.

    ``relations`` has those that changed most; ``relation_count`` is how many changed.  ``unread_count`` is of summaries
    that could not be read.
    """

    start_s: float
    bucket_s: float
    bucket_count: int
    total: list[tuple[int, int]]
    relations: list[RelationPart]
    relation_count: int
    summary_count: int
    unread_count: int


@dataclass(frozen=True, slots=True)
class ForecastPart:
    """What the next incremental would copy; ``by_server`` when the server's files were looked at.

    If not, ``size_bytes`` is of the changed blocks alone: what is always copied whole comes on top.
    """

    prior_id: str
    end_lsn: str
    block_count: int
    size_bytes: int
    by_server: bool
    total_bytes: int | None
    relations: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class ReceiverPart:
    is_running: bool
    timeline: int | None
    flushed_lsn: str | None
    summarised_lsn: str | None
    updated_s: float | None
    level_s: float | None
    spooled_bytes: int | None
    slot: str | None


@dataclass(frozen=True, slots=True)
class ServerPart:
    """Slot members are None where no slot is used, or none is there."""

    flush_lsn: str
    timeline: int
    in_recovery: bool
    lag_bytes: int | None
    lag_s: float | None
    slot: str | None
    slot_exists: bool
    slot_active: bool | None
    wal_status: str | None
    retained_bytes: int | None
    safe_wal_bytes: int | None


@dataclass(frozen=True, slots=True)
class SizesPart:
    """Bytes in the repository."""

    backups: int
    wal: int
    summaries: int


@dataclass(frozen=True, slots=True)
class Document:
    """A report, whole; ``problems`` say why parts are None, by the names of those."""

    made_s: float
    made_by: str
    repository: str
    system_identifier: str
    major: int
    since_s: float | None
    findings: list[FindingPart]
    newest_commit: CommitPart | None
    chains: list[ChainPart]
    timelines: list[TimelinePart]
    backups: list[BackupPart]
    churn: ChurnPart | None
    forecast: ForecastPart | None
    receiver: ReceiverPart
    server: ServerPart | None
    sizes: SizesPart
    problems: dict[str, str] = field(default_factory=dict)

    def members(self) -> dict[str, Any]:
        """Return what JSON has of it; the version comes first."""
        return {"pgwal-report": DOCUMENT_VERSION, **asdict(self)}
