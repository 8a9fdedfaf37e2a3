"""Errors of a walsender as pgwal's: told by SQLSTATE and command, for messages may be translated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from psycopg import pq

from pgwal.errors import (
    PgwalError,
    PrivilegeMissing,
    ReplicationInterrupted,
    ServerError,
    SettingRequired,
    SlotInUse,
    SlotUnavailable,
    WalRemoved,
)
from pgwal.postgres.connection import one_line
from pgwal.postgres.identifier import quoted_identifier

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult


class SlotExists(SlotUnavailable):
    """The slot to create exists."""


# Class 08, connection exceptions, and 57P: the server shuts down, has crashed or is starting.
_INTERRUPTIONS = ("080", "57P")
_UNDEFINED_FILE = "58P01"
# What errcode_for_file_access (elog.c) makes of an errno that has nothing to do with it.
_OF_ANY_ERRNO = ("XX000", "42501", "42809", "53000", "53100", "53200", "58030", "58P02")

_UNUSABLE = (
    "Use a physical slot that is pgwal's own; if the server has invalidated it, drop it and create it again:"
    " where WAL was lost meanwhile, a full backup is needed."
)
_FEATURES = "The server needs wal_level = replica and max_replication_slots above 0 (a restart)."

# By command and SQLSTATE.
_ERRORS: dict[tuple[str, str], tuple[type[ServerError], str | None]] = {
    ("START_REPLICATION", "42704"): (SlotUnavailable, "Create it: run pgwal stream once with --create-slot."),
    ("START_REPLICATION", "55006"): (
        SlotInUse,
        "A slot serves one receiver at a time: stop the other one, or use a slot of another name.",
    ),
    ("START_REPLICATION", "55000"): (SlotUnavailable, _UNUSABLE),
    ("CREATE_REPLICATION_SLOT", "42710"): (SlotExists, "Use it as it is with --if-not-exists."),
    ("CREATE_REPLICATION_SLOT", "53400"): (SettingRequired, "Drop a slot, or raise max_replication_slots."),
    ("CREATE_REPLICATION_SLOT", "55000"): (SettingRequired, _FEATURES),
    ("DROP_REPLICATION_SLOT", "42704"): (SlotUnavailable, None),
    ("DROP_REPLICATION_SLOT", "55006"): (SlotUnavailable, "Stop its receiver first."),
    ("", "42501"): (PrivilegeMissing, "A superuser can run: ALTER ROLE {role} REPLICATION;"),
}


def interrupted(reason: str) -> ReplicationInterrupted:
    """Return the error of a connection, or a stream, that ended for a reason that may pass."""
    return ReplicationInterrupted(f"replication was interrupted: {reason}")


def error_of_result(result: PGresult, command: str, *, role: str, lost: str | None) -> PgwalError:
    """Return pgwal's error for a result that is one.

    ``role`` is who connected, and ``lost`` why the connection is gone where that is known already.
    """
    sqlstate = _field(result, pq.DiagnosticField.SQLSTATE)
    if sqlstate is None:
        # An error of libpq's own: the connection is gone.
        return interrupted(lost or one_line(result.get_error_message()))
    text = ": ".join(
        part
        for field in (pq.DiagnosticField.MESSAGE_PRIMARY, pq.DiagnosticField.MESSAGE_DETAIL)
        if (part := _field(result, field))
    )
    segment = removed_segment(sqlstate, text)
    if segment is not None:
        return _wal_removed(segment)
    if sqlstate[:3] in _INTERRUPTIONS:
        return interrupted(text)
    verb = command.partition(" ")[0]
    kind, hint = _ERRORS.get((verb, sqlstate)) or _ERRORS.get(("", sqlstate)) or (ServerError, None)
    if hint is not None:
        hint = hint.format(role=quoted_identifier(role))
    return kind(text, hint=hint or _field(result, pq.DiagnosticField.MESSAGE_HINT))


def removed_segment(sqlstate: str, text: str) -> str | None:
    """Return the segment that an error says the server has removed; None for another error.

    Where that is found out only after reading (CheckXLogRemoved in xlog.c), the SQLSTATE is made of an errno that may
    be left of anything; the message then names the segment and no other number.
    """
    segment = re.search(r"\b[0-9A-F]{24}\b", text)
    if segment is None:
        return None
    rest = text[: segment.start()] + text[segment.end() :]
    is_alone = sqlstate in _OF_ANY_ERRNO and not any(map(str.isdigit, rest))
    return segment[0] if sqlstate == _UNDEFINED_FILE or is_alone else None


def _wal_removed(segment: str) -> WalRemoved:
    return WalRemoved(
        f"the server has already removed WAL segment {segment}, which is needed next",
        hint="Copy it into the repository's wal directory, if another archive holds it. Otherwise run pgwal full, which"
        " goes on from where the server is. A replication slot prevents this.",
    )


def _field(result: PGresult, field: pq.DiagnosticField) -> str | None:
    value = result.error_field(field)
    return None if value is None else one_line(value.decode(errors="replace"))
