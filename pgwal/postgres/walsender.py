"""Replication commands and the COPY of a WAL stream, over libpq's PGconn: a pump that moves bytes and waits.

Knows nothing of what the bytes mean; ``pgwal.replication`` does.  Whatever ends a stream comes out as a value or
as one of pgwal's errors.  One thread, no callbacks, no busy loop: it waits in poll() for the socket, for a
file descriptor that wakes it, or for the time to pass, and holds no more than libpq's buffer for one message.

Follows "Streaming Replication Protocol" in the manual and src/bin/pg_basebackup/receivelog.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import fcntl
import re
import select
import struct
import termios
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Self

import psycopg
from psycopg import pq

from pgwal.errors import (
    BrokenInvariant,
    FormatError,
    NoAnswer,
    PgwalError,
    PrivilegeMissing,
    ReplicationInterrupted,
    ServerError,
    SettingRequired,
    SlotInUse,
    SlotUnavailable,
    WalRemoved,
)
from pgwal.lsn import Lsn
from pgwal.postgres.connection import one_line, quoted_identifier
from pgwal.postgres_version import version_of_server

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

# Replication commands answer at once; a server that takes longer than this is as good as gone.
COMMAND_TIMEOUT_S = 60.0
# The same for who wants an end.
STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """The answer to IDENTIFY_SYSTEM; ``flush_lsn`` is what a standby has received, on a standby."""

    system_identifier: int
    timeline_id: int
    flush_lsn: Lsn


@dataclass(frozen=True, slots=True)
class SlotPosition:
    """Where a physical slot holds back WAL; both None for a slot that has reserved none yet."""

    restart_lsn: Lsn | None
    restart_timeline_id: int | None


@dataclass(frozen=True, slots=True)
class EndOfTimeline:
    """The timeline that was streamed ends at ``switch_lsn``, from where ``next_timeline_id`` goes on.

    ``switch_lsn`` can lie before the end of what was streamed: half a record may have been sent already.
    """

    next_timeline_id: int
    switch_lsn: Lsn


@dataclass(frozen=True, slots=True)
class _Row:
    """The row that a command answered with: raw values by column name."""

    command: str
    values: dict[str, bytes | None]

    @classmethod
    def of_result(cls, result: PGresult, command: str) -> Self:
        names = [(result.fname(column) or b"").decode(errors="replace") for column in range(result.nfields)]
        return cls(command, {name: result.get_value(0, column) for column, name in enumerate(names)})

    def required(self, column: str) -> bytes:
        """Return a value; raises FormatError when there is none."""
        value = self.values.get(column)
        if value is None:
            raise FormatError(f"{self.command}: the server's answer has no {column}")
        return value

    def text(self, column: str) -> str:
        """Return a value as text; raises FormatError for what is not UTF-8."""
        try:
            return self.required(column).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.command}: the server's answer for {column} is no text in UTF-8") from error

    def number(self, column: str, most: int) -> int:
        """Return a value that is a number from 1 to ``most``; raises FormatError."""
        value = self.required(column)
        if re.fullmatch(rb"[0-9]{1,20}", value) is None or not 1 <= int(value) <= most:
            raise FormatError(f"{self.command}: the server's answer for {column} is {value[:80]!r}, no such number")
        return int(value)

    def timeline(self, column: str) -> int:
        """Return a value that is a timeline, also one that a server has as a signed int4; raises FormatError."""
        value = self.required(column)
        if re.fullmatch(rb"-[0-9]{1,10}", value) and -(1 << 31) <= int(value) < -1:
            return int(value) + (1 << 32)
        return self.number(column, _HIGHEST_TIMELINE)

    def lsn(self, column: str) -> Lsn:
        """Return a value that is an LSN; raises FormatError."""
        return Lsn.parse(self.text(column))


_HIGHEST_TIMELINE = 0xFFFF_FFFF
_HIGHEST_IDENTIFIER = 0xFFFF_FFFF_FFFF_FFFF


MOST_HISTORY_BYTES = 16 << 20
"""A line has fewer than a hundred bytes in most cases, and a cluster few timelines."""
_MOST_ARRIVED_BYTES = 8 * MOST_HISTORY_BYTES
"""Of one message of a stream, or of the answer to a command: all of it would be held in memory.

