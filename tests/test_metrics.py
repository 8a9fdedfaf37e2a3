"""What a receiver tells monitoring and service managers while it runs."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from keeping.stored_repository import FULL, SECOND_FULL, THIRD_FULL, build_chains
from pgwal_process import assert_failed, finish, run_pgwal, start_pgwal
from prometheus_client.parser import text_string_to_metric_families
from test_main_job import prepare, run_load

from pgwal.engine.delete import DeleteRequest, delete_backup
from pgwal.engine.newest_backup import NewestBackupWatch
from pgwal.engine.receiver_metrics import LatencyHistogram
from pgwal.repository.local_place import LocalPlace
from pgwal_cli.exit_codes import FAILED, USAGE
from pgwal_cli.service_manager import ServiceManager
from pgwal_cli.throwaway_server import ThrowawayServer

SLOT = ("--slot", "pgwal", "--create-slot", "--if-not-exists")
TIMEOUT_S = 30

Samples = dict[tuple[str, str], float]


class Streaming:
    """A receiver that serves metrics."""

    def __init__(self, address: str) -> None:
        self.address = address

    def scrape(self) -> Samples:
        """Return the samples by name and their labels' values."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=TIMEOUT_S) as response:
            text = response.read().decode()
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def wait_for(self, condition: Callable[[Samples], bool]) -> Samples:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition(samples := self.scrape()):
            assert time.monotonic() < deadline, samples
            time.sleep(0.1)
        return samples


@contextmanager
def streaming_with_metrics(
    server: ThrowawayServer, repo: Path, *, max_descriptors: int | None = None
) -> Iterator[Streaming]:
    limited = [] if max_descriptors is None else ["bash", "-c", f'ulimit -n {max_descriptors}; exec "$@"', "limited"]
    streaming = ["stream", "--repo", repo, "-d", server.conninfo, "--metrics", "127.0.0.1:0", *SLOT]
    process = start_pgwal(*streaming, prefix=limited)
    try:
        assert process.stderr is not None
        message = process.stderr.readline()
        assert message.startswith("pgwal: serving metrics at 127.0.0.1:"), message
        yield Streaming(message.split()[-1])
    finally:
        process.terminate()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr


@pytest.mark.postgres(15, 18)
def test_metrics_of_a_receiver(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(initdb_args=("--wal-segsize=1",))
    prepare(server)
    with streaming_with_metrics(server, scratch / "repo") as running:
        for step in range(3):
            run_load(server, step)
        with server.connect() as connection:
            row = connection.execute("SELECT pg_current_wal_flush_lsn() - '0/0'").fetchone()
        assert row is not None
        flushed = ("pgwal_receiver_lsn_bytes", "flushed")
        found = running.wait_for(
            lambda s: (
                s[flushed] >= int(row[0])
                and s["pgwal_receiver_segments_compressed_total", ""] > 0
                and s["pgwal_receiver_lag_bytes", ""] == 0
                and s["pgwal_server_up", ""] == 1
                and ("pgwal_newest_backup_timestamp_seconds", "") in s
                and ("pgwal_slot_active", "pgwal") in s
            )
        )
        assert found["pgwal_receiver_streaming", ""] == 1
        assert found["pgwal_receiver_timeline", ""] == 1
        assert found["pgwal_receiver_lag_seconds", ""] == 0
        assert found["pgwal_receiver_received_bytes_total", ""] > 1 << 20
        assert found["pgwal_receiver_segments_completed_total", ""] >= 1
        assert found["pgwal_receiver_sync_seconds_count", ""] >= 1
        assert found["pgwal_receiver_summaries_written_total", ""] >= (1 if server.installation.major < 17 else 0)
        assert found["pgwal_receiver_reconnects_total", ""] == 0
        assert found["pgwal_receiver_errors_total", "stream"] == 0
        assert found["pgwal_slot_active", "pgwal"] == 1
        assert found["pgwal_slot_wal_status", "pgwal,reserved"] == 1
        assert found["pgwal_slot_retained_bytes", "pgwal"] >= 0
        assert found["process_resident_memory_bytes", ""] > 0
        assert found["pgwal_newest_backup_timestamp_seconds", ""] == 0

        server.restart()
        found = running.wait_for(
            lambda s: s["pgwal_receiver_reconnects_total", ""] >= 1 and s["pgwal_receiver_streaming", ""] == 1
        )
        assert found["pgwal_receiver_errors_total", "stream"] >= 1


def test_the_time_of_the_newest_backup(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path / "repo")
    watch = NewestBackupWatch(place, interval_s=0.01)
    watch.start()
    try:
        assert watch.began_at is None, "no repository yet"
        build_chains(place)
        wait_until(lambda: watch.began_at == datetime(2026, 11, 24, 10, 15, 30, tzinfo=UTC).timestamp())
        for backup_id in (FULL, SECOND_FULL, THIRD_FULL):
            delete_backup(DeleteRequest(place, backup_id, cascade=True, may_be_last=True))
        wait_until(lambda: watch.began_at == 0)
    finally:
        watch.stop()
        watch.join(TIMEOUT_S)
    assert not watch.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.postgres(18)
def test_an_address_in_use_is_an_error(server: ThrowawayServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome = run_pgwal("stream", "--repo", tmp_path / "repo", "-d", server.conninfo, "--metrics", address)
    assert_failed(outcome, FAILED, f"cannot serve metrics at {address}: Address already in use")


@pytest.mark.parametrize("address", ["9187", ":9187", "localhost:", "localhost:http", "localhost:65536"])
def test_what_is_no_address_is_a_usage_error(tmp_path: Path, address: str) -> None:
    assert_failed(run_pgwal("stream", "--repo", tmp_path, "--metrics", address), USAGE, "is not HOST:PORT")


def test_a_latency_counts_where_it_belongs() -> None:
    latency = LatencyHistogram()
    for seconds in (0.0, latency.BOUNDS_S[0], latency.BOUNDS_S[0] + 1e-6, latency.BOUNDS_S[-1] + 1):
        latency.observe(seconds)
    assert (latency.counts[0], latency.counts[1], latency.counts[-1], sum(latency.counts)) == (2, 1, 1, 4)


# ---- the service manager


class Messages:
    """What arrives at a notification socket."""

    def __init__(self, receiver: socket.socket) -> None:
        self.lines: list[str] = []
        self._receiver = receiver
        receiver.settimeout(0.2)

    def wait_for(self, wanted: Callable[[list[str]], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not wanted(self.lines):
            assert time.monotonic() < deadline, self.lines
            try:
                self.lines += self._receiver.recv(4096).decode().split("\n")
            except TimeoutError:
                continue


@pytest.fixture
def notify_socket(scratch: Path) -> Iterator[tuple[str, Messages]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        path = str(scratch / "notify")
        receiver.bind(path)
        yield path, Messages(receiver)


@pytest.mark.postgres(15, 18)
def test_the_service_manager_is_told(
    server: ThrowawayServer, scratch: Path, notify_socket: tuple[str, Messages]
) -> None:
    path, messages = notify_socket
    stream = ["stream", "--repo", scratch / "repo", "-d", server.conninfo, *SLOT]
    process = start_pgwal(*stream, env={"NOTIFY_SOCKET": path})
    try:
        # Nothing happens on the server, and the receiver lives all the same.
        messages.wait_for(lambda lines: "READY=1" in lines and lines.count("WATCHDOG=1") >= 4)
        assert any(line.startswith("STATUS=receiving WAL on timeline 1") for line in messages.lines)
        # It lives while the server is away, too.
        server.stop()
        messages.wait_for(lambda lines: "STATUS=connecting to the server" in lines)
        alive = messages.lines.count("WATCHDOG=1")
        messages.wait_for(lambda lines: lines.count("WATCHDOG=1") >= alive + 2)
    finally:
        process.terminate()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    messages.wait_for(lambda lines: "STOPPING=1" in lines)
    assert messages.lines.count("READY=1") == 1


def test_nobody_who_listens_is_no_error(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "none"), "@pgwal-test-nobody"):
        manager = ServiceManager(address)
        manager.alive("working", ready=True)
        manager.stopping()


def test_a_reader_that_does_not_read_is_not_waited_for(notify_socket: tuple[str, Messages]) -> None:
    manager = ServiceManager(notify_socket[0])
    thread = threading.Thread(target=lambda: [manager.alive(str(n), ready=True) for n in range(2000)], daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.postgres(18)
def test_a_flood_of_connections_concerns_nobody_but_itself(server: ThrowawayServer, scratch: Path) -> None:
    with streaming_with_metrics(server, scratch / "repo", max_descriptors=64) as running, ExitStack() as flood:
        host, port = running.address.rsplit(":", 1)
        for number in range(300):
            client = flood.enter_context(socket.create_connection((host, int(port)), timeout=TIMEOUT_S))
            if number % 3 == 0:
                # Some speak, slowly.
                with suppress(OSError):
                    client.sendall(b"GET /met")
        # All of them are still there: those that were let in are ended in time.
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            with suppress(OSError):
                samples = running.scrape()
                break
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert samples["process_open_fds", ""] < 64
        with server.connect() as connection:
            connection.execute("CREATE TABLE t ()")
            row = connection.execute("SELECT pg_current_wal_flush_lsn() - '0/0'").fetchone()
        assert row is not None
        running.wait_for(lambda s: s["pgwal_receiver_lsn_bytes", "flushed"] >= int(row[0]))
