"""Replication connections and the WAL stream against real servers: what comes, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.errors import (
    ConnectionFailed,
    PasswordRequired,
    PrivilegeMissing,
    ReplicationInterrupted,
    ServerError,
    SlotUnavailable,
    WalRemoved,
)
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters, connect_replication, connect_sql
from pgwal.postgres.replication_answer import EndOfTimeline, SlotPosition
from pgwal.postgres.replication_error import removed_segment
from pgwal.postgres.walsender import WalSender
from pgwal.replication.messages import WalData
from pgwal.replication.session import ReplicationSession
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory, TimelineSwitch
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_servers import ServerFactory

SEGMENT_SIZE = 16 << 20
GEOMETRY = WalGeometry(SEGMENT_SIZE)

# A server that is asked to do something does it long before; only a failing test waits for so long.
PATIENCE_S = 30.0


@contextmanager
def walsender(server: ThrowawayServer, wake_fd: int | None = None) -> Iterator[WalSender]:
    connection = connect_replication(ConnectionParameters(server.conninfo))
    with WalSender(connection, wake_fd=wake_fd) as sender:
        yield sender


class Stream:
    """A receiver that keeps what it gets, and answers as one should."""

    def __init__(
        self, sender: WalSender, start: Lsn, *, slot: str | None = None, timeline_id: int = 1, interval_s: float = 1
    ) -> None:
        self.sender = sender
        self.start = start
        self.session = ReplicationSession(start, interval_s, report_flush=slot is not None)
        self.content = bytearray()
        assert sender.start_replication(slot, start, timeline_id) is None

    def step(self, timeout_s: float = 0.1) -> EndOfTimeline | None:
        received = self.sender.receive(timeout_s)
        if isinstance(received, EndOfTimeline):
            return received
        if received is not None:
            message = self.session.receive(received, time.monotonic())
            if isinstance(message, WalData):
                self.content += message.data
        self.session.written(self.session.received_lsn)
        self.session.flushed(self.session.received_lsn)
        status = self.session.status_due(time.monotonic())
        if status is not None:
            self.sender.send(status)
        return None

    def run_until(self, lsn: Lsn) -> None:
        """Receive until everything before ``lsn`` is there."""
        self.run_while(lambda: self.session.received_lsn < lsn)

    def run_while(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while condition():
            assert time.monotonic() < deadline, f"nothing more than up to {self.session.received_lsn}"
            assert self.step() is None

    def run_to_the_end(self) -> EndOfTimeline:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            end = self.step()
            if end is not None:
                return end
        raise AssertionError("the stream did not end")


def sql(server: ThrowawayServer, *queries: str) -> str | None:
    """Run queries; return the first value of the last as text."""
    with server.connect() as connection:
        for query in queries:
            cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
    return None if row is None else str(row[0])


def flush_lsn(server: ThrowawayServer) -> Lsn:
    return Lsn.parse(sql(server, "SELECT pg_current_wal_flush_lsn()::text") or "")


def segment_start(lsn: Lsn) -> Lsn:
    return GEOMETRY.segment_start(GEOMETRY.segment_no(lsn))


def write_segment(server: ThrowawayServer) -> Lsn:
    """Fill the rest of the current segment with real records and end it; return the next segment's start."""
    sql(
        server,
        "CREATE TABLE IF NOT EXISTS filler (id int, pad text)",
        "INSERT INTO filler SELECT n, repeat('x', 200) FROM generate_series(1, 20000) AS n",
        "SELECT pg_switch_wal()",
    )
    return segment_start(flush_lsn(server))


# ---- the stream is the server's WAL


