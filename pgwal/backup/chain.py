"""Chains of backups: what a backup builds on, and what a new one is to build on."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from pgwal.backup.backup_id import merged_ids, time_part
from pgwal.backup.entry import BackupEntry
from pgwal.errors import ChainError, MissingPriorBackup, ObjectNotFound, TimelineMismatch, WrongCluster
from pgwal.lsn import Lsn
from pgwal.timeline import TimelineHistory

LATEST = "latest"


def place_of(entry: BackupEntry) -> tuple[int, Lsn, str]:
    """Return what sorts backups by age: timeline and start LSN, which no clock decides, and then the id."""
    return entry.start_timeline_id, entry.start_lsn, entry.backup_id


def prior_id_among(prior_id: str, ids: Container[str]) -> str:
    """Return the id of what builds a prior backup's part now: the full one that it was merged into, if that is there.

    That holds the same files as of the same position, and no two backups have ids of the same time otherwise.
    """
    return next((merged for merged in merged_ids(prior_id) if merged in ids), prior_id)


def prior_of(entry: BackupEntry, by_id: Mapping[str, BackupEntry]) -> BackupEntry | None:
    """Return what a backup builds on, see ``prior_id_among``; None for a full one, and for what is not there."""
    return None if entry.prior_id is None else by_id.get(prior_id_among(entry.prior_id, by_id))


def root_of(entry: BackupEntry, by_id: Mapping[str, BackupEntry]) -> BackupEntry:
    """Return what a backup builds on in the end, as far as that is there: mostly the full one of its chain."""
    passed = {entry.backup_id}
    while (prior := prior_of(entry, by_id)) is not None and prior.backup_id not in passed:
        passed.add(prior.backup_id)
        entry = prior
    return entry


def is_superseded(entry: BackupEntry, ids: Container[str]) -> bool:
    """Tell whether an incremental backup has been merged into a full one that is there."""
    return entry.prior_id is not None and any(merged in ids for merged in merged_ids(entry.backup_id))


def newest(entries: Iterable[BackupEntry]) -> BackupEntry:
    """Return the newest backup, in the form in which it counts; raises ObjectNotFound when there is none."""
    by_id = {entry.backup_id: entry for entry in entries}
    if not by_id:
        raise ObjectNotFound("there is no backup yet", hint="Take one with pgwal full.")
    return max((entry for entry in by_id.values() if not is_superseded(entry, by_id)), key=place_of)


def restored_by_default(entries: Iterable[BackupEntry], histories: Mapping[int, TimelineHistory]) -> BackupEntry | None:
    """Return the backup that a restore takes which is told nothing, None when there is none.

    That is the one that ended last of those on the history of the latest timeline that follows theirs.
    """
    for entry in sorted(entries, key=by_end, reverse=True):
        timeline_id = latest_timeline(entry, histories.__contains__)
        if is_on_history(entry, histories.get(timeline_id, TimelineHistory(timeline_id))):
            return entry
    return None


def latest_timeline(entry: BackupEntry, is_known: Callable[[int], bool]) -> int:
    """Return the latest timeline as the server looks for it: by the history files that follow each other."""
    timeline_id = entry.stop_timeline_id
    while is_known(timeline_id + 1):
        timeline_id += 1
    return timeline_id


def by_end(entry: BackupEntry) -> tuple[Lsn, str, bool]:
    """Return what sorts backups for a restore: by where they ended, from where on recovery may stop."""
    return entry.stop_lsn, *by_time(entry)


def resolve_chain(entries: Iterable[BackupEntry], backup_id: str) -> list[BackupEntry]:
    """Return a backup and all that it builds on, newest first, ending with a full one.

    Raises ObjectNotFound when there is no such backup, MissingPriorBackup when one that it builds on is gone,
    ChainError when they go in a circle or do not belong together.
    """
    by_id = {entry.backup_id: entry for entry in entries}
    if backup_id not in by_id:
        raise ObjectNotFound(f"there is no backup {backup_id}", hint="List the backups with pgwal list.")
    chain = [by_id[backup_id]]
    passed = {backup_id}
    while chain[-1].prior_id is not None:
        entry, prior_id = chain[-1], prior_id_among(chain[-1].prior_id, by_id)
        if prior_id in passed:
            raise ChainError(f"backup {backup_id}: the chain goes in a circle at {prior_id}")
        if prior_id not in by_id:
            raise MissingPriorBackup(
                f"backup {entry.backup_id} builds on {prior_id}, which is not there", hint="Take a full backup."
            )
        check_link(entry, by_id[prior_id])
        passed.add(prior_id)
        chain.append(by_id[prior_id])
    return chain


def check_link(entry: BackupEntry, prior: BackupEntry) -> None:
    """Check that a finished backup can build on ``prior``; raises ChainError.

    The prior backup must have ended first: what it copied late may be as new as its end, and recovery of ``entry``
    counts as consistent once it has replayed to the end of ``entry``.
    """
    of_cluster = [
        (backup.system_identifier, backup.major, backup.wal_segment_size, backup.data_checksums)
        for backup in (entry, prior)
    ]
    if of_cluster[0] != of_cluster[1]:
        raise ChainError(f"backup {entry.backup_id} and its prior {prior.backup_id} are not of the same cluster")
    if prior.start_lsn > entry.start_lsn or prior.start_timeline_id > entry.start_timeline_id:
        raise ChainError(f"backup {entry.backup_id} starts before its prior {prior.backup_id}")
    if prior.stop_lsn > entry.stop_lsn or prior.stop_timeline_id > entry.stop_timeline_id:
        raise ChainError(f"backup {entry.backup_id} ends before its prior {prior.backup_id}")


def require_same_cluster(
    prior: BackupEntry, *, system_identifier: int, major: int, wal_segment_size: int, data_checksums: bool
) -> None:
    """Check that a backup of this cluster can build on ``prior``.

    Raises WrongCluster for another system identifier, ChainError for what a cluster can only change offline.
    """
    if prior.system_identifier != system_identifier:
        raise WrongCluster(
            f"backup {prior.backup_id} is of the cluster with system identifier {prior.system_identifier}, the"
            f" server's is {system_identifier}",
            hint="Use another repository for each cluster.",
        )
    changes = (
        ("the major version", prior.major, major),
        ("the WAL segment size", prior.wal_segment_size, wal_segment_size),
        ("whether data checksums are on", prior.data_checksums, data_checksums),
    )
    for what, before, now in changes:
        if before != now:
            raise ChainError(
                f"{what} changed from {before} to {now} since backup {prior.backup_id}", hint="Take a full backup."
            )


def choose_prior(entries: Iterable[BackupEntry], since: Lsn | str, history: TimelineHistory) -> BackupEntry:
    """Return the backup that a new one on ``history`` builds on.

    ``since`` is an id, an LSN (the newest backup that started at or before it), or "latest" (the newest by start
    LSN).  Of those that qualify, one whose chain is not whole does not stand in the way of one whose chain is.  Raises
    ObjectNotFound for an id that is not there, MissingPriorBackup when no backup qualifies or no chain is whole,
    TimelineMismatch when those that would qualify left the history.
    """
    candidates = list(entries)
    if isinstance(since, str) and since != LATEST and "/" not in since:
        prior = resolve_chain(candidates, since)[0]
        _require_on_history(prior, history)
        return prior
    newest_first = _newest_first(candidates, None if since == LATEST else _to_lsn(since), history)
    for prior in newest_first:
        try:
            resolve_chain(candidates, prior.backup_id)
        except ChainError:
            continue
        return prior
    return resolve_chain(candidates, newest_first[0].backup_id)[0]


def _to_lsn(since: Lsn | str) -> Lsn:
    return Lsn.parse(since) if isinstance(since, str) else since


def _newest_first(
    candidates: list[BackupEntry], latest_start: Lsn | None, history: TimelineHistory
) -> list[BackupEntry]:
    if not candidates:
        raise MissingPriorBackup("there is no backup yet", hint="Take a full backup.")
    early_enough = [entry for entry in candidates if latest_start is None or entry.start_lsn <= latest_start]
    if not early_enough:
        oldest = min(candidates, key=_by_start)
        raise MissingPriorBackup(
            f"no backup started at or before {latest_start}",
            hint=f"The oldest is {oldest.backup_id}, which started at {oldest.start_lsn}.",
        )
    on_history = [entry for entry in early_enough if off_history(entry, history) is None]
    if not on_history:
        _require_on_history(max(early_enough, key=_by_start), history)
    return sorted(on_history, key=_by_start, reverse=True)


def _by_start(entry: BackupEntry) -> tuple[Lsn, str, bool]:
    return entry.start_lsn, *by_time(entry)


def by_time(entry: BackupEntry) -> tuple[str, bool]:
    """Return what sorts backups by their ids; of one that was merged the full one is the later: less is read of it."""
    return time_part(entry.backup_id), entry.prior_id is None


def _require_on_history(entry: BackupEntry, history: TimelineHistory) -> None:
    problem = off_history(entry, history)
    if problem is not None:
        raise TimelineMismatch(f"backup {entry.backup_id} {problem}", hint="Take a full backup.")


def is_on_history(entry: BackupEntry, history: TimelineHistory) -> bool:
    """Tell whether a backup lies on the history of a timeline altogether, and so can be recovered along it."""
    return off_history(entry, history) is None


def off_history(entry: BackupEntry, history: TimelineHistory) -> str | None:
    """Return how a backup left the history of a timeline, None when it lies on it altogether.

    The end counts as well as the start: a backup that went on after the cluster had left its timeline holds blocks
    of a future that did not happen, and no window would list them.
    """
    for what, timeline_id, lsn in (
        ("started", entry.start_timeline_id, entry.start_lsn),
        ("ended", entry.stop_timeline_id, entry.stop_lsn),
    ):
        if not _is_on_history(history, timeline_id, lsn):
            return f"{what} at {lsn} on timeline {timeline_id}, not in the history of timeline {history.timeline_id}"
    return None


def _is_on_history(history: TimelineHistory, timeline_id: int, lsn: Lsn) -> bool:
    begin = Lsn(0)
    for switch in history.switches:
        if switch.timeline_id == timeline_id:
            return begin <= lsn <= switch.switch_lsn
        begin = switch.switch_lsn
    return timeline_id == history.timeline_id and lsn >= begin
