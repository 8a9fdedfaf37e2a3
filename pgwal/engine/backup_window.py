"""What an incremental backup builds on, and the WAL between: chosen, and required, before a byte is copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pgwal.backup.chain import choose_prior, require_same_cluster
from pgwal.backup.entry import BackupEntry
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.coverage import TimelineCoverage, read_coverage, subtract
from pgwal.engine.summarize import read_history, wal_gap, window
from pgwal.errors import MissingPriorBackup, ObjectNotFound
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.server import ServerFacts
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.timeline import TimelineHistory


def cluster_identity(facts: ServerFacts) -> RepositoryIdentity:
    """Return the identity of a repository that is the server's."""
    return RepositoryIdentity(facts.system_identifier, facts.segment_size, facts.major)


def open_prior_repository(request: BackupRequest, facts: ServerFacts) -> Repository:
    """Open the repository that holds what an incremental backup builds on.

    Raises MissingPriorBackup when there is none, WrongCluster when it is not the server's.
    """
    try:
        repository = Repository.open(request.place)
    except ObjectNotFound as error:
        raise MissingPriorBackup(
            f"{error}, and so no backup to build on",
            hint="Take a full backup first, or check --repo and PGWAL_REPO.",
        ) from error
    repository.require(cluster_identity(facts))
    return repository


def choose_prior_entry(
    repository: Repository, request: BackupRequest, facts: ServerFacts, ids: Sequence[str] | None = None
) -> BackupEntry | None:
    """Return what an incremental backup builds on, None for a full one; raises ChainError where it cannot.

    ``ids`` are those of all backups, where they are known.
    """
    if request.since is None:
        return None
    entries = repository.catalogue.entries(request.since if isinstance(request.since, str) else None, ids=ids)
    history = TimelineHistory(facts.timeline_id)
    if entries and any(entry.start_timeline_id != facts.timeline_id for entry in entries):
        history = read_history(repository, facts.timeline_id)
    prior = choose_prior(entries, request.since, history)
    require_same_cluster(
        prior,
        system_identifier=facts.system_identifier,
        major=facts.major,
        wal_segment_size=facts.segment_size,
        data_checksums=facts.data_checksums,
    )
    return prior


def window_since(repository: Repository, prior: BackupEntry, timeline_id: int, end: Lsn) -> list[LsnRange]:
    """Return the ranges of WAL, oldest first, from where a backup started to a position; raises as ``window``."""
    return window(repository, prior.start_timeline_id, prior.start_lsn, timeline_id, end)


def missing_since(
    repository: Repository, newest: BackupEntry, receiver: ReceiverState, coverage: Iterable[TimelineCoverage]
) -> list[LsnRange]:
    """Return what an incremental on ``newest`` would lack of the WAL received so far, though it is there neither
    summarised nor archived.

    Raises kinds of ChainError when the positions do not lie on one history.
    """
    end = max(receiver.flushed_lsn, newest.start_lsn)
    there = [part for timeline in coverage for part in (*timeline.wal, *timeline.summaries)]
    return [
        hole
        for wanted in window_since(repository, newest, receiver.timeline_id, end)
        for hole in subtract(wanted, there, repository.geometry)
    ]


def require_received(
    repository: Repository, prior: BackupEntry, timeline_id: int, receiver: ReceiverState | None
) -> None:
    """Raise WalGap when WAL since a backup started, and before what ``receiver`` received last, is not there.

    Other kinds of ChainError when the positions do not lie on one history.  Damage shows only when the WAL is read,
    and nothing does while the receiver has not come to the timeline.
    """
    if receiver is None or receiver.timeline_id != timeline_id:
        return
    # Mostly one look tells: all segments are there, and summaries need not be asked for.
    geometry, end = repository.geometry, max(receiver.flushed_lsn, prior.start_lsn)
    if prior.start_timeline_id == timeline_id:
        numbers = range(geometry.segment_no(prior.start_lsn), geometry.last_segment_no(end) + 1)
        if repository.wal.first_missing(timeline_id, numbers, whole=numbers[:-1]) is None:
            return
    for hole in missing_since(repository, prior, receiver, read_coverage(repository, receiver)):
        raise wal_gap(repository, hole)
