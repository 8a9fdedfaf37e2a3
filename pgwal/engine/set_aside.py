"""Move what the archive holds of a history that the server has lost out of the way, without deleting any of it.

What is moved lies below ``set_aside/`` as it lay in the repository: WAL, summaries, and the backups that end behind
the place where the histories part, with all that build on them.  A crash in between leaves less to move: what depends
on other things goes first, and the newest WAL before older.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import count

from pgwal.backup.entry import BackupEntry
from pgwal.lsn import Lsn
from pgwal.repository.layout import BACKUP_DIRECTORY, SET_ASIDE_DIRECTORY, SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.repository import Repository
from pgwal.repository.store import move, objects_in
from pgwal.repository.wal_file_name import PARTIAL_SUFFIX, split_segment_name
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
        for name in names:
            logger.warning("moving %s to %s", name, place)
            if _segment_of(name) == repository.geometry.file_name(timeline_id, repository.geometry.segment_no(lsn)):
                _divide(repository, name, f"{place}/{name}", lsn)
            else:
                move(repository.store, name, f"{place}/{name}")
    return names


def _segment_of(name: str) -> str:
    return split_segment_name(name.removeprefix(f"{WAL_DIRECTORY}/"))[0]


def _divide(repository: Repository, name: str, new_name: str, lsn: Lsn) -> None:
    """Move a segment file aside whole, and leave what it holds from before ``lsn``; a crash in between loses nothing.

    The server may have less than that: WAL that it has removed is in the archive alone.
    """
    store, segment = repository.store, _segment_of(name)
    common = repository.wal.read_segment(segment)[: lsn % repository.geometry.segment_size]
    partial = f"{WAL_DIRECTORY}/{segment}{PARTIAL_SUFFIX}"
    if not common:
        move(store, name, new_name)
    elif name == partial:
        store.put(new_name, store.get(name, most_bytes=repository.geometry.segment_size))
        store.put(partial, common, replace=True)
    else:
        # Beside the whole one it does not count.
        store.put(partial, common, replace=True)
        move(store, name, new_name)


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
        ends_behind = entry.stop_timeline_id in lost and entry.stop_lsn > lost[entry.stop_timeline_id]
        if (
            ends_behind
            or (entry.start_timeline_id in lost and not lost[entry.start_timeline_id])
            or entry.prior_id in found
        ):
            found.append(entry.backup_id)
    return found[::-1]
