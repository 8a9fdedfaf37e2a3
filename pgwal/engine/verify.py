"""Verify backups as they are stored, and the WAL and summaries that they need, and tell everything that is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import pairwise

from pgwal.backup.chain import prior_id_among, prior_of
from pgwal.backup.entry import BackupEntry
from pgwal.backup.label import BackupLabel
from pgwal.control_file import ControlFile
from pgwal.engine.coverage import join
from pgwal.engine.fleet import Crew, Fleet, crew
from pgwal.engine.problem import Problem
from pgwal.engine.record_chain import next_record_position, read_record, require_linked_switch
from pgwal.engine.stored_backup import StoredBackup
from pgwal.engine.stored_wal import WalPiece, all_problems, verify_wal, wal_pieces
from pgwal.engine.summarize import read_history, window
from pgwal.errors import (
    ChainError,
    FormatError,
    ObjectNotFound,
    PgwalError,
    RepositoryError,
    RepositoryLocked,
    StoreUnavailable,
)
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.layout import BACKUP_DIRECTORY, BACKUP_ENTRY_NAME, STORAGE_FORMAT_NAME, WAL_DIRECTORY
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.sealing import require_identity
from pgwal.repository.storage_format import StorageFormat
from pgwal.repository.store import as_sealing, folders_in
from pgwal.timeline import history_file_name
from pgwal.wal.checkpoint import require_labels_checkpoint, require_pg_controls_checkpoint
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record import WalRecord


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What to verify: one backup with all that it builds on, or all of them when ``backup_id`` is None."""

    place: Place
    backup_id: str | None = None
    jobs: int = 1
    fleet: Fleet | None = None
    """Who reads what is large, instead of ``jobs`` threads of this process."""


@dataclass(slots=True)
class VerifyReport:
    """What was looked at, and all that is wrong; sizes in bytes."""

    backup_ids: list[str]
    entries: dict[str, BackupEntry] = field(default_factory=dict)
    wal_ranges: list[LsnRange] = field(default_factory=list)
    bytes_read: int = 0
    opens_files: bool = True
    """Whether files and WAL were read: what is encrypted takes an identity."""
    problems: list[Problem] = field(default_factory=list)


