"""pg_control's copy of a checkpoint record against the record: every field counts, and padding does not."""

from __future__ import annotations

from typing import Any

import pytest
from core.test_control_file import MAJORS, build
from core.wal_builder import RM_XLOG, RecordSpec, WalBuilder, checkpoint_fields
from hypothesis import given
from hypothesis import strategies as st

from pgwal.control_file import ControlFile
from pgwal.errors import TimelineMismatch
from pgwal.lsn import Lsn
from pgwal.segment import WalGeometry
from pgwal.wal import layout
from pgwal.wal.checkpoint import (
    checkpoint_record_end,
    require_backup_end,
    require_labels_checkpoint,
    require_pg_controls_checkpoint,
)
from pgwal.wal.decoder import decode_payload
from pgwal.wal.page_magic import wal_format_of_major
from pgwal.wal.record import EndOfWal, EndReason, WalRecord

LSN = Lsn(0x3000080)
REDO = Lsn(0x3000028)
FIELDS_OF_HERE = {"redo_lsn": REDO, "timeline_id": 2}
IN_PRODUCTION, IN_ARCHIVE_RECOVERY = 6, 5


def payload(major: int, **changed: Any) -> bytes:
    declared = layout.payloads(wal_format_of_major(major))[RM_XLOG, layout.XLOG_CHECKPOINT_ONLINE]
    return bytes(declared.build(checkpoint_fields(major) | FIELDS_OF_HERE | changed))


def record(main_data: bytes, info: int = layout.XLOG_CHECKPOINT_ONLINE, lsn: Lsn = LSN) -> WalRecord:
    return WalRecord(lsn, Lsn(lsn + 120), REDO, 0, RM_XLOG, info, 114, (), main_data)


def control(major: int, copy: bytes, state: int = IN_PRODUCTION) -> ControlFile:
    decoded = ControlFile.decode(build(major))
    # In production a checkpoint has cleared where recovery had to get to.
    until = decoded.min_recovery_lsn if state == IN_ARCHIVE_RECOVERY else Lsn(0)
    return decoded._replace(
        state=state, checkpoint_lsn=LSN, checkpoint=copy, redo_lsn=REDO, timeline_id=2, min_recovery_lsn=until
    )


@pytest.mark.parametrize("major", MAJORS)
def test_each_field_counts(major: int) -> None:
    good = payload(major)
    assert len(good) == (96 if major >= 19 else 88)
    require_pg_controls_checkpoint(control(major, good), record(good))
    fields = checkpoint_fields(major) | FIELDS_OF_HERE
    for name, value in fields.items():
        other = not value if isinstance(value, bool) else value + 1
        with pytest.raises(
            TimelineMismatch, match=f"{name} {value}, not {Lsn(other) if name == 'redo_lsn' else other}"
        ):
            require_pg_controls_checkpoint(control(major, payload(major, **{name: other})), record(good))


@given(st.sampled_from(MAJORS), st.integers(0, 95), st.integers(1, 255))
def test_each_byte_counts_but_padding(major: int, offset: int, difference: int) -> None:
    good = payload(major)
    changed = bytearray(good)
    offset %= len(good)
    changed[offset] ^= difference
    if major >= 19:
        padding = {*range(17, 20), *range(25, 32), *range(92, 96)}
    else:
        padding = {*range(17, 20 if major >= 17 else 24), *range(60, 64), *range(84, 88)}
    # A bool is true whatever its byte is, but for 0.
    if offset in padding or (offset == 16 and changed[16]):
        require_pg_controls_checkpoint(control(major, bytes(changed)), record(good))
        return
    with pytest.raises(TimelineMismatch):
        require_pg_controls_checkpoint(control(major, bytes(changed)), record(good))


