"""What changed, for a report: churn over the summaries of a repository, and what the next incremental would copy."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from pgwal.engine.backup_window import window_since
from pgwal.engine.report_server import Names, ServerSide, read_names
from pgwal.engine.status import RepositoryStatus
from pgwal.engine.summarize import read_received_changes
from pgwal.errors import FormatError, PgwalError, RepositoryError, StoreUnavailable
from pgwal.lsn import LsnRange
from pgwal.postgres.connection import ConnectionParameters
from pgwal.relation import BLOCK_SIZE, RelFileLocator
from pgwal.report.churn import Churn, RelationChurn
from pgwal.report.document import ChurnPart, ForecastPart, RelationPart
from pgwal.report.position_times import PositionTimes
from pgwal.report.shown_text import shown
from pgwal.repository.repository import Repository

_MOST_BUCKETS = 96
MOST_SHOWN_RELATIONS = 10_000
_MOST_HEATED = 24
"""Relations whose blocks are shown; of the others a report holds no heat."""
_MOST_STACKED = 100
"""Relations whose churn is given by time."""
_MOST_FORESEEN = 20


class ChangesRead(NamedTuple):
    """Where changes are read, who knows names, and when positions were; ``since_s`` as of a report."""

    repository: Repository
    parameters: ConnectionParameters | None
    times: PositionTimes
    since_s: float | None


class _Buckets(NamedTuple):
    start_s: float
    width_s: float
    bucket_count: int

    def of(self, time_s: float) -> int:
        return min(self.bucket_count - 1, max(0, int((time_s - self.start_s) / self.width_s)))


def read_churn(read: ChangesRead, problems: dict[str, str]) -> ChurnPart | None:
    """Count what all summaries say, one after the other; None where there is nothing to count, with the reason."""
    timed = [(part, time_s) for part in read.repository.summaries.ranges() if (time_s := read.times.at(part.end))]
    if not timed:
        problems["churn"] = "there is no summary yet, or nothing that tells its time"
        return None
    if read.since_s is not None:
        timed = [(part, time_s) for part, time_s in timed if time_s >= read.since_s]
    if not timed:
        problems["churn"] = "no summary is that new"
        return None
    buckets = _buckets(read, timed)
    churn, unread_count = Churn(buckets.bucket_count), 0
    for part, time_s in timed:
        try:
            changes = read.repository.summaries.read(part)
        except StoreUnavailable:
            raise
        except (FormatError, RepositoryError):
            unread_count += 1
            continue
        churn.add(buckets.of(time_s), changes)
    relations = list(churn.relations())
    names = _names(read, relations[:MOST_SHOWN_RELATIONS])
    return ChurnPart(
        start_s=buckets.start_s,
        bucket_s=buckets.width_s,
        bucket_count=buckets.bucket_count,
        total=_counts(churn.total),
        relations=[
            _relation_part(relation, rank, names, buckets)
            for rank, relation in enumerate(relations[:MOST_SHOWN_RELATIONS])
        ],
        relation_count=len(relations) + churn.dropped_count,
        summary_count=churn.summary_count,
        unread_count=unread_count,
    )


def _counts(by_bucket: Iterable[int]) -> list[tuple[int, int]]:
    return [(bucket, count) for bucket, count in enumerate(by_bucket) if count]


def _buckets(read: ChangesRead, timed: Iterable[tuple[LsnRange, float]]) -> _Buckets:
    ends = [time_s for _, time_s in timed]
    starts = [time_s for part, _ in timed if (time_s := read.times.at(part.start)) is not None]
    start_s = max(min(starts), read.since_s or 0.0)
    width_s = max(1.0, (max(ends) - start_s) / _MOST_BUCKETS)
    return _Buckets(start_s, width_s, max(1, min(_MOST_BUCKETS, ceil((max(ends) - start_s) / width_s))))


def _names(read: ChangesRead, relations: Iterable[RelationChurn]) -> Names:
    if read.parameters is None:
        return Names()
    return read_names(read.parameters, {relation.locator.rel_number for relation in relations})


def _relation_part(relation: RelationChurn, rank: int, names: Names, buckets: _Buckets) -> RelationPart:
    locator = relation.locator
    name, database = names.relations.get(locator), names.databases.get(locator.db_oid)
    is_heated = rank < _MOST_HEATED
    return RelationPart(
        tablespace=locator.spc_oid,
        database=locator.db_oid,
        relation=locator.rel_number,
        name=None if name is None else shown(name),
        database_name=None if database is None else shown(database),
        block_count=relation.block_count,
        last_s=buckets.start_s + (relation.last_bucket + 1) * buckets.width_s,
        by_bucket=_counts(relation.by_bucket) if rank < _MOST_STACKED else [],
        heat_width=relation.heat.width if is_heated else 0,
        heat=list(relation.heat.counts) if is_heated else [],
    )


def read_forecast(
    repository: Repository, status: RepositoryStatus, side: ServerSide | None, problems: dict[str, str]
) -> ForecastPart | None:
    """Tell what an incremental on the newest backup would copy: by the server's files, or by what is summarised."""
    if side is not None and side.forecast is not None and side.forecast.prior is not None:
        forecast = side.forecast
        return ForecastPart(
            prior_id=side.forecast.prior.backup_id,
            end_lsn=str(forecast.window[-1].end if forecast.window else side.forecast.prior.start_lsn),
            block_count=forecast.block_count,
            size_bytes=forecast.size_bytes,
            by_server=True,
            total_bytes=forecast.total_size_bytes,
            relations=[
                (shown(each.name or each.path), each.size_bytes) for each in forecast.relations[:_MOST_FORESEEN]
            ],
        )
    newest, receiver = status.newest_backup, status.receiver
    if newest is None or receiver is None or receiver.summarised_lsn < newest.start_lsn:
        problems["forecast"] = "no WAL has been summarised since a backup started"
        return None
    try:
        ranges = window_since(repository, newest, receiver.timeline_id, receiver.summarised_lsn)
        changes, ranges = read_received_changes(repository, ranges)
    except StoreUnavailable:
        raise
    except PgwalError as error:
        problems["forecast"] = str(error)
        return None
    sizes: dict[RelFileLocator, int] = {}
    for key, fork_changes in changes.entries():
        locator = RelFileLocator(key.spc_oid, key.db_oid, key.rel_number)
        sizes[locator] = sizes.get(locator, 0) + len(fork_changes.blocks) * BLOCK_SIZE
    largest = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:_MOST_FORESEEN]
    return ForecastPart(
        prior_id=newest.backup_id,
        end_lsn=str(ranges[-1].end),
        block_count=changes.block_count(),
        size_bytes=changes.block_count() * BLOCK_SIZE,
        by_server=False,
        total_bytes=None,
        relations=[(f"{locator.db_oid}/{locator.rel_number}", size) for locator, size in largest],
    )
