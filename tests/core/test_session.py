"""The streaming session: no hole is taken, flush never goes backwards, status comes when it is due."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgwal.errors import BrokenInvariant, FormatError
from pgwal.lsn import Lsn
from pgwal.replication.messages import Keepalive, StatusUpdate, WalData, decode_status_update
from pgwal.replication.session import ReplicationSession

START = Lsn(0x3000000)


def wal_data(lsn: int, data: bytes, server_end: int | None = None) -> bytes:
    return struct.pack(">cQQq", b"w", lsn, lsn + len(data) if server_end is None else server_end, 0) + data


def keepalive(sent_lsn: int, *, reply: bool = False) -> bytes:
    return struct.pack(">cQqB", b"k", sent_lsn, 0, reply)


def session(interval_s: float = 10, *, report_flush: bool = True, reported: Lsn | None = None) -> ReplicationSession:
    return ReplicationSession(START, interval_s, report_flush=report_flush, reported_flush_lsn=reported)


def status_of(payload: bytes | None) -> StatusUpdate:
    assert payload is not None
    return decode_status_update(payload)


# ---- receiving


@given(st.lists(st.binary(max_size=40)))
def test_pieces_join_to_the_stream(pieces: list[bytes]) -> None:
    receiver = session()
    position = START
    for piece in pieces:
        message = receiver.receive(wal_data(position, piece), 0)
        assert isinstance(message, WalData)
        assert (message.lsn, bytes(message.data)) == (position, piece)
        position = message.end_lsn
    assert receiver.received_lsn == START + sum(map(len, pieces))


@given(st.integers(-100, 100).filter(bool))
def test_a_hole_or_an_overlap_is_refused_and_changes_nothing(distance: int) -> None:
    receiver = session()
    receiver.receive(wal_data(START, b"x" * 200), 0)
    with pytest.raises(FormatError, match=r"expected it to continue at 0/30000C8"):
        receiver.receive(wal_data(START + 200 + distance, b"data"), 0)
    assert receiver.received_lsn == START + 200
    receiver.receive(wal_data(START + 200, b"data"), 0)


def test_the_first_piece_must_start_where_it_was_asked_to() -> None:
    with pytest.raises(FormatError):
        session().receive(wal_data(START + 8, b"data"), 0)


@given(st.binary(max_size=60))
def test_any_payload_is_taken_or_refused(payload: bytes) -> None:
    receiver = session()
    try:
        receiver.receive(payload, 0)
    except FormatError:
        assert receiver.received_lsn == START
        assert not receiver.reply_due


def test_the_servers_end_of_wal_is_the_highest_it_told_of() -> None:
    receiver = session()
    assert receiver.server_end_lsn == START
    receiver.receive(wal_data(START, b"1234", server_end=START + 1000), 0)
    receiver.receive(keepalive(START + 4), 0)
    assert receiver.server_end_lsn == START + 1000
    receiver.receive(keepalive(START + 2000), 0)
    assert receiver.server_end_lsn == START + 2000
    assert receiver.received_lsn == START + 4


# ---- when status is due


def test_the_first_status_is_due_at_once_and_then_one_per_interval() -> None:
    receiver = session(10)
    assert receiver.status_wait_s(5) == 0
    assert receiver.status_due(5) is not None
    assert receiver.status_due(5) is None
    assert receiver.status_wait_s(8) == 7
    assert receiver.status_due(14.9) is None
    assert receiver.status_due(15) is not None


def test_a_requested_reply_is_due_at_once_and_only_once() -> None:
    receiver = session(10)
    receiver.status_now(0)
    assert isinstance(receiver.receive(keepalive(START, reply=True), 1), Keepalive)
    assert receiver.reply_due
    assert receiver.status_wait_s(1) == 0
    receiver.receive(keepalive(START), 1)
    assert receiver.status_due(1) is not None
    assert not receiver.reply_due
    assert receiver.status_due(1) is None


def test_without_an_interval_status_is_sent_only_when_asked_for() -> None:
    receiver = session(0)
    assert receiver.status_wait_s(1e6) is None
    assert receiver.status_due(1e6) is None
    receiver.receive(keepalive(START, reply=True), 1e6)
    assert receiver.status_due(1e6) is not None


def test_a_silent_server_is_asked_for_a_reply() -> None:
    receiver = session(10)
    assert not status_of(receiver.status_due(0)).reply_requested
    assert status_of(receiver.status_due(10)).reply_requested
    receiver.receive(keepalive(START), 11)
    assert receiver.silence_s(11) == 0
    assert not status_of(receiver.status_due(20)).reply_requested
    assert status_of(receiver.status_due(30)).reply_requested
    assert receiver.silence_s(41) == 30


def test_a_server_that_never_said_anything_is_silent_since_the_first_status() -> None:
    receiver = session(10)
    assert receiver.silence_s(100) == 0
    receiver.status_due(100)
    assert receiver.silence_s(160) == 60


# ---- what a status says


def test_a_flush_that_was_withheld_is_to_be_told_afterwards() -> None:
    """Commits may wait for it, and no other status is due for long."""
    receiver = session(reported=START)
    assert not receiver.has_flush_to_tell
    receiver.receive(wal_data(START, b"received"), 0)
    receiver.written(Lsn(START + 8))
    receiver.flushed(Lsn(START + 8))
    receiver.withholds_flush = True
    assert not receiver.has_flush_to_tell
    assert status_of(receiver.status_now(0)).flushed_lsn == 0
    receiver.withholds_flush = False
    assert receiver.has_flush_to_tell
    assert status_of(receiver.status_now(0)).flushed_lsn == START + 8
    assert not receiver.has_flush_to_tell


def test_status_reports_what_is_written_and_flushed() -> None:
    receiver = session()
    receiver.receive(wal_data(START, b"12345678"), 0)
    assert status_of(receiver.status_now(0)) == StatusUpdate(START, 0, 0, -946_684_800_000_000, reply_requested=False)
    receiver.written(Lsn(START + 8))
    receiver.flushed(Lsn(START + 4))
    status = status_of(receiver.status_now(0))
    assert (status.written_lsn, status.flushed_lsn, status.applied_lsn) == (START + 8, START + 4, 0)


def test_flush_is_unknown_unless_it_is_to_be_reported() -> None:
    receiver = session(report_flush=False)
    receiver.flushed(START)
    assert receiver.flushed_lsn == START
    assert status_of(receiver.status_now(0)).flushed_lsn == 0


def test_a_session_never_reports_less_than_the_sessions_before_it() -> None:
    receiver = session(reported=Lsn(START + 6))
    receiver.receive(wal_data(START, b"12345678"), 0)
    receiver.written(Lsn(START + 8))
    receiver.flushed(Lsn(START + 5))
    assert status_of(receiver.status_now(0)).flushed_lsn == 0
    receiver.flushed(Lsn(START + 6))
    assert status_of(receiver.status_now(0)).flushed_lsn == START + 6


def test_client_time_is_unix_time_since_2000() -> None:
    receiver = ReplicationSession(START, 10, report_flush=False, unix_time_offset_s=946_684_800)
    assert status_of(receiver.status_now(2.5)).client_time_us == 2_500_000


def test_positions_beyond_the_data_are_mistakes_of_the_caller() -> None:
    receiver = session()
    with pytest.raises(BrokenInvariant):
        receiver.written(Lsn(START + 1))
    receiver.receive(wal_data(START, b"1234"), 0)
    receiver.written(Lsn(START + 2))
    with pytest.raises(BrokenInvariant):
        receiver.flushed(Lsn(START + 3))


class SessionMachine(RuleBasedStateMachine):
    """Any sequence of messages, writes, syncs, questions and waits, against plain variables."""

    @initialize(
        interval_s=st.sampled_from([0, 1, 10]),
        report_flush=st.booleans(),
        floor=st.sampled_from([0, START, START + 50]),
    )
    def begin(self, interval_s: float, report_flush: bool, floor: int) -> None:
        self.interval_s = interval_s
        self.report_flush = report_flush
        self.floor = floor
        self.now = 1000.0
        self.received = self.written = START + 0
        self.flushed = 0
        self.reported_flush = 0
        self.last_status: float | None = None
        self.reply_due = False
        self.session = ReplicationSession(START, interval_s, report_flush=report_flush, reported_flush_lsn=Lsn(floor))

    @rule(data=st.binary(max_size=30))
    def wal_data_arrives(self, data: bytes) -> None:
        self.session.receive(wal_data(self.received, data), self.now)
        self.received += len(data)

    @rule(reply=st.booleans())
    def keepalive_arrives(self, reply: bool) -> None:
        self.session.receive(keepalive(self.received, reply=reply), self.now)
        self.reply_due |= reply

    @rule(distance=st.integers(-20, 20).filter(bool))
    def wal_arrives_at_a_wrong_place(self, distance: int) -> None:
        with pytest.raises(FormatError):
            self.session.receive(wal_data(self.received + distance, b"data"), self.now)

    @rule(share=st.floats(0, 1))
    def some_is_written(self, share: float) -> None:
        lsn = START + int(share * (self.received - START))
        self.session.written(Lsn(lsn))
        self.written = max(self.written, lsn)

    @rule(share=st.floats(0, 1))
    def some_is_flushed(self, share: float) -> None:
        lsn = START + int(share * (self.written - START))
        self.session.flushed(Lsn(lsn))
        self.flushed = max(self.flushed, lsn)

    @rule(seconds=st.floats(0, 12))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def status_is_asked_for(self) -> None:
        first = self.last_status is None
        elapsed = bool(self.interval_s) and (first or self.now >= (self.last_status or 0) + self.interval_s)
        payload = self.session.status_due(self.now)
        assert (payload is not None) == (self.reply_due or elapsed)
        if payload is not None:
            self.check_status(payload)

    @precondition(lambda self: self.received > START)
    @rule()
    def status_is_sent_anyway(self) -> None:
        self.check_status(self.session.status_now(self.now))

    def check_status(self, payload: bytes) -> None:
        status = decode_status_update(payload)
        expected = self.flushed if self.report_flush and self.flushed >= self.floor else 0
        assert (status.written_lsn, status.flushed_lsn) == (self.written, expected)
        assert status.flushed_lsn >= self.reported_flush, "the flush position went backwards"
        self.reported_flush = status.flushed_lsn
        self.last_status = self.now
        self.reply_due = False

    @invariant()
    def positions_are_in_order(self) -> None:
        if hasattr(self, "session"):
            assert self.session.received_lsn == self.received
            assert (self.session.flushed_lsn or 0) == self.flushed
            assert self.flushed <= self.session.written_lsn <= self.received <= self.session.server_end_lsn


TestAnySequence = SessionMachine.TestCase
