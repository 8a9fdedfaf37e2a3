"""Copy backups to a second repository, and the WAL that they need: what is missing there, and nothing else.

WAL and packs go first, and the entry of each backup last: wherever this ends, what counts there is whole, and the next
run goes on.  Everything is held against its digest on the way; what is damaged is named, and does not come to count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

from pgwal.backup.chain import place_of, prior_id_among
from pgwal.backup.entry import BackupEntry
from pgwal.engine.copied_backup import BackupCopier
from pgwal.engine.copied_wal import MissingWal, WalCopier, find_missing_wal
from pgwal.engine.copy_plan import CopyPlan, plan_copy
from pgwal.engine.copy_target import CopyTarget, find_target, open_target
from pgwal.engine.coverage import read_recoverable_ranges
from pgwal.engine.fleet import Fleet, crew
from pgwal.engine.problem import Problem
from pgwal.engine.rebuild_options import default_jobs
from pgwal.engine.same_history import SameHistory
from pgwal.errors import (
    ChainError,
    ForeignObject,
    FormatError,
    HistoryMismatch,
    ObjectExists,
    ObjectNotFound,
    PgwalError,
)
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.arriving_backup import ArrivingBackup
from pgwal.repository.backup_folders import folder_of
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.layout import BACKUP_ENTRY_NAME, UNFINISHED_SUFFIX
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.sealing import require_identity
from pgwal.repository.store import as_sealing

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """What to copy from ``place`` ``to`` another one: some backups, or all that are missing where none is named.

    ``with_wal`` is whether WAL goes along up to the end of the archive; without it, each backup's own alone, and what
    leads to it where all WAL since an older one is there.
    ``recipients`` are who may read the copy, where others than those of the source; nothing is changed by a
    ``dry_run``.
    """

    place: Place
    to: Place
    backups: Sequence[str] = ()
    with_wal: bool = False
    recipients: Sequence[str] = ()
    jobs: int | None = None
    dry_run: bool = False
    fleet: Fleet | None = None
    """Who copies WAL, and packs that are copied as they are, instead of ``jobs`` threads of this process."""


@dataclass(slots=True)
class CopyReport:
    """What was copied, or would be; sizes in bytes, as stored in the source.

    ``expired`` were copied before, and have gone there since.  ``problems`` are what could not be copied, and why.
    ``requests`` are of both repositories, by kinds, None where there is no object store.
    """

    backups: list[BackupEntry] = field(default_factory=list)
    expired: list[BackupEntry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    pack_count: int = 0
    segment_count: int = 0
    summary_count: int = 0
    backup_bytes: int = 0
    wal_bytes: int = 0
    opens_files: bool = True
    """Whether the contents of WAL were proven: what is encrypted takes an identity."""
    requests: Mapping[str, int] | None = None


def copy_repository(request: CopyRequest, on_progress: OnProgress | None = None) -> CopyReport:
    """Copy what is missing, and return what that was; damage of the source is in the report, not raised.

    Raises ObjectNotFound, MissingPriorBackup or ChainError for a named backup that cannot be copied; WrongCluster, or
    HistoryMismatch, with nothing copied, where what is there is of another cluster or history; RepositoryLocked where
    backups are removed here, or stored there; KeyRequired, RepositoryError.
    """
    source = Repository.open(request.place)
    if request.place.keys.has_identity:
        require_identity(source.store)
    if request.dry_run:
        report = _foresee(source, request)
    else:
        with source.hold_all_backups():
            target = open_target(source, request.to, request.recipients)
            with target.repository.lock_backups():
                report = _Copying(source, target, request, on_progress).run()
    report.requests = _requests(request)
    return report


def _requests(request: CopyRequest) -> Mapping[str, int] | None:
    counts = [place.request_counts for place in (request.place, request.to)]
    known = [each for each in counts if each is not None]
    return {kind: sum(each[kind] for each in known) for kind in known[0]} if known else None


def _foresee(source: Repository, request: CopyRequest) -> CopyReport:
    target = find_target(source, request.to)
    there = None if target is None else target.repository
    backups = _Backups(source, there, request)
    report = CopyReport(backups.plan.wanted, backups.plan.expired, backups.problems)
    copier = None if target is None else BackupCopier(source, target.repository, 1, lambda _: None, target.as_stored)
    for entry in backups.plan.wanted:
        report.backup_bytes += entry.repository_bytes if copier is None else copier.missing_bytes(entry)
    missing = find_missing_wal(source, there, backups.needs_wal)
    report.segment_count, report.wal_bytes = len(missing.segments), missing.size_bytes
    report.summary_count = len(missing.summaries)
    return report


class _Backups:
    """Which backups are to be copied, and which WAL is needed for these and for those that are there."""

    def __init__(self, source: Repository, target: Repository | None, request: CopyRequest) -> None:
        survey = source.catalogue.survey()
        for unreadable in survey.unreadable:
            if unreadable.backup_id in request.backups:
                raise unreadable.error
        self.entries = survey.entries
        self.are_all_read = not survey.unreadable
        self.problems = [
            Problem(backup_id, f"{folder_of(backup_id)}/{BACKUP_ENTRY_NAME}", str(error))
            for backup_id, error, _ in survey.unreadable
        ]
        self.there = [] if target is None else target.catalogue.entries()
        marks = None if target is None else BackupMarks(target.store)
        copied_ids = set[str]() if marks is None else marks.copied_ids(self.entries)
        self.plan: CopyPlan = plan_copy(self.entries, self.there, request.backups, copied_ids)
        self.problems += [
            Problem(backup_id, folder_of(backup_id), str(error)) for backup_id, error in self.plan.left_out
        ]
        ids_there = {entry.backup_id for entry in self.there}
        self.unmarked = [e for e in self.entries if e.backup_id in ids_there and e.backup_id not in copied_ids]
        """Copied by a run that ended before it could note that."""
        self._decide_wal(request, BackupMarks(source.store), marks)

    def _decide_wal(self, request: CopyRequest, marks: BackupMarks, marks_there: BackupMarks | None) -> None:
        """Find out for which backups there is to be all WAL since they started, and up to where."""
        wanted = self.plan.wanted
        long_term_here = marks.long_term_ids(self.entries)
        long_term_there = set[str]() if marks_there is None else marks_there.long_term_ids(self.there)
        named = set(request.backups) - long_term_here if request.with_wal else set[str]()
        self.lifted = [entry for entry in self.there if entry.backup_id in named & long_term_there]
        """Whose later WAL was not copied with them, and is to be now."""
        others = [entry for entry in self.there if entry.backup_id not in long_term_there] + self.lifted
        since = min((entry.start_lsn for entry in others), default=None)
        with_all = [
            entry
            for entry in wanted
            # Where there is all WAL since an older one, it stays without a hole.
            if entry.backup_id not in long_term_here
            and (request.with_wal or (since is not None and entry.start_lsn >= since))
        ]
        self.long_term = [entry for entry in wanted if entry not in with_all]
        self._own = [(entry.start_lsn, entry.stop_lsn) for entry in self.long_term]
        until = None if request.with_wal else max((entry.stop_lsn for entry in with_all), default=Lsn(0))
        since = min((entry.start_lsn for entry in (*others, *with_all)), default=None)
        self._all = None if since is None else (since, until)

    def needs_wal(self, part: LsnRange) -> bool:
        """Tell whether WAL of a range, on whichever timeline, is needed there."""
        if self._all is not None:
            since, until = self._all
            if part.end > since and (until is None or part.start < until):
                return True
        return any(part.start < stop and start < part.end for start, stop in self._own)


class _Copying:
    """One copy under way; both repositories are held."""

    def __init__(
        self, source: Repository, target: CopyTarget, request: CopyRequest, on_progress: OnProgress | None
    ) -> None:
        self._source = source
        self._target = target.repository
        self._jobs = request.jobs or default_jobs()
        self._fleet = request.fleet
        self._on_progress = on_progress
        self._done_bytes = self._total_bytes = 0
        self._lock = Lock()
        sealing = as_sealing(source.store)
        opens = sealing is None or request.place.keys.has_identity
        self._copier = BackupCopier(source, self._target, self._jobs, self._tell, target.as_stored, self._fleet)
        self._wal = WalCopier(source, self._target, as_stored=target.as_stored, opens=opens)
        self._marks = BackupMarks(self._target.store)
        self._backups = _Backups(source, self._target, request)
        self._report = CopyReport(expired=self._backups.plan.expired, problems=self._backups.problems)
        self._report.opens_files = opens

    def run(self) -> CopyReport:
        wanted, report = self._backups.plan.wanted, self._report
        self._give_up_what_never_comes()
        missing = find_missing_wal(self._source, self._target, self._backups.needs_wal)
        self._count_bytes(wanted, missing)
        self._copy_wal(missing)
        for entry in self._backups.unmarked:
            self._marks.mark_copied(entry)
        if wanted:
            self._copy_backups(wanted)
        self._marks.forget(self._backups.lifted, [])
        if self._backups.are_all_read:
            self._marks.forget_copied(self._backups.entries)
        report.pack_count = self._copier.packs.count
        report.backup_bytes = self._copier.packs.bytes_copied + self._copier.bytes_written
        report.segment_count, report.summary_count = self._wal.segment_count, self._wal.summary_count
        report.wal_bytes = self._wal.bytes_copied
        return report

    def _give_up_what_never_comes(self) -> None:
        """Remove what interrupted copies have left of backups that the source has no more."""
        known = set(self._source.catalogue.ids())
        for name in self._target.catalogue.folders().arriving:
            backup_id = name.removesuffix(UNFINISHED_SUFFIX)
            arriving = ArrivingBackup(self._target.place, backup_id)
            if backup_id not in known and arriving.comes_from(str(self._source.place)):
                arriving.give_up()

    def _count_bytes(self, wanted: Sequence[BackupEntry], missing: MissingWal) -> None:
        if self._on_progress is None:
            return
        self._total_bytes = missing.size_bytes
        for entry in wanted:
            try:
                self._total_bytes += self._copier.missing_bytes(entry)
            except FormatError:
                # Said when it is copied.
                self._total_bytes += entry.repository_bytes

    def _tell(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            if self._on_progress is not None:
                self._on_progress(min(self._done_bytes, self._total_bytes), self._total_bytes)

    def _copy_wal(self, missing: MissingWal) -> None:
        is_something = bool(missing.segments or missing.partial or missing.summaries)
        # Whoever receives there stores the same, and nothing is missing.
        with self._target.lock_receiver() if is_something else nullcontext():
            SameHistory(self._source, self._target).require()
            if is_something:
                with crew(self._source, self._tell, self._jobs, self._fleet, target=self._target) as workers:
                    self._wal.copy(missing, workers)
        self._report.problems += [Problem(None, name, message) for name, message in self._wal.problems]

    def _copy_backups(self, wanted: Sequence[BackupEntry]) -> None:
        recoverable = read_recoverable_ranges(self._target, wanted)
        there = {entry.backup_id for entry in self._backups.there}
        unreadable_there = set(self._target.catalogue.ids()) - there
        for entry in sorted(wanted, key=place_of):
            try:
                if entry.backup_id in unreadable_there:
                    raise ObjectExists("its entry is there, and damaged: move its directory away, and copy again")
                if recoverable[entry.backup_id] is None:
                    raise ChainError(
                        "not all WAL from its start to its stop is there: it could not be restored, and is not copied"
                    )
                if entry.prior_id is not None and prior_id_among(entry.prior_id, there) not in there:
                    raise ChainError(f"it builds on {entry.prior_id}, which was not copied")
                self._copier.copy(entry, partial(self._mark, entry))
            except HistoryMismatch:
                raise
            except (FormatError, ChainError, ObjectNotFound, ForeignObject, ObjectExists) as error:
                self._note(entry, error)
                continue
            self._marks.mark_copied(entry)
            there.add(entry.backup_id)
            self._report.backups.append(entry)

    def _mark(self, entry: BackupEntry) -> None:
        """Say of a backup, before it counts, that its own WAL is all that is kept for it."""
        if entry in self._backups.long_term:
            self._marks.mark_long_term(entry)

    def _note(self, entry: BackupEntry, error: PgwalError) -> None:
        path = error.facts.get("path", folder_of(entry.backup_id))
        self._report.problems.append(Problem(entry.backup_id, path, str(error)))