@pytest.mark.postgres
def test_what_is_streamed_equals_the_servers_segments(server: ThrowawayServer) -> None:
    start = segment_start(flush_lsn(server))
    end = write_segment(server)
    sql(server, "SELECT pg_switch_wal()")
    with walsender(server) as sender:
        stream = Stream(sender, start)
        stream.run_until(end)
        assert stream.session.server_end_lsn >= end
    for at in range(0, end - start, SEGMENT_SIZE):
        name = GEOMETRY.file_name(1, (start + at) // SEGMENT_SIZE)
        stored = (server.data_directory / "pg_wal" / name).read_bytes()
        assert stored == stream.content[at : at + SEGMENT_SIZE], name


@pytest.mark.postgres(13, 18)
def test_a_stream_can_be_ended_and_another_one_started(server: ThrowawayServer) -> None:
    start = segment_start(flush_lsn(server))
    write_segment(server)
    with walsender(server) as sender:
        for _ in range(2):
            stream = Stream(sender, start)
            stream.run_while(lambda stream=stream: not stream.content)  # type: ignore[misc]
            sender.finish()
            assert sender.identify_system().timeline_id == 1


@pytest.mark.postgres(13, 18)
def test_what_is_flushed_moves_the_slot(server: ThrowawayServer) -> None:
    start = segment_start(flush_lsn(server))
    end = write_segment(server)
    with walsender(server) as sender:
        assert sender.create_physical_slot("pgwal")
        stream = Stream(sender, start, slot="pgwal")
        stream.run_until(end)
        sender.send(stream.session.status_now(time.monotonic()))

        def restart_lsn() -> str | None:
            return sql(server, "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'pgwal'")

        stream.run_while(lambda: Lsn.parse(restart_lsn() or "0/0") < end)


@pytest.mark.postgres(13, 15, 17)
def test_streaming_over_tls_loses_no_time(server: ThrowawayServer) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    certificate, key = server.data_directory / "server.crt", server.data_directory / "server.key"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o600)
    give_to_server(key)
    server.configure(ssl=True)
    server.listen_addresses = "127.0.0.1"
    server.restart()
    start = segment_start(flush_lsn(server))
    end = write_segment(server)
    parameters = ConnectionParameters(server.conninfo + " host=127.0.0.1 sslmode=require")
    with WalSender(connect_replication(parameters)) as sender:
        stream = Stream(sender, start)
        # A rest of a TLS record that poll() does not show would cost the time-out again and again.
        longest_s = 0.0
        while stream.session.received_lsn < end:
            before = time.monotonic()
            stream.step(timeout_s=5)
            longest_s = max(longest_s, time.monotonic() - before)
    assert longest_s < 2


# ---- waiting


@pytest.mark.postgres(18)
def test_waiting_ends_with_the_timeout_and_takes_no_cpu(server: ThrowawayServer) -> None:
    with walsender(server) as sender:
        stream = Stream(sender, flush_lsn(server), interval_s=0)
        while sender.receive(0.2) is not None:
            pass
        cpu, clock = time.process_time(), time.monotonic()
        assert sender.receive(1.0) is None
        assert 0.9 < time.monotonic() - clock < 3
        assert time.process_time() - cpu < 0.1
        assert sender.receive(0) is None
        assert not stream.session.reply_due


@pytest.mark.postgres(18)
def test_a_readable_wake_descriptor_ends_the_wait(server: ThrowawayServer) -> None:
    read_fd, write_fd = os.pipe()
    try:
        with walsender(server, wake_fd=read_fd) as sender:
            Stream(sender, flush_lsn(server))
            while sender.receive(0.2) is not None:
                pass
            waker = threading.Timer(0.2, os.write, (write_fd, b"x"))
            waker.start()
            clock = time.monotonic()
            assert sender.receive(PATIENCE_S) is None
            assert time.monotonic() - clock < 5
            waker.join()
            # It stays readable, so nobody can miss it; ending the stream works all the same.
            assert sender.receive(PATIENCE_S) is None
            sender.finish()
    finally:
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.postgres(18)
def test_sending_never_blocks(server: ThrowawayServer) -> None:
    """A walsender that does not read its replies: they wait here, and go out when it reads again."""
    with walsender(server) as sender:
        stream = Stream(sender, flush_lsn(server))
        pid = int(sql(server, "SELECT pid FROM pg_stat_replication") or 0)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(50_000):
                sender.send(stream.session.status_now(time.monotonic()))
        finally:
            os.kill(pid, signal.SIGCONT)
        end = write_segment(server)
        stream.run_until(end)
        sender.finish()


