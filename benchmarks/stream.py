"""Receive WAL that a server holds, against pg_receivewal, both synced and uncompressed; pgwal summarises it as well."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count

from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.recording import make_and_drop, make_measured
from pgwal.errors import PgwalError
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer

_WAL_BYTES = 2 << 30
_DDL_BYTES = 512 << 20
_ORIGIN = "origin"


class OriginSlot:
    """A slot that holds a server's WAL from here on, to receive it as often as wanted."""

    def __init__(self, server: ThrowawayServer) -> None:
        self._server = server
        self._numbers = count()
        with server.connect() as connection:
            connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", [_ORIGIN])

    def wal_bytes(self) -> int:
        """Return how many bytes of WAL it holds."""
        with self._server.connect() as connection:
            row = connection.execute(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots"
                " WHERE slot_name = %s",
                [_ORIGIN],
            ).fetchone()
        assert row is not None
        return int(row[0])

    @contextmanager
    def copied(self) -> Iterator[str]:
        """Make a slot that holds the same WAL, for receiving moves a slot on; yield its name, and drop it."""
        slot = f"run{next(self._numbers)}"
        with self._server.connect() as connection:
            connection.execute("SELECT pg_copy_physical_replication_slot(%s, %s)", [_ORIGIN, slot])
            yield slot
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [slot]
            )
            connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def run(context: Context) -> list[Comparison]:
    """Compare from servers that hold the WAL of a bulk load and of transactions, and WAL full of DDL."""
    with context.server("stream") as server:
        origin = OriginSlot(server)
        end = make_wal(server, origin, _WAL_BYTES)
        received = [_receive("stream", context, server, origin, end), _summary_lag(context, server, origin)]
    with context.server("stream-ddl", autovacuum=True) as server:
        origin = OriginSlot(server)
        make_measured(server)
        while origin.wal_bytes() < _DDL_BYTES:
            make_and_drop(server)
        return [*received, _receive("stream, full of DDL", context, server, origin, _end_of_segment(server))]


def _receive(title: str, context: Context, server: ThrowawayServer, origin: OriginSlot, end: str) -> Comparison:
    sides = [
        Side("pg_receivewal", partial(_receivewal, context, server, origin, end)),
        Side("pgwal stream --once", partial(_stream, context, server, origin)),
    ]
    return compare(title, sides, context.rounds, bytes_processed=origin.wal_bytes(), target=1.0)


def make_wal(server: ThrowawayServer, origin: OriginSlot, size_bytes: int) -> str:
    """Make at least so much WAL that a slot holds, and return its end."""
    while origin.wal_bytes() < size_bytes:
        server.run_tool("pgbench", "-i", "-q", "-s", "20")
        server.run_tool("pgbench", "-n", "-c", "4", "-j", "2", "-T", "20")
    return _end_of_segment(server)


def _end_of_segment(server: ThrowawayServer) -> str:
    """End the segment, and return where WAL ends then."""
    with server.connect() as connection:
        row = connection.execute("SELECT pg_switch_wal(), pg_sleep(1), pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    return str(row[2])


def _summary_lag(context: Context, server: ThrowawayServer, origin: OriginSlot) -> Comparison:
    """Return by how much summaries are behind at most while WAL arrives at full speed: bytes at the speed so far."""
    path = context.scratch / "lagging"
    command = [context.pgwal, "stream", "--repo", path, "-d", server.conninfo, "--once", "-n", "-Z", "none"]
    start_s, begin_lsn, worst_s = time.monotonic(), None, 0.0
    with origin.copied() as slot:
        process = subprocess.Popen([*command, "-S", slot], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(0.01)
            with suppress(PgwalError):
                state = Repository.open(path).receiver_state()
                if state is not None:
                    begin_lsn = state.flushed_lsn if begin_lsn is None else begin_lsn
                    speed = (state.flushed_lsn - begin_lsn) / (time.monotonic() - start_s)
                    if speed:
                        worst_s = max(worst_s, (state.flushed_lsn - state.summarised_lsn) / speed)
    return Comparison("summary lag at full speed, at most 1 s", {"pgwal stream": Measurement(worst_s, 0, 0)})


def _receivewal(context: Context, server: ThrowawayServer, origin: OriginSlot, end: str) -> Measurement:
    target = context.scratch / "received"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with origin.copied() as slot:
        return context.run_tool(
            "pg_receivewal", "-d", server.conninfo, "-S", slot, "-D", target, "--endpos", end, "--no-loop"
        )


def _stream(context: Context, server: ThrowawayServer, origin: OriginSlot) -> Measurement:
    repository = context.scratch / "streamed"
    shutil.rmtree(repository, ignore_errors=True)
    with origin.copied() as slot:
        return context.run_pgwal(
            "stream", "--repo", repository, "-d", server.conninfo, "-S", slot, "--once", "-n", "-Z", "none"
        )
