"""A backup into an object store waits for no WAL of its own before it copies: what it then finds out, it finds out."""

from __future__ import annotations

import pytest
from differential.test_timelines import wait_for
from fix_servers import ServerFactory
from support.shared_bucket import shared_bucket
from test_main_job import prepare, run_load, streaming

from pgwal.engine import backup_wal
from pgwal.engine.backup import take_backup
from pgwal.engine.backup_request import BackupRequest
from pgwal.errors import TimelineMismatch
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a place in a bucket, which is reached by the variables of this process."""
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    return shared_bucket().place().address


def write_segments(server: ThrowawayServer, count: int) -> None:
    for step in range(count):
        run_load(server, step)
        with server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")


def position(server: ThrowawayServer) -> Lsn:
    with server.connect() as connection:
        (found,) = connection.execute("SELECT pg_current_wal_lsn()").fetchone() or ("0/0",)
    return Lsn.parse(found)


def flushed_lsn(address: str) -> Lsn:
    state = Repository.open(CloudPlace.parse(address)).receiver_state()
    return Lsn(0) if state is None else state.flushed_lsn


@pytest.mark.postgres(18)
@pytest.mark.parametrize("is_long", [False, True])
def test_a_receiver_of_another_server(
    make_server: ServerFactory, address: str, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    """Two copies of one cluster; a copy that takes long is not finished first."""
    server, other = make_server(), make_server()
    prepare(server)
    monkeypatch.setattr(backup_wal, "FIRST_LOOK_S", 0.0 if is_long else 3600.0)
    with streaming(other, address):
        prepare(other)
        write_segments(other, 3)
        wait_for(lambda: flushed_lsn(address) >= position(other), "the receiver")
        with pytest.raises(TimelineMismatch, match=r"checkpoint record.* the archive") as raised:
            take_backup(BackupRequest(CloudPlace.parse(address), ConnectionParameters(server.conninfo), fast=True))
    functions = {frame.name for frame in raised.traceback}
    assert ("copy_all" in functions) == is_long
    assert ("require_whole" in functions) == (not is_long)
    repository = Repository.open(CloudPlace.parse(address))
    assert repository.catalogue.ids() == []
    assert list(repository.store.list("packs/")) == []
