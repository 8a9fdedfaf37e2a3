"""One streaming session as a state machine: fed payloads and the time, asked for status updates.

Knows nothing of sockets, files or clocks.  The caller moves bytes both ways and tells what it has written and
made durable; the session guarantees that

* WAL is taken only where the last piece of it ended, so that what was received never has a hole;
* the positions reported never run ahead of the data, and the flush position never goes backwards (a physical
  slot's restart_lsn follows what is reported in either direction, and WAL that it lets go is gone);
* a keepalive that asks for a reply is answered at the next ``status_due``, and a status is due once in every
  interval however the server behaves.

The order at the caller, for each round: ``receive``, write, ``written``; when a segment is complete or
``reply_due`` is set: fsync, ``flushed``; then send what ``status_due`` returns.  To sync before answering
matters when the server shuts down: it waits until everything it sent is confirmed as flushed.

Behaviour follows src/bin/pg_basebackup/receivelog.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

from pgwal.errors import BrokenInvariant, FormatError
from pgwal.lsn import Lsn
from pgwal.replication.messages import (
    Keepalive,
    StatusUpdate,
    WalData,
    decode_server_message,
    encode_status_update,
    postgres_time_us,
)


class ReplicationSession:
    """The client's side of one START_REPLICATION, from ``start_lsn`` on.

    Times are seconds of one clock that does not jump (``time.monotonic``); ``unix_time_offset_s`` is what added
    to it gives Unix time, used for nothing but the time stamp that the server shows as ``reply_time``.

    ``status_interval_s`` of 0 sends status only when the server asks.  Without ``report_flush`` (no slot, not
    synchronous) the flush position is always sent as unknown.  ``reported_flush_lsn`` is what earlier sessions
    reported, such as the slot's restart_lsn: until ``flushed`` has passed it, the position is sent as unknown,
    for a session starts at a segment's start, which may lie before it.
    """

    def __init__(
        self,
        start_lsn: Lsn,
        status_interval_s: float,
        *,
        report_flush: bool,
        reported_flush_lsn: Lsn | None = None,
        unix_time_offset_s: float = 0.0,
    ) -> None:
        if status_interval_s < 0:
            raise BrokenInvariant("a time is not negative")
        self.start_lsn = start_lsn
        self.status_interval_s = status_interval_s
        self.report_flush = report_flush
        self._reported_lsn = reported_flush_lsn or Lsn(0)
        self._unix_time_offset_s = unix_time_offset_s
        self._received_lsn = start_lsn
        self._written_lsn = start_lsn
        self._flushed_lsn: Lsn | None = None
        self._server_end_lsn = start_lsn
        self.withholds_flush = False
        """Whether the flush position is sent as unknown for now."""
        self._reply_due = False
        self._sent_flush_lsn = 0
        self._last_status_s: float | None = None
        self._last_received_s: float | None = None

    @property
    def received_lsn(self) -> Lsn:
        """The position of the first byte that has not been received."""
        return self._received_lsn

    @property
    def written_lsn(self) -> Lsn:
        return self._written_lsn

    @property
    def flushed_lsn(self) -> Lsn | None:
        """The position before which everything is durable; None until ``flushed`` was called."""
        return self._flushed_lsn

    @property
    def server_end_lsn(self) -> Lsn:
        """The highest end of WAL that the server has told of; at least ``received_lsn``."""
        return self._server_end_lsn

    @property
    def reply_due(self) -> bool:
        """Whether the server waits for an answer: sync, call ``flushed``, then ``status_due``."""
        return self._reply_due

    @property
    def has_flush_to_tell(self) -> bool:
        """Whether the flush position that is to be reported is not the one that the server was sent last."""
        return self._flush_to_report() not in (0, self._sent_flush_lsn)

    def receive(self, payload: bytes | memoryview, now: float) -> WalData | Keepalive:
        """Take one CopyData payload and return what it says.

        Raises FormatError when it is malformed, or when WAL data does not start where the last piece ended; the
        session is unchanged then.
        """
        message = decode_server_message(payload)
        if isinstance(message, WalData):
            self._receive_wal_data(message)
        else:
            self._receive_keepalive(message)
        self._last_received_s = now
        return message

    def _receive_wal_data(self, message: WalData) -> None:
        if message.lsn != self._received_lsn:
            raise FormatError(
                f"the server sent WAL from {message.lsn}, expected it to continue at {self._received_lsn}"
            )
        self._received_lsn = message.end_lsn
        self._server_end_lsn = max(self._server_end_lsn, message.server_end_lsn, message.end_lsn)

    def _receive_keepalive(self, message: Keepalive) -> None:
        self._server_end_lsn = max(self._server_end_lsn, message.sent_lsn)
        self._reply_due = self._reply_due or message.reply_requested

    def written(self, lsn: Lsn) -> None:
        """Note that everything before ``lsn`` has been handed to the operating system; never goes backwards."""
        if lsn > self._received_lsn:
            raise BrokenInvariant("written beyond what was received")
        self._written_lsn = max(self._written_lsn, lsn)

    def flushed(self, lsn: Lsn) -> None:
        """Note that everything before ``lsn`` is durable: it may be reported from now on; never goes backwards."""
        if lsn > self._written_lsn:
            raise BrokenInvariant("flushed beyond what was written")
        self._flushed_lsn = lsn if self._flushed_lsn is None else max(self._flushed_lsn, lsn)

    def status_due(self, now: float) -> bytes | None:
        """Return a status update to send now, or None when none is due.

        Due are the first one, one per interval, and the answer to a keepalive that asked for it.
        """
        wait_s = self.status_wait_s(now)
        return None if wait_s is None or wait_s > 0 else self.status_now(now)

    def status_wait_s(self, now: float) -> float | None:
        """Return how long the caller may wait before it asks ``status_due`` again; None for as long as it likes."""
        if self._reply_due:
            return 0.0
        if not self.status_interval_s:
            return None
        if self._last_status_s is None:
            return 0.0
        return max(0.0, self._last_status_s + self.status_interval_s - now)

    def status_now(self, now: float) -> bytes:
        """Return a status update to send whether one is due or not: after a flush, or before the end.

        It asks the server for a reply when nothing has come since the last status, so that a server that is idle
        can be told from one that is gone: see ``silence_s``.
        """
        status = StatusUpdate(
            written_lsn=self._written_lsn,
            flushed_lsn=self._flush_to_report(),
            applied_lsn=0,
            client_time_us=postgres_time_us(now + self._unix_time_offset_s),
            reply_requested=self._heard_nothing_since_last_status(),
        )
        self._reply_due = False
        self._sent_flush_lsn = status.flushed_lsn
        self._last_status_s = now
        if self._last_received_s is None:
            self._last_received_s = now
        return encode_status_update(status)

    def silence_s(self, now: float) -> float:
        """Return for how long the server has sent nothing; 0 before the first status.

        A server that lives answers every second status at the latest.  So where there is a status interval, more
        than a few intervals of silence mean that the connection is dead, which TCP may not notice for hours.
        """
        return 0.0 if self._last_received_s is None else max(0.0, now - self._last_received_s)

    def passed_over(self, now: float) -> None:
        """Note that the caller does not read for now, so that it cannot hear whether the server is silent."""
        self._last_received_s = now

    def _flush_to_report(self) -> int:
        if not self.report_flush or self.withholds_flush:
            return 0
        if self._flushed_lsn is None or self._flushed_lsn < self._reported_lsn:
            return 0
        return self._flushed_lsn

    def _heard_nothing_since_last_status(self) -> bool:
        if self._last_status_s is None or self._last_received_s is None:
            return False
        return self._last_received_s <= self._last_status_s