@pytest.mark.parametrize("major", MAJORS)
def test_the_next_transaction_is_ahead_in_recovery_and_before_the_checkpoint_behind_it(major: int) -> None:
    archived, ahead, behind = (payload(major, next_xid=xid) for xid in (745, 1 << 33, 744))
    require_pg_controls_checkpoint(control(major, ahead, IN_ARCHIVE_RECOVERY), record(archived))
    promoted = control(major, ahead)._replace(min_recovery_lsn=Lsn(LSN + 1000))
    require_pg_controls_checkpoint(promoted, record(archived))
    for other in (
        control(major, ahead), control(major, behind, IN_ARCHIVE_RECOVERY), promoted._replace(checkpoint=behind)
    ):  # fmt: skip
        with pytest.raises(TimelineMismatch, match="next_xid"):
            require_pg_controls_checkpoint(other, record(archived))


@pytest.mark.parametrize(
    "found",
    [
        None,
        EndOfWal(LSN, EndReason.RECORD_LENGTH),
        record(payload(18), lsn=Lsn(LSN + 8)),
        record(payload(18), info=layout.XLOG_PARAMETER_CHANGE),
        record(payload(18))._replace(rmid=10),
    ],
    ids=["end of the archive", "end of WAL", "record behind it", "other record", "other resource manager"],
)
def test_where_no_checkpoint_record_is(found: WalRecord | EndOfWal | None) -> None:
    with pytest.raises(TimelineMismatch, match=f"pg_control of the server names a checkpoint record at {LSN}"):
        require_pg_controls_checkpoint(control(18, payload(18)), found)
    with pytest.raises(TimelineMismatch, match=f"backup_label names a checkpoint record at {LSN}"):
        require_labels_checkpoint(LSN, REDO, 2, 18, found)


@pytest.mark.parametrize("info", [layout.XLOG_CHECKPOINT_ONLINE, layout.XLOG_CHECKPOINT_SHUTDOWN])
def test_the_labels_checkpoint(info: int) -> None:
    found = record(payload(18), info)
    require_labels_checkpoint(LSN, REDO, 2, 18, found)
    for start_lsn, timeline_id in ((Lsn(REDO + 8), 2), (REDO, 3)):
        with pytest.raises(TimelineMismatch, match=f"redo position is {REDO} on timeline 2"):
            require_labels_checkpoint(LSN, start_lsn, timeline_id, 18, found)


def test_the_end_of_a_backup() -> None:
    end = record(layout.BackupEnd.build({"start_lsn": REDO}), layout.XLOG_BACKUP_END)
    require_backup_end(REDO, end.end_lsn, end)
    for start_lsn, found in ((Lsn(REDO + 8), end), (REDO, record(payload(18))), (REDO, None)):
        with pytest.raises(TimelineMismatch, match=f"ends at {end.end_lsn} in the archive"):
            require_backup_end(start_lsn, end.end_lsn, found)


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("segment_end", [False, True])
@pytest.mark.parametrize("left_on_page", range(8, 144, 8))
def test_where_a_checkpoint_record_ends(major: int, segment_end: bool, left_on_page: int) -> None:
    start = (2 << 20) - 8192 if segment_end else 1 << 20
    builder = WalBuilder(major, start_lsn=start)
    builder.append_filler(left_on_page)
    built = builder.append(RecordSpec(RM_XLOG, layout.XLOG_CHECKPOINT_ONLINE, main_data=payload(major)))
    assert built.end_lsn - built.lsn > left_on_page or left_on_page >= (128 if major >= 19 else 120)
    assert checkpoint_record_end(built.lsn, WalGeometry(1 << 20), major) == built.end_lsn


def test_offsets_of_multixacts_have_64_bits_in_19() -> None:
    """Past 2^32 they differ in the upper half alone, and what stands behind them keeps its place."""
    near, far = payload(19, next_multi_offset=7), payload(19, next_multi_offset=(9 << 32) + 7)
    decoded = decode_payload(wal_format_of_major(19), record(far))
    assert (decoded.next_multi_offset, decoded.oldest_xid, decoded.time) == ((9 << 32) + 7, 730, 1_790_000_000)
    require_pg_controls_checkpoint(control(19, far), record(far))
    with pytest.raises(TimelineMismatch, match=f"next_multi_offset 7, not {(9 << 32) + 7}"):
        require_pg_controls_checkpoint(control(19, far), record(near))
