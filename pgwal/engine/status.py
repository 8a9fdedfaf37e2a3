"""How a repository and its receiver stand: positions, lag, slot, and what of the WAL is there."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pgwal.backup.entry import BackupEntry
from pgwal.budget import RECEIVER_SILENT_S
from pgwal.engine.backup_window import missing_since
from pgwal.engine.coverage import TimelineCoverage, read_coverage
from pgwal.engine.kept_wal import read_kept_wal
from pgwal.errors import ChainError, WrongCluster
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.connection import ConnectionParameters, connect_sql
from pgwal.postgres.server import current_flush_lsn, read_server_facts
from pgwal.postgres.slots import SlotFacts, read_slot
from pgwal.repository.catalogue import UnreadableBackup
from pgwal.repository.repository import ReceiverState, Repository

# ---- the repository ----


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
    unreadable: list[UnreadableBackup]
    """Backups that do not count, because their entries cannot be read."""

    @property
    def silent_s(self) -> float | None:
        """How many seconds ago the receiver was last heard of; None when it never was."""
        if self.receiver is None or self.receiver.updated_at is None:
            return None
        return max(0.0, time.time() - self.receiver.updated_at)

    @property
    def is_silent(self) -> bool:
        """Whether that is longer ago than it is of a receiver that works."""
        return (self.silent_s or 0.0) > RECEIVER_SILENT_S


def read_repository_status(repository: Repository) -> RepositoryStatus:
    """Look at a repository, which a receiver may be writing to.

    Raises RepositoryError, or FormatError for a damaged history file.
    """
    # In this order: what the receiver says it has is there when one looks for it later.
    receiver = repository.receiver_state()
    is_running = repository.receiver_is_running()
    entries, unreadable = repository.catalogue.survey()
    kept = None if unreadable else read_kept_wal(repository, entries)
    coverage = read_coverage(repository, receiver, kept)
    newest = entries[-1] if entries else None
    missing: list[LsnRange] = []
    problem = None
    if newest is not None and receiver is not None:
        try:
            missing = missing_since(repository, newest, receiver, coverage)
        except ChainError as error:
            problem = str(error)
    return RepositoryStatus(repository, is_running, receiver, coverage, newest, missing, problem, unreadable)


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

    @property
    def lasts(self) -> bool:
        """Whether it is known to last longer than that of a receiver that works."""
        return (self.seconds or 0.0) > RECEIVER_SILENT_S


def lag_behind(server: ServerStatus, receiver: ReceiverState) -> Lag:
    """Compare a receiver's state with the server, which was asked after the state was read."""
    size_bytes = max(0, server.flush_lsn - receiver.flushed_lsn)
    if not size_bytes:
        return Lag(0, 0.0)
    return Lag(size_bytes, None if receiver.level_at is None else max(0.0, time.time() - receiver.level_at))
