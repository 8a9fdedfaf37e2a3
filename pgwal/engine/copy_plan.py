"""Which backups are to be copied to another repository: what is missing there, with what it builds on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pgwal.backup.backup_id import time_part
from pgwal.backup.chain import LATEST, check_link, is_superseded, newest, place_of, prior_id_among, resolve_chain
from pgwal.backup.entry import BackupEntry
from pgwal.errors import ChainError, MissingPriorBackup, ObjectExists, ObjectNotFound


@dataclass(slots=True)
class CopyPlan:
    """``wanted`` are the backups to copy, each behind what it builds on; ``left_out`` those that cannot be.

    ``expired`` are those that were copied once, and have gone since by the rules of the other side.
    """

    wanted: list[BackupEntry] = field(default_factory=list)
    left_out: list[tuple[str, ChainError]] = field(default_factory=list)
    expired: list[BackupEntry] = field(default_factory=list)


def plan_copy(
    source: Sequence[BackupEntry],
    target: Sequence[BackupEntry],
    named: Sequence[str] = (),
    copied_ids: Collection[str] = (),
) -> CopyPlan:
    """Decide what to copy: the ``named`` backups, or else all that are missing and not among ``copied_ids``.

    Chains go whole: what one builds on comes along unless it is there, be it as the full backup that it was merged
    into.  Raises ObjectNotFound for a named one that is not there, MissingPriorBackup or ChainError for one whose chain
    is not whole, ObjectExists where another backup has an id of these.
    """
    plan = _Planner(source, target)
    if named:
        for backup_id in named:
            plan.add(plan.named(backup_id))
        return plan.finish([])
    expired, left_out = [], list[tuple[str, ChainError]]()
    for entry in plan.candidates():
        if entry.backup_id in copied_ids:
            expired.append(entry)
            continue
        try:
            plan.add(entry)
        except ChainError as error:
            left_out.append((entry.backup_id, error))
    found = plan.finish(left_out)
    found.expired = expired
    return found


class _Planner:
    def __init__(self, source: Iterable[BackupEntry], target: Iterable[BackupEntry]) -> None:
        self._source = {entry.backup_id: entry for entry in source}
        self._target = {entry.backup_id: entry for entry in target}
        self._same_times = {time_part(backup_id): entry for backup_id, entry in self._target.items()}
        self._wanted: dict[str, BackupEntry] = {}

    def named(self, backup_id: str) -> BackupEntry:
        if backup_id == LATEST:
            return newest(self._source.values())
        if backup_id not in self._source:
            raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
        return self._source[backup_id]

    def candidates(self) -> list[BackupEntry]:
        """Return the backups that the target has in no form, oldest first."""
        return sorted(
            (
                entry
                for entry in self._source.values()
                if not is_superseded(entry, self._source) and not self._is_there_in_some_form(entry)
            ),
            key=place_of,
        )

    def _is_there_in_some_form(self, entry: BackupEntry) -> bool:
        if self._is_there(entry):
            return True
        other = self._same_times.get(time_part(entry.backup_id))
        if other is None or _position(other) != _position(entry):
            return False
        try:
            resolve_chain(self._target.values(), other.backup_id)
        except ChainError:
            return False
        return True

    def _is_there(self, entry: BackupEntry) -> bool:
        other = self._target.get(entry.backup_id)
        if other is None:
            return False
        if _position(other) != _position(entry):
            raise ObjectExists(
                f"there is another backup {entry.backup_id} there: it starts at {other.start_lsn}, this one at"
                f" {entry.start_lsn}",
                hint="They are of different histories of the cluster. Copy into another repository.",
                backup_id=entry.backup_id,
            )
        return True

    def add(self, entry: BackupEntry) -> None:
        """Have a backup copied, with what of its chain is not there."""
        chain: list[BackupEntry] = []
        passed = set[str]()
        at: BackupEntry | None = entry
        while at is not None:
            if at.backup_id in passed:
                raise ChainError(f"backup {entry.backup_id}: the chain goes in a circle at {at.backup_id}")
            passed.add(at.backup_id)
            if at.backup_id not in self._wanted and not self._is_there(at):
                chain.append(at)
            at = self._prior(at)
        self._wanted.update((each.backup_id, each) for each in chain)

    def _prior(self, entry: BackupEntry) -> BackupEntry | None:
        """Return what a backup builds on, as it is there or else here; None for a full one."""
        if entry.prior_id is None:
            return None
        there = self._target | self._wanted
        for known in (there, self._source):
            prior = known.get(prior_id_among(entry.prior_id, known))
            if prior is not None:
                check_link(entry, prior)
                return prior
        raise MissingPriorBackup(
            f"backup {entry.backup_id} builds on {entry.prior_id}, which is in neither repository",
            hint="It cannot be restored, and is not copied. Copy a backup of another chain, or take a full one.",
            backup_id=entry.backup_id,
        )

    def finish(self, left_out: list[tuple[str, ChainError]]) -> CopyPlan:
        return CopyPlan(sorted(self._wanted.values(), key=place_of), left_out)


def _position(entry: BackupEntry) -> tuple[int, int, int]:
    return entry.start_timeline_id, entry.start_lsn, entry.stop_lsn
