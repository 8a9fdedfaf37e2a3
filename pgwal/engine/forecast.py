"""What a backup would copy, from sizes and the block map alone: nothing is read, and nothing is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry import BackupEntry
from pgwal.backup.source import SourceFile
from pgwal.backup.walk import with_prior_sizes
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.backup_window import choose_prior_entry, open_prior_repository, window_since
from pgwal.engine.copied_file import PlannedFile
from pgwal.engine.prepare_backup import directories_to_empty, prepare_backup
from pgwal.engine.summarize import read_received_changes
from pgwal.errors import WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.connection import connect_sql
from pgwal.postgres.relations import read_database_names, read_relation_names
from pgwal.postgres.server import ServerFacts, current_flush_lsn
from pgwal.relation import BLOCK_SIZE, RelFileLocator, parse_relation_path
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap

if TYPE_CHECKING:
    import psycopg


@dataclass(slots=True)
class RelationForecast:
    """What would be copied of one relation, all its forks and segments together.

    ``path`` is that of its first file; ``name`` is None for a relation of another database than the connected one,
    ``database`` for a shared one, and one that is gone.
    """

    path: str
    locator: RelFileLocator
    name: str | None = None
    database: str | None = None
    block_count: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class Forecast:
    """What a backup would copy if it started now; the largest relation comes first.

    ``window`` ends where the WAL that has been received ends, before ``server_lsn``: what was written since is not in
    it.  It is empty, and ``prior`` None, for a full backup.
    """

    prior: BackupEntry | None
    window: list[LsnRange]
    server_lsn: Lsn
    relations: list[RelationForecast]
    other_file_count: int = 0
    """Files with something in them that are no relation files; they are copied whole."""
    other_size_bytes: int = 0
    total_size_bytes: int = 0
    """Of all files, copied or not."""

    @property
    def block_count(self) -> int:
        return sum(relation.block_count for relation in self.relations)

    @property
    def size_bytes(self) -> int:
        return self.other_size_bytes + sum(relation.size_bytes for relation in self.relations)


def forecast_backup(request: BackupRequest) -> Forecast:
    """Tell what a backup would copy, without starting one, without a checkpoint, and without writing anywhere.

    Raises as ``take_backup`` does for an incremental backup that is not possible.
    """
    with (
        connect_sql(request.parameters) as connection,
        prepare_backup(request._replace(jobs=1), connection) as (facts, (source,)),
    ):
        repository, prior, changes, ranges = _received_changes(request, facts)

        def prior_files() -> Iterator[BackupFile]:
            return iter(()) if repository is None or prior is None else repository.catalogue.files(prior.backup_id)

        forecast = Forecast(prior, ranges, current_flush_lsn(connection), [])
        listed = source.list(directories_to_empty(facts, facts.tablespaces, request.data_directory))
        relations: dict[RelFileLocator, RelationForecast] = {}
        for item, prior_size_bytes in with_prior_sizes(listed, prior_files()):
            if isinstance(item, SourceFile):
                _add(forecast, relations, item, prior_size_bytes, changes)
        forecast.relations = sorted(relations.values(), key=lambda relation: (-relation.size_bytes, relation.path))
        _add_names(connection, forecast.relations)
    return forecast


def _received_changes(
    request: BackupRequest, facts: ServerFacts
) -> tuple[Repository | None, BackupEntry | None, BlockMap | None, list[LsnRange]]:
    if request.since is None:
        return None, None, None, []
    repository = open_prior_repository(request, facts)
    prior = choose_prior_entry(repository, request, facts)
    assert prior is not None
    received = repository.receiver_state()
    if received is None or received.flushed_lsn < prior.start_lsn:
        raise WalGap(
            f"no WAL has been received since backup {prior.backup_id} started at {prior.start_lsn}",
            hint="Run pgwal stream, with --once if it is not to stay.",
        )
    ranges = window_since(repository, prior, received.timeline_id, received.flushed_lsn)
    changes, ranges = read_received_changes(repository, ranges)
    return repository, prior, changes, ranges


def _add(
    forecast: Forecast,
    relations: dict[RelFileLocator, RelationForecast],
    file: SourceFile,
    prior_size_bytes: int | None,
    changes: BlockMap | None,
) -> None:
    forecast.total_size_bytes += file.size_bytes
    size_bytes = PlannedFile.of(file, prior_size_bytes, changes).wanted_bytes
    if not size_bytes:
        return
    relation_file = parse_relation_path(file.path)
    if relation_file is None:
        forecast.other_file_count += 1
        forecast.other_size_bytes += size_bytes
        return
    locator = relation_file.locator
    directory = file.path.rpartition("/")[0]
    relation = relations.setdefault(locator, RelationForecast(f"{directory}/{locator.rel_number}", locator))
    relation.block_count += size_bytes // BLOCK_SIZE
    relation.size_bytes += size_bytes


def _add_names(connection: psycopg.Connection, relations: list[RelationForecast]) -> None:
    names = read_relation_names(connection, {relation.locator.rel_number for relation in relations})
    databases = read_database_names(connection)
    for relation in relations:
        relation.name = names.get(relation.locator)
        relation.database = databases.get(relation.locator.db_oid)
