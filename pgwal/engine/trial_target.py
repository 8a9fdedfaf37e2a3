"""Where the recovery of a trial restore ends: at a target, or with the last record that is there now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from pgwal.backup.entry import BackupEntry
from pgwal.backup.recovery import RecoveryTarget, TargetAction
from pgwal.engine.recovery_window import target_history
from pgwal.engine.replay_forecast import ReplayForecast, end_of_wal_target, forecast_replay
from pgwal.engine.replayed_wal import CreatedTablespace, ReplayedWal, read_replayed_wal
from pgwal.errors import PgwalError, RecoveryTargetError
from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository

_END_OF_LSNS = Lsn((1 << 64) - 1)


class TrialTarget(NamedTuple):
    """A target that a trial's server reaches and is promoted at, and the WAL that it replays for that.

    ``parameters`` are what WAL raises settings to.  Where nobody named a target, ``stopped_before`` is the tablespace
    before whose creation recovery ends.
    """

    target: RecoveryTarget
    replay: ReplayForecast
    parameters: Mapping[str, int]
    stopped_before: CreatedTablespace | None


def find_trial_target(repository: Repository, entry: BackupEntry, wanted: RecoveryTarget) -> TrialTarget:
    """Return where recovery of a backup ends on its trial: never behind a record that leads to another place.

    What is received later was not looked at, and is not replayed.  Raises PgwalError when such a record is needed for
    the backup itself, RecoveryTargetError when it lies before the target that is ``wanted``.
    """
    history = target_history(repository, wanted.timeline, entry)
    replayed = read_replayed_wal(repository, history, entry.start_lsn, _END_OF_LSNS)
    first = replayed.tablespaces[0] if replayed.tablespaces else None
    if first is not None and first.lsn < entry.stop_lsn:
        raise PgwalError(
            f"backup {entry.backup_id} cannot be tried: while it was taken, {first} was created, and its server would"
            " write there",
            hint="Try a newer backup, or restore this one on another machine.",
        )
    # By its number, for a timeline that comes later was not looked at either.
    wanted = replace(wanted, timeline=history.timeline_id, action=TargetAction.PROMOTE if wanted.is_set else None)
    target = wanted if wanted.is_set else _end_of_wal(entry, replayed, first, history.timeline_id)
    replay = forecast_replay(repository, entry, target, replayed)
    if wanted.is_set and first is not None and first.lsn < replay.end_lsn:
        raise RecoveryTargetError(
            f"{target} cannot be tried: before it WAL creates {first}, and replaying that writes to that very place",
            hint=f"Choose a target before LSN {first.lsn}, or a backup that was taken behind it.",
        )
    parameters = replayed.parameters_before(_END_OF_LSNS)
    return TrialTarget(target, replay, parameters, None if wanted.is_set else first)


def _end_of_wal(
    entry: BackupEntry, replayed: ReplayedWal, first: CreatedTablespace | None, timeline: int
) -> RecoveryTarget:
    """Return the target that stands for the end of the WAL that is there, or for what comes before a tablespace."""
    if first is None:
        return end_of_wal_target(entry, replayed, timeline)
    return RecoveryTarget(lsn=first.lsn, exclusive=True, timeline=timeline, action=TargetAction.PROMOTE)