@pytest.mark.postgres(13, 18)
def test_an_idle_stream_survives_wal_sender_timeout(server: ThrowawayServer) -> None:
    server.configure(wal_sender_timeout="2s")
    server.reload()
    with walsender(server) as sender:
        stream = Stream(sender, flush_lsn(server), interval_s=0)
        until = time.monotonic() + 5
        stream.run_while(lambda: time.monotonic() < until)
        end = write_segment(server)
        stream.run_until(end)


@pytest.mark.postgres(15, 18)
def test_a_receiver_that_does_not_answer_is_cut_off(server: ThrowawayServer) -> None:
    server.configure(wal_sender_timeout="1s")
    server.reload()
    with walsender(server) as sender:
        Stream(sender, flush_lsn(server))
        with pytest.raises(ReplicationInterrupted):
            _receive_without_answering(sender)


def _receive_without_answering(sender: WalSender) -> None:
    for _ in range(100):
        sender.receive(0.1)


# ---- how streams end


@pytest.mark.postgres(13, 18)
def test_a_shutdown_of_the_server_waits_for_us_and_interrupts(server: ThrowawayServer) -> None:
    start = segment_start(flush_lsn(server))
    write_segment(server)
    with walsender(server) as sender:
        sender.create_physical_slot("pgwal")
        stream = Stream(sender, start, slot="pgwal")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with pytest.raises(ReplicationInterrupted, match="shuts down"):
            stream.run_while(lambda: True)
        stopping.join(PATIENCE_S)
        assert not stopping.is_alive()
    control = ControlFile.decode((server.data_directory / CONTROL_FILE_PATH).read_bytes())
    assert stream.session.received_lsn > control.redo_lsn, "the shutdown checkpoint was not received"


@pytest.mark.postgres(13, 18)
def test_a_server_that_is_killed_interrupts(server: ThrowawayServer) -> None:
    start = segment_start(flush_lsn(server))
    end = write_segment(server)
    with walsender(server) as sender:
        stream = Stream(sender, start)
        stream.run_until(end)
        server.kill()
        with pytest.raises(ReplicationInterrupted):
            stream.run_while(lambda: True)
        with pytest.raises(ReplicationInterrupted):
            sender.receive(1)


@pytest.mark.postgres(15, 18)
def test_a_killed_server_interrupts_commands_and_the_end_of_a_stream(server: ThrowawayServer) -> None:
    with walsender(server) as idle, walsender(server) as streaming:
        stream = Stream(streaming, flush_lsn(server))
        server.kill()
        with pytest.raises(ReplicationInterrupted):
            idle.identify_system()
        streaming.send(stream.session.status_now(0))
        with pytest.raises(ReplicationInterrupted):
            streaming.finish()
        with pytest.raises(ConnectionFailed) as refused:
            connect_replication(ConnectionParameters(server.conninfo))
        assert "server runs" in (refused.value.hint or "")


