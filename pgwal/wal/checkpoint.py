"""Checkpoint records, and the copy of the latest one that pg_control holds: two witnesses of one history.

Equal positions say nothing: another server of the same cluster, or another life of this one, may have a record there
too, even a checkpoint.  So all fields are compared.  The server builds the structure once (CreateCheckPoint in
src/backend/access/transam/xlog.c, PostgreSQL 13 to 19), inserts it as the record's payload and copies it to pg_control;
a standby copies it out of the record that its restart point goes back to (CreateRestartPoint).  ``time``, in seconds,
and the counters then differ between histories.  Two things may differ within one:

- padding, which initdb leaves as it was in memory: so fields are compared, not bytes;
- ``next_xid`` while the server is in recovery, and after a promotion until the first checkpoint, which clears where
  recovery must get to: replaying any checkpoint record brings it forward in pg_control (xlog_redo), whatever record the
  restart point goes back to.  It may only be ahead then.
"""

from __future__ import annotations

from pgwal.control_file import ControlFile
from pgwal.errors import TimelineMismatch
from pgwal.lsn import Lsn
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry
from pgwal.wal import layout
from pgwal.wal.decoder import decode_main_data, decode_payload
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record import EndOfWal, WalRecord

_CHECKPOINTS = (layout.XLOG_CHECKPOINT_SHUTDOWN, layout.XLOG_CHECKPOINT_ONLINE)
_OTHER_HISTORY_HINT = (
    "The archive holds WAL of another server, or of another life of this one. Connect pgwal stream to the server that"
    " is backed up; if this server was put back to an earlier state, keep this repository and start another."
)


def checkpoint_record_end(lsn: Lsn, geometry: WalGeometry, major: int) -> Lsn:
    """Return where the checkpoint record that starts at ``lsn`` ends: a major's are of one size, and hold no block."""
    payload = layout.payloads(wal_format_of_major(major))[layout.RM_XLOG, layout.XLOG_CHECKPOINT_ONLINE]
    size = (layout.RECORD_HEADER_SIZE + 2 + payload.sizeof() + 7) & ~7
    left = WAL_PAGE_SIZE - lsn % WAL_PAGE_SIZE
    if size <= left:
        return Lsn(lsn + size)
    page = Lsn(lsn + left)
    return Lsn(geometry.first_record_position(page) + size - left)


def require_pg_controls_checkpoint(control: ControlFile, found: WalRecord | EndOfWal | None) -> None:
    """Raise TimelineMismatch unless ``found``, read at pg_control's checkpoint LSN, is the record it has a copy of.

    ``found`` is what the archive has on the checkpoint's timeline: a record that starts there or later, the reason why
    there is none, or None where the archive ends.  Raises FormatError for a record that cannot be decoded.
    """
    there = f"{control.checkpoint_lsn} on timeline {control.timeline_id}"
    record = _checkpoint_at(control.checkpoint_lsn, found)
    if record is None:
        raise _other_history(f"pg_control of the server names a checkpoint record at {there}", found)
    wal_format = wal_format_of_major(control.major)
    archived = decode_payload(wal_format, record)
    copied = decode_main_data(wal_format, control.checkpoint_lsn, record.rmid, record.info, control.checkpoint)
    differing = [name for name in archived if not name.startswith("_") and archived[name] != copied[name]]
    if (control.in_recovery or control.min_recovery_lsn) and copied.next_xid > archived.next_xid:
        differing.remove("next_xid")
    if differing:
        fields = ", ".join(f"{name} {_text(name, archived)}, not {_text(name, copied)}" for name in differing)
        raise TimelineMismatch(
            f"the checkpoint record at {there} in the archive is not the server's: it has {fields}",
            hint=_OTHER_HISTORY_HINT,
        )


def require_labels_checkpoint(
    checkpoint_lsn: Lsn, start_lsn: Lsn, timeline_id: int, major: int, found: WalRecord | EndOfWal | None
) -> None:
    """Raise TimelineMismatch unless ``found``, read where backup_label has the checkpoint, is that of the backup.

    Its redo LSN must be ``start_lsn`` and its timeline the label's.  ``found`` as above.
    """
    record = _checkpoint_at(checkpoint_lsn, found)
    if record is None:
        raise _other_history(f"backup_label names a checkpoint record at {checkpoint_lsn}", found)
    checkpoint = decode_payload(wal_format_of_major(major), record)
    if (checkpoint.redo_lsn, checkpoint.timeline_id) != (start_lsn, timeline_id):
        raise TimelineMismatch(
            f"the checkpoint record at {checkpoint_lsn} in the archive is not that of the backup, which starts at"
            f" {start_lsn} on timeline {timeline_id}: its redo position is {Lsn(checkpoint.redo_lsn)} on timeline"
            f" {checkpoint.timeline_id}",
            hint=_OTHER_HISTORY_HINT,
        )


def require_backup_end(start_lsn: Lsn, stop_lsn: Lsn, found: WalRecord | None) -> None:
    """Raise TimelineMismatch unless ``found``, the record that ends at ``stop_lsn``, is the one that ends the backup.

    A primary writes one at the end of each backup; it names the backup's start.
    """
    expected = layout.BackupEnd.build({"start_lsn": start_lsn})
    if found is None or _operation(found) != (layout.RM_XLOG, layout.XLOG_BACKUP_END) or found.main_data != expected:
        raise TimelineMismatch(
            f"no record that ends the backup, which started at {start_lsn}, ends at {stop_lsn} in the archive",
            hint=_OTHER_HISTORY_HINT,
        )


def _checkpoint_at(lsn: Lsn, found: WalRecord | EndOfWal | None) -> WalRecord | None:
    if not isinstance(found, WalRecord) or found.lsn != lsn:
        return None
    rmid, operation = _operation(found)
    return found if rmid == layout.RM_XLOG and operation in _CHECKPOINTS else None


def _operation(record: WalRecord) -> tuple[int, int]:
    return record.rmid, record.info & layout.INFO_RMGR_MASK


def _text(name: str, checkpoint: dict[str, int]) -> str:
    return str(Lsn(checkpoint[name]) if name.endswith("_lsn") else checkpoint[name])


def _other_history(claim: str, found: WalRecord | EndOfWal | None) -> TimelineMismatch:
    if isinstance(found, WalRecord):
        there = f"the archive has another record there, or none, and one at {found.lsn} next"
    else:
        there = "the archive ends before it" if found is None else str(found)
    return TimelineMismatch(f"{claim}, which is not in the archive: {there}", hint=_OTHER_HISTORY_HINT)
