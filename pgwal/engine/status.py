"""How a repository and its receiver stand: positions, lag, slot, and what of the WAL is there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pgwal.backup.entry import BackupEntry
from pgwal.engine.summarize import wal_gap, window
from pgwal.errors import ChainError, ObjectNotFound, WrongCluster
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.connection import ConnectionParameters, connect_sql
from pgwal.postgres.server import SlotFacts, current_flush_lsn, read_server_facts, read_slot
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory

# ---- the repository ----


@dataclass(frozen=True, slots=True)
class TimelineCoverage:
    """What there is of one timeline, in LSN order; a hole is what is missing between two things that are there.

    A hole in the summaries alone is no loss: the WAL of the range is read instead.
    """

    timeline_id: int
    wal: list[LsnRange]
    wal_holes: list[LsnRange]
    summaries: list[LsnRange]
    summary_holes: list[LsnRange]


@dataclass(frozen=True, slots=True)
class RepositoryStatus:
    """What the repository itself tells, without a server.

    ``missing`` is what an incremental on ``newest_backup`` would lack of the WAL received so far: ranges that are
    neither summarised nor archived.  ``chain_problem`` says why that cannot be known.
    """

    repository: Repository
    receiver_is_running: bool
    receiver: ReceiverState | None
    coverage: list[TimelineCoverage]
    newest_backup: BackupEntry | None
    missing: list[LsnRange]
    chain_problem: str | None


def read_repository_status(repository: Repository) -> RepositoryStatus:
    """Look at a repository, which a receiver may be writing to.

    Raises RepositoryError, or FormatError for a damaged history file or backup entry.
    """
    # In this order: what the receiver says it has is there when one looks for it later.
    receiver = repository.receiver_state()
    is_running = repository.receiver_is_running()
    coverage = read_coverage(repository, receiver)
    entries = repository.catalogue.entries()
    newest = entries[-1] if entries else None
    missing: list[LsnRange] = []
    problem = None
    if newest is not None and receiver is not None:
        try:
            missing = _missing_since(repository, newest, receiver, coverage)
        except ChainError as error:
            problem = str(error)
    return RepositoryStatus(repository, is_running, receiver, coverage, newest, missing, problem)


def _missing_since(
    repository: Repository, newest: BackupEntry, receiver: ReceiverState, coverage: Iterable[TimelineCoverage]
) -> list[LsnRange]:
    end = max(receiver.flushed_lsn, newest.start_lsn)
    there = [part for timeline in coverage for part in (*timeline.wal, *timeline.summaries)]
    return [
        hole
        for wanted in window(repository, newest.start_timeline_id, newest.start_lsn, receiver.timeline_id, end)
        for hole in subtract(wanted, there, repository.geometry)
    ]


def require_received(repository: Repository, prior: BackupEntry, timeline_id: int) -> None:
    """Raise WalGap when WAL since a backup started, and before what was received last, is not there.

    Other kinds of ChainError when the positions do not lie on one history.  Damage shows only when the WAL is read,
    and nothing does while the receiver has not come to the timeline.
    """
    receiver = repository.receiver_state()
    if receiver is None or receiver.timeline_id != timeline_id:
        return
    for hole in _missing_since(repository, prior, receiver, read_coverage(repository, receiver)):
        raise wal_gap(repository, hole)


# ---- coverage ----


def read_coverage(repository: Repository, receiver: ReceiverState | None) -> list[TimelineCoverage]:
    """Return what there is of each timeline, oldest first."""
    geometry = repository.geometry
    summaries = repository.summaries.ranges()
    wal = _archived_ranges(repository, receiver)
    history = _newest_history(repository, {part.timeline_id for part in (*summaries, *wal)})
    return [
        TimelineCoverage(
            timeline_id,
            *_ranges_and_holes(timeline_id, wal, history, geometry),
            *_ranges_and_holes(timeline_id, summaries, history, geometry),
        )
        for timeline_id in sorted({part.timeline_id for part in (*summaries, *wal)})
    ]


def _archived_ranges(repository: Repository, receiver: ReceiverState | None) -> list[LsnRange]:
    """Return the range of each segment; of one that is not complete, what is known to be valid of it."""
    geometry = repository.geometry
    # A timeline ends where the next one of some history begins, wherever that is in a segment.
    ends: set[tuple[int, Lsn]] = {switch for history in repository.wal.histories() for switch in history.switches}
    if receiver is not None:
        ends |= {(receiver.timeline_id, receiver.flushed_lsn)}
    found = []
    for segment in repository.wal.segments():
        start, end = (geometry.segment_start(segment.segment_no + more) for more in (0, 1))
        if not segment.complete:
            known = [lsn for timeline_id, lsn in ends if timeline_id == segment.timeline_id and start < lsn <= end]
            end = max(known, default=start)
        if start < end:
            found.append(LsnRange(segment.timeline_id, start, end))
    return found


def _newest_history(repository: Repository, timeline_ids: set[int]) -> TimelineHistory:
    """Return the history of the newest timeline, or one that knows no other when its file is not there."""
    newest = max(timeline_ids, default=1)
    try:
        return repository.wal.history(newest)
    except ObjectNotFound:
        return TimelineHistory(newest)


def _ranges_and_holes(
    timeline_id: int, parts: Sequence[LsnRange], history: TimelineHistory, geometry: WalGeometry
) -> tuple[list[LsnRange], list[LsnRange]]:
    """Return the parts of one timeline, joined, and what is missing between the first and the last part of all.

    Parts of earlier and later timelines count where the newest timeline's history goes through them.
    """
    own = join((part for part in parts if part.timeline_id == timeline_id), geometry)
    on_history = [
        part for part in parts if part.timeline_id in {t for t, _ in history.switches} | {history.timeline_id}
    ]
    expected = [LsnRange(timeline_id, own[0].start, own[-1].end)] if own else []
    if any(part.timeline_id == timeline_id for part in on_history):
        first, last = min(part.start for part in on_history), max(part.end for part in on_history)
        expected = [part for part in history.ranges_between(first, last) if part.timeline_id == timeline_id]
    return own, [hole for wanted in expected for hole in subtract(wanted, own, geometry)]


def join(parts: Iterable[LsnRange], geometry: WalGeometry) -> list[LsnRange]:
    """Join ranges of one timeline that overlap, or have nothing but a page header between them."""
    place = geometry.first_record_position
    joined: list[LsnRange] = []
    for part in sorted(parts):
        if joined and place(part.start) <= place(joined[-1].end):
            joined[-1] = joined[-1]._replace(end=max(joined[-1].end, part.end))
        else:
            joined.append(part)
    return joined


def subtract(wanted: LsnRange, there: Iterable[LsnRange], geometry: WalGeometry) -> list[LsnRange]:
    """Return the parts of a range that none of some ranges, of any timelines, covers."""
    place = geometry.first_record_position
    missing = []
    position = wanted.start
    for part in join((part for part in there if part.timeline_id == wanted.timeline_id), geometry):
        if place(part.end) <= place(position) or part.start >= wanted.end:
            continue
        if place(position) < place(part.start):
            missing.append(wanted._replace(start=position, end=part.start))
        position = max(position, part.end)
    if place(position) < place(wanted.end):
        missing.append(wanted._replace(start=position))
    return missing


# ---- the server ----


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """Where the server is, and the slot; ``slot`` is None when none is used, or ``slot_name`` does not exist."""

    timeline_id: int
    flush_lsn: Lsn
    in_recovery: bool
    slot_name: str | None
    slot: SlotFacts | None

    @property
    def retained_bytes(self) -> int | None:
        """How much WAL the slot holds back; None when it holds back none."""
        if self.slot is None or self.slot.restart_lsn is None:
            return None
        return max(0, self.flush_lsn - self.slot.restart_lsn)


def read_server_status(
    parameters: ConnectionParameters, slot_name: str | None, *, system_identifier: int | None
) -> ServerStatus:
    """Ask the server; any role may.

    Raises ConnectionFailed, ServerError, or WrongCluster unless the server is the one with the identifier.
    """
    with connect_sql(parameters) as connection:
        facts = read_server_facts(connection)
        if system_identifier not in (None, facts.system_identifier):
            raise WrongCluster(
                f"the repository belongs to the cluster with system identifier {system_identifier},"
                f" the server has {facts.system_identifier}",
                hint="Check the connection and --repo.",
            )
        slot = read_slot(connection, slot_name) if slot_name is not None else None
        return ServerStatus(facts.timeline_id, current_flush_lsn(connection), facts.in_recovery, slot_name, slot)


# ---- both ----


@dataclass(frozen=True, slots=True)
class Lag:
    """How far what is durable here is behind the server.

    ``seconds`` is how long ago the receiver was last known to be level, which is at most as exact as its state is
    young; None when it never was.
    """

    size_bytes: int
    seconds: float | None


def lag_behind(server: ServerStatus, receiver: ReceiverState) -> Lag:
    """Compare a receiver's state with the server, which was asked after the state was read."""
    size_bytes = max(0, server.flush_lsn - receiver.flushed_lsn)
    if not size_bytes:
        return Lag(0, 0.0)
    return Lag(size_bytes, None if receiver.level_at is None else max(0.0, time.time() - receiver.level_at))
