"""Audit a server at any time: does the block map hold every block that has changed since a backup started?

Nothing is copied.  Of the blocks that an incremental backup would leave out now, a sample is read; a page whose LSN
lies in the window tells of a block that was missed.  What the server has changed in its memory alone cannot be seen:
changes before its last checkpoint started are in the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import NamedTuple

from pgwal.backup.entry import BackupEntry
from pgwal.backup.source import BlockSource, SourceFile
from pgwal.backup.walk import with_prior_sizes
from pgwal.budget import AUDIT_MAPS, SUSPECTED_BLOCKS
from pgwal.control_file import ControlFile
from pgwal.engine.audit_sample import AuditSample
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.backup_window import choose_prior_entry, open_prior_repository, window_since
from pgwal.engine.block_audit import AuditTally, BlockAudit
from pgwal.engine.copied_file import Item, PlannedFile, grouped
from pgwal.engine.missed_blocks import Judge
from pgwal.engine.prepare_backup import directories_to_empty, prepare_backup
from pgwal.engine.receiving import ReceivedWal, receiving
from pgwal.engine.record_chain import read_record
from pgwal.engine.summarize import read_received_changes
from pgwal.engine.workers import Pace, Workers
from pgwal.errors import BrokenInvariant, ChainError, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.connection import Connection, connect_sql
from pgwal.postgres.server import ServerFacts, current_flush_lsn
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap


@dataclass(slots=True)
class AuditReport:
    """What an audit did; ``window`` is from where ``prior`` started to where WAL was received when it began.

    ``flushed_until`` is where the server's last checkpoint before that started: what changed earlier is in its files.
    """

    prior: BackupEntry
    window: list[LsnRange]
    flushed_until: Lsn
    tally: AuditTally
    seconds: float


def audit(request: BackupRequest, on_progress: Callable[[int, int], None] | None = None) -> AuditReport:
    """Audit the blocks that an incremental backup, as requested, would leave out; what is missed is in the report.

    While no receiver runs, one runs here, and no backup can be taken meanwhile; the backup that an incremental would
    build on cannot be removed.  ``on_progress`` is told of (bytes read, bytes to read).  Raises as ``take_backup`` does
    for an incremental backup that is not possible.
    """
    started_s = time.monotonic()
    with connect_sql(request.parameters) as connection, ExitStack() as resources:
        facts, sources = resources.enter_context(prepare_backup(request, connection))
        if request.audit is None:
            raise BrokenInvariant("an audit needs a sample")
        repository = open_prior_repository(request, facts)
        # Refused before WAL is received where there is nothing to begin with.
        with suppress(WalGap):
            choose_prior_entry(repository, request, facts)
        if not repository.receiver_is_running():
            # A backup that began meanwhile would rely on the receiver that ends with the audit.
            resources.enter_context(repository.lock_backups())
        received = receiving(
            repository,
            request.parameters,
            request.slot,
            skip_removed=False,
            from_restart_point=facts.in_recovery,
            on_failure=lambda: _cut(connection, sources),
        )
        received_wal = resources.enter_context(received)
        # After a promotion, the history of the server's timeline comes with its WAL.
        prior = choose_prior_entry(repository, request, facts)
        if prior is None:
            raise BrokenInvariant("an audit needs a backup that its window starts with")
        resources.enter_context(repository.catalogue.hold(prior.backup_id))
        wal = _ServersWal(repository, facts, connection, prior, received_wal)
        work = _Audit(request, repository, facts, sources, wal, prior)
        tally = work.run(request.audit, on_progress)
        return AuditReport(prior, work.window, work.flushed_until, tally, time.monotonic() - started_s)


def _cut(connection: Connection, sources: Iterable[BlockSource]) -> None:
    connection.cut()
    for source in sources:
        source.cut()


class _ServersWal:
    """WAL of the server from where the prior backup started."""

    def __init__(
        self,
        repository: Repository,
        facts: ServerFacts,
        connection: Connection,
        prior: BackupEntry,
        received: ReceivedWal,
    ) -> None:
        self._repository = repository
        self._facts = facts
        self._connection = connection
        self._prior = prior
        self._received = received

    def check(self) -> None:
        """Raise the receiver's own error if it has ended."""
        self._received.check()

    def changes_until_now(self) -> tuple[BlockMap, list[LsnRange]]:
        """Wait for what the server has written by now, and return what it changes, and where.

        A page that was read before has its record in there: the server writes no page before its WAL.  Raises as
        ``read_changes``.
        """
        end = current_flush_lsn(self._connection)
        if end < self._prior.start_lsn:
            raise ChainError(
                f"the server is at {end}, before backup {self._prior.backup_id} started at {self._prior.start_lsn}",
                hint="Check the connection. A server that was put back to an earlier state needs a full backup.",
            )
        self._received.wait_until_written(self._facts.timeline_id, end)
        ranges = window_since(self._repository, self._prior, self._facts.timeline_id, end)
        return read_received_changes(self._repository, ranges)

    def require_checkpoint(self, control: ControlFile) -> None:
        """Raise TimelineMismatch unless the archive has the checkpoint record that pg_control has a copy of.

        That of a standby may lie before the window.  Until a server that was promoted has made one, it is of an older
        timeline, of which the archive may have summaries alone.
        """
        # Not above: they take long to import.
        from pgwal.wal.checkpoint import require_pg_controls_checkpoint
        from pgwal.wal.record import WalRecord

        if self._facts.in_recovery and control.checkpoint_lsn < self._prior.start_lsn:
            return
        found = read_record(self._repository, control.timeline_id, control.checkpoint_lsn)
        if control.timeline_id == self._facts.timeline_id or isinstance(found, WalRecord):
            require_pg_controls_checkpoint(control, found)


