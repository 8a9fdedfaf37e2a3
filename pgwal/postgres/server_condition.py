"""The condition of a server: settings and numbers that ``pgwal check`` looks at beyond the facts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psycopg
from psycopg.rows import dict_row

from pgwal.errors import ServerError
from pgwal.postgres.connection import translated_errors
from pgwal.postgres.one_row import only_row


@dataclass(frozen=True, slots=True)
class ServerCondition:
    """What an administrator may want to change; ``settings`` are values as SHOW gives them, without units."""

    settings: dict[str, str]
    wal_sender_count: int
    slot_count: int
    archiving_fails: bool
    """Whether the server's own archiving failed last time; it keeps all WAL until it succeeds."""


CONDITION_SETTINGS = (
    "server_version",
    "max_wal_senders",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "fsync",
    "archive_mode",
    "synchronous_standby_names",
)
_CONDITION = """
    SELECT (SELECT jsonb_object_agg(name, setting) FROM pg_settings WHERE name = ANY (%s)) AS settings,
           (SELECT count(*) FROM pg_stat_replication) AS wal_sender_count,
           (SELECT count(*) FROM pg_replication_slots) AS slot_count,
           (SELECT coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)
              FROM pg_stat_archiver) AS archiving_fails
"""


def read_server_condition(connection: psycopg.Connection) -> ServerCondition:
    """Read what ``pgwal check`` looks at beyond the facts; any role may."""
    with translated_errors(connection):
        row = only_row(
            connection.cursor(row_factory=dict_row).execute(_CONDITION, (list(CONDITION_SETTINGS),)).fetchall()
        )
        condition = ServerCondition(**row)
        # As many as it has; none may be something else than text.
        settings = {str(name): str(value) for name, value in dict(condition.settings).items()}
        numbers = [settings.get(name, "") for name in ("max_wal_senders", "max_replication_slots")]
        counts = (condition.wal_sender_count, condition.slot_count)
        if not settings.keys() >= set(CONDITION_SETTINGS) or None in counts or not all(map(str.isdecimal, numbers)):
            raise ServerError("the server does not say what its settings are, or how many walsenders and slots it has")
        return replace(condition, settings=settings)
