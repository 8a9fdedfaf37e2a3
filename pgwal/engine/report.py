"""Report on a repository: all that it, its receiver and its server tell, in one document."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from pgwal import __version__
from pgwal.backup.chain import is_on_history, root_of
from pgwal.backup.entry import BackupEntry
from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.coverage import RecoverableRange, read_recoverable_ranges
from pgwal.engine.expire_plan import ExpirePlanner
from pgwal.engine.report_changes import ChangesRead, read_churn, read_forecast
from pgwal.engine.report_findings import Found, find
from pgwal.engine.report_parts import (
    backup_parts,
    chain_parts,
    finding_parts,
    receiver_part,
    server_part,
    timeline_parts,
)
from pgwal.engine.report_server import ServerSide, ask_server
from pgwal.engine.report_times import CommitTimes, told_times
from pgwal.engine.status import RepositoryStatus, read_repository_status
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.connection import ConnectionParameters
from pgwal.report.document import CommitPart, Document, SizesPart
from pgwal.report.position_times import KnownTime, PositionTimes
from pgwal.report.recovery_windows import ChainWindow, Reach, recovery_windows
from pgwal.report.shown_text import shown
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.layout import SUMMARY_DIRECTORY, UNFINISHED_SUFFIX, WAL_DIRECTORY
from pgwal.repository.repository import Repository
from pgwal.repository.store import objects_in
from pgwal.repository.stored_sizes import stored_sizes
from pgwal.timeline import TimelineHistory


class ReportRequest(NamedTuple):
    """What to report on.

    Without ``parameters`` no server is asked, and ``server_problem`` may say why; without a ``slot`` it is asked about
    the receiver's.  What ended before ``since_s``, a Unix time, is left out of the pictures.  ``thoroughly`` is as of
    ``ask_server``.
    """

    repository: Repository
    parameters: ConnectionParameters | None = None
    slot: str | None = None
    since_s: float | None = None
    thoroughly: bool = True
    server_problem: str | None = None


def read_report(request: ReportRequest) -> Document:
    """Read all that is to be told; a repository that is damaged in parts is reported on as far as it can be.

    Raises RepositoryError when it cannot be read at all, FormatError for a damaged history file, and as
    ``ask_server``; a server that does not answer is a finding.
    """
    repository = request.repository
    status = read_repository_status(repository)
    entries, _ = repository.catalogue.survey()
    side = _ask(request, status)
    told = _Told.read(repository, status, entries)
    since_s = request.since_s
    problems: dict[str, str] = {}
    churn = read_churn(ChangesRead(repository, request.parameters, told.times, since_s), problems)
    forecast = read_forecast(repository, status, side, problems)
    newest = told.newest_commit()
    if newest is None:
        problems["newest_commit"] = told.commit_times.problem or "no transaction has ended since a backup"
    if side is None or side.status is None:
        problems["server"] = "it was not asked" if side is None else str(side.problem)
    found = Found(
        status, entries, told.recoverable, told.windows, told.broken_ids, told.pinned_ids, told.unfinished,
        told.running_id, 0 if churn is None else churn.unread_count, side,
    )  # fmt: skip
    stored = stored_sizes(repository, entries)
    return Document(
        made_s=time.time(),
        made_by=f"pgwal {__version__}",
        repository=shown(str(repository.place)),
        system_identifier=str(repository.identity.system_identifier),
        major=repository.identity.major,
        since_s=since_s,
        findings=finding_parts(find(found)),
        newest_commit=newest,
        chains=chain_parts(found, told.times, since_s),
        timelines=timeline_parts(status, told.histories, told.times, since_s),
        backups=backup_parts(found, stored, since_s),
        churn=churn,
        forecast=forecast,
        receiver=receiver_part(status),
        server=server_part(status, side),
        sizes=_sizes(repository, sum(stored.values())),
        problems={name: shown(problem) for name, problem in problems.items()},
    )


def _ask(request: ReportRequest, status: RepositoryStatus) -> ServerSide | None:
    if request.parameters is None:
        return None if request.server_problem is None else ServerSide(problem=request.server_problem)
    slot = request.slot or (status.receiver.slot if status.receiver is not None else None)
    return ask_server(
        request.repository,
        request.parameters,
        slot,
        has_backup=status.newest_backup is not None,
        thoroughly=request.thoroughly,
    )


def _sizes(repository: Repository, backup_bytes: int) -> SizesPart:
    wal, summaries = (
        sum(each.size_bytes for each in objects_in(repository.store, folder))
        for folder in (WAL_DIRECTORY, SUMMARY_DIRECTORY)
    )
    return SizesPart(backup_bytes, wal, summaries)


class _Told(NamedTuple):
    """What a repository tells of its backups, and the times that were found for it."""

    recoverable: dict[str, RecoverableRange | None]
    windows: list[ChainWindow]
    broken_ids: list[str]
    left_ids: set[str]
    pinned_ids: set[str]
    unfinished: list[str]
    running_id: str | None
    histories: dict[int, TimelineHistory]
    commit_times: CommitTimes
    times: PositionTimes

    @classmethod
    def read(cls, repository: Repository, status: RepositoryStatus, entries: Sequence[BackupEntry]) -> _Told:
        broken_ids = _broken_ids(repository)
        # WAL is of no use to what lacks a backup that it builds on.
        ranges = read_recoverable_ranges(repository, entries)
        recoverable = {backup_id: None if backup_id in broken_ids else found for backup_id, found in ranges.items()}
        histories = {history.timeline_id: history for history in repository.wal.histories()}
        newest_lsn, left_ids = _left_behind(status, entries, histories)
        windows = recovery_windows(_reaches(entries, recoverable, left_ids), newest_lsn)
        folders = repository.catalogue.unfinished()
        unfinished = sorted(name.removesuffix(UNFINISHED_SUFFIX) for name in folders)
        is_running = bool(unfinished) and repository.backup_is_running()
        commit_times = CommitTimes(repository)
        known = [
            *told_times(entries, status.receiver),
            *_commits_at(commit_times, _turning_points(status, recoverable)),
        ]
        return cls(
            recoverable,
            windows,
            broken_ids,
            left_ids,
            BackupMarks(repository.store).pinned(entry.backup_id for entry in entries),
            unfinished,
            unfinished[-1] if is_running else None,
            histories,
            commit_times,
            PositionTimes(known),
        )

    def newest_commit(self) -> CommitPart | None:
        """Return the newest transaction that can be recovered, None without one, or when it cannot be found."""
        usable = [
            (backup_id not in self.left_ids, reach.end, backup_id, reach)
            for backup_id, reach in self.recoverable.items()
            if reach is not None and reach.end > reach.start
        ]
        if not usable:
            return None
        _, _, backup_id, reach = max(usable)
        history = self.histories.get(reach.timeline_id, TimelineHistory(reach.timeline_id))
        for part in reversed(history.ranges_between(reach.start, reach.end)):
            found = self.commit_times.last_before(part)
            if found is not None:
                return CommitPart(str(found.lsn), found.time_s, part.timeline_id, backup_id)
        return None


def _left_behind(
    status: RepositoryStatus, entries: Sequence[BackupEntry], histories: Mapping[int, TimelineHistory]
) -> tuple[Lsn, set[str]]:
    """Return where the newest timeline's WAL ends, and the backups that its history does not go through."""
    if not status.coverage:
        return Lsn(0), set()
    newest = status.coverage[-1]
    history = histories.get(newest.timeline_id, TimelineHistory(newest.timeline_id))
    left_ids = {entry.backup_id for entry in entries if not is_on_history(entry, history)}
    return max((part.end for part in newest.wal), default=Lsn(0)), left_ids


