"""Receive WAL that a server holds, against pg_receivewal, both synced and uncompressed; pgwal summarises it as well."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from functools import partial
from itertools import count

from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from pgwal.errors import PgwalError
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer

_WAL_BYTES = 2 << 30
_ORIGIN = "origin"


def run(context: Context) -> list[Comparison]:
    """Compare from one server that holds the WAL of a bulk load and of transactions."""
    with context.server("stream") as server:
        end = _make_wal(server)
        numbers = count()
        sides = [
            Side("pg_receivewal", partial(_receivewal, context, server, numbers, end)),
            Side("pgwal stream --once", partial(_stream, context, server, numbers)),
        ]
        return [
            compare("stream", sides, context.rounds, bytes_processed=_wal_bytes(server), target=1.0),
            _summary_lag(context, server, numbers),
        ]


def _make_wal(server: ThrowawayServer) -> str:
    """Make WAL that a slot holds, and return its end."""
    with server.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", [_ORIGIN])
    while _wal_bytes(server) < _WAL_BYTES:
        server.run_tool("pgbench", "-i", "-q", "-s", "20")
        server.run_tool("pgbench", "-n", "-c", "4", "-j", "2", "-T", "20")
    with server.connect() as connection:
        row = connection.execute("SELECT pg_switch_wal(), pg_sleep(1), pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    return str(row[2])


def _wal_bytes(server: ThrowawayServer) -> int:
    with server.connect() as connection:
        row = connection.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots"
            " WHERE slot_name = %s",
            [_ORIGIN],
        ).fetchone()
    assert row is not None
    return int(row[0])


def _new_slot(server: ThrowawayServer, numbers: count[int]) -> str:
    """Make a slot that holds the same WAL as the first one: receiving moves a slot on."""
    slot = f"run{next(numbers)}"
    with server.connect() as connection:
        connection.execute("SELECT pg_copy_physical_replication_slot(%s, %s)", [_ORIGIN, slot])
    return slot


def _drop_slot(server: ThrowawayServer, slot: str) -> None:
    with server.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [slot]
        )
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def _summary_lag(context: Context, server: ThrowawayServer, numbers: count[int]) -> Comparison:
    """Return by how much summaries are behind at most while WAL arrives at full speed: bytes at the speed so far."""
    slot, path = _new_slot(server, numbers), context.scratch / "lagging"
    command = [context.pgwal, "stream", "--repo", path, "-d", server.conninfo, "-S", slot, "--once", "-n", "-Z", "none"]
    start_s, begin_lsn, worst_s = time.monotonic(), None, 0.0
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.01)
        with suppress(PgwalError):
            state = Repository.open(path).receiver_state()
            if state is not None:
                begin_lsn = state.flushed_lsn if begin_lsn is None else begin_lsn
                speed = (state.flushed_lsn - begin_lsn) / (time.monotonic() - start_s)
                if speed:
                    worst_s = max(worst_s, (state.flushed_lsn - state.summarised_lsn) / speed)
    _drop_slot(server, slot)
    return Comparison("summary lag at full speed, at most 1 s", {"pgwal stream": Measurement(worst_s, 0, 0)})


def _receivewal(context: Context, server: ThrowawayServer, numbers: count[int], end: str) -> Measurement:
    slot, target = _new_slot(server, numbers), context.scratch / "received"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    measured = context.run_tool(
        "pg_receivewal", "-d", server.conninfo, "-S", slot, "-D", target, "--endpos", end, "--no-loop"
    )
    _drop_slot(server, slot)
    return measured


def _stream(context: Context, server: ThrowawayServer, numbers: count[int]) -> Measurement:
    slot, repository = _new_slot(server, numbers), context.scratch / "streamed"
    shutil.rmtree(repository, ignore_errors=True)
    measured = context.run_pgwal(
        "stream", "--repo", repository, "-d", server.conninfo, "-S", slot, "--once", "-n", "-Z", "none"
    )
    _drop_slot(server, slot)
    return measured
