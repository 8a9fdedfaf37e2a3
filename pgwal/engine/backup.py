"""Take a backup: full or incremental, one engine; a full one is a plan in which every file is whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.backup_id import BackupKind, format_backup_id, is_backup_id, parse_backup_id
from pgwal.backup.chain import check_link
from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import TABLESPACE_DIRECTORY
from pgwal.backup.label import BackupLabel
from pgwal.backup.manifest import ManifestWriter
from pgwal.backup.source import BlockSource
from pgwal.budget import CROWDED_IDS_S
from pgwal.control_file import ControlFile
from pgwal.disk.new_file import FILE_MODE, GROUP_FILE_MODE
from pgwal.engine.backup_report import BackupReport
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.backup_wal import BackupWal
from pgwal.engine.backup_window import (
    choose_prior_entry,
    cluster_identity,
    open_prior_repository,
    require_received,
    window_since,
)
from pgwal.engine.block_audit import BlockAudit, require_none_missed
from pgwal.engine.cluster_parts import (
    ClusterParts,
    account_for_databases,
    read_cluster_parts,
    require_cluster_parts,
    require_none_missing,
)
from pgwal.engine.copy import Copy, CopyRules
from pgwal.engine.missed_blocks import Judge
from pgwal.engine.prepare_backup import directories_to_empty, prepare_backup, servers_data_directory
from pgwal.engine.receiving import ReceivedWal, receiving
from pgwal.engine.servers_directory import require_servers_directory
from pgwal.errors import (
    ChainError,
    ServerError,
    TimelineMismatch,
    VerificationFailed,
    WalGap,
)
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.connection import Connection, connect_sql
from pgwal.postgres.server import (
    BackupSession,
    BackupStop,
    ServerFacts,
    read_clock,
)
from pgwal.repository.repository import Repository
from pgwal.repository.staged_backup import StagedBackup
from pgwal.summary.block_map import BlockMap

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger(__name__)

_LABEL_NAME = "backup_label"


def take_backup(request: BackupRequest, on_progress: Callable[[int, int], None] | None = None) -> BackupReport:
    """Take a backup and return what it did; it is in the catalogue then, durable, with the WAL that it needs.

    ``on_progress`` is told (bytes done, bytes to do) of the copying.  Raises kinds of ServerError for what the server
    refuses, ChainError where an incremental backup cannot be right, VerificationFailed for bad pages where that is
    asked for, RepositoryError; a backup that failed leaves nothing that counts.
    """
    report = _take(request, on_progress)
    # Those with which the locks were given back are among them.
    report.requests = request.place.request_counts
    return report


def _take(request: BackupRequest, on_progress: Callable[[int, int], None] | None) -> BackupReport:
    connection = connect_sql(request.parameters)
    with BackupSession(connection) as session, ExitStack() as resources:
        # Everything that can be refused is refused before anything is made.
        facts, sources = resources.enter_context(prepare_backup(request, connection))
        repository = _open_repository(request, facts)
        with repository.lock_backups():
            folders = repository.catalogue.folders()
            if folders.unfinished:
                for abandoned in repository.catalogue.clear_unfinished():
                    logger.info("removed what was left of the unfinished backup %s", abandoned)
                folders = repository.catalogue.folders()
            prior = None
            # Refused before anything else is done where there is nothing to build on.
            with suppress(WalGap):
                prior = choose_prior_entry(repository, request, facts, folders.finished)
            # A full backup needs nothing from before, so that a gap in WAL does not stand in its way.
            with receiving(
                repository,
                request.parameters,
                request.slot,
                skip_removed=request.since is None,
                from_restart_point=facts.in_recovery,
                # What waits for the server, for the checkpoint at first, would not see it.
                on_failure=lambda: _cut(connection, sources),
            ) as wal:
                if prior is None:
                    # After a promotion, the history of the server's timeline comes with its WAL.
                    prior = choose_prior_entry(repository, request, facts, folders.finished)
                if prior is not None:
                    # Before the checkpoint, and again after it, when all of the window is known.
                    require_received(repository, prior, facts.timeline_id, wal.receiver_state())
                backup = _Backup(request, repository, facts, connection, sources, prior, wal, folders.names)
                try:
                    return backup.run(session, on_progress)
                except ServerError:
                    wal.check()
                    raise


def _cut(connection: Connection, sources: Iterable[BlockSource]) -> None:
    connection.cut()
    for source in sources:
        source.cut()


def _open_repository(request: BackupRequest, facts: ServerFacts) -> Repository:
    """Open the repository; one that is not there is made for a full backup alone."""
    request.place.require_suitable()
    if request.since is None:
        return Repository.open_or_create(request.place, cluster_identity(facts))
    return open_prior_repository(request, facts)


class _Backup:
    """One backup under way."""

    def __init__(
        self,
        request: BackupRequest,
        repository: Repository,
        facts: ServerFacts,
        connection: psycopg.Connection,
        sources: Sequence[BlockSource],
        prior: BackupEntry | None,
        wal: ReceivedWal,
        taken_names: Sequence[str],
    ) -> None:
        """``taken_names`` are those that backups, or what is left of some, have."""
        self._request = request
        self._repository = repository
        self._facts = facts
        self._connection = connection
        self._sources = sources
        self._prior = prior
        self._wal = wal
        self._taken_names = taken_names
        # Not by this machine's clock: a recovery target is compared with them.
        self._started_at = self._finished_at = read_clock(connection)
        self._seconds: dict[str, float] = {}
        self._window: list[LsnRange] = []
        self._audit: BlockAudit | None = None
        if request.audit is not None and prior is not None:
            self._audit = BlockAudit(request.audit, prior.start_lsn)

    def run(self, session: BackupSession, on_progress: Callable[[int, int], None] | None) -> BackupReport:
        with _timed(self._seconds, "checkpoint"):
            start_lsn = session.start(self._request.label, fast=self._request.fast)
        logger.info("backup starts at %s on timeline %d", start_lsn, self._facts.timeline_id)
        self._check_directory()
        self._require_later_start(start_lsn)
        control = ControlFile.decode(self._sources[0].read_control_file())
        backup_wal = BackupWal(self._repository, self._facts, self._wal, start_lsn, control)
        with _timed(self._seconds, "wait for the checkpoint's WAL"):
            backup_wal.begin()
        parts = read_cluster_parts(
            self._connection,
            self._sources[0],
            self._facts.major,
            servers_data_directory(self._facts, self._request.data_directory),
        )
        changes = self._changes_until(start_lsn, backup_wal)
        checks = (backup_wal.check, session.require_held)
        with self._stage() as staged, self._copy(staged, start_lsn, changes, parts, checks, on_progress) as copy:
            # Also of one that is dropped before it is looked at: WAL begins with it.
            for oid in parts.linked_tablespaces:
                copy.data.make_directory(f"{TABLESPACE_DIRECTORY}/{oid}")
            with _timed(self._seconds, "copy"):
                copy.copy_all(self._prior_files)
                require_cluster_parts(parts, copy.missing, self._connection, self._sources[0], self._facts.major)
                self._check_directory()
                self._judge(copy.bad_page_count)
                _note_absent_configuration(copy.absent_configuration)
                copy.copy_control_file()
                stop = session.stop()
                self._finished_at = read_clock(self._connection)
                control = ControlFile.decode(self._sources[0].read_control_file())
                label = self._write_label(copy, start_lsn, stop)
                copy.write_manifest([LsnRange(self._facts.timeline_id, start_lsn, stop.stop_lsn)])
            with _timed(self._seconds, "sync"):
                copy.data.sync()
            with _timed(self._seconds, "wait for WAL"):
                during = backup_wal.require_whole(label, stop.stop_lsn, control)
            self._account_for_missing(copy, parts, during)
            self._judge_audit(during)
            entry = self._entry(staged.backup_id, start_lsn, stop, copy, parts)
            if self._prior is not None:
                check_link(entry, self._prior)
            staged.publish(entry)
        return BackupReport(
            entry,
            self._window,
            changes.block_count() if changes is not None else 0,
            copy.copied_block_count,
            copy.block_count,
            copy.bytes_read,
            entry.repository_bytes,
            self._seconds,
            audit=None if self._audit is None else self._audit.tally,
        )

    # -- before the copy ---------------------------------------------------------------------------------------

    def _check_directory(self) -> None:
        """Refuse another directory than the server's: a copy of a moment ago does not have the checkpoint just made."""
        # Over SQL it is the server's own.
        if self._request.data_directory is not None:
            require_servers_directory(self._request.data_directory, self._connection)

    def _require_later_start(self, start_lsn: Lsn) -> None:
        prior = self._prior
        if prior is None or start_lsn > prior.start_lsn:
            return
        problem = (
            f"this backup starts at {start_lsn}, no later than {prior.backup_id}, which started at {prior.start_lsn}"
        )
        if self._facts.in_recovery:
            raise ChainError(
                f"{problem}: the standby has made no restart point since",
                hint="Run CHECKPOINT on the primary, wait until the standby has replayed it, and run CHECKPOINT here.",
            )
        raise TimelineMismatch(
            f"{problem}: the server was put back to an earlier state, or it is another one",
            hint="Check the connection. If it is the right server, keep this repository for what it holds, and use"
            " another one from now on.",
        )

    def _changes_until(self, start_lsn: Lsn, backup_wal: BackupWal) -> BlockMap | None:
        """Return the block map of the window, proven complete; None for a full backup."""
        prior, timeline_id = self._prior, self._facts.timeline_id
        if prior is None:
            return None
        with _timed(self._seconds, "wait for the window's WAL"):
            backup_wal.wait_for_window()
        self._window = window_since(self._repository, prior, timeline_id, start_lsn)
        with _timed(self._seconds, "block map"):
            changes = backup_wal.read_window(self._window)
        logger.info(
            "%d blocks changed since backup %s started at %s", changes.block_count(), prior.backup_id, prior.start_lsn
        )
        return changes

    def _prior_files(self) -> Iterator[BackupFile]:
        return iter(()) if self._prior is None else self._repository.catalogue.files(self._prior.backup_id)

    def _copy(
        self,
        staged: StagedBackup,
        start_lsn: Lsn,
        changes: BlockMap | None,
        parts: ClusterParts,
        checks: Sequence[Callable[[], None]],
        on_progress: Callable[[int, int], None] | None,
    ) -> Copy:
        facts, request = self._facts, self._request
        rules = CopyRules(
            emptied=directories_to_empty(facts, parts.tablespaces, request.data_directory),
            manifest_checksums=request.manifest_checksums,
            max_rate_bytes_per_s=request.max_rate_bytes_per_s,
            checked_before=start_lsn if facts.data_checksums else None,
            tablespaces=frozenset(parts.tablespaces),
            file_mode=GROUP_FILE_MODE if facts.group_access else FILE_MODE,
        )
        manifest = ManifestWriter(facts.major, facts.system_identifier)
        audit = None if self._audit is None else (self._audit, start_lsn)
        return Copy(self._sources, changes, staged, manifest, rules, on_progress, checks, audit)

    def _stage(self) -> StagedBackup:
        kind = BackupKind.FULL if self._prior is None else BackupKind.INCREMENTAL
        taken = self._taken_names
        started_s = int(self._started_at.timestamp())
        # Several backups may start within a second, and some of them be gone; ids still sort by time.
        times_s = [int(parse_backup_id(name)[0].timestamp()) for name in taken if is_backup_id(name)]
        started_s = max([started_s, *(time_s + 1 for time_s in times_s if 0 <= time_s - started_s <= CROWDED_IDS_S)])
        while any(name.startswith(format_backup_id(started_s, kind).partition("_")[0]) for name in taken):
            started_s += 1
        backup_id = format_backup_id(started_s, kind)
        later = [name for name in taken if is_backup_id(name) and name > backup_id]
        if later:
            logger.warning(
                "this backup is %s, although %s exists already: a clock was or is wrong; backups are ordered by their"
                " positions in WAL, not by their names",
                backup_id,
                later[-1],
            )
        return self._repository.catalogue.stage(backup_id, self._request.jobs)

    # -- after the copy ----------------------------------------------------------------------------------------

    def _judge(self, bad_page_count: int) -> None:
        if not bad_page_count:
            return
        message = f"{bad_page_count} pages are not what their checksums say"
        if self._request.fails_on_bad_page:
            raise VerificationFailed(
                message, hint="Repair them, or take the backup with --checksum-failure=warn and keep older ones."
            )
        logger.warning("%s: the backup holds them as they are", message)

    def _account_for_missing(self, copy: Copy, parts: ClusterParts, during: BlockMap) -> None:
        """Raise DataAbsent when files are missing and neither WAL of the backup nor the server says why."""
        if copy.missing:
            copy.missing.account_for(during)
        if copy.missing:
            account_for_databases(parts, copy.missing, self._connection)
        require_none_missing(copy.missing)

    def _judge_audit(self, during: BlockMap) -> None:
        """Raise VerificationFailed when the audit has found a block that the block map lacks."""
        if self._audit is not None:
            judge = Judge(self._repository, self._window, data_checksums=self._facts.data_checksums)
            with _timed(self._seconds, "judge the audit"):
                self._audit.settle(judge, self._sources[0], [during])
            require_none_missed(self._audit.tally, self._facts.major)

    def _write_label(self, copy: Copy, start_lsn: Lsn, stop: BackupStop) -> BackupLabel:
        label = BackupLabel.decode(stop.label_file)
        if label.start_lsn != start_lsn:
            raise ServerError(f"the backup's label says that it started at {label.start_lsn}, not at {start_lsn}")
        if label.start_timeline_id != self._facts.timeline_id:
            raise TimelineMismatch(
                f"the backup started on timeline {label.start_timeline_id}, not on {self._facts.timeline_id}",
                hint="The server has just been promoted: run this again.",
            )
        if self._prior is not None:
            label = label.with_incremental_from(self._prior.start_lsn, self._prior.start_timeline_id, self._facts.major)
        copy.store(_LABEL_NAME, label.encode())
        return label

    def _entry(self, backup_id: str, start_lsn: Lsn, stop: BackupStop, copy: Copy, parts: ClusterParts) -> BackupEntry:
        facts = self._facts
        return BackupEntry(
            backup_id=backup_id,
            kind=BackupKind.FULL if self._prior is None else BackupKind.INCREMENTAL,
            prior_id=None if self._prior is None else self._prior.backup_id,
            system_identifier=facts.system_identifier,
            major=facts.major,
            start_lsn=start_lsn,
            start_timeline_id=facts.timeline_id,
            stop_lsn=stop.stop_lsn,
            stop_timeline_id=facts.timeline_id,
            label=self._request.label,
            started_at=self._started_at.isoformat(timespec="seconds"),
            finished_at=self._finished_at.isoformat(timespec="seconds"),
            wal_segment_size=facts.segment_size,
            data_checksums=facts.data_checksums,
            # In-place tablespaces are directories of the data directory and have no location of their own.
            tablespaces=parts.linked_tablespaces,
            totals=copy.totals,
            checksum_failures=copy.bad_page_count,
            packed_size_bytes=None if (packed := copy.data.contents()) is None else packed.size_bytes,
        )


def _note_absent_configuration(names: set[str]) -> None:
    """Say which configuration is not in the backup because it lies elsewhere, as Debian's does."""
    if names:
        logger.warning(
            "not in the data directory, and so not in the backup: %s; back the server's configuration up as well",
            ", ".join(sorted(names)),
        )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time that the block takes to a table."""
    start_s = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start_s
