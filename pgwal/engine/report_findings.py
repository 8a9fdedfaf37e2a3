"""What a report finds wrong with a repository, its receiver and its server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from pgwal.backup.entry import BackupEntry
from pgwal.engine.check import Status
from pgwal.engine.coverage import RecoverableRange
from pgwal.engine.report_server import ServerSide
from pgwal.engine.report_times import unix_time
from pgwal.engine.status import RepositoryStatus, ServerStatus, lag_behind
from pgwal.report.findings import Finding, Severity, worst_first
from pgwal.report.recovery_windows import ChainWindow

_MOST_OF_A_KIND = 20
_LATE_FACTOR = 3
"""A backup is late when it has been so many times as long since the last one as it mostly was between them."""
_JUDGED_INTERVALS = 10


@dataclass(frozen=True, slots=True)
class Found:
    """What was read of a repository; ``running_id`` is the backup that is being taken.

    ``recoverable`` has None for those of which WAL is missing, and for the broken ones, whose chain is not whole.
    """

    status: RepositoryStatus
    entries: Sequence[BackupEntry]
    recoverable: dict[str, RecoverableRange | None]
    windows: Sequence[ChainWindow]
    broken_ids: Sequence[str]
    pinned_ids: set[str]
    unfinished: Sequence[str]
    running_id: str | None
    unread_summaries: int
    server: ServerSide | None


def find(found: Found) -> list[Finding]:
    """Return findings, the worst first; what is in order is said last."""
    return worst_first(
        [
            *_backups(found),
            *_windows(found),
            *_wal(found),
            *_receiver(found.status),
            *_server(found),
            *_on_purpose(found),
        ]
    )


def _first(items: Sequence[str]) -> str:
    """Return a list of what may be very many."""
    more = len(items) - _MOST_OF_A_KIND
    return ", ".join(items[:_MOST_OF_A_KIND]) + (f" and {more} more" if more > 0 else "")


def _backups(found: Found) -> Iterator[Finding]:
    if not found.entries:
        yield Finding(Severity.CRITICAL, "backups", "there is no backup that can be read", "Take one with pgwal full.")
    for backup in found.status.unreadable[:_MOST_OF_A_KIND]:
        yield Finding(
            Severity.CRITICAL, f"backup {backup.backup_id}", f"its entry cannot be read: {backup.error}",
            backup.error.hint,
        )  # fmt: skip
    unusable = [entry.backup_id for entry in found.entries if found.recoverable[entry.backup_id] is None]
    unusable = [backup_id for backup_id in unusable if backup_id not in found.broken_ids]
    if unusable:
        yield Finding(
            Severity.CRITICAL,
            "backups without their WAL",
            f"WAL that these need is missing, so they cannot be restored: {_first(unusable)}",
            "Bring the segments back from another archive, or take a full backup; pgwal combine needs no WAL.",
        )
    if found.broken_ids:
        yield Finding(
            Severity.CRITICAL,
            "broken chains",
            f"what these build on is missing or damaged: {_first(found.broken_ids)}",
            "Take a full backup; pgwal verify says what is wrong.",
        )
    bad = [entry for entry in found.entries if entry.checksum_failures]
    if bad:
        count = sum(entry.checksum_failures for entry in bad)
        yield Finding(
            Severity.WARNING,
            "page checksums",
            f"{count} pages differed from their checksums in {_first([entry.backup_id for entry in bad])}",
            "The server's own data are damaged: look at it with pg_amcheck, before old backups expire.",
        )
    yield from _age(found.entries)
    left = [name for name in found.unfinished if name != found.running_id]
    if left:
        yield Finding(
            Severity.WARNING,
            "unfinished backups",
            f"these were not finished: {_first(left)}",
            "See why in the log of their run; pgwal expire removes what is left of them.",
        )
    if found.running_id is not None:
        yield Finding(Severity.NOTICE, "running backup", f"{found.running_id} is being taken")


def _age(entries: Sequence[BackupEntry]) -> Iterator[Finding]:
    if not entries:
        return
    ended = sorted(unix_time(entry.finished_at) for entry in entries)
    age_s = max(0.0, time.time() - ended[-1])
    intervals = [after - before for before, after in pairwise(ended)][-_JUDGED_INTERVALS:]
    message = f"the newest backup ended {duration_text(age_s)} ago"
    if len(intervals) >= 3 and age_s > _LATE_FACTOR * max(60.0, usual := median(intervals)):
        yield Finding(
            Severity.WARNING,
            "age of the newest backup",
            f"{message}; between the ones before it were mostly {duration_text(usual)}",
            "See whether the job that takes them runs.",
        )
    else:
        yield Finding(Severity.OK, "age of the newest backup", message)


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that fits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return "a second" if round(seconds) == 1 else f"{seconds:.0f} seconds"


def _size_text(size_bytes: int) -> str:
    return f"{size_bytes >> 10} kB" if size_bytes < 10 << 20 else f"{size_bytes >> 20} MB"


def _windows(found: Found) -> Iterator[Finding]:
    holes = [(window, hole) for window in found.windows for hole in window.holes]
    last = max((span.end for window in found.windows for span in window.spans), default=None)
    for window, hole in holes[-_MOST_OF_A_KIND:]:
        is_last = last is not None and hole.start >= last
        yield Finding(
            Severity.CRITICAL if is_last else Severity.WARNING,
            f"hole behind chain {window.chain_id}",
            f"no point from {hole.start} to {hole.end} can be recovered"
            + (", and nothing that was received since" if is_last else ""),
            "Bring the missing segments back from another archive"
            + (", or take a backup: from its end on all can be recovered again." if is_last else "."),
        )
    if found.windows and not holes:
        yield Finding(Severity.OK, "recovery windows", "every point that is kept on purpose can be recovered")


def _wal(found: Found) -> Iterator[Finding]:
    status = found.status
    for timeline in status.coverage:
        holes = [f"{hole.start} to {hole.end}" for hole in timeline.wal_holes]
        if holes:
            yield Finding(
                Severity.WARNING,
                f"WAL of timeline {timeline.timeline_id}",
                f"missing: {_first(holes)}",
                "If the server still has it, pgwal stream fetches it; another archive may: pgwal import takes it over.",
            )
        gaps = [f"{hole.start} to {hole.end}" for hole in timeline.summary_holes]
        if gaps:
            yield Finding(
                Severity.NOTICE,
                f"summaries of timeline {timeline.timeline_id}",
                f"not summarised: {_first(gaps)}; the WAL itself is read there",
            )
    if status.chain_problem is not None:
        yield Finding(
            Severity.WARNING,
            "next incremental",
            f"none can build on the newest backup: {status.chain_problem}",
            "Take a full backup.",
        )
    if status.missing:
        yield Finding(
            Severity.WARNING,
            "next incremental",
            f"WAL is missing for it: {_first([str(hole) for hole in status.missing])}",
            "Bring the segments back, or take a full backup.",
        )
    if found.unread_summaries:
        yield Finding(
            Severity.WARNING,
            "summaries",
            f"{found.unread_summaries} could not be read, and count for nothing here",
            "Delete those that pgwal verify names: the WAL of their range is read instead, if it is still there.",
        )


def _receiver(status: RepositoryStatus) -> Iterator[Finding]:
    state = status.receiver
    if not status.receiver_is_running:
        yield Finding(
            Severity.WARNING if state is not None else Severity.NOTICE,
            "receiver",
            "no receiver is running: what the server writes now can be recovered only once it is received",
            "Start pgwal stream.",
        )
        return
    if (silent_s := status.silent_s) is not None and status.is_silent:
        yield Finding(
            Severity.WARNING,
            "receiver",
            f"it runs, but was last heard of {duration_text(silent_s)} ago",
            "See its log, and whether the server is there.",
        )
    else:
        yield Finding(Severity.OK, "receiver", "it runs")
    if state is not None and state.spooled_bytes:
        yield Finding(
            Severity.NOTICE,
            "spool",
            f"{_size_text(state.spooled_bytes)} of WAL wait on the receiver's machine",
        )


def _server(found: Found) -> Iterator[Finding]:
    server = found.server
    if server is None:
        return
    if server.status is None:
        yield Finding(Severity.WARNING, "server", f"it was not reached: {server.problem}", "Check the connection.")
        return
    receiver = found.status.receiver
    if receiver is not None:
        lag = lag_behind(server.status, receiver)
        message = f"{_size_text(lag.size_bytes)} behind the server"
        if lag.seconds is not None and lag.lasts:
            yield Finding(
                Severity.WARNING, "lag", f"{message}, for {duration_text(lag.seconds)}", "See the receiver's log."
            )
        else:
            yield Finding(Severity.OK, "lag", message)
    yield from _slot(server.status)
    if server.problem is not None:
        yield Finding(Severity.WARNING, "server", f"it could not be looked at further: {server.problem}")
    passed = 0
    for check in server.lacks:
        if check.status is Status.OK or check.name == f"slot {server.status.slot_name}":
            passed += check.status is Status.OK
            continue
        severity = Severity.CRITICAL if check.status is Status.LACKING else Severity.WARNING
        yield Finding(severity, f"server: {check.name}", check.message, check.hint)
    if passed:
        yield Finding(Severity.OK, "server", f"{passed} things that streaming and backups need are in order")


def _slot(server: ServerStatus) -> Iterator[Finding]:
    name, slot = server.slot_name, server.slot
    if name is None:
        yield Finding(
            Severity.WARNING,
            "slot",
            "none is used: the server may remove WAL that is not received yet",
            "Run pgwal stream with --slot.",
        )
    elif slot is None:
        yield Finding(
            Severity.CRITICAL,
            f"slot {name}",
            "it does not exist: the server may remove WAL that is not received yet",
            f"Run: pgwal stream --slot {name} --create-slot",
        )
    elif slot.wal_status == "lost":
        yield Finding(
            Severity.CRITICAL, f"slot {name}", "it has lost WAL that it was to keep",
            "Drop it, make it again, and take a full backup.",
        )  # fmt: skip
    elif not slot.active:
        yield Finding(
            Severity.WARNING,
            f"slot {name}",
            "no receiver is connected to it" if server.retained_bytes is None
            else f"no receiver is connected to it; it holds back {_size_text(server.retained_bytes)} of WAL",
            "Start pgwal stream before the server's disk is full.",
        )  # fmt: skip
    else:
        yield Finding(Severity.OK, f"slot {name}", "it is in use")


def _on_purpose(found: Found) -> Iterator[Finding]:
    reached = found.recoverable
    long_term = [each for each, reach in reached.items() if reach is not None and reach.is_long_term]
    if long_term:
        yield Finding(
            Severity.NOTICE, "long-term backups", f"these can be restored to their own end alone: {_first(long_term)}"
        )
    pinned = sorted(found.pinned_ids)
    if pinned:
        yield Finding(Severity.NOTICE, "pinned backups", f"these never expire: {_first(pinned)}")
