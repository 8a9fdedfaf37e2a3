"""The WAL of a backup: proven to be the server's, and in the archive from the backup's start to its stop.

A segment's name, and that of a timeline, says nothing about whose WAL it is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pgwal.backup.label import BackupLabel
from pgwal.budget import FIRST_LOOK_S, LONGEST_LOOK_S
from pgwal.control_file import ControlFile
from pgwal.engine.receiving import ReceivedWal
from pgwal.engine.record_chain import read_record, records
from pgwal.engine.summarize import read_changes
from pgwal.errors import TimelineMismatch, WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.server import ServerFacts
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap

if TYPE_CHECKING:
    from pgwal.wal.record import WalRecord

_LONGEST_BACKUP_END = 128
"""Bytes from the start of the record that ends a backup to its end, page header included, are fewer."""


_NOT_PUBLISHED = "the backup is not published, for WAL that it needs is missing"
_AGAIN_HINT = "Take it again. With a slot, the server keeps WAL until it is received."
_RESTART_POINT_HINT = (
    "A backup of a standby starts at its last restart point, which lies before what was received: run CHECKPOINT on the"
    " primary, wait until the standby has replayed it, and take the backup again."
)


class BackupWal:
    """The WAL of one backup, which begins and ends on the timeline of ``facts``."""

    def __init__(
        self, repository: Repository, facts: ServerFacts, wal: ReceivedWal, start_lsn: Lsn, control: ControlFile
    ) -> None:
        """``control`` is the server's, read after the backup has started at ``start_lsn``."""
        self._repository = repository
        self._facts = facts
        self._wal = wal
        self._start_lsn = start_lsn
        self._start_control = control
        self._is_servers = False
        """Whether the archive has been seen to have the server's checkpoint."""
        self._look_s = FIRST_LOOK_S
        self._looks_at_s = time.monotonic() + FIRST_LOOK_S

    @property
    def _waits_for_partial(self) -> bool:
        """Whether WAL of the segment in which the backup starts is waited for before that is whole.

        In an object store that takes seconds, and some requests, and a primary begins a segment for the backup: nothing
        of it belongs to what came before, so that only the proof is wanted, which the end brings at the latest.
        """
        return self._facts.in_recovery or not self._repository.place.is_remote

    def begin(self) -> None:
        """Wait for the checkpoint that pg_control names, and return when the archive has that very record.

        In an object store that may be left to ``check`` and to ``require_whole``.
        Raises TimelineMismatch where the archive has something else, WalGap where it does not begin at the backup's
        start.
        """
        self._require_timeline(self._start_control)
        if self._waits_for_partial:
            self._wal.wait_until_written(self._start_control.timeline_id, self._checkpoint_end)
            self._require_servers()

    def wait_for_window(self) -> None:
        """Wait until WAL from before the backup's start can be read."""
        self._wal.wait_until_written(self._facts.timeline_id, self._end_before)

    @property
    def _end_before(self) -> Lsn:
        """Up to where there is WAL before the backup's start, which may follow the header of a segment."""
        geometry = self._repository.geometry
        segment = geometry.segment_start(geometry.segment_no(self._start_lsn))
        is_first = geometry.first_record_position(segment) == self._start_lsn
        return segment if is_first and not self._waits_for_partial else self._start_lsn

    def read_window(self, window: list[LsnRange]) -> BlockMap:
        """Return what WAL before the backup's start changes, in ranges that end there, proven complete.

        Whose it is may be known only later: while backups are locked, none is moved aside for that of another history.
        Raises as ``read_changes``.
        """
        last = window[-1]
        ranges = [*window[:-1], last._replace(end=max(last.start, min(last.end, self._end_before)))]
        return read_changes(self._repository, ranges)

    def check(self) -> None:
        """Raise what makes the backup of no use, the receiver's own error among it, as soon as that can be seen."""
        self._wal.check()
        if self._is_servers or time.monotonic() < self._looks_at_s:
            return
        state = self._wal.receiver_state()
        if state is not None and state.flushed_lsn >= self._checkpoint_end:
            self._require_servers()
        self._look_s = min(2 * self._look_s, LONGEST_LOOK_S)
        self._looks_at_s = time.monotonic() + self._look_s

    @property
    def _checkpoint_end(self) -> Lsn:
        # Here, and not above: it takes as long to import as the record takes to arrive.
        from pgwal.wal.checkpoint import checkpoint_record_end

        geometry, major = self._repository.geometry, self._repository.identity.major
        return checkpoint_record_end(self._start_control.checkpoint_lsn, geometry, major)

    def _require_servers(self, until: int = 0) -> None:
        """Raise as ``begin`` does; WAL must be there up to the checkpoint, and up to ``until``."""
        from pgwal.wal.checkpoint import require_pg_controls_checkpoint

        control = self._start_control
        hint = _RESTART_POINT_HINT if self._facts.in_recovery else _AGAIN_HINT
        self._require_segments(self._start_lsn, max(control.checkpoint_lsn + 1, until), hint)
        found = read_record(self._repository, control.timeline_id, control.checkpoint_lsn)
        require_pg_controls_checkpoint(control, found)
        self._is_servers = True

    def require_whole(self, label: BackupLabel, stop_lsn: Lsn, control: ControlFile) -> BlockMap:
        """Wait until WAL up to the stop is durable, prove by reading it that all is there, and return what it changes.

        ``control`` is the server's, read after the backup has stopped.  Raises TimelineMismatch for WAL of another
        history, WalGap for WAL that is missing, FormatError for WAL that is damaged, and the receiver's own error.
        """
        from pgwal.wal.checkpoint import require_backup_end, require_labels_checkpoint

        facts, repository = self._facts, self._repository
        segment_no = repository.geometry.segment_no
        if facts.in_recovery and control.min_recovery_timeline_id != facts.timeline_id:
            raise TimelineMismatch(
                f"while the backup was taken, the standby went from timeline {facts.timeline_id} to"
                f" {control.min_recovery_timeline_id}",
                hint="Take it again, when the standby has made a restart point on its new timeline.",
            )
        with repository.wal.reading_again():
            self._wal.wait_until_safe(facts.timeline_id, stop_lsn, whole_segment=not facts.in_recovery)
            if self._is_servers:
                self._require_segments(label.start_lsn, stop_lsn, _AGAIN_HINT)
            else:
                self._require_servers(stop_lsn)
            found = read_record(repository, label.start_timeline_id, label.checkpoint_lsn)
            require_labels_checkpoint(
                label.checkpoint_lsn, label.start_lsn, label.start_timeline_id, facts.major, found
            )
            if not facts.in_recovery:
                begin = max(label.start_lsn, Lsn(stop_lsn - _LONGEST_BACKUP_END))
                last = _record_that_ends_at(repository, facts.timeline_id, stop_lsn, begin)
                require_backup_end(label.start_lsn, stop_lsn, last)
            try:
                during = LsnRange(facts.timeline_id, label.start_lsn, stop_lsn)
                # What was just read of one segment is not asked for again, a summary of it would be.
                is_one = segment_no(stop_lsn - 1) == segment_no(label.start_lsn)
                changes = read_changes(repository, [during], from_wal=is_one and repository.place.is_remote)
            except WalGap as error:
                error.restate(f"{_NOT_PUBLISHED}: {error}", hint=_AGAIN_HINT)
                raise
        self._wal.check()
        return changes

    def _require_timeline(self, control: ControlFile) -> None:
        if control.timeline_id == self._facts.timeline_id:
            return
        raise TimelineMismatch(
            f"the backup starts on timeline {control.timeline_id}, the server is on {self._facts.timeline_id}",
            hint="The standby has made no restart point on its new timeline: run CHECKPOINT on the primary, wait until"
            " the standby has replayed it, and run CHECKPOINT here."
            if self._facts.in_recovery
            else "The server has just been promoted: run this again.",
        )

    def _require_segments(self, start: Lsn, end: int, hint: str) -> None:
        """Raise WalGap, which names the first segment that is missing; a summary says what changed, and is no WAL."""
        geometry, timeline_id = self._repository.geometry, self._facts.timeline_id
        numbers = range(geometry.segment_no(start), geometry.last_segment_no(end) + 1)
        number = self._repository.wal.first_missing(timeline_id, numbers)
        if number is not None:
            raise WalGap(
                f"{_NOT_PUBLISHED}: segment {geometry.file_name(timeline_id, number)} is not in the archive",
                hint=hint,
                timeline_id=timeline_id,
                lsn=geometry.segment_start(number),
                end_lsn=geometry.segment_start(number + 1),
            )


def _record_that_ends_at(repository: Repository, timeline_id: int, lsn: Lsn, start: Lsn) -> WalRecord | None:
    from pgwal.wal.record import EndOfWal

    geometry = repository.geometry
    # Behind a switch of segments there is nothing but zeros, over which no record is found.
    for begin in (start, max(start, geometry.segment_start(geometry.last_segment_no(lsn)))):
        for found in records(repository, timeline_id, begin):
            if isinstance(found, EndOfWal) or found.end_lsn > lsn:
                break
            if found.end_lsn == lsn:
                return found
    return None