@pytest.mark.postgres(15, 18)
def test_a_terminated_walsender_interrupts(server: ThrowawayServer) -> None:
    with walsender(server) as sender:
        stream = Stream(sender, flush_lsn(server))
        sql(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        with pytest.raises(ReplicationInterrupted, match="administrator command"):
            stream.run_while(lambda: True)


@pytest.mark.postgres(13, 15, 18)
def test_wal_that_is_gone_is_named(make_server: ServerFactory) -> None:
    server = make_server(settings={"min_wal_size": "32MB", "max_wal_size": "32MB"})
    start = segment_start(flush_lsn(server))
    for _ in range(6):
        write_segment(server)
    sql(server, "CHECKPOINT")
    name = GEOMETRY.file_name(1, GEOMETRY.segment_no(start))
    assert not (server.data_directory / "pg_wal" / name).exists()
    with walsender(server) as sender:
        stream = Stream(sender, start)
        with pytest.raises(WalRemoved, match=name):
            stream.run_while(lambda: True)
        assert sender.identify_system().timeline_id == 1, "the connection is still of use"


@pytest.mark.postgres(13, 18)
def test_a_position_in_the_future_is_refused(server: ThrowawayServer) -> None:
    with walsender(server) as sender:
        stream = Stream(sender, Lsn(segment_start(flush_lsn(server)) + 10 * SEGMENT_SIZE))
        with pytest.raises(ServerError, match="ahead of the WAL flush position"):
            stream.run_while(lambda: True)
        sender.identify_system()


@pytest.mark.postgres
def test_the_end_of_a_timeline_tells_the_next(make_server: ServerFactory) -> None:
    server = make_server(settings={"wal_keep_size": "1GB"})
    start = segment_start(flush_lsn(server))
    write_segment(server)
    switch_lsn = _promote(server)
    with walsender(server) as sender:
        identity = sender.identify_system()
        assert identity.timeline_id == 2
        history = TimelineHistory.decode(2, sender.timeline_history(2))
        assert history.switches == (TimelineSwitch(1, switch_lsn),)
        assert sender.timeline_history(1) == b""
        stream = Stream(sender, start)
        assert stream.run_to_the_end() == EndOfTimeline(2, switch_lsn)
        assert stream.session.received_lsn >= switch_lsn
        assert sender.start_replication(None, switch_lsn, 1) == EndOfTimeline(2, switch_lsn)
        following = Stream(sender, segment_start(switch_lsn), timeline_id=2)
        following.run_until(identity.flush_lsn)
        sender.finish()
        with pytest.raises(ServerError, match="history"):
            Stream(sender, Lsn(switch_lsn + 8), timeline_id=1).run_while(lambda: True)
        with pytest.raises(ServerError):
            sender.timeline_history(7)


def _promote(server: ThrowawayServer) -> Lsn:
    """Let the server recover to the end of its WAL, which begins timeline 2; return where that is."""
    server.stop()
    signal_file = server.data_directory / "recovery.signal"
    signal_file.touch()
    give_to_server(signal_file)
    server.configure(restore_command="/bin/false")
    server.start()
    deadline = time.monotonic() + PATIENCE_S
    while sql(server, "SELECT pg_is_in_recovery()") != "False":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    history = (server.data_directory / "pg_wal" / "00000002.history").read_bytes()
    return TimelineHistory.decode(2, history).switches[0].switch_lsn


# ---- commands


@pytest.mark.postgres
def test_identity_and_settings(server: ThrowawayServer) -> None:
    identifier = sql(server, "SELECT system_identifier FROM pg_control_system()")
    with walsender(server) as sender:
        identity = sender.identify_system()
        assert str(identity.system_identifier) == identifier
        assert identity.timeline_id == 1
        assert identity.flush_lsn <= flush_lsn(server)
        assert sender.show("wal_segment_size") == "16MB"
        assert sender.server_version // 10000 == server.installation.major
        with pytest.raises(ServerError, match="no_such_setting"):
            sender.show("no_such_setting")
        assert sender.show("wal_segment_size") == "16MB"


@pytest.mark.postgres(13, 18)
def test_whether_commits_wait_for_this_connection(server: ThrowawayServer) -> None:
    parameters = ConnectionParameters(f"{server.conninfo} application_name='The \"s'")
    with WalSender(connect_replication(parameters)) as sender, server.connect() as connection:
        for setting, expected in (
            ("", False),
            ("*", True),
            ("other, *", True),
            ('ANY 2 (other, "The ""S")', True),
            ('FIRST 1 ("the ""s")', True),
            ('"The", s, "The s"', False),
        ):
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{setting}'".encode())
            connection.execute("SELECT pg_reload_conf()")
            deadline = time.monotonic() + PATIENCE_S
            while sender.show("synchronous_standby_names") != setting:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert sender.is_named_synchronous() == expected, setting


@pytest.mark.postgres
def test_slots_come_and_go(server: ThrowawayServer) -> None:
    with walsender(server) as sender:
        assert sender.create_physical_slot("select")
        assert not sender.create_physical_slot("select", if_not_exists=True)
        with pytest.raises(SlotUnavailable, match="already exists") as exists:
            sender.create_physical_slot("select")
        assert "--if-not-exists" in (exists.value.hint or "")
        assert sender.create_physical_slot("reserves_nothing", reserve_wal=False)
        if server.installation.major >= 15:
            redo = Lsn.parse(sql(server, "SELECT redo_lsn::text FROM pg_control_checkpoint()") or "")
            assert sender.read_replication_slot("select") == SlotPosition(redo, 1)
            assert sender.read_replication_slot("reserves_nothing") == SlotPosition(None, None)
            assert sender.read_replication_slot("other") is None
        sender.drop_slot("select")
        with pytest.raises(SlotUnavailable, match="does not exist"):
            sender.drop_slot("select")
        with pytest.raises(SlotUnavailable, match="not a name"):
            sender.create_physical_slot('not "allowed"')


@pytest.mark.postgres
def test_a_slot_that_is_missing_or_in_use(server: ThrowawayServer) -> None:
    start = flush_lsn(server)
    with walsender(server) as first, walsender(server) as second:
        with pytest.raises(SlotUnavailable, match='"pgwal" does not exist') as missing:
            first.start_replication("pgwal", start, 1)
        assert "--create-slot" in (missing.value.hint or "")
        first.create_physical_slot("pgwal")
        assert first.start_replication("pgwal", start, 1) is None
        with pytest.raises(SlotUnavailable, match=r"active for PID \d+") as in_use:
            second.start_replication("pgwal", start, 1)
        assert "one receiver" in (in_use.value.hint or "")
        with pytest.raises(SlotUnavailable, match="active"):
            second.drop_slot("pgwal")
        first.finish()
        assert second.start_replication("pgwal", start, 1) is None


@pytest.mark.postgres(13, 18)
def test_a_logical_slot_is_of_no_use(make_server: ServerFactory) -> None:
    server = make_server(settings={"wal_level": "logical"})
    sql(server, "SELECT pg_create_logical_replication_slot('logical', 'pgoutput')")
    with walsender(server) as sender, pytest.raises(SlotUnavailable, match="logical") as unusable:
        sender.start_replication("logical", flush_lsn(server), 1)
    assert "physical slot" in (unusable.value.hint or "")


# ---- connecting


def refused(server: ThrowawayServer, kind: type[ServerError], replication: bool = True, **changes: str) -> ServerError:
    """Connect and return the error; its message must be one line, and it must come with a hint."""
    parameters = ConnectionParameters(psycopg.conninfo.make_conninfo(server.conninfo, **changes))
    connect = connect_replication if replication else connect_sql
    with pytest.raises(kind) as refusal, closing(connect(parameters)):
        pass
    error = refusal.value
    assert "\n" not in str(error)
    assert error.hint
    assert type(error) is kind
    return error


def write_hba(server: ThrowawayServer, *lines: str) -> None:
    (server.data_directory / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))
    server.reload()


