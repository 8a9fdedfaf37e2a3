"""The server's walsender as seen from here: replication commands, and the COPY of a WAL stream.

Knows nothing of what the bytes mean; ``pgwal.replication`` does.  Whatever ends a stream comes out as a value or
as one of pgwal's errors.

Follows "Streaming Replication Protocol" in the manual and src/bin/pg_basebackup/receivelog.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Self

from psycopg import pq

from pgwal.errors import BrokenInvariant, FormatError, SlotUnavailable
from pgwal.postgres.replication_answer import (
    AnswerRow,
    EndOfTimeline,
    SlotPosition,
    SystemIdentity,
    end_of_timeline,
)
from pgwal.postgres.replication_connection import ReplicationConnection
from pgwal.postgres.replication_error import SlotExists, interrupted
from pgwal.postgres_version import version_of_server

if TYPE_CHECKING:
    import psycopg

    from pgwal.lsn import Lsn

_STREAM = "START_REPLICATION"

MOST_HISTORY_BYTES = 16 << 20
"""A line has fewer than a hundred bytes in most cases, and a cluster few timelines."""


class WalSender:
    """The server's walsender as seen from here; owns a connection that connect_replication has opened.

    ``wake_fd`` is a file descriptor, such as the reading end of a pipe that signal handlers write to; ``receive``
    returns as soon as it is readable, and the server has no more than STOP_TIMEOUT_S to answer any command from then
    on.  Nothing is read from it here.
    """

    def __init__(self, connection: psycopg.Connection, *, wake_fd: int | None = None) -> None:
        self._connection = ReplicationConnection(connection, wake_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a stream that is under way is cut off.  May be called again."""
        self._connection.close()

    @property
    def is_streaming(self) -> bool:
        """Whether a stream is under way."""
        return self._connection.is_streaming

    @property
    def server_version(self) -> int:
        """The server's version number, such as 170010."""
        return self._connection.server_version

    # ---- commands ----

    def identify_system(self) -> SystemIdentity:
        """Ask which cluster this is, on which timeline it writes and how far its WAL is durable."""
        row = self._one_row("IDENTIFY_SYSTEM")
        return SystemIdentity(row.system_identifier("systemid"), row.timeline("timeline"), row.lsn("xlogpos"))

    def show(self, name: str) -> str:
        """Return the value of a server setting, with its unit (``16MB``)."""
        return self._one_row(f'SHOW "{name}"').text(name)

    def is_named_synchronous(self) -> bool:
        """Tell whether synchronous_standby_names names this connection, so that commits may wait for what it reports.

        sync_state would say the same, but to roles with pg_monitor alone.
        """
        own = self._connection.application_name
        named = re.findall(r'"((?:[^"]|"")*)"|([^\s,()"]+)', self.show("synchronous_standby_names"))
        # The server folds case when it compares, quoted or not.
        names = {(quoted.replace('""', '"') or plain).lower() for quoted, plain in named}
        return not names.isdisjoint({"*", own.lower()})

    def timeline_history(self, timeline_id: int) -> bytes:
        """Return the content of a timeline's history file; empty for timeline 1, which has none.

        Raises ServerError when the server does not have the file.
        """
        if timeline_id == 1:
            return b""
        content = self._one_row(f"TIMELINE_HISTORY {timeline_id}").required("content")
        if len(content) > MOST_HISTORY_BYTES:
            raise FormatError(
                f"the server's history of timeline {timeline_id} is larger than {MOST_HISTORY_BYTES} bytes",
                hint="Look at the server's timeline history files.",
            )
        return content

    def create_physical_slot(self, name: str, *, reserve_wal: bool = True, if_not_exists: bool = False) -> bool:
        """Create a physical replication slot; with ``reserve_wal`` it holds WAL back from the last checkpoint on.

        Returns False when there is a slot of this name and ``if_not_exists`` is given.
        Raises SlotUnavailable when there is one and it is not, PrivilegeMissing, or SettingRequired when the
        server has no room for another slot.
        """
        reserve = " RESERVE_WAL" if reserve_wal else ""
        try:
            self._connection.execute(f"CREATE_REPLICATION_SLOT {_slot_name(name)} PHYSICAL{reserve}")
        except SlotExists:
            if if_not_exists:
                return False
            raise
        return True

    def create_temporary_slot(self) -> str:
        """Create a physical slot that holds WAL back from the last checkpoint on, and return its name.

        It goes with the connection.  Raises PrivilegeMissing, or SettingRequired when there is no room for a slot.
        """
        name = f"pgwal_{self._connection.server_process_id}"
        self._connection.execute(f"CREATE_REPLICATION_SLOT {_slot_name(name)} TEMPORARY PHYSICAL RESERVE_WAL")
        return name

    def read_replication_slot(self, name: str) -> SlotPosition | None:
        """Return the position of a physical slot, None when there is no such slot.  For servers since 15.

        Raises ServerError for a logical slot.
        """
        version = version_of_server(self.server_version)
        if not version.has_read_replication_slot:
            raise BrokenInvariant(f"PostgreSQL {version.major} has no READ_REPLICATION_SLOT")
        row = self._one_row(f"READ_REPLICATION_SLOT {_slot_name(name)}")
        if row.values.get("slot_type") is None:
            return None
        return SlotPosition(
            None if row.values.get("restart_lsn") is None else row.lsn("restart_lsn"),
            None if row.values.get("restart_tli") is None else row.timeline("restart_tli"),
        )

    def drop_slot(self, name: str) -> None:
        """Drop a replication slot.  Raises SlotUnavailable when there is none or it is in use."""
        self._connection.execute(f"DROP_REPLICATION_SLOT {_slot_name(name)}")

    # ---- the stream ----

    def start_replication(self, slot: str | None, lsn: Lsn, timeline_id: int) -> EndOfTimeline | None:
        """Start to stream WAL of a timeline from ``lsn`` on, holding WAL back by ``slot``.

        Returns EndOfTimeline when the timeline ends exactly there: nothing streams then.
        Raises SlotUnavailable when the slot is missing, in use or invalidated, PrivilegeMissing, or ServerError.
        That the WAL is gone, or the position is in the future, shows only in ``receive``.
        """
        using = f"SLOT {_slot_name(slot)} " if slot is not None else ""
        command = f"START_REPLICATION {using}PHYSICAL {lsn} TIMELINE {timeline_id}"
        results = self._connection.execute(command, until=pq.ExecStatus.COPY_BOTH)
        return None if self._connection.is_streaming else end_of_timeline(results, command)

    def receive(self, timeout_s: float) -> memoryview | EndOfTimeline | None:
        """Return the next message, waiting for it; None when the time is over or ``wake_fd`` is readable.

        EndOfTimeline ends the stream and leaves the connection ready for the next command.
        Raises WalRemoved when the server no longer has the WAL, ReplicationInterrupted when it ended the stream
        or is gone, other ServerError when it refuses to go on.
        """
        message = self._connection.receive(timeout_s)
        if message is not None or self._connection.is_streaming:
            return message
        return self._end_of_stream()

    def send(self, payload: bytes) -> None:
        """Send a message without blocking; what the socket does not take now goes out during ``receive``."""
        self._connection.send(payload)

    def finish(self) -> None:
        """End the stream from this side and wait until the server has, too; WAL still on its way is dropped.

        The connection is ready for the next command then.  Raises what ``receive`` raises.
        """
        self._connection.check(self._connection.end_stream(), _STREAM)

    def _end_of_stream(self) -> EndOfTimeline:
        """Find out why the server ended the stream."""
        results = self._connection.results_of_stream()
        if results and results[0].status == pq.ExecStatus.COMMAND_OK:
            # Complete, but no row with a next timeline, and usually no connection any more.
            raise interrupted("the server ended the stream, as it does when it shuts down")
        self._connection.check(results, _STREAM)
        return end_of_timeline(results, _STREAM)

    def _one_row(self, command: str) -> AnswerRow:
        """Run a command that answers with one row, and return that."""
        for result in self._connection.execute(command):
            if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples == 1:
                return AnswerRow.of_result(result, command)
        raise FormatError(f"{command}: the server's answer is not one row")


def _slot_name(name: str) -> str:
    """Check a slot's name and quote it, for a bare one could be a keyword.

    What must be escaped inside of quotes is no slot's name; and before 18 the server's replication grammar does
    not understand a doubled quote.  Raises SlotUnavailable.
    """
    if re.fullmatch(r"[a-z0-9_]{1,63}", name) is None:
        raise SlotUnavailable(
            f"{name!r} is not a name for a replication slot",
            hint="It may contain lower case letters, digits and underscores, and is at most 63 characters long.",
        )
    return f'"{name}"'
