"""Move what the archive holds of a history that the server has lost out of the way, without deleting any of it.

What is moved lies below ``set_aside/`` as it lay in the repository: WAL, summaries, and the backups that end behind
the place where the histories part, with all that build on them.  A crash in between leaves less to move: what depends
on other things goes first, and the newest WAL before older.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count

from pgwal.backup.backup_id import merged_ids
from pgwal.backup.entry import BackupEntry
from pgwal.lsn import Lsn
from pgwal.repository.layout import BACKUP_DIRECTORY, SET_ASIDE_DIRECTORY, SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.repository import Repository
from pgwal.repository.store import move, objects_in, store_again
from pgwal.repository.wal_file_name import PARTIAL_SUFFIX, partial_end, split_segment_name
from pgwal.segment import is_segment_name
from pgwal.summary.codec import summary_file_name
from pgwal.timeline import history_file_name

logger = logging.getLogger(__name__)


def set_aside(repository: Repository, timeline_id: int, lsn: Lsn) -> list[str]:
    """Move aside WAL of a timeline from ``lsn`` on, all of the timelines that left it behind that, and what needs it.

    Of the segment that holds ``lsn`` what lies before it stays, as a segment that is not complete.  Returns the names
    of what was moved.  Raises RepositoryLocked while a backup is taken or restored, RepositoryError, FormatError.
    """
    with repository.lock_backups(), repository.hold_all_backups(exclusive=True):
        lost = {timeline_id: lsn, **dict.fromkeys(_descendants(repository, timeline_id, lsn), Lsn(0))}
        names = list(_names(repository, lost))
        place = _place(repository, timeline_id, lsn)
        divided = [name for name in names if _segment_of(name) == _segment_at(repository, timeline_id, lsn)]
        for name in names:
            logger.warning("moving %s to %s", name, place)
            if name not in divided:
                move(repository.store, name, f"{place}/{name}")
            elif name == divided[0]:
                # With all files that there are of it: to change one may delete another, in a spool's store.
                _divide(repository, divided, place, lsn)
    return names


def _segment_of(name: str) -> str:
    return split_segment_name(name.removeprefix(f"{WAL_DIRECTORY}/"))[0]


def _segment_at(repository: Repository, timeline_id: int, lsn: Lsn) -> str:
    return repository.geometry.file_name(timeline_id, repository.geometry.segment_no(lsn))


def _divide(repository: Repository, names: Sequence[str], place: str, lsn: Lsn) -> None:
    """Move a segment's files aside whole, and leave what it holds from before ``lsn``; no crash loses any of it.

    The server may have less than that: WAL that it has removed is in the archive alone.
    """
    store, segment = repository.store, _segment_of(names[0])
    common = repository.wal.read_segment(segment)[: lsn % repository.geometry.segment_size]
    if not common:
        for name in names:
            move(store, name, f"{place}/{name}")
        return
    partial = f"{WAL_DIRECTORY}/{segment}{PARTIAL_SUFFIX}"
    whole = [name for name in names if split_segment_name(name)[2]]
    copied = [name for name in names if name not in whole]
    # Before anything takes their place.
    for name in copied:
        store_again(store, name, f"{place}/{name}")
    # Beside a whole one it does not count.
    store.put(partial, common, replace=True)
    for name in whole:
        move(store, name, f"{place}/{name}")
    for name in copied:
        # One that ends there is what a store has of the common part.
        if name != partial and partial_end(name.removeprefix(f"{WAL_DIRECTORY}/")) != lsn and store.exists(name):
            store.delete(name)


def _place(repository: Repository, timeline_id: int, lsn: Lsn) -> str:
    """Return a directory that is not there yet: things of the same names may be moved within one second."""
    name = f"{SET_ASIDE_DIRECTORY}/{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{timeline_id:08X}_{lsn:016X}"
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    return next(name for name in names if not repository.store.exists(name))


def _descendants(repository: Repository, timeline_id: int, lsn: Lsn) -> Iterator[int]:
    """Yield the timelines whose history goes through the timeline's lost part."""
    for history in repository.wal.histories():
        end = history.end_of(timeline_id)
        if end is not None and end > lsn:
            yield history.timeline_id


def _names(repository: Repository, lost: dict[int, Lsn]) -> Iterator[str]:
    yield from (f"{BACKUP_DIRECTORY}/{backup_id}" for backup_id in _lost_backups(repository.catalogue.entries(), lost))
    for part in reversed(repository.summaries.ranges()):
        if part.timeline_id in lost and part.end > lost[part.timeline_id]:
            yield f"{SUMMARY_DIRECTORY}/{summary_file_name(part)}"
    geometry = repository.geometry
    for name, _ in reversed(objects_in(repository.store, WAL_DIRECTORY)):
        base, _, _ = split_segment_name(name)
        if is_segment_name(base):
            of_timeline, number = geometry.parse_file_name(base)
            if of_timeline in lost and geometry.segment_start(number + 1) > lost[of_timeline]:
                yield f"{WAL_DIRECTORY}/{name}"
    # Last: while one is there, its timeline counts.
    for of_timeline in sorted(lost, reverse=True):
        if of_timeline in repository.wal.history_timelines() and not lost[of_timeline]:
            yield f"{WAL_DIRECTORY}/{history_file_name(of_timeline)}"


def _lost_backups(entries: Iterable[BackupEntry], lost: dict[int, Lsn]) -> list[str]:
    """Return the backups that hold something of what is lost, or build on one that does, newest first."""
    found: list[str] = []
    for entry in sorted(entries, key=lambda entry: (entry.start_lsn, entry.backup_id)):
        found_ids = set(found)
        ends_behind = entry.stop_timeline_id in lost and entry.stop_lsn > lost[entry.stop_timeline_id]
        if (
            ends_behind
            or (entry.start_timeline_id in lost and not lost[entry.start_timeline_id])
            or entry.prior_id in found
            or (entry.prior_id is not None and not found_ids.isdisjoint(merged_ids(entry.prior_id)))
        ):
            found.append(entry.backup_id)
    return found[::-1]
