"""What was read for a report, as the parts of its document."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from pgwal.backup.backup_id import BackupKind, parse_backup_id, time_part
from pgwal.backup.chain import root_of
from pgwal.backup.entry import BackupEntry
from pgwal.engine.report_findings import Found
from pgwal.engine.report_server import ServerSide
from pgwal.engine.report_times import unix_time
from pgwal.engine.status import RepositoryStatus, lag_behind
from pgwal.errors import FormatError
from pgwal.lsn import Lsn
from pgwal.report.document import (
    BackupPart,
    ChainPart,
    FindingPart,
    ReceiverPart,
    ServerPart,
    SpanPart,
    TimelinePart,
)
from pgwal.report.findings import Finding
from pgwal.report.position_times import PositionTimes
from pgwal.report.shown_text import shown
from pgwal.timeline import TimelineHistory


def finding_parts(findings: Iterable[Finding]) -> list[FindingPart]:
    return [
        FindingPart(
            finding.severity.word,
            shown(finding.subject),
            _long(finding.message),
            None if finding.hint is None else _long(finding.hint),
        )
        for finding in findings
    ]


_PIECE_WORDS, _MOST_PIECES = 6, 60


def _long(text: str) -> str:
    """Return a text that may have several names in it: in pieces, each as short as one."""
    words = text.split(" ")
    lines = [" ".join(words[start : start + _PIECE_WORDS]) for start in range(0, len(words), _PIECE_WORDS)]
    return " ".join(shown(line) for line in lines[:_MOST_PIECES]) + (" …" if len(lines) > _MOST_PIECES else "")


def _spans(ranges: Iterable[tuple[Lsn, Lsn]], times: PositionTimes, since_s: float | None) -> list[SpanPart]:
    """Return ranges with their times, without those that ended too early; none where no time is known."""
    found = []
    for start, end in ranges:
        start_s, end_s = times.at(start), times.at(end)
        if start_s is None or end_s is None or (since_s is not None and end_s < since_s):
            continue
        is_exact = times.is_known(start) and times.is_known(end)
        found.append(SpanPart(str(start), str(end), start_s, end_s, is_exact))
    return found


def chain_parts(found: Found, times: PositionTimes, since_s: float | None) -> list[ChainPart]:
    parts = []
    by_id = {entry.backup_id: entry for entry in found.entries}
    unusable: defaultdict[str, list[str]] = defaultdict(list)
    for entry in found.entries:
        if found.recoverable[entry.backup_id] is None:
            unusable[root_of(entry, by_id).backup_id].append(entry.backup_id)
    for window in found.windows:
        spans, holes = _spans(window.spans, times, since_s), _spans(window.holes, times, since_s)
        if not spans and not holes:
            continue
        parts.append(
            ChainPart(
                window.chain_id,
                window.backup_ids,
                unusable[window.chain_id],
                sorted(found.pinned_ids.intersection(window.backup_ids)),
                spans,
                holes,
            )
        )
    return parts


def timeline_parts(
    status: RepositoryStatus, histories: Mapping[int, TimelineHistory], times: PositionTimes, since_s: float | None
) -> list[TimelinePart]:
    parts = []
    for timeline in status.coverage:
        history = histories.get(timeline.timeline_id)
        switch = history.switches[-1] if history is not None and history.switches else None
        parts.append(
            TimelinePart(
                timeline.timeline_id,
                None if switch is None else switch.timeline_id,
                None if switch is None else str(switch.switch_lsn),
                *(
                    _spans(((part.start, part.end) for part in ranges), times, since_s)
                    for ranges in (timeline.wal, timeline.wal_holes, timeline.summaries, timeline.summary_holes)
                ),
            )
        )
    return parts


def backup_parts(found: Found, stored: Mapping[str, int], since_s: float | None) -> list[BackupPart]:
    """Return all backups by id, finished or not; ``stored`` is what the finished ones take."""
    by_time: defaultdict[str, int] = defaultdict(int)
    for entry in found.entries:
        by_time[time_part(entry.backup_id)] += 1
    parts = [
        _backup_part(entry, found, stored[entry.backup_id], by_time[time_part(entry.backup_id)] > 1)
        for entry in found.entries
    ]
    parts += [
        BackupPart(
            shown(each.backup_id), "unreadable", started_s=_started_s(each.backup_id), problem=_long(str(each.error))
        )
        for each in found.status.unreadable
    ]
    parts += [
        BackupPart(shown(name), "running" if name == found.running_id else "unfinished", started_s=_started_s(name))
        for name in found.unfinished
    ]
    ended = ((part, part.finished_s or part.started_s) for part in parts)
    wanted = [part for part, time_s in ended if since_s is None or time_s is None or time_s >= since_s]
    return sorted(wanted, key=lambda part: part.backup_id)


def _started_s(backup_id: str) -> float | None:
    try:
        return parse_backup_id(backup_id)[0].timestamp()
    except FormatError:
        return None


def _backup_part(entry: BackupEntry, found: Found, stored_bytes: int, has_twin: bool) -> BackupPart:
    reach = found.recoverable[entry.backup_id]
    state = "unusable" if reach is None else "long-term" if reach.is_long_term else "usable"
    problem = None if reach is not None else "WAL that it needs is missing"
    if entry.backup_id in found.broken_ids:
        problem = "a backup that it builds on is missing or damaged"
    # An entry of before that was noted tells by its id alone: it has the time of the one that it was made of, and a
    # number where that id was taken before.
    is_unmarked = entry.kind is BackupKind.FULL and (has_twin or entry.backup_id[-1].isdigit())
    return BackupPart(
        backup_id=entry.backup_id,
        state=state,
        kind=entry.kind.value,
        prior_id=entry.prior_id,
        label=shown(entry.label),
        start_lsn=str(entry.start_lsn),
        timeline=entry.start_timeline_id,
        started_s=unix_time(entry.started_at),
        finished_s=unix_time(entry.finished_at),
        size_bytes=entry.totals.size_bytes,
        stored_bytes=stored_bytes,
        checksum_failures=entry.checksum_failures,
        is_pinned=entry.backup_id in found.pinned_ids,
        is_merged=entry.merge_note is not None or is_unmarked,
        problem=problem,
    )


def receiver_part(status: RepositoryStatus) -> ReceiverPart:
    state = status.receiver
    if state is None:
        return ReceiverPart(status.receiver_is_running, None, None, None, None, None, None, None)
    return ReceiverPart(
        status.receiver_is_running,
        state.timeline_id,
        str(state.flushed_lsn),
        str(state.summarised_lsn),
        state.updated_at,
        state.level_at,
        state.spooled_bytes,
        None if state.slot is None else shown(state.slot),
    )


def server_part(status: RepositoryStatus, side: ServerSide | None) -> ServerPart | None:
    if side is None or side.status is None:
        return None
    server, slot = side.status, side.status.slot
    lag = None if status.receiver is None else lag_behind(server, status.receiver)
    return ServerPart(
        str(server.flush_lsn),
        server.timeline_id,
        server.in_recovery,
        None if lag is None else lag.size_bytes,
        None if lag is None else lag.seconds,
        None if server.slot_name is None else shown(server.slot_name),
        slot is not None,
        None if slot is None else slot.active,
        None if slot is None else slot.wal_status,
        server.retained_bytes,
        None if slot is None else slot.safe_wal_bytes,
    )
