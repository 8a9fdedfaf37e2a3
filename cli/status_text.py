"""``pgwal status`` for people: as lines, and on a terminal as a table with ages and strips of what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal_cli.output import size_text
from pgwal_cli.terminal import terminal

if TYPE_CHECKING:
    from pgwal.engine.coverage import TimelineCoverage
    from pgwal.engine.slot_guard import RetentionLimit
    from pgwal.engine.status import Lag, RepositoryStatus, ServerStatus


def print_status(
    found: RepositoryStatus, server: ServerStatus | None, lag: Lag | None, limit: RetentionLimit | None
) -> None:
    """Print how things stand; ``server`` is None where it was not reached."""
    console = terminal()
    if console is None:
        print("\n".join([*_repository_lines(found), *_server_lines(server, lag, limit), *_coverage_lines(found)]))
        return
    from pgwal_cli.status_table import print_status_table

    print_status_table(console, found, server, lag, limit)


def _repository_lines(found: RepositoryStatus) -> list[str]:
    identity = found.repository.identity
    lines = [
        f"repository       {found.repository.place}: PostgreSQL {identity.major},"
        f" system identifier {identity.system_identifier}",
        f"receiver         {'running' if found.receiver_is_running else 'not running'}{_age_text(found)}",
    ]
    state = found.receiver
    if state is not None:
        lines += [
            f"timeline         {state.timeline_id}",
            f"received         {state.written_lsn}",
            f"flushed          {state.flushed_lsn}",
            f"summarised       {state.summarised_lsn}",
        ]
        if state.spooled_bytes is not None:
            lines.append(f"spool            {size_text(state.spooled_bytes)} wait to be stored")
    return lines


def _age_text(found: RepositoryStatus) -> str:
    return "" if found.silent_s is None else f", last heard of {_seconds_text(found.silent_s)} ago"


def _seconds_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _server_lines(server: ServerStatus | None, lag: Lag | None, limit: RetentionLimit | None) -> list[str]:
    if server is None:
        return ["server           not reached"]
    role = "standby" if server.in_recovery else "primary"
    lines = [f"server           {server.flush_lsn} on timeline {server.timeline_id}, {role}"]
    if lag is not None:
        since = "" if lag.seconds is None else f", {_seconds_text(lag.seconds)}"
        lines.append(f"lag              {size_text(lag.size_bytes)}{since}")
    lines.append(f"slot             {slot_text(server)}")
    if limit is not None and (warning := retention_text(server, limit)):
        lines.append(f"  {warning}")
    return lines


def retention_text(server: ServerStatus, limit: RetentionLimit) -> str | None:
    """Return the warning of a slot that retains nearly, or more than, what it may."""
    from pgwal.engine.slot_guard import Retention

    allowed = size_text(limit.max_bytes)
    match limit.judge(server.retained_bytes):
        case Retention.NEAR:
            return f"warning: that is more than three quarters of {allowed}; see that the receiver runs"
        case Retention.BEYOND:
            return f"warning: that is more than {allowed}: start the receiver, or drop the slot before the disk is full"
    return None


def slot_text(server: ServerStatus) -> str:
    if server.slot_name is None:
        return "none is used: the server may remove WAL that is not received yet"
    if server.slot is None:
        return f"{server.slot_name} does not exist"
    active = "active" if server.slot.active else "not active"
    held = "reserves no WAL" if server.retained_bytes is None else f"holds back {size_text(server.retained_bytes)}"
    safe = server.slot.safe_wal_bytes
    rest = "" if safe is None else f"; the server gives it up after another {size_text(max(0, safe))} of WAL"
    return f"{server.slot_name}: {active}, {held}, {server.slot.wal_status or 'no WAL status'}{rest}"


def _coverage_lines(found: RepositoryStatus) -> list[str]:
    lines = [line for timeline in found.coverage for line in _timeline_lines(timeline)]
    lines += [f"backup left out  {backup.backup_id}: {backup.error}" for backup in found.unreadable]
    newest = found.newest_backup
    if newest is None:
        return [*lines, "newest backup    none"]
    lines.append(f"newest backup    {newest.backup_id}, from {newest.start_lsn} on timeline {newest.start_timeline_id}")
    if found.chain_problem is not None:
        lines.append(f"  no incremental can build on it: {found.chain_problem}")
    lines += [f"  WAL is missing for an incremental: {hole}" for hole in found.missing]
    return lines


def _timeline_lines(timeline: TimelineCoverage) -> list[str]:
    return [
        f"on timeline {timeline.timeline_id}",
        *[f"  WAL            {part.start} to {part.end}" for part in timeline.wal],
        *[f"  WAL missing    {part.start} to {part.end}" for part in timeline.wal_holes],
        *[f"  summaries      {part.start} to {part.end}" for part in timeline.summaries],
        *[f"  no summaries   {part.start} to {part.end}" for part in timeline.summary_holes],
    ]
