"""What a walsender answers to a command: a row of raw values, which is checked before anything is believed.

Source of the rows: src/backend/replication/walsender.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Self

from psycopg import pq

from pgwal.errors import FormatError, ReplicationInterrupted
from pgwal.lsn import Lsn

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

_HIGHEST_TIMELINE = 0xFFFF_FFFF
_HIGHEST_IDENTIFIER = 0xFFFF_FFFF_FFFF_FFFF


class SystemIdentity(NamedTuple):
    """The answer to IDENTIFY_SYSTEM; ``flush_lsn`` is what a standby has received, on a standby."""

    system_identifier: int
    timeline_id: int
    flush_lsn: Lsn


class SlotPosition(NamedTuple):
    """Where a physical slot holds back WAL; both None for a slot that has reserved none yet."""

    restart_lsn: Lsn | None
    restart_timeline_id: int | None


class EndOfTimeline(NamedTuple):
    """The timeline that was streamed ends at ``switch_lsn``, from where ``next_timeline_id`` goes on.

    ``switch_lsn`` can lie before the end of what was streamed: half a record may have been sent already.
    """

    next_timeline_id: int
    switch_lsn: Lsn


class AnswerRow(NamedTuple):
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

    def system_identifier(self, column: str) -> int:
        """Return a value that is a system identifier; raises FormatError."""
        return self.number(column, _HIGHEST_IDENTIFIER)

    def timeline(self, column: str) -> int:
        """Return a value that is a timeline, also one that a server has as a signed int4; raises FormatError."""
        value = self.required(column)
        if re.fullmatch(rb"-[0-9]{1,10}", value) and -(1 << 31) <= int(value) < -1:
            return int(value) + (1 << 32)
        return self.number(column, _HIGHEST_TIMELINE)

    def lsn(self, column: str) -> Lsn:
        """Return a value that is an LSN; raises FormatError."""
        return Lsn.parse(self.text(column))


def end_of_timeline(results: list[PGresult], command: str) -> EndOfTimeline:
    """Read the row that tells where a timeline ended and which one follows.

    Raises FormatError if there is none, ReplicationInterrupted where the server does not know yet what follows.
    """
    for result in results:
        if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples == 1:
            row = AnswerRow.of_result(result, command)
            if row.required("next_tli") == b"0":
                # 13 and 14, in the moment in which a standby is promoted: recovery has ended, and the timeline that the
                # walsender takes for the new one is still the old one (XLogSendPhysical in walsender.c).
                raise ReplicationInterrupted("replication was interrupted: the server is just being promoted")
            return EndOfTimeline(row.timeline("next_tli"), row.lsn("next_tli_startpos"))
    raise FormatError(f"{command}: the server neither streams nor tells of a next timeline")
