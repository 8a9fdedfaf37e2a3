"""Replication slots, as SQL shows them to any role."""

from __future__ import annotations

from typing import NamedTuple

import psycopg

from pgwal.lsn import Lsn
from pgwal.postgres.connection import translated_errors
from pgwal.postgres_version import version_of_server


class SlotFacts(NamedTuple):
    """A replication slot; ``wal_status`` is reserved, extended, unreserved or lost (None: no WAL is reserved)."""

    name: str
    slot_type: str
    active: bool
    active_pid: int | None
    restart_lsn: Lsn | None
    wal_status: str | None
    invalidation_reason: str | None = None
    """Why it is of no use any more; since 17."""
    safe_wal_bytes: int | None = None
    """How much more WAL may be written before the server may remove what the slot needs; None without such a limit."""


_SLOT = (
    "SELECT slot_type, active, active_pid, restart_lsn::text, wal_status, {reason}, safe_wal_size"
    " FROM pg_replication_slots WHERE slot_name = %s"
)


def read_slot(connection: psycopg.Connection, name: str) -> SlotFacts | None:
    """Return what the server says of a replication slot, None when there is none of this name; any role may."""
    version = version_of_server(connection.info.server_version)
    query = _SLOT.format(reason="invalidation_reason" if version.has_invalidation_reason else "NULL")
    with translated_errors(connection):
        row = connection.execute(query, (name,)).fetchone()
        if row is None:
            return None
        slot_type, active, active_pid, restart_lsn, wal_status, reason, safe_wal_bytes = row
        lsn = None if restart_lsn is None else Lsn.parse(restart_lsn)
        return SlotFacts(name, slot_type, active, active_pid, lsn, wal_status, reason, safe_wal_bytes)
