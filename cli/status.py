"""``pgwal status``: how receiver, repository and slot stand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from pgwal.errors import ConnectionFailed
from pgwal_cli import options
from pgwal_cli.exit_codes import NO_CONNECTION
from pgwal_cli.output import print_error, print_json, range_documents
from pgwal_cli.status_text import print_status

if TYPE_CHECKING:
    from pgwal.backup.entry import BackupEntry
    from pgwal.engine.coverage import TimelineCoverage
    from pgwal.engine.slot_guard import RetentionLimit
    from pgwal.engine.status import Lag, RepositoryStatus, ServerStatus
    from pgwal.repository.repository import ReceiverState
    from pgwal_cli.condition_documents import (
        CoverageDocument,
        NewestBackupDocument,
        ReceiverDocument,
        ServerDocument,
        StatusDocument,
    )


@options.with_groups
def status(
    repo: options.Repo,
    slot: options.Slot = None,
    max_retained: options.MaxRetained = None,
    json: options.Json = False,
    *,
    connection: options.ConnectionOptions,
) -> None:
    """Show how the receiver stands, how far it is behind the server, and what of the WAL is there.

    Without a server it shows what the repository alone tells, and ends with exit code 3.
    """
    from pgwal.engine.slot_guard import RetentionLimit
    from pgwal.engine.status import lag_behind, read_repository_status, read_server_status
    from pgwal.repository.repository import Repository

    repository = Repository.open(repo)
    found = read_repository_status(repository)
    slot_name = slot or (found.receiver.slot if found.receiver is not None else None)
    server, problem = None, None
    try:
        server = connection.connecting(
            lambda connect_to: read_server_status(
                connect_to, slot_name, system_identifier=repository.identity.system_identifier
            )
        )
    except ConnectionFailed as error:
        problem = error
    lag = lag_behind(server, found.receiver) if server is not None and found.receiver is not None else None
    limit = None if max_retained is None else RetentionLimit(max_retained)
    if json:
        print_json(_document(found, server, lag, problem, limit))
    else:
        print_status(found, server, lag, limit)
    if problem is not None:
        print_error(problem, as_json=json)
        raise typer.Exit(NO_CONNECTION)


def _document(
    found: RepositoryStatus,
    server: ServerStatus | None,
    lag: Lag | None,
    problem: ConnectionFailed | None,
    limit: RetentionLimit | None,
) -> StatusDocument:
    identity = found.repository.identity
    return {
        "version": 1,
        "repository": str(found.repository.place),
        "system_identifier": str(identity.system_identifier),
        "major": identity.major,
        "receiver": _receiver_document(found.receiver, is_running=found.receiver_is_running),
        "server": None if server is None else _server_document(server, limit),
        "server_error": None if problem is None else str(problem),
        "lag": None if lag is None else {"wal_bytes": lag.size_bytes, "seconds": _rounded(lag.seconds)},
        "coverage": [_timeline_document(timeline) for timeline in found.coverage],
        "unreadable_backups": [
            {"backup": backup.backup_id, "message": str(backup.error)} for backup in found.unreadable
        ],
        "newest_backup": None if found.newest_backup is None else _backup_document(found, found.newest_backup),
    }


def _receiver_document(state: ReceiverState | None, *, is_running: bool) -> ReceiverDocument:
    return {
        "running": is_running,
        "timeline": None if state is None else state.timeline_id,
        "received_lsn": None if state is None else str(state.written_lsn),
        "flushed_lsn": None if state is None else str(state.flushed_lsn),
        "summarized_lsn": None if state is None else str(state.summarised_lsn),
        "spooled_bytes": None if state is None else state.spooled_bytes,
        "slot": None if state is None else state.slot,
        "updated_at": None if state is None else _time_text(state.updated_at),
        "level_at": None if state is None else _time_text(state.level_at),
    }


def _server_document(server: ServerStatus, limit: RetentionLimit | None) -> ServerDocument:
    slot = server.slot
    return {
        "timeline": server.timeline_id,
        "flush_lsn": str(server.flush_lsn),
        "in_recovery": server.in_recovery,
        "replication_slot": None
        if server.slot_name is None
        else {
            "slot": server.slot_name,
            "exists": slot is not None,
            "active": slot is not None and slot.active,
            "restart_lsn": None if slot is None or slot.restart_lsn is None else str(slot.restart_lsn),
            "retained_bytes": server.retained_bytes,
            "wal_status": None if slot is None else slot.wal_status,
            "safe_wal_bytes": None if slot is None else slot.safe_wal_bytes,
            "max_retained_bytes": None if limit is None else limit.max_bytes,
            "retention": None if limit is None else limit.judge(server.retained_bytes).value,
        },
    }


def _timeline_document(timeline: TimelineCoverage) -> CoverageDocument:
    return {
        "timeline": timeline.timeline_id,
        "wal_ranges": range_documents(timeline.wal),
        "wal_gaps": range_documents(timeline.wal_holes),
        "summary_ranges": range_documents(timeline.summaries),
        "summary_gaps": range_documents(timeline.summary_holes),
    }


def _backup_document(found: RepositoryStatus, newest: BackupEntry) -> NewestBackupDocument:
    return {
        "id": newest.backup_id,
        "kind": newest.kind.value,
        "start_lsn": str(newest.start_lsn),
        "timeline": newest.start_timeline_id,
        "finished_at": newest.finished_at,
        "window_gaps": range_documents(found.missing),
        "chain_problem": found.chain_problem,
    }


def _time_text(unix_s: float | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
