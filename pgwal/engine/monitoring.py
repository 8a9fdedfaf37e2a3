"""What a monitoring system is told: how bad it stands with a repository and its receiver, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

from pgwal.engine.coverage import read_recoverable_ranges
from pgwal.engine.status import RepositoryStatus, ServerStatus, lag_behind, read_repository_status
from pgwal.repository.repository import Repository


class Level(IntEnum):
    """How bad it is, by the exit codes of plugins of Nagios, which other monitoring systems take as well."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Judgement(NamedTuple):
    """One thing that is so, in a few words, and how bad that is."""

    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What was read: the repository, whether its newest backup can be restored, and the server, None unless reached."""

    repository: RepositoryStatus
    newest_is_recoverable: bool
    server: ServerStatus | None


def observe(repository: Repository, server: ServerStatus | None) -> Observed:
    """Look at a repository, as ``read_repository_status`` does; raises as that."""
    status = read_repository_status(repository)
    newest = status.newest_backup
    ranges = {} if newest is None else read_recoverable_ranges(repository, [newest])
    return Observed(status, newest is not None and ranges[newest.backup_id] is not None, server)


def judge(observed: Observed, max_age_s: float) -> list[Judgement]:
    """Return what there is to say, the worst first; of a backup older than ``max_age_s`` seconds a warning."""
    found = [*_backups(observed, max_age_s), *_wal(observed.repository), *_receiver(observed), *_slot(observed.server)]
    return sorted(found, key=lambda judgement: -judgement.level)


def _backups(observed: Observed, max_age_s: float) -> Iterator[Judgement]:
    status = observed.repository
    newest = status.newest_backup
    for backup in status.unreadable:
        yield Judgement(Level.WARNING, f"backup {backup.backup_id} cannot be read")
    if newest is None:
        yield Judgement(Level.CRITICAL, "there is no backup")
        return
    if not observed.newest_is_recoverable:
        yield Judgement(Level.CRITICAL, f"backup {newest.backup_id} cannot be restored: WAL that it needs is missing")
    age_s = max(0.0, time.time() - datetime.fromisoformat(newest.finished_at).timestamp())
    level = Level.OK if age_s <= max_age_s else Level.WARNING
    yield Judgement(level, f"newest backup {age_s / 3600:.1f} h old")


def _wal(status: RepositoryStatus) -> Iterator[Judgement]:
    if status.chain_problem is not None:
        yield Judgement(Level.WARNING, f"no incremental can build on the newest backup: {status.chain_problem}")
    if status.missing:
        first = status.missing[0]
        yield Judgement(Level.CRITICAL, f"WAL is missing since the newest backup: {first.start} to {first.end}")


def _receiver(observed: Observed) -> Iterator[Judgement]:
    state = observed.repository.receiver
    if not observed.repository.receiver_is_running:
        yield Judgement(Level.CRITICAL, "no receiver is running")
    elif observed.repository.is_silent:
        yield Judgement(Level.WARNING, f"the receiver was last heard of {observed.repository.silent_s:.0f} s ago")
    else:
        yield Judgement(Level.OK, "receiver running")
    if observed.server is None:
        yield Judgement(Level.WARNING, "the server was not reached")
    elif state is not None:
        lag = lag_behind(observed.server, state)
        level = Level.WARNING if lag.lasts else Level.OK
        yield Judgement(level, f"{lag.size_bytes} bytes behind the server")


def _slot(server: ServerStatus | None) -> Iterator[Judgement]:
    if server is None or server.slot_name is None:
        return
    if server.slot is None:
        yield Judgement(Level.CRITICAL, f"slot {server.slot_name} does not exist")
    elif server.slot.wal_status == "lost":
        yield Judgement(Level.CRITICAL, f"slot {server.slot_name} has lost WAL")
    elif not server.slot.active:
        retained = "" if server.retained_bytes is None else f", and retains {server.retained_bytes} bytes"
        yield Judgement(Level.WARNING, f"slot {server.slot_name} is not in use{retained}")
