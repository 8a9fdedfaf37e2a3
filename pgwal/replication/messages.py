"""Messages of physical streaming replication: the payloads of CopyData, decoded and encoded.

Knows nothing of connections, nor of what came before a message.
Source of the format: src/backend/replication/walsender.c and "Streaming Replication Protocol" in the manual,
PostgreSQL 13 to 19.  All integers are big-endian; times are microseconds since 2000-01-01 00:00 UTC.

| message | offset | type | field |
|---|---|---|---|
| WAL data, from the server | 0 | byte | 'w' |
| | 1 | u64 | LSN of the first byte of data |
| | 9 | u64 | the server's end of WAL |
| | 17 | i64 | server time |
| | 25 | | data: WAL bytes |
| keepalive, from the server | 0 | byte | 'k' |
| | 1 | u64 | LSN up to which the server has sent |
| | 9 | i64 | server time |
| | 17 | u8 | not 0: reply at once |
| status update, to the server | 0 | byte | 'r' |
| | 1 | u64 | written up to (0: unknown, here and below) |
| | 9 | u64 | flushed up to |
| | 17 | u64 | applied up to |
| | 25 | i64 | client time |
| | 33 | u8 | 1: reply at once |
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pgwal.errors import FormatError, TruncatedInput
from pgwal.lsn import Lsn

# 2000-01-01 00:00 UTC in seconds since the Unix epoch: 10957 days.
POSTGRES_EPOCH_UNIX_S = 946_684_800

_WAL_DATA_HEADER = struct.Struct(">cQQq")
_KEEPALIVE = struct.Struct(">cQqB")
_STATUS_UPDATE = struct.Struct(">cQQQqB")

_WAL_DATA_TYPE = b"w"
_KEEPALIVE_TYPE = b"k"
_STATUS_UPDATE_TYPE = b"r"

_MAX_LSN = (1 << 64) - 1


class WalData(NamedTuple):
    """WAL bytes that start at ``lsn``; ``data`` is a view of the payload it was decoded from."""

    lsn: Lsn
    server_end_lsn: Lsn
    server_time_us: int
    data: memoryview

    @property
    def end_lsn(self) -> Lsn:
        """The position of the first byte after the data."""
        return Lsn(self.lsn + len(self.data))


class Keepalive(NamedTuple):
    """A sign of life; ``sent_lsn`` is how far the server has sent, not the end of its WAL."""

    sent_lsn: Lsn
    server_time_us: int
    reply_requested: bool


class StatusUpdate(NamedTuple):
    """What the client has: each LSN is that of the first byte it does not have, or 0 for unknown."""

    written_lsn: int
    flushed_lsn: int
    applied_lsn: int
    client_time_us: int
    reply_requested: bool


def postgres_time_us(unix_time_s: float) -> int:
    """Convert seconds since the Unix epoch to PostgreSQL's microseconds since 2000."""
    return round((unix_time_s - POSTGRES_EPOCH_UNIX_S) * 1_000_000)


def decode_server_message(payload: bytes | memoryview) -> WalData | Keepalive:
    """Decode what the server sent in one CopyData message.

    Raises TruncatedInput when the payload ends inside the message's fixed part, FormatError for a message of an
    unknown type, one that is too long, and data that would end beyond the last possible LSN.
    """
    view = memoryview(payload)
    message_type = bytes(view[:1])
    if message_type == _WAL_DATA_TYPE:
        return _decode_wal_data(view)
    if message_type == _KEEPALIVE_TYPE:
        return _decode_keepalive(view)
    if not message_type:
        raise TruncatedInput("replication message: it is empty")
    raise FormatError(f"replication message: unknown type {message_type!r}")


def _decode_wal_data(view: memoryview) -> WalData:
    if len(view) < _WAL_DATA_HEADER.size:
        raise TruncatedInput(f"WAL data message has {len(view)} bytes, its header alone has {_WAL_DATA_HEADER.size}")
    _, lsn, server_end, server_time_us = _WAL_DATA_HEADER.unpack_from(view)
    data = view[_WAL_DATA_HEADER.size :]
    if lsn + len(data) > _MAX_LSN:
        raise FormatError(f"WAL data message: {len(data)} bytes at {Lsn(lsn)} end beyond the last LSN")
    return WalData(Lsn(lsn), Lsn(server_end), server_time_us, data)


def _decode_keepalive(view: memoryview) -> Keepalive:
    if len(view) < _KEEPALIVE.size:
        raise TruncatedInput(f"keepalive message has {len(view)} bytes, expected {_KEEPALIVE.size}")
    if len(view) > _KEEPALIVE.size:
        raise FormatError(f"keepalive message has {len(view)} bytes, expected {_KEEPALIVE.size}")
    _, sent, server_time_us, reply_requested = _KEEPALIVE.unpack(view)
    return Keepalive(Lsn(sent), server_time_us, reply_requested != 0)


def encode_status_update(status: StatusUpdate) -> bytes:
    """Encode a standby status update; the payload of one CopyData message."""
    return _STATUS_UPDATE.pack(
        _STATUS_UPDATE_TYPE,
        status.written_lsn,
        status.flushed_lsn,
        status.applied_lsn,
        status.client_time_us,
        status.reply_requested,
    )


def decode_status_update(payload: bytes | memoryview) -> StatusUpdate:
    """Decode a standby status update: the inverse of encode_status_update.

    Raises TruncatedInput or FormatError when the payload is not one.
    """
    view = memoryview(payload)
    if bytes(view[:1]) not in (_STATUS_UPDATE_TYPE, b""):
        raise FormatError(f"status update: unknown type {bytes(view[:1])!r}")
    if len(view) < _STATUS_UPDATE.size:
        raise TruncatedInput(f"status update has {len(view)} bytes, expected {_STATUS_UPDATE.size}")
    if len(view) > _STATUS_UPDATE.size:
        raise FormatError(f"status update has {len(view)} bytes, expected {_STATUS_UPDATE.size}")
    _, written, flushed, applied, client_time_us, reply_requested = _STATUS_UPDATE.unpack(view)
    return StatusUpdate(written, flushed, applied, client_time_us, reply_requested != 0)
