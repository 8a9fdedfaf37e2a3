"""Replication messages: the bytes of the format, and that malformed ones give the declared errors only."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.errors import FormatError, TruncatedInput
from pgwal.lsn import Lsn
from pgwal.replication.messages import (
    Keepalive,
    StatusUpdate,
    WalData,
    decode_server_message,
    decode_status_update,
    encode_status_update,
    postgres_time_us,
)

LSNS = st.integers(0, (1 << 64) - 1)
TIMES = st.integers(-(1 << 63), (1 << 63) - 1)

WAL_DATA_HEADER_SIZE = 25
KEEPALIVE_SIZE = 18
STATUS_UPDATE_SIZE = 34


def test_wal_data_as_the_server_sends_it() -> None:
    payload = b"w" + bytes.fromhex("0000000003000028 0000000003000130 0002c1a2b3c4d5e6") + b"\xd1\x16wal"
    message = decode_server_message(payload)
    assert isinstance(message, WalData)
    assert (str(message.lsn), str(message.server_end_lsn)) == ("0/3000028", "0/3000130")
    assert message.server_time_us == 0x0002C1A2B3C4D5E6
    assert bytes(message.data) == b"\xd1\x16wal"
    assert message.end_lsn == 0x300002D


def test_keepalive_as_the_server_sends_it() -> None:
    payload = b"k" + bytes.fromhex("00000001ff000000 0000000000000001 01")
    assert decode_server_message(payload) == Keepalive(Lsn(0x1FF000000), 1, reply_requested=True)


def test_status_update_as_the_server_reads_it() -> None:
    status = StatusUpdate(0x3000130, 0x3000028, 0, 1, reply_requested=True)
    assert encode_status_update(status) == b"r" + bytes.fromhex(
        "0000000003000130 0000000003000028 0000000000000000 0000000000000001 01"
    )


@pytest.mark.parametrize(
    ("unix_s", "expected_us"), [(946_684_800, 0), (946_684_800.5, 500_000), (0, -946_684_800_000_000)]
)
def test_times_count_from_2000(unix_s: float, expected_us: int) -> None:
    assert postgres_time_us(unix_s) == expected_us


@given(LSNS, LSNS, TIMES, st.binary(max_size=300))
def test_wal_data_keeps_every_value(lsn: int, end: int, time_us: int, data: bytes) -> None:
    payload = struct.pack(">cQQq", b"w", lsn, end, time_us) + data
    if lsn + len(data) >= 1 << 64:
        with pytest.raises(FormatError):
            decode_server_message(payload)
        return
    message = decode_server_message(memoryview(payload))
    assert isinstance(message, WalData)
    assert (message.lsn, message.server_end_lsn, message.server_time_us) == (lsn, end, time_us)
    assert message.data == data


@given(LSNS, TIMES, st.integers(0, 255))
def test_keepalive_keeps_every_value(lsn: int, time_us: int, reply: int) -> None:
    message = decode_server_message(struct.pack(">cQqB", b"k", lsn, time_us, reply))
    assert message == Keepalive(Lsn(lsn), time_us, reply_requested=reply != 0)


@given(st.builds(StatusUpdate, LSNS, LSNS, LSNS, TIMES, st.booleans()))
def test_status_updates_survive_the_round_trip(status: StatusUpdate) -> None:
    assert decode_status_update(encode_status_update(status)) == status


@pytest.mark.parametrize(("kind", "size"), [(b"w", WAL_DATA_HEADER_SIZE), (b"k", KEEPALIVE_SIZE)])
def test_every_prefix_of_a_server_message_is_truncated(kind: bytes, size: int) -> None:
    payload = (kind + bytes(size))[:size]
    decode_server_message(payload)
    for length in range(size):
        with pytest.raises(TruncatedInput):
            decode_server_message(payload[:length])


def test_every_prefix_of_a_status_update_is_truncated() -> None:
    payload = encode_status_update(StatusUpdate(1, 1, 0, 0, reply_requested=False))
    assert len(payload) == STATUS_UPDATE_SIZE
    for length in range(len(payload)):
        with pytest.raises(TruncatedInput):
            decode_status_update(payload[:length])


def test_messages_of_fixed_size_may_not_be_longer() -> None:
    with pytest.raises(FormatError):
        decode_server_message(b"k" + bytes(KEEPALIVE_SIZE))
    with pytest.raises(FormatError):
        decode_status_update(b"r" + bytes(STATUS_UPDATE_SIZE))
    with pytest.raises(FormatError):
        decode_status_update(b"k" + bytes(STATUS_UPDATE_SIZE - 1))


@given(st.binary(max_size=60))
def test_any_bytes_give_a_message_or_a_format_error(payload: bytes) -> None:
    for decode in (decode_server_message, decode_status_update):
        with suppress(FormatError):
            decode(payload)
