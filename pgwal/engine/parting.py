"""Find where the server's WAL and the archive's part, once it is known that they do.

Records of two histories may be alike for a while, to the byte.  But the end of a transaction and a checkpoint bear the
time at which they happened: where one of those is the same, all before it is.  So what is received again when a stream
begins, before there is any doubt, reaches back to one of them as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from pgwal.budget import SILENCE_S
from pgwal.engine.archive_comparison import ArchiveComparison, history_mismatch
from pgwal.engine.start_point import NEW_HISTORY_HINT, StreamStart, segment_before
from pgwal.errors import FormatError, HistoryMismatch, ServerError, WalRemoved
from pgwal.lsn import Lsn
from pgwal.postgres.replication_answer import EndOfTimeline
from pgwal.postgres.walsender import WalSender
from pgwal.replication.messages import WalData
from pgwal.replication.session import ReplicationSession
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.timeline import TimelineHistory
from pgwal.wal import layout
from pgwal.wal.scan import NEED_DATA, SPECIAL, WalScanner

logger = logging.getLogger(__name__)

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


def proving_starts(
    archive: WalArchive,
    segments: Sequence[WalSegmentFile],
    history: TimelineHistory,
    starts: Sequence[StreamStart],
    server_flush_lsn: Lsn,
) -> list[StreamStart]:
    """Return places to receive from, with an earlier one put first where WAL from the first on bears no time.

    Whole segments can be the same in two lives that differed before, such as those of a load that was run again.
    """
    first, end = starts[0], server_flush_lsn
    while not has_time_before(archive, first, end):
        number = archive.geometry.segment_no(first.lsn) - 1
        before = segment_before(segments, history, archive.geometry, first.timeline_id, number)
        if before is None:
            break
        first, end = before, min(first.lsn, server_flush_lsn)
    return [*([] if first == starts[0] else [first]), *starts]


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
        if has_time_before(archive, start, found):
            return found
        number -= 1
        start = segment_before(segments, history, geometry, timeline_id, number)
    return None


def has_time_before(archive: WalArchive, start: StreamStart, end: Lsn) -> bool:
    """Tell whether a whole record that bears a time lies in the archive between a place and ``end``."""
    scanner = WalScanner(archive.geometry.segment_size, start.lsn, derive_map_blocks=False, all_transaction_ends=True)
    with suppress(FormatError):
        for data in archive.read(start.timeline_id, start.lsn):
            scanner.feed(data[: max(0, end - scanner.feed_lsn)])
            while (event := scanner.scan()) == SPECIAL:
                if _bears_time(scanner.special_rmid, scanner.special_info):
                    return True
            scanner.take_blocks()
            if event != NEED_DATA or scanner.feed_lsn >= end:
                break
    return False


def _bears_time(rmid: int, info: int) -> bool:
    return (rmid, info & (layout.XACT_OPERATION_MASK if rmid == layout.RM_XACT else layout.INFO_RMGR_MASK)) in _TIMED


def _difference_from(
    sender: WalSender, archive: WalArchive, history: TimelineHistory, start: StreamStart, stop: Lsn
) -> Lsn:
    """Return the first difference from a place on, ``stop`` when there is none before it."""
    comparison = ArchiveComparison(archive, history, *start)
    session = ReplicationSession(start.lsn, 0, report_flush=False)
    try:
        ended = sender.start_replication(None, start.lsn, start.timeline_id)
        while ended is None and session.received_lsn < stop:
            message = sender.receive(SILENCE_S)
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