Counted is what the socket has before libpq reads.  It may take in more while it does, up to the message that it is in,
of which the largest has a gigabyte; and what it leaves, while its buffer is small, is counted again.
"""
# WAL comes in messages that one or two reads bring: asking the system before each would be one more call for each.
_READS_UNCOUNTED = 16


class _State(Enum):
    IDLE = "idle"
    STREAMING = "streaming"
    CLOSED = "closed"


class WalSender:
    """The server's walsender as seen from here; owns a connection that connect_replication has opened.

    ``wake_fd`` is a file descriptor, such as the reading end of a pipe that signal handlers write to; ``receive``
    returns as soon as it is readable, and the server has no more than STOP_TIMEOUT_S to answer any command from then
    on.  Nothing is read from it here.
    """

    def __init__(self, connection: psycopg.Connection, *, wake_fd: int | None = None) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._pgconn.nonblocking = 1
        self._wake_fd = wake_fd
        self._woken_at_s: float | None = None
        self._state = _State.IDLE
        self._timeline_id = 0
        self._lost: str | None = None
        self._unsent = False
        self._tls_drained = False
        self._arrived_bytes = self._reads = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a stream that is under way is cut off.  May be called again."""
        self._state = _State.CLOSED
        self._connection.close()

    @property
    def is_streaming(self) -> bool:
        """Whether a stream is under way."""
        return self._state is _State.STREAMING

    @property
    def server_version(self) -> int:
        """The server's version number, such as 170010."""
        return self._pgconn.server_version

    # ---- commands ----

    def identify_system(self) -> SystemIdentity:
        """Ask which cluster this is, on which timeline it writes and how far its WAL is durable."""
        row = self._one_row("IDENTIFY_SYSTEM")
        return SystemIdentity(row.number("systemid", _HIGHEST_IDENTIFIER), row.timeline("timeline"), row.lsn("xlogpos"))

    def show(self, name: str) -> str:
        """Return the value of a server setting, with its unit (``16MB``)."""
        return self._one_row(f'SHOW "{name}"').text(name)

    def is_named_synchronous(self) -> bool:
        """Tell whether synchronous_standby_names names this connection, so that commits may wait for what it reports.

        sync_state would say the same, but to roles with pg_monitor alone.
        """
        own = (self._pgconn.parameter_status(b"application_name") or b"").decode(errors="replace")
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
            self._execute(f"CREATE_REPLICATION_SLOT {_slot_name(name)} PHYSICAL{reserve}")
        except _SlotExists:
            if if_not_exists:
                return False
            raise
        return True

    def create_temporary_slot(self) -> str:
        """Create a physical slot that holds WAL back from the last checkpoint on, and return its name.

        It goes with the connection.  Raises PrivilegeMissing, or SettingRequired when there is no room for a slot.
        """
        name = f"pgwal_{self._pgconn.backend_pid}"
        self._execute(f"CREATE_REPLICATION_SLOT {_slot_name(name)} TEMPORARY PHYSICAL RESERVE_WAL")
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
        self._execute(f"DROP_REPLICATION_SLOT {_slot_name(name)}")

    # ---- the stream ----

    def start_replication(self, slot: str | None, lsn: Lsn, timeline_id: int) -> EndOfTimeline | None:
        """Start to stream WAL of a timeline from ``lsn`` on, holding WAL back by ``slot``.

        Returns EndOfTimeline when the timeline ends exactly there: nothing streams then.
        Raises SlotUnavailable when the slot is missing, in use or invalidated, PrivilegeMissing, or ServerError.
        That the WAL is gone, or the position is in the future, shows only in ``receive``.
        """
        self._timeline_id = timeline_id
        using = f"SLOT {_slot_name(slot)} " if slot is not None else ""
        command = f"START_REPLICATION {using}PHYSICAL {lsn} TIMELINE {timeline_id}"
        results = self._execute(command, until=pq.ExecStatus.COPY_BOTH)
        if results[-1].status == pq.ExecStatus.COPY_BOTH:
            self._state = _State.STREAMING
            return None
        return _end_of_timeline(results, command)

    def receive(self, timeout_s: float) -> memoryview | EndOfTimeline | None:
        """Return the next message, waiting for it; None when the time is over or ``wake_fd`` is readable.

        EndOfTimeline ends the stream and leaves the connection ready for the next command.
        Raises WalRemoved when the server no longer has the WAL, ReplicationInterrupted when it ended the stream
        or is gone, other ServerError when it refuses to go on.
        """
        if self._state is not _State.STREAMING:
            raise BrokenInvariant("no stream")
        deadline = time.monotonic() + timeout_s
        while True:
            payload = self._take_message()
            if payload is not None:
                return payload
            if self._state is not _State.STREAMING:
                return self._end_of_copy()
            if not self._wait(deadline, is_woken_at_once=True):
                return None

    def send(self, payload: bytes) -> None:
        """Send a message without blocking; what the socket does not take now goes out during ``receive``."""
        if self._state is not _State.STREAMING:
            raise BrokenInvariant("no stream")
        try:
            queued = self._pgconn.put_copy_data(payload)
        except psycopg.Error as error:
            self._note_lost(error)
            return
        if queued != 1:
            self._lost = "no memory to send a status update"
        self._flush()

    def finish(self) -> None:
        """End the stream from this side and wait until the server has, too; WAL still on its way is dropped.

        The connection is ready for the next command then.  Raises what ``receive`` raises.
        """
        if self._state is not _State.STREAMING:
            raise BrokenInvariant("no stream")
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        self._put_copy_end()
        while self._state is _State.STREAMING:
            if self._take_message() is None and self._state is _State.STREAMING and not self._wait(deadline):
                raise self._no_answer()
        self._check(self._results(deadline), "START_REPLICATION")

    def _take_message(self) -> memoryview | None:
        """Return a message that libpq holds, None when it needs more input or the copy has ended (see the state)."""
        try:
            size, payload = self._pgconn.get_copy_data(1)
        except psycopg.Error as error:
            raise self._interrupted(one_line(str(error))) from error
        if size > 0:
            self._tls_drained = False
            self._arrived_bytes = self._reads = 0
            return payload
        if size < 0:
            self._state = _State.IDLE
        elif self._lost is not None:
            # Only now: what had arrived before the connection broke has been given out.
            raise self._interrupted(self._lost)
        return None

    def _end_of_copy(self) -> EndOfTimeline:
        """Find out why the server ended the copy."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        command = "START_REPLICATION"
        results = self._results(deadline, until=pq.ExecStatus.COPY_IN)
        if results and results[-1].status == pq.ExecStatus.COPY_IN:
            # A CopyDone of the server: it says more when it has ours.
            self._put_copy_end()
            results = self._results(deadline)
        if results and results[0].status == pq.ExecStatus.COMMAND_OK:
            # Complete, but no row with a next timeline, and usually no connection any more.
            raise self._interrupted("the server ended the stream, as it does when it shuts down")
        self._check(results, command)
        return _end_of_timeline(results, command)

    def _put_copy_end(self) -> None:
        try:
            self._pgconn.put_copy_end()
        except psycopg.Error as error:
            self._note_lost(error)
        self._flush()

    # ---- running commands ----

    def _one_row(self, command: str) -> _Row:
        """Run a command that answers with one row, and return that."""
        for result in self._execute(command):
            if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples == 1:
                return _Row.of_result(result, command)
        raise FormatError(f"{command}: the server's answer is not one row")

    def _execute(self, command: str, until: pq.ExecStatus | None = None) -> list[PGresult]:
        """Run a command and return its results, the last of which has the status ``until`` when one has it."""
        if self._state is not _State.IDLE:
            raise BrokenInvariant(f"{command} while {self._state.value}")
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        self._arrived_bytes = self._reads = 0
        try:
            self._pgconn.send_query(command.encode())
        except psycopg.Error as error:
            raise self._interrupted(one_line(str(error))) from error
        self._flush()
        results = self._results(deadline, until)
        self._check(results, command)
        return results

    def _results(self, deadline: float, until: pq.ExecStatus | None = None) -> list[PGresult]:
        """Collect the results up to the end of the command, or up to one with the status ``until``."""
        results: list[PGresult] = []
        while True:
            while self._pgconn.is_busy():
                if self._lost is not None:
                    # libpq makes a result of the end of the connection.
                    break
                if not self._wait(deadline):
                    raise self._no_answer()
            result = self._pgconn.get_result()
            if result is None:
                return results
            results.append(result)
            if result.status == until:
                return results

    def _check(self, results: list[PGresult], command: str) -> None:
        """Raise the first error among the results as pgwal's."""
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise self._error(result, command)
        if not results:
            raise self._interrupted(self._lost or f"no answer to {command}")

    # ---- waiting ----

    def _wait(self, deadline: float, *, is_woken_at_once: bool = False) -> bool:
        """Wait for input and take it in; False when the time is over.

        That is, when ``wake_fd`` is readable, at once or after STOP_TIMEOUT_S.
        """
        if self._lost is not None:
            return True
        if self._pgconn.ssl_in_use and not self._tls_drained:
            self._drain_tls()
            return True
        poller = select.poll()
        poller.register(self._pgconn.socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if self._woken_at_s is not None and not is_woken_at_once:
            deadline = min(deadline, self._woken_at_s + STOP_TIMEOUT_S)
        elif self._wake_fd is not None:
            poller.register(self._wake_fd, select.POLLIN)
        # poll() takes whole milliseconds: rounded up, or the last one would be spent in a busy loop.
        remaining_ms = max(0, -int((time.monotonic() - deadline) * 1000 // 1))
        ready = dict(poller.poll(remaining_ms))
        socket_events = ready.pop(self._pgconn.socket, 0)
        if ready and self._woken_at_s is None:
            self._woken_at_s = time.monotonic()
        if socket_events & ~select.POLLOUT:
            self._consume_input()
            self._tls_drained = False
        if self._unsent:
            self._flush()
        return bool(ready and not is_woken_at_once) or (bool(socket_events) and not ready)

    def _drain_tls(self) -> None:
        """Take in what the TLS library has decrypted already, which poll() does not see.

        libpq reads only what its buffer has room for, at least 8 kB, while a TLS record has up to 16; 18.6 sees to
        the rest, 15.18 leaves it.  (Seen behind a proxy that ends a burst of WAL with a full record.)  Of two
        calls in a row, the first makes room where there is none and the second reads until nothing is left or
        the buffer is full, in which case it holds a whole message.  So when the caller finds no message after
        this, nothing is left, and it may sleep.
        """
        self._consume_input()
        self._consume_input()
        self._tls_drained = True

    def _consume_input(self) -> None:
        """Take in what the socket has, once; libpq's buffer grows to the size of two messages at most."""
        if self._lost is not None:
            return
        self._reads += 1
        if self._reads > _READS_UNCOUNTED:
            self._arrived_bytes += _waiting_bytes(self._pgconn.socket)
        if self._arrived_bytes > _MOST_ARRIVED_BYTES:
            # In the middle of it, nothing else can follow.
            self._connection.close()
            raise FormatError(f"the server sends more than {_MOST_ARRIVED_BYTES} bytes at once")
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            self._note_lost(error)

    def _flush(self) -> None:
        try:
            self._unsent = self._pgconn.flush() == 1
        except psycopg.Error as error:
            self._note_lost(error)

    def _note_lost(self, error: psycopg.Error) -> None:
        """Remember that the connection is broken; it is raised when what had arrived is used up."""
        self._unsent = False
        if self._lost is None:
            # The first line tells what happened, the others guess at why.
            self._lost = one_line(str(error).partition("\n")[0])

    # ---- errors ----

    def _no_answer(self) -> NoAnswer:
        waited_s = COMMAND_TIMEOUT_S if self._woken_at_s is None else STOP_TIMEOUT_S
        return NoAnswer(f"replication was interrupted: the server did not answer within {waited_s:.0f} s")

    def _interrupted(self, reason: str) -> ReplicationInterrupted:
        return ReplicationInterrupted(f"replication was interrupted: {reason}")

    def _error(self, result: PGresult, command: str) -> PgwalError:
        """Return pgwal's error for a result that is one; told by SQLSTATE, for messages may be translated."""
        sqlstate = _field(result, pq.DiagnosticField.SQLSTATE)
        if sqlstate is None:
            # An error of libpq's own: the connection is gone.
            return self._interrupted(self._lost or one_line(result.get_error_message()))
        text = ": ".join(
            part
            for field in (pq.DiagnosticField.MESSAGE_PRIMARY, pq.DiagnosticField.MESSAGE_DETAIL)
            if (part := _field(result, field))
        )
        segment = _removed_segment(sqlstate, text)
        if segment is not None:
            return _wal_removed(segment)
        if sqlstate[:3] in _INTERRUPTIONS:
            return self._interrupted(text)
        verb = command.partition(" ")[0]
        kind, hint = _ERRORS.get((verb, sqlstate)) or _ERRORS.get(("", sqlstate)) or (ServerError, None)
        if hint is not None:
            hint = hint.format(role=quoted_identifier((self._pgconn.user or b"").decode(errors="replace")))
        return kind(text, hint=hint or _field(result, pq.DiagnosticField.MESSAGE_HINT))


class _SlotExists(SlotUnavailable):
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
    ("CREATE_REPLICATION_SLOT", "42710"): (_SlotExists, "Use it as it is with --if-not-exists."),
    ("CREATE_REPLICATION_SLOT", "53400"): (SettingRequired, "Drop a slot, or raise max_replication_slots."),
    ("CREATE_REPLICATION_SLOT", "55000"): (SettingRequired, _FEATURES),
    ("DROP_REPLICATION_SLOT", "42704"): (SlotUnavailable, None),
    ("DROP_REPLICATION_SLOT", "55006"): (SlotUnavailable, "Stop its receiver first."),
    ("", "42501"): (PrivilegeMissing, "A superuser can run: ALTER ROLE {role} REPLICATION;"),
}


def _removed_segment(sqlstate: str, text: str) -> str | None:
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


def _end_of_timeline(results: list[PGresult], command: str) -> EndOfTimeline:
    """Read the row that tells where a timeline ended and which one follows.

    Raises FormatError if there is none, ReplicationInterrupted where the server does not know yet what follows.
    """
    for result in results:
        if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples == 1:
            row = _Row.of_result(result, command)
            if row.required("next_tli") == b"0":
                # 13 and 14, in the moment in which a standby is promoted: recovery has ended, and the timeline that the
                # walsender takes for the new one is still the old one (XLogSendPhysical in walsender.c).
                raise ReplicationInterrupted("replication was interrupted: the server is just being promoted")
            return EndOfTimeline(row.timeline("next_tli"), row.lsn("next_tli_startpos"))
    raise FormatError(f"{command}: the server neither streams nor tells of a next timeline")


def _field(result: PGresult, field: pq.DiagnosticField) -> str | None:
    value = result.error_field(field)
    return None if value is None else one_line(value.decode(errors="replace"))


def _waiting_bytes(descriptor: int) -> int:
    """Return how much a socket has to read."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(count)


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