class _Mapped(NamedTuple):
    """A block map that begins where the window does, and where it ends."""

    changes: BlockMap
    until: Lsn


class _Audit:
    """One audit under way."""

    def __init__(
        self,
        request: BackupRequest,
        repository: Repository,
        facts: ServerFacts,
        sources: Sequence[BlockSource],
        wal: _ServersWal,
        prior: BackupEntry,
    ) -> None:
        self._request = request
        self._repository = repository
        self._facts = facts
        self._sources = sources
        self._wal = wal
        self._prior = prior
        # Before WAL is waited for: what it names is in there.
        control = ControlFile.decode(sources[0].read_control_file())
        self.flushed_until = control.redo_lsn
        changes, self.window = wal.changes_until_now()
        wal.require_checkpoint(control)
        self._mapped = _Mapped(changes, self.window[-1].end)
        self._judge = Judge(repository, self.window, data_checksums=facts.data_checksums)

    def run(self, sample: AuditSample, on_progress: Callable[[int, int], None] | None) -> AuditTally:
        audit = BlockAudit(sample, self._prior.start_lsn)
        pace = Pace(on_passed=None if on_progress is None else self._progress(sample, on_progress))

        def look(source: BlockSource, items: Sequence[Item]) -> None:
            changes, until = self._mapped
            planned = [PlannedFile.of(item.file, item.prior_size_bytes, changes) for item in items]
            audit.look(source, list(zip(items, planned, strict=True)), until, pace.take)

        # One source lists while the others read.
        workers = Workers(self._sources[1:] or self._sources, pace, lambda source: source.cut())
        with closing(workers.map(look, grouped(self._items()))) as results:
            for _ in results:
                self._wal.check()
                if audit.suspect_count > SUSPECTED_BLOCKS:
                    audit.settle(self._judge, self._sources[0], self._maps())
        audit.settle(self._judge, self._sources[0], self._maps())
        return audit.tally

    def _maps(self) -> Iterator[BlockMap]:
        """Yield what has changed until now, again and again; what is looked at later is planned by the newest one."""
        for _ in range(AUDIT_MAPS):
            changes, window = self._wal.changes_until_now()
            self._mapped = _Mapped(changes, window[-1].end)
            yield changes

    def _items(self) -> Iterator[Item]:
        facts = self._facts
        emptied = directories_to_empty(facts, facts.tablespaces, self._request.data_directory)
        prior_files = self._repository.catalogue.files(self._prior.backup_id)
        for item, prior_size_bytes in with_prior_sizes(self._sources[0].list(emptied), prior_files):
            if isinstance(item, SourceFile):
                yield Item(item, prior_size_bytes)

    def _progress(self, sample: AuditSample, on_progress: Callable[[int, int], None]) -> Callable[[int], None]:
        """Return what is told of each number of bytes."""
        changes = self._mapped.changes
        total_bytes, done_bytes = 0, 0
        for item in self._items():
            total_bytes += sample.expected_bytes(PlannedFile.of(item.file, item.prior_size_bytes, changes))

        def advance(size_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += size_bytes
            # How much it will be is not known exactly.
            on_progress(done_bytes, max(done_bytes, total_bytes))

        return advance
