"""Find where the server's WAL and the archive's part, once it is known that they do.

Records of two histories may be alike for a while, to the byte.  But the end of a transaction and a checkpoint bear the
time at which they happened: where one of those is the same, all before it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress

from pgwal.engine.archive_comparison import ArchiveComparison, history_mismatch
from pgwal.engine.start_point import NEW_HISTORY_HINT, StreamStart, segment_before
from pgwal.errors import FormatError, HistoryMismatch, ServerError, WalRemoved
from pgwal.lsn import Lsn
from pgwal.postgres.walsender import EndOfTimeline, WalSender
from pgwal.replication.messages import WalData
from pgwal.replication.session import ReplicationSession
from pgwal.repository.wal_archive import WalArchive
from pgwal.segment import WAL_PAGE_SIZE
from pgwal.timeline import TimelineHistory
from pgwal.wal import layout
from pgwal.wal.decoder import NEED_DATA, WalDecoder
from pgwal.wal.record import WalRecord

logger = logging.getLogger(__name__)

_SILENCE_S = 60.0
_FEW_PAGES = 8
_TIMED = {
    *((layout.RM_XACT, operation) for operation in layout.XACT_ENDS),
    (layout.RM_XLOG, layout.XLOG_CHECKPOINT_SHUTDOWN),
    (layout.RM_XLOG, layout.XLOG_CHECKPOINT_ONLINE),
    (layout.RM_XLOG, layout.XLOG_END_OF_RECOVERY),
}


def parting_of(
    error: HistoryMismatch, sender: WalSender, archive: WalArchive, history: TimelineHistory
) -> HistoryMismatch | FormatError:
    """Return the error that says where the two really part.

    ``error`` says where a difference was met.  Further and further back WAL is received again, until a record with a
    time is the same.  Where the server lacks that WAL, nothing of the timeline counts as common.  FormatError is for
    a segment of the archive that is damaged, and so differs from the server's.
    """
    timeline_id, lsn = error.timeline_id, Lsn(error.lsn)
    damaged = ArchiveComparison(archive, history, timeline_id, _segment_start(archive, lsn)).is_damaged_before(lsn)
    if damaged is not None:
        return FormatError(
            f"{damaged} is damaged at {lsn}: it differs from the server's, and holds no valid record there",
            hint="Move it out of the repository's wal directory: it is received again, as long as the server has it.",
        )
    try:
        _end_stream(sender)
        found = _first_difference(sender, archive, history, timeline_id, lsn)
    except ServerError as failure:
        logger.info("where the two part cannot be found out: %s", failure)
        return error
    if found is not None:
        return history_mismatch(timeline_id, found, "before that they are the same")
    return HistoryMismatch(
        f"the server's WAL of timeline {timeline_id} is not that of the repository: they differ at {lsn}, and the"
        " server has no WAL from before that to tell where they part; nothing was overwritten",
        timeline_id=timeline_id,
        lsn=0,
        hint=NEW_HISTORY_HINT,
    )


def _segment_start(archive: WalArchive, lsn: Lsn) -> Lsn:
    return archive.geometry.segment_start(archive.geometry.segment_no(lsn))


def _end_stream(sender: WalSender) -> None:
    if sender.is_streaming:
        sender.finish()


def _first_difference(
    sender: WalSender, archive: WalArchive, history: TimelineHistory, timeline_id: int, lsn: Lsn
) -> Lsn | None:
    """Return the first difference that has a common record with its time before it, None when there is none."""
    geometry, segments = archive.geometry, archive.segments()
    number = geometry.segment_no(lsn)
    start: StreamStart | None = StreamStart(timeline_id, geometry.segment_start(number))
    while start is not None:
        logger.info("comparing from %s of timeline %d on", start.lsn, start.timeline_id)
        try:
            found = _difference_from(sender, archive, history, start, lsn)
        except WalRemoved:
            return None
        if _has_time_before(archive, start, found):
            return found
        number -= 1
        start = segment_before(segments, history, geometry, timeline_id, number)
    return None


def _has_time_before(archive: WalArchive, start: StreamStart, end: Lsn) -> bool:
    """Tell whether a record that bears a time lies in the archive between a place and ``end``."""
    pages = _FEW_PAGES
    while True:
        begin = Lsn(max(start.lsn, end - end % WAL_PAGE_SIZE - pages * WAL_PAGE_SIZE))
        with suppress(FormatError):
            if any(_bears_time(record) for record in _records(archive, start.timeline_id, begin, end)):
                return True
        if begin == start.lsn:
            return False
        pages *= _FEW_PAGES


def _records(archive: WalArchive, timeline_id: int, begin: Lsn, end: Lsn) -> Iterator[WalRecord]:
    """Yield the whole records between two positions."""
    decoder = WalDecoder(archive.geometry.segment_size, begin)
    position = begin
    for data in archive.read(timeline_id, begin):
        decoder.feed(data[: end - position])
        position = Lsn(position + len(data))
        while isinstance(record := decoder.next_record(), WalRecord):
            yield record
        if record is not NEED_DATA or position >= end:
            return


def _bears_time(record: WalRecord) -> bool:
    operation = record.info & (layout.XACT_OPERATION_MASK if record.rmid == layout.RM_XACT else layout.INFO_RMGR_MASK)
    return (record.rmid, operation) in _TIMED


def _difference_from(
    sender: WalSender, archive: WalArchive, history: TimelineHistory, start: StreamStart, stop: Lsn
) -> Lsn:
    """Return the first difference from a place on, ``stop`` when there is none before it."""
    comparison = ArchiveComparison(archive, history, *start)
    session = ReplicationSession(start.lsn, 0, report_flush=False)
    try:
        ended = sender.start_replication(None, start.lsn, start.timeline_id)
        while ended is None and session.received_lsn < stop:
            message = sender.receive(_SILENCE_S)
            if message is None or isinstance(message, EndOfTimeline):
                return stop if isinstance(message, EndOfTimeline) else session.received_lsn
            event = session.receive(message, time.monotonic())
            if isinstance(event, WalData):
                comparison.compare(event.lsn, event.data[: max(0, stop - event.lsn)])
            status = session.status_due(time.monotonic())
            if status is not None:
                sender.send(status)
        return stop
    except HistoryMismatch as difference:
        return Lsn(difference.lsn)
    finally:
        comparison.close()
        _end_stream(sender)