def verify(request: VerifyRequest, on_progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Verify what the request says; damage is in the report, not raised.

    Backups that are being verified cannot be removed meanwhile.  Raises ObjectNotFound when there is no such
    repository or backup, RepositoryLocked when it is being removed.
    """
    repository = Repository.open(request.place)
    if request.place.keys.has_identity:
        require_identity(repository.store)
    with ExitStack() as held:
        report = _select(repository, request.backup_id, held)
        report.opens_files = as_sealing(repository.store) is None or request.place.keys.has_identity
        verification = _Verification(repository, report, on_progress)
        with crew(repository, verification.tell, request.jobs, request.fleet) as readers:
            verification.run(readers)
    return report


def _select(repository: Repository, backup_id: str | None, held: ExitStack) -> VerifyReport:
    """Find out what to verify, and keep it from being removed."""
    if backup_id is None:
        held.enter_context(repository.hold_all_backups())
    known = repository.catalogue.ids()
    if backup_id is None:
        wanted = list(known)
    elif backup_id in known:
        wanted = [backup_id]
    else:
        raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
    report = VerifyReport([])
    seen: set[str] = set()
    others = set(known) - set(folders_in(repository.store, BACKUP_DIRECTORY))
    while wanted:
        current = wanted.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in others:
            report.problems.append(Problem(current, f"{BACKUP_DIRECTORY}/{current}", "it is not a directory"))
            continue
        if current == backup_id:
            _hold(repository, current, held)
        report.backup_ids.append(current)
        try:
            entry = repository.catalogue.entry(current)
        except StoreUnavailable:
            raise
        except PgwalError:
            continue  # Said when its files are read.
        report.entries[current] = entry
        if entry.prior_id is not None:
            wanted.append(prior_id_among(entry.prior_id, known))
    report.backup_ids.sort()
    return report


def _hold(repository: Repository, backup_id: str, held: ExitStack) -> None:
    """Keep a backup from being removed; what is missing, or cannot be opened, is said when its files are read."""
    try:
        held.enter_context(repository.catalogue.hold(backup_id))
    except (RepositoryLocked, StoreUnavailable):
        raise
    except RepositoryError:
        pass


def _entry_problem(backup_id: str, message: str) -> Problem:
    return Problem(backup_id, f"{BACKUP_DIRECTORY}/{backup_id}/{BACKUP_ENTRY_NAME}", message)


class _Verification:
    """One verification under way."""

    def __init__(
        self,
        repository: Repository,
        report: VerifyReport,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._repository = repository
        self._report = report
        self._on_progress = on_progress
        self._total_bytes = 0
        # Of a backup no more than these stays: it keeps what it read last.
        self._starts: dict[str, tuple[BackupLabel | None, ControlFile | None]] = {}
        self._switches: set[tuple[LsnRange, int]] = set()

    def run(self, readers: Crew) -> None:
        report = self._report
        self._check_format()
        self._check_histories()
        report.wal_ranges = self._needed_wal()
        self._total_bytes = sum(part.end - part.start for part in report.wal_ranges)
        self._total_bytes += sum(entry.totals.stored_size_bytes for entry in report.entries.values())
        for backup_id in report.backup_ids:
            entry = report.entries.get(backup_id)
            prior = prior_of(entry, report.entries) if entry is not None else None
            self._check_chain(backup_id)
            stored = StoredBackup(readers, backup_id, opens_files=report.opens_files)
            stored.verify(entry, prior)
            report.problems += stored.problems
            self._starts[backup_id] = stored.label, stored.control
        self._check_wal(readers)
        self._check_switches()
        self._check_starts()

    def _check_wal(self, readers: Crew) -> None:
        report, taken = self._report, deque[WalPiece]()

        def pieces() -> Iterator[WalPiece]:
            for piece in wal_pieces(self._repository, report.wal_ranges, opens_files=report.opens_files):
                taken.append(piece)
                yield piece

        try:
            with closing(readers.map(verify_wal, pieces())) as verdicts:
                each = ((taken.popleft(), verdict) for verdict in verdicts)
                report.problems += all_problems(self._repository, each)
        except StoreUnavailable:
            raise
        except RepositoryError as error:
            # A directory that cannot be listed; the rest is looked at all the same.
            report.problems.append(Problem(None, WAL_DIRECTORY, str(error)))

    def tell(self, size_bytes: int) -> None:
        self._report.bytes_read += size_bytes
        if self._on_progress is not None:
            self._on_progress(min(self._report.bytes_read, self._total_bytes), self._total_bytes)

    def _check_chain(self, backup_id: str) -> None:
        """Note a circle; that a prior backup is missing or damaged is said of that one."""
        passed = [backup_id]
        entry = self._report.entries.get(backup_id)
        while entry is not None and (entry := prior_of(entry, self._report.entries)) is not None:
            if entry.backup_id in passed:
                self._report.problems.append(
                    _entry_problem(backup_id, f"the chain goes in a circle at {entry.backup_id}")
                )
                return
            passed.append(entry.backup_id)

    def _check_format(self) -> None:
        """Note how the repository says that it stores files, unless that is as it was written."""
        store = self._repository.store
        try:
            found = StorageFormat.of(store)
            if store.exists(STORAGE_FORMAT_NAME) and store.get(STORAGE_FORMAT_NAME) != found.encode():
                raise FormatError("it is not spelled as it was written")
        except StoreUnavailable:
            raise
        except PgwalError as error:
            message = str(error).removeprefix(f"{STORAGE_FORMAT_NAME} ")
            self._report.problems.append(Problem(None, STORAGE_FORMAT_NAME, message))

    def _check_histories(self) -> None:
        timeline_ids = {entry.stop_timeline_id for entry in self._report.entries.values()}
        for timeline_id in sorted(timeline_ids - {1}):
            try:
                read_history(self._repository, timeline_id)
            except (PgwalError, OSError) as error:
                name = f"{WAL_DIRECTORY}/{history_file_name(timeline_id)}"
                self._report.problems.append(Problem(None, name, str(error)))

    def _check_switches(self) -> None:
        """Note each timeline whose WAL does not go on behind the last record of the one that it left."""
        wal_format = wal_format_of_major(self._repository.identity.major)
        for switch, follower_id in sorted(self._switches):
            first = self._repository.geometry.segment_no(switch.end)
            name = f"{WAL_DIRECTORY}/{self._repository.geometry.file_name(follower_id, first)}"
            try:
                require_linked_switch(self._repository.wal, wal_format, switch, follower_id)
            except ChainError as error:
                self._report.problems.append(Problem(None, name, str(error)))
            except StoreUnavailable:
                raise
            except (FormatError, RepositoryError):
                pass  # Of the segment: noted already.

    def _check_starts(self) -> None:
        """Note each backup that does not start with the WAL that is here: this is of another history."""
        wal_format = wal_format_of_major(self._repository.identity.major)
        for backup_id, entry in sorted(self._report.entries.items()):
            try:
                next_record_position(self._repository.wal, wal_format, entry.start_timeline_id, entry.start_lsn)
                self._require_checkpoint(*self._starts[backup_id])
            except ChainError as error:
                self._report.problems.append(_entry_problem(backup_id, f"WAL is of another history: {error}"))
            except StoreUnavailable:
                raise
            except (FormatError, RepositoryError):
                pass  # Of the segment: noted already.

    def _require_checkpoint(self, label: BackupLabel | None, control: ControlFile | None) -> None:
        """Raise TimelineMismatch unless the archive has the checkpoint that a backup started with."""
        if label is None:
            return
        found = read_record(self._repository, label.start_timeline_id, label.checkpoint_lsn)
        if not isinstance(found, WalRecord):
            return  # That WAL is missing has been noted.
        major = self._repository.identity.major
        require_labels_checkpoint(label.checkpoint_lsn, label.start_lsn, label.start_timeline_id, major, found)
        if control is not None and control.checkpoint_lsn == label.checkpoint_lsn:
            require_pg_controls_checkpoint(control, found)

    def _needed_wal(self) -> list[LsnRange]:
        """Return the WAL from the start to the stop of each backup, and the windows of incremental ones, joined.

        That behind long-term backups is kept for none, and so not that of a window on one.
        """
        parts: list[LsnRange] = []
        long_term_ids = BackupMarks(self._repository.store).long_term_ids(self._report.entries.values())
        for entry in self._report.entries.values():
            parts += self._window(entry, entry.start_timeline_id, entry.start_lsn, at_stop=True)
            prior = prior_of(entry, self._report.entries)
            if prior is not None and prior.backup_id not in long_term_ids:
                parts += self._window(entry, prior.start_timeline_id, prior.start_lsn, at_stop=False)
        parts = [part for part in parts if part.start < part.end]
        timeline_ids = sorted({part.timeline_id for part in parts})
        return [joined for timeline_id in timeline_ids for joined in self._joined(timeline_id, parts)]

    def _joined(self, timeline_id: int, parts: Iterable[LsnRange]) -> list[LsnRange]:
        return join((part for part in parts if part.timeline_id == timeline_id), self._repository.geometry)

    def _window(self, entry: BackupEntry, timeline_id: int, start: Lsn, *, at_stop: bool) -> list[LsnRange]:
        """Return the ranges that lead from a position to the start or the stop of a backup."""
        end_timeline_id = entry.stop_timeline_id if at_stop else entry.start_timeline_id
        end = entry.stop_lsn if at_stop else entry.start_lsn
        try:
            found = window(self._repository, timeline_id, start, end_timeline_id, end)
            for before, after in pairwise(found):
                segment_no = self._repository.geometry.last_segment_no(before.end)
                begin = max(before.start, self._repository.geometry.segment_start(segment_no))
                self._switches.add((before._replace(start=begin), after.timeline_id))
            return found
        except ChainError as error:
            self._report.problems.append(_entry_problem(entry.backup_id, f"no WAL leads to it: {error}"))
        except FormatError:
            pass  # Of the history file: noted already.
        return []