def _reaches(
    entries: Sequence[BackupEntry], recoverable: Mapping[str, RecoverableRange | None], left_ids: Collection[str]
) -> Iterable[Reach]:
    by_id = {entry.backup_id: entry for entry in entries}
    for entry in entries:
        reach = recoverable[entry.backup_id]
        if reach is not None:
            is_left = entry.backup_id in left_ids
            root = root_of(entry, by_id)
            yield Reach(root.backup_id, entry.backup_id, reach.start, reach.end, reach.is_long_term, is_left)


def _broken_ids(repository: Repository) -> list[str]:
    return [entry.backup_id for entry in ExpirePlanner(repository, RetentionRules()).decide().broken]


def _turning_points(
    status: RepositoryStatus, recoverable: dict[str, RecoverableRange | None]
) -> list[tuple[Lsn, LsnRange, bool]]:
    """Return positions whose times matter, the newest first: with the WAL to look at, and whether before or behind."""
    found: set[tuple[Lsn, LsnRange, bool]] = set()
    for timeline in status.coverage:
        for part in timeline.wal:
            found |= {(part.end, part, False), (part.start, part, True)}
    for reach in recoverable.values():
        if reach is not None and reach.end > reach.start:
            found.add((reach.end, LsnRange(reach.timeline_id, reach.start, reach.end), False))
    return sorted(found, reverse=True)


def _commits_at(commits: CommitTimes, wanted: Iterable[tuple[Lsn, LsnRange, bool]]) -> Iterable[KnownTime]:
    for position, part, is_start in wanted:
        found = commits.first_after(part) if is_start else commits.last_before(part)
        if found is not None:
            yield KnownTime(position, found.time_s)