@pytest.mark.postgres
def test_a_role_without_replication_is_told_how_to_get_it(server: ThrowawayServer) -> None:
    sql(server, 'CREATE ROLE "Plain" LOGIN')
    error = refused(server, PrivilegeMissing, user="Plain")
    assert 'ALTER ROLE "Plain" REPLICATION;' in (error.hint or "")
    sql(server, 'ALTER ROLE "Plain" REPLICATION')
    connect_replication(ConnectionParameters(server.conninfo + " user=Plain")).close()


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("replication", [True, False])
def test_passwords(server: ThrowawayServer, replication: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    sql(server, "CREATE ROLE secured LOGIN REPLICATION PASSWORD 'right'")
    local = "local all postgres trust"
    write_hba(server, local, "host all,replication all 127.0.0.1/32 md5")
    server.listen_addresses = "127.0.0.1"
    server.restart()
    secured = {"host": "127.0.0.1", "user": "secured"}
    wrong = refused(server, ConnectionFailed, replication, password="wrong", **secured)
    assert "authentication failed" in str(wrong)
    refused(server, PasswordRequired, replication, **secured)
    parameters = ConnectionParameters(psycopg.conninfo.make_conninfo(server.conninfo, **secured))
    connect = connect_replication if replication else connect_sql
    connect(parameters.with_password("right")).close()
    (tmp_path / "none").write_text("*:*:replication:secured:right\n*:*:postgres:secured:right\n")
    (tmp_path / "none").chmod(0o600)
    connect(parameters).close()


@pytest.mark.postgres
def test_what_is_missing_is_said(server: ThrowawayServer) -> None:
    assert "-d postgres" in (refused(server, ConnectionFailed, replication=False, dbname="nowhere").hint or "")
    assert "-U" in (refused(server, ConnectionFailed, user="nobody_here").hint or "")
    assert "PGPORT" in (refused(server, ConnectionFailed, host="127.0.0.1", port="1").hint or "")
    assert "-h" in (refused(server, ConnectionFailed, host=str(server.data_directory)).hint or "")
    assert "service" in (refused(server, ConnectionFailed, service="nowhere").hint or "")
    write_hba(server, "local all all trust")
    error = refused(server, ConnectionFailed)
    assert "no pg_hba.conf entry for replication connection" in str(error)
    assert 'database "replication"' in (error.hint or "")


@pytest.mark.postgres(13, 18)
def test_a_server_without_walsenders_to_spare(make_server: ServerFactory) -> None:
    server = make_server(settings={"max_wal_senders": 1})
    with walsender(server):
        error = refused(server, ConnectionFailed)
        assert "max_wal_senders" in (error.hint or "")


@pytest.mark.postgres(18)
def test_the_next_host_is_tried_and_the_name_is_shown(server: ThrowawayServer) -> None:
    server.listen_addresses = "127.0.0.1"
    server.restart()
    parameters = ConnectionParameters.from_options(
        f"host=127.0.0.1,127.0.0.1 port=1,{server.port} user=postgres dbname=postgres"
    )
    with WalSender(connect_replication(parameters)):
        assert sql(server, "SELECT application_name FROM pg_stat_replication") == "pgwal"
    with WalSender(connect_replication(parameters, application_name="standby1")):
        names = "SELECT application_name FROM pg_stat_replication WHERE application_name <> 'pgwal'"
        assert sql(server, names) == "standby1"


def test_options_combine_as_in_psql() -> None:
    def conninfo(*args: str, **options: str) -> dict[str, object]:
        parameters = ConnectionParameters.from_options(*args, **options)
        return dict(psycopg.conninfo.conninfo_to_dict(parameters.conninfo))

    assert conninfo() == {}
    assert conninfo("sales", host="db", port="5433", user="backup") == {
        "dbname": "sales", "host": "db", "port": "5433", "user": "backup",
    }  # fmt: skip
    assert conninfo("host=other dbname=sales", host="db", user="backup") == {
        "dbname": "sales", "host": "other", "user": "backup",
    }  # fmt: skip
    assert conninfo("postgresql://ada@db:1/sales", user="backup") == {
        "dbname": "sales", "host": "db", "port": "1", "user": "ada",
    }  # fmt: skip


def test_passwords_are_not_shown() -> None:
    parameters = ConnectionParameters("host=db password=geheim")
    assert "geheim" not in str(parameters) + repr(parameters)
    with pytest.raises(ConnectionFailed) as invalid:
        ConnectionParameters.from_options("host=db password geheim = 'x")
    assert "geheim" not in str(invalid.value)


@pytest.mark.parametrize(
    ("sqlstate", "text", "expected"),
    [
        ("58P01", "requested WAL segment 00000001000000000000000A has already been removed", True),
        ("XX000", "requested WAL segment 00000001000000000000000A has already been removed", True),
        ("XX000", "das angeforderte WAL-Segment 00000001000000000000000A wurde schon entfernt", True),
        ("XX001", "could not read from WAL segment 00000001000000000000000A, offset 8192: read 0 of 8192", False),
        ("58030", "could not read from WAL segment 00000001000000000000000A, offset 0: Input/output error", False),
        ("55000", "requested starting point 0/A000000 is ahead of the WAL flush position of this server 0/9", False),
        ("XX000", "unexpected state", False),
    ],
)
def test_wal_that_is_gone_is_told_whatever_its_sqlstate(sqlstate: str, text: str, expected: bool) -> None:
    assert removed_segment(sqlstate, text) == ("00000001000000000000000A" if expected else None)
