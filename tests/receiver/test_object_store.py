"""A receiver into an object store, through a spool: what is reported as flushed is in the store, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, finish, run_pgwal, start_pgwal, succeed
from receiver.oracle import (
    SLOT,
    assert_same_wal,
    fault_count,
    flush_lsn,
    keeping_server,
    load,
    one_lsn,
    prepare_load,
    seeded,
    wait_for,
)
from support.seaweedfs import SeaweedFS, running
from support.shared_bucket import BUCKET, shared_bucket
from support.store_proxy import StoreProxy
from test_main_job import prepare, run_load, server_streams

from pgwal.errors import ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.repository.address import place_at
from pgwal.repository.layout import RECEIVER_LOCK_NAME
from pgwal.repository.repository import Repository
from pgwal_cli.exit_codes import NO_CONNECTION
from pgwal_cli.throwaway_server import ThrowawayServer

MB = 1 << 20


class Bucket:
    """A place for one repository in the store that tests share, reached through ``proxy``."""

    def __init__(self, server: SeaweedFS, proxy: StoreProxy, prefix: str, scratch: Path) -> None:
        self.proxy = proxy
        self.url = f"s3://{BUCKET}/{prefix}"
        self.spool = scratch / "spool"
        direct = server.environment()
        self.direct = direct
        self.env = direct | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "PGWAL_SPOOL": str(self.spool),
        }

    def repository(self, monkeypatch: pytest.MonkeyPatch) -> Repository:
        """Open it past the proxy."""
        for name, value in self.direct.items():
            monkeypatch.setenv(name, value)
        return Repository.open(place_at(self.url))

    def expire_lease(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the lease of a receiver that was killed end, which takes a minute."""
        with suppress(ObjectNotFound):
            self.repository(monkeypatch).store.delete(RECEIVER_LOCK_NAME)

    def stream(self, server: ThrowawayServer, *args: str | Path) -> list[str | Path]:
        return ["stream", "--repo", self.url, "-d", server.conninfo, *SLOT, *args]


