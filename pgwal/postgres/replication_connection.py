"""A replication connection over libpq's PGconn: a pump that moves bytes, runs commands and waits.

One thread, no callbacks, no busy loop: it waits in poll() for the socket, for a file descriptor that wakes it, or for
the time to pass, and holds no more than libpq's buffer for one message.  ``walsender`` knows the commands and what
they answer.

Follows src/bin/pg_basebackup/receivelog.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import fcntl
import select
import struct
import termios
import time
from enum import Enum
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from pgwal.budget import COMMAND_TIMEOUT_S, STOP_TIMEOUT_S
from pgwal.errors import BrokenInvariant, FormatError, NoAnswer
from pgwal.postgres.connection import one_line
from pgwal.postgres.replication_error import error_of_result, interrupted

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult


_MOST_ARRIVED_BYTES = 128 << 20
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


class ReplicationConnection:
    """Runs commands and one stream at a time; owns a connection that connect_replication has opened.

    ``wake_fd`` is a file descriptor, such as the reading end of a pipe that signal handlers write to; ``receive``
    returns as soon as it is readable, and the server has no more than STOP_TIMEOUT_S to answer any command from then
    on.  Nothing is read from it here.
    """

    def __init__(self, connection: psycopg.Connection, wake_fd: int | None) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._pgconn.nonblocking = 1
        self._wake_fd = wake_fd
        self._woken_at_s: float | None = None
        self._state = _State.IDLE
        self._lost: str | None = None
        self._unsent = False
        self._tls_drained = False
        self._arrived_bytes = self._reads = 0

    def close(self) -> None:
        """Close the connection; a stream that is under way is cut off.  May be called again."""
        self._state = _State.CLOSED
        self._connection.close()

    @property
    def is_streaming(self) -> bool:
        """Whether a COPY is under way."""
        return self._state is _State.STREAMING

    @property
    def server_version(self) -> int:
        """The server's version number, such as 170010."""
        return self._pgconn.server_version

    @property
    def server_process_id(self) -> int:
        """The process of the walsender."""
        return self._pgconn.backend_pid

    @property
    def application_name(self) -> str:
        """What the server knows the connection as."""
        return (self._pgconn.parameter_status(b"application_name") or b"").decode(errors="replace")

    # ---- commands ----

    def execute(self, command: str, until: pq.ExecStatus | None = None) -> list[PGresult]:
        """Run a command and return its results, the last of which has the status ``until`` when one has it.

        A result that is COPY_BOTH starts a stream.  Raises pgwal's error for the first result that is one,
        ReplicationInterrupted, or NoAnswer.
        """
        if self._state is not _State.IDLE:
            raise BrokenInvariant(f"{command} while {self._state.value}")
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        self._arrived_bytes = self._reads = 0
        try:
            self._pgconn.send_query(command.encode())
        except psycopg.Error as error:
            raise interrupted(one_line(str(error))) from error
        self._flush()
        results = self._results(deadline, until)
        self.check(results, command)
        if results[-1].status == pq.ExecStatus.COPY_BOTH:
            self._state = _State.STREAMING
        return results

    def check(self, results: list[PGresult], command: str) -> None:
        """Raise the first error among the results as pgwal's."""
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                role = (self._pgconn.user or b"").decode(errors="replace")
                raise error_of_result(result, command, role=role, lost=self._lost)
        if not results:
            raise interrupted(self._lost or f"no answer to {command}")

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

    # ---- the stream ----

    def receive(self, timeout_s: float) -> memoryview | None:
        """Return the next message, waiting for it; None when the time is over or ``wake_fd`` is readable.

        None, too, when the server has ended the stream: ``is_streaming`` is no longer so then, and
        ``results_of_stream`` must be called.
        """
        if self._state is not _State.STREAMING:
            raise BrokenInvariant("no stream")
        deadline = time.monotonic() + timeout_s
        while True:
            payload = self._take_message()
            if payload is not None:
                return payload
            if self._state is not _State.STREAMING or not self._wait(deadline, is_woken_at_once=True):
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

    def results_of_stream(self) -> list[PGresult]:
        """Return the results of a stream that the server has ended; the connection is ready for a command then."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        results = self._results(deadline, until=pq.ExecStatus.COPY_IN)
        if results and results[-1].status == pq.ExecStatus.COPY_IN:
            # A CopyDone of the server: it says more when it has ours.
            self._put_copy_end()
            results = self._results(deadline)
        return results

    def end_stream(self) -> list[PGresult]:
        """End the stream from this side, wait until the server has, too, and return its results.

        WAL still on its way is dropped.
        """
        if self._state is not _State.STREAMING:
            raise BrokenInvariant("no stream")
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        self._put_copy_end()
        while self._state is _State.STREAMING:
            if self._take_message() is None and self._state is _State.STREAMING and not self._wait(deadline):
                raise self._no_answer()
        return self._results(deadline)

    def _take_message(self) -> memoryview | None:
        """Return a message that libpq holds, None when it needs more input or the copy has ended (see the state)."""
        try:
            size, payload = self._pgconn.get_copy_data(1)
        except psycopg.Error as error:
            raise interrupted(one_line(str(error))) from error
        if size > 0:
            self._tls_drained = False
            self._arrived_bytes = self._reads = 0
            return payload
        if size < 0:
            self._state = _State.IDLE
        elif self._lost is not None:
            # Only now: what had arrived before the connection broke has been given out.
            raise interrupted(self._lost)
        return None

    def _put_copy_end(self) -> None:
        try:
            self._pgconn.put_copy_end()
        except psycopg.Error as error:
            self._note_lost(error)
        self._flush()

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

    def _no_answer(self) -> NoAnswer:
        waited_s = COMMAND_TIMEOUT_S if self._woken_at_s is None else STOP_TIMEOUT_S
        return NoAnswer(f"replication was interrupted: the server did not answer within {waited_s:.0f} s")


def _waiting_bytes(descriptor: int) -> int:
    """Return how much a socket has to read."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(count)
