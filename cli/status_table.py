"""``pgwal status`` on a terminal: fields with ages beside LSNs, and strips of the WAL and summaries that are there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.text import Text

from pgwal_cli.coverage_strip import print_coverage
from pgwal_cli.output import size_text
from pgwal_cli.status_text import retention_text, slot_text
from pgwal_cli.terminal import (
    BAD,
    FAINT,
    GOOD,
    NOTE,
    age_text,
    duration_text,
    fields_of,
    moment_text,
    parsed_time,
    printable,
    styled,
)

if TYPE_CHECKING:
    from rich.console import Console

    from pgwal.backup.entry import BackupEntry
    from pgwal.engine.slot_guard import RetentionLimit
    from pgwal.engine.status import Lag, RepositoryStatus, ServerStatus
    from pgwal.repository.repository import ReceiverState

_Fields = Iterator[tuple[str, Text]]


def print_status_table(
    console: Console,
    found: RepositoryStatus,
    server: ServerStatus | None,
    lag: Lag | None,
    limit: RetentionLimit | None,
) -> None:
    """Print how things stand; ``server`` is None where it was not reached."""
    fields = [*_repository_fields(found), *_server_fields(server, lag, limit), *_backup_fields(found)]
    console.print(fields_of(fields))
    print_coverage(console, found.coverage, with_summaries=True)


def _repository_fields(found: RepositoryStatus) -> _Fields:
    identity = found.repository.identity
    yield "repository", Text(printable(str(found.repository.place)))
    yield "cluster", Text(f"PostgreSQL {identity.major}, system identifier {identity.system_identifier}")
    yield "receiver", styled(("running", GOOD) if found.receiver_is_running else ("not running", BAD))
    if found.receiver is not None:
        yield from _receiver_fields(found.receiver)


def _receiver_fields(state: ReceiverState) -> _Fields:
    heard = None if state.updated_at is None else datetime.fromtimestamp(state.updated_at, UTC)
    age = "" if heard is None else f", {moment_text(heard)}, {age_text(heard)}"
    yield "received", styled(f"{state.written_lsn} on timeline {state.timeline_id}", (age, FAINT))
    yield "flushed", Text(str(state.flushed_lsn))
    yield "summarized", Text(str(state.summarised_lsn))
    if state.spooled_bytes is not None:
        yield "spool", Text(f"{size_text(state.spooled_bytes)} wait to be stored")


def _server_fields(server: ServerStatus | None, lag: Lag | None, limit: RetentionLimit | None) -> _Fields:
    if server is None:
        yield "server", styled(("not reached", BAD))
        return
    role = "standby" if server.in_recovery else "primary"
    yield "server", Text(f"{server.flush_lsn} on timeline {server.timeline_id}, {role}")
    if lag is not None:
        since = "" if lag.seconds is None else f", {duration_text(lag.seconds)}"
        yield "lag", Text(f"{size_text(lag.size_bytes)}{since}")
    is_well = server.slot is not None and server.slot.active
    yield "slot", styled((slot_text(server), "" if is_well else NOTE))
    if limit is not None and (warning := retention_text(server, limit)):
        yield "", styled((warning, BAD))


def _backup_fields(found: RepositoryStatus) -> _Fields:
    for backup in found.unreadable:
        yield "backup left out", styled((f"{backup.backup_id}: {printable(str(backup.error))}", BAD))
    if found.newest_backup is None:
        yield "newest backup", styled(("none", NOTE))
        return
    yield "newest backup", _newest_text(found.newest_backup)
    if found.chain_problem is not None:
        yield "", styled((f"no incremental can build on it: {found.chain_problem}", BAD))
    for gap in found.missing:
        yield "", styled((f"WAL is missing for an incremental: {gap}", BAD))


def _newest_text(newest: BackupEntry) -> Text:
    finished = parsed_time(newest.finished_at)
    return styled(
        f"{newest.backup_id}, {size_text(newest.totals.size_bytes)}, from {newest.start_lsn} on timeline"
        f" {newest.start_timeline_id}, finished {moment_text(finished)},",
        (f" {age_text(finished)}", FAINT),
    )