@pytest.fixture
def bucket(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    server = shared_bucket().server
    with StoreProxy(int(server.endpoint.rpartition(":")[2])) as proxy:
        yield Bucket(server, proxy, f"receiver-{abs(hash(request.node.nodeid)):x}-{time.time_ns():x}", scratch)


def restart_lsn(server: ThrowawayServer) -> Lsn:
    return one_lsn(server, "(SELECT restart_lsn FROM pg_replication_slots)")


@pytest.mark.postgres(13, 18)
def test_once_has_all_in_the_store(make_server: ServerFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    server = keeping_server(make_server)
    prepare(server)
    succeed(*bucket.stream(server, "--once"), env=bucket.env)
    first = flush_lsn(server)
    repository = bucket.repository(monkeypatch)
    assert_same_wal(server, repository.place, first)
    run_load(server, 1)
    # Another machine, whose spool is empty.
    shutil.rmtree(bucket.spool)
    end = flush_lsn(server)
    succeed(*bucket.stream(server, "--once"), env=bucket.env)
    assert_same_wal(server, repository.place, end)
    state = repository.receiver_state()
    assert state is not None
    assert state.flushed_lsn >= end
    assert repository.summaries.ranges()
    assert restart_lsn(server) <= state.flushed_lsn


@pytest.mark.postgres(18)
def test_the_slot_keeps_what_is_not_in_the_store(
    make_server: ServerFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is away, WAL is received into the spool and not reported; a spool that is lost loses nothing."""
    server = keeping_server(make_server)
    prepare(server)
    process = start_pgwal(*bucket.stream(server), env=bucket.env)
    try:
        wait_for(lambda: server_streams(server), "the stream")
        stored = flush_lsn(server)
        repository = bucket.repository(monkeypatch)
        wait_for(lambda: reported(repository) >= stored, "the store to have all")
        bucket.proxy.is_away = True
        write(server, 3)
        end = flush_lsn(server)
        wait_for(lambda: one_lsn(server, "(SELECT write_lsn FROM pg_stat_replication)") >= end, "the spool to have all")
        assert restart_lsn(server) <= max(segment_end(repository), reported(repository))
        assert restart_lsn(server) < end
        process.kill()
        finish(process)
        bucket.expire_lease(monkeypatch)
        shutil.rmtree(bucket.spool)
        bucket.proxy.is_away = False
        succeed(*bucket.stream(server, "--once"), env=bucket.env)
        assert_same_wal(server, repository.place, end)
    finally:
        process.kill()


@pytest.mark.postgres(18)
def test_a_store_that_is_killed_and_started_again(
    make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same receiver goes on; and then one on another machine does, whose spool is empty."""
    server = keeping_server(make_server)
    prepare(server)
    with running(scratch / "seaweedfs") as store, StoreProxy(int(store.endpoint.rpartition(":")[2])) as proxy:
        store.create_bucket(BUCKET)
        bucket = Bucket(store, proxy, "repo", scratch)
        # Nothing stands between the receiver and the store: connections are refused, and what was under way is cut off.
        process = start_pgwal(*bucket.stream(server), env=bucket.env | bucket.direct)
        try:
            wait_for(lambda: server_streams(server), "the stream")
            repository = bucket.repository(monkeypatch)
            stored = flush_lsn(server)
            wait_for(lambda: reported(repository) >= stored, "the store to have all")
            store.stop(signal.SIGKILL)
            write(server, 3)
            away = flush_lsn(server)
            wait_for(lambda: one_lsn(server, "(SELECT write_lsn FROM pg_stat_replication)") >= away, "the spool")
            assert restart_lsn(server) < away
            store.start()
            wait_for(lambda: reported(repository) >= away, "the store to have all")
            assert_same_wal(server, repository.place, away)
        finally:
            process.kill()
            outcome = finish(process)
        assert "WAL is received on into the spool" in outcome.stderr
        bucket.expire_lease(monkeypatch)
        bucket.spool.rename(scratch / "lost")
        write(server, 2)
        end = flush_lsn(server)
        succeed(*bucket.stream(server, "--once"), env=bucket.env)
        assert_same_wal(server, repository.place, end)


@pytest.mark.postgres(18)
def test_what_waits_in_the_spool_is_stored_by_the_next_receiver(
    make_server: ServerFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = keeping_server(make_server)
    prepare(server)
    succeed(*bucket.stream(server, "--once"), env=bucket.env)
    process = start_pgwal(*bucket.stream(server, "--synchronous"), env=bucket.env)
    try:
        wait_for(lambda: server_streams(server), "the stream")
        bucket.proxy.is_away = True
        write(server, 3)
        end = flush_lsn(server)
        # With --synchronous what is durable in the spool counts.
        wait_for(lambda: restart_lsn(server) >= end, "the spool to have all")
        process.kill()
        finish(process)
        bucket.expire_lease(monkeypatch)
        waiting = list(bucket.spool.glob("*/wal/*"))
        assert len(waiting) > 2
        bucket.proxy.is_away = False
        # As if the slot had let it go: the spool alone has it.
        succeed(*bucket.stream(server, "--once"), env=bucket.env)
        repository = bucket.repository(monkeypatch)
        assert_same_wal(server, repository.place, end)
    finally:
        process.kill()


@pytest.mark.postgres(18)
def test_a_full_spool_pauses_the_stream(
    make_server: ServerFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed, so that the server can be shut down, and made again when the store is back."""
    server = keeping_server(make_server)
    server.configure(wal_sender_timeout="3s")
    server.reload()
    prepare(server)
    process = start_pgwal(*bucket.stream(server, "--max-spool", "6M", "-s", "1"), env=bucket.env)
    try:
        wait_for(lambda: server_streams(server), "the stream")
        repository = bucket.repository(monkeypatch)
        stored = flush_lsn(server)
        wait_for(lambda: reported(repository) >= stored, "the store to have all")
        bucket.proxy.is_away = True
        write(server, 9)
        end = flush_lsn(server)
        assert end - stored > 8 * MB
        wait_for(lambda: walsender(server) is None, "the connection to be closed")
        assert spool_bytes(bucket) <= 7 * MB
        server.stop()
        server.start()
        bucket.proxy.is_away = False
        wait_for(lambda: reported(repository) >= end, "the store to have all")
        assert_same_wal(server, repository.place, end)
    finally:
        process.terminate()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert "WAL is received on into the spool" in outcome.stderr
    assert "the spool is full" in outcome.stderr


@pytest.mark.skipif("PGWAL_LARGE_TESTS" not in os.environ, reason="waits half a minute; PGWAL_LARGE_TESTS=1 runs it")
@pytest.mark.postgres(18)
def test_a_slot_is_dropped_when_the_store_stays_away(
    make_server: ServerFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is dropped is said; what was not stored is in the spool yet, and on the server, and nothing is lost."""
    server = keeping_server(make_server)
    prepare(server)
    guarded = ("--max-spool", "6M", "--max-retained", "4M", "--drop-slot")
    process = start_pgwal(*bucket.stream(server, *guarded), env=bucket.env)
    try:
        wait_for(lambda: server_streams(server), "the stream")
        repository = bucket.repository(monkeypatch)
        stored = flush_lsn(server)
        wait_for(lambda: reported(repository) >= stored, "the store to have all")
        bucket.proxy.is_away = True
        write(server, 9)
        end = flush_lsn(server)
        outcome = finish(process, timeout_s=120)
    finally:
        process.kill()
    assert_failed(outcome, 4, 'slot "pgwal" was dropped', "--create-slot")
    assert "no incremental can build on any backup" in outcome.errors[0]
    with server.connect() as connection:
        assert connection.execute("SELECT FROM pg_replication_slots").fetchone() is None
    bucket.proxy.is_away = False
    bucket.expire_lease(monkeypatch)
    succeed(*bucket.stream(server, "--once"), env=bucket.env)
    assert_same_wal(server, repository.place, end)


@pytest.mark.postgres(18)
def test_a_store_that_refuses_ends_the_stream_with_its_words(make_server: ServerFactory, bucket: Bucket) -> None:
    server = keeping_server(make_server)
    prepare(server)
    succeed(*bucket.stream(server, "--once"), env=bucket.env)
    process = start_pgwal(*bucket.stream(server), env=bucket.env)
    try:
        wait_for(lambda: server_streams(server), "the stream")
        bucket.proxy.denies = b"PUT"
        run_load(server, 1)
        outcome = finish(process)
    finally:
        process.kill()
    assert outcome.code == 1, outcome.stderr
    assert "AccessDenied" in outcome.stderr


@pytest.mark.postgres(18)
def test_a_spool_of_another_history_is_refused(
    make_server: ServerFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = keeping_server(make_server)
    prepare(server)
    succeed(*bucket.stream(server, "--once"), env=bucket.env)
    process = start_pgwal(*bucket.stream(server), env=bucket.env)
    try:
        wait_for(lambda: server_streams(server), "the stream")
        bucket.proxy.is_away = True
        write(server, 3)
        wait_for(lambda: len(whole_in_spool(bucket)) > 1, "segments in the spool")
    finally:
        process.kill()
        finish(process)
    bucket.proxy.is_away = False
    bucket.expire_lease(monkeypatch)
    changed = whole_in_spool(bucket)[-1]
    content = bytearray(changed.read_bytes())
    content[5000] ^= 1
    changed.write_bytes(content)
    before = changed.read_bytes()
    outcome = run_pgwal(*bucket.stream(server, "--once"), env=bucket.env)
    assert_failed(outcome, 4, "they part at")
    assert changed.read_bytes() == before


def write(server: ThrowawayServer, mebibytes: int) -> None:
    with server.connect() as connection:
        for _ in range(mebibytes * 10):
            connection.execute("SELECT pg_logical_emit_message(true, 'load', repeat(md5(random()::text), 3300))")


def is_synchronous(server: ThrowawayServer) -> bool:
    with server.connect() as connection:
        return connection.execute("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'").rowcount == 1


def reported(repository: Repository) -> Lsn:
    state = repository.receiver_state()
    return Lsn(0) if state is None else state.flushed_lsn


def segment_end(repository: Repository) -> Lsn:
    last = repository.wal.segments()[-1]
    return repository.geometry.segment_start(last.segment_no + 1)


def walsender(server: ThrowawayServer) -> int | None:
    with server.connect() as connection:
        row = connection.execute("SELECT pid FROM pg_stat_replication").fetchone()
    return None if row is None else int(row[0])


def spool_bytes(bucket: Bucket) -> int:
    return sum(path.stat().st_size for path in bucket.spool.rglob("*") if path.is_file())


def whole_in_spool(bucket: Bucket) -> list[Path]:
    return sorted(path for path in bucket.spool.glob("*/wal/*") if path.suffix == "")


@pytest.mark.postgres(15, 18)
def test_nothing_that_was_reported_is_missing_after_kills(
    make_server: ServerFactory, bucket: Bucket, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver is killed at random moments, its spool lost now and then, while the network does what it can."""
    rng = seeded()
    server = keeping_server(make_server)
    prepare_load(server)
    succeed(*bucket.stream(server, "--once"), env=bucket.env)
    repository = bucket.repository(monkeypatch)
    bucket.proxy.random, bucket.proxy.trouble = rng, 0.1
    kills = fault_count(8)
    with load(server):
        for number in range(kills):
            args = ["--partial-interval", str(rng.choice((0, 0.3, 10)))]
            process = start_pgwal(*bucket.stream(server, *args), env=bucket.env)
            time.sleep(rng.uniform(0.3, 4))
            process.kill()
            outcome = finish(process)
            # At its start the network may be too bad.
            assert outcome.code in (-signal.SIGKILL, NO_CONNECTION), outcome.stderr
            held = restart_lsn(server)
            bucket.expire_lease(monkeypatch)
            # By name: a segment behind a hole is none.
            assert_same_wal(server, repository.place, held)
            if bucket.spool.exists() and rng.random() < 0.4:
                bucket.spool.rename(scratch / f"lost-{number}")
    bucket.proxy.trouble = 0
    end = flush_lsn(server)
    process = start_pgwal(*bucket.stream(server, "--once"), env=bucket.env)
    try:
        # What was not received meanwhile may be much.
        while process.poll() is None:
            before = reported(repository)
            wait_for(lambda before=before: process.poll() is not None or reported(repository) > before, "more")
    finally:
        process.kill()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert_same_wal(server, repository.place, end)
    partial = [segment.name for segment in repository.wal.segments() if not segment.complete]
    assert len(partial) <= 1


@pytest.mark.postgres(13, 18)
def test_an_incremental_does_not_wait_for_the_partial_interval(
    make_server: ServerFactory, bucket: Bucket, scratch: Path
) -> None:
    """The receiver looks whether a backup runs, which waits for its first checkpoint in the open segment."""
    server = make_server()
    prepare(server)
    process = start_pgwal(*bucket.stream(server, "--partial-interval", "300"), env=bucket.env)
    try:
        wait_for(lambda: server_streams(server), "the stream")
        source = ["--repo", bucket.url, "-d", server.conninfo, "-c", "fast", "--json"]
        json.loads(succeed("full", *source, env=bucket.env))
        run_load(server, 1)
        began = time.monotonic()
        json.loads(succeed("incremental", *source, "--since", "latest", env=bucket.env))
        assert time.monotonic() - began < 15
        found = json.loads(succeed("status", "--repo", bucket.url, "-d", server.conninfo, "--json", env=bucket.env))
        assert found["receiver"]["running"]
        assert found["receiver"]["spooled_bytes"] is not None
    finally:
        process.terminate()
        outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    # Without a receiver a backup has one of its own, with a spool where that usually is.
    run_load(server, 2)
    succeed("incremental", *source, "--since", "latest", env=bucket.env)
    succeed("restore", "latest", "--repo", bucket.url, "-D", scratch / "restored", env=bucket.env)


@pytest.mark.postgres(15, 18)
@pytest.mark.parametrize("disk_survives", [True, False], ids=["disk survives", "disk dies too"])
def test_what_was_committed_survives_the_server(
    make_server: ServerFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, disk_survives: bool
) -> None:
    """With --synchronous each confirmed row is in spool and store together; if that disk dies too, up to the store."""
    server = make_server(settings={"synchronous_standby_names": "*", "wal_sender_timeout": "5min"})
    process = start_pgwal(*bucket.stream(server, "--synchronous"), env=bucket.env)
    try:
        wait_for(lambda: is_synchronous(server), "the receiver to be waited for")
        repository = bucket.repository(monkeypatch)
        with server.connect() as connection:
            connection.execute("CREATE TABLE promised (id int)")
            stored = flush_lsn(server)
            wait_for(lambda: reported(repository) >= stored, "the store to have all")
            # Whatever is confirmed from here on is in the spool only.
            bucket.proxy.is_away = True
            for number in range(200):
                connection.execute("INSERT INTO promised VALUES (%s)", [number])
        confirmed = flush_lsn(server)
        process.kill()
        server.kill()
    finally:
        process.kill()
        finish(process)
    bucket.expire_lease(monkeypatch)
    bucket.proxy.is_away = False
    if not disk_survives:
        shutil.rmtree(bucket.spool)
    # The server never comes back.
    outcome = run_pgwal(*bucket.stream(server), env=bucket.env)
    assert outcome.code == NO_CONNECTION, outcome.stderr
    if disk_survives:
        assert "has been stored" in outcome.stderr
        assert_same_wal(server, repository.place, confirmed)
        return
    assert_same_wal(server, repository.place, stored)
    with pytest.raises(AssertionError):
        assert_same_wal(server, repository.place, confirmed)
