"""A receiver into an object store, through a spool: what is reported as flushed is in the store, whatever happens."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
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
from support.seaweedfs import SeaweedFS
from support.shared_bucket import BUCKET, shared_bucket
from support.store_proxy import StoreProxy
from test_main_job import prepare, run_load, server_streams

from pgwal.lsn import Lsn
from pgwal.repository.address import place_at
from pgwal.repository.repository import Repository
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
def test_once_has_all_in_the_store(
    make_server: ServerFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
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
