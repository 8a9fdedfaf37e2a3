"""This pgwal beside another installation of it, such as the one before a change: what users wait for, side by side."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.backup import change_blocks
from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.recording import LOADS, recorded_wal
from benchmarks.repository import BenchmarkedRepository
from benchmarks.stream import OriginSlot, make_wal
from pgwal_cli.throwaway_server import ThrowawayServer

_SCALE = 200
_WAL_BYTES = 1 << 30

TARGET = 1.03


def run(context: Context) -> list[Comparison]:
    """Compare start-up, scan, stream, resuming it, backups and restore with those of ``context.before``."""
    if context.before is None:
        print("\nbefore: not measured: --before names no other installation's pgwal")
        return []
    sides = {"before": replace(context, pgwal=context.before), "now": context}
    return [*_without_server(context, sides), *_stream(context, sides), *_backups(context, sides)]


def _compare(title: str, context: Context, sides: Mapping[str, Callable[[], Measurement]]) -> Comparison:
    named = [Side(name, run) for name, run in sides.items()]
    return compare(title, named, context.rounds, target=TARGET)


def _without_server(context: Context, sides: dict[str, Context]) -> Iterator[Comparison]:
    yield _compare("start-up", context, {name: partial(side.run_pgwal, "--version") for name, side in sides.items()})
    for load in LOADS:
        wal = recorded_wal(load, context.scratch)
        scans = {name: partial(_summarize, side, wal) for name, side in sides.items()}
        yield _compare(f"scan, {load.name} WAL", context, scans)


def _summarize(context: Context, wal: Path) -> Measurement:
    output = context.scratch / "summaries"
    shutil.rmtree(output, ignore_errors=True)
    return context.run_pgwal("summarize", wal, "-o", output, "-j", "1")


def _stream(context: Context, sides: dict[str, Context]) -> Iterator[Comparison]:
    with context.server("stream") as server:
        origin = OriginSlot(server)
        make_wal(server, origin, _WAL_BYTES)
        received = {name: _Receiving(side, server, origin) for name, side in sides.items()}
        yield _compare("stream", context, {name: each.receive_all for name, each in received.items()})
        yield _compare("resume", context, {name: each.resume for name, each in received.items()})


class _Receiving:
    """One side's receiver: all WAL into a new repository, or none into the last one that it made."""

    def __init__(self, context: Context, server: ThrowawayServer, origin: OriginSlot) -> None:
        self._context = context
        self._server = server
        self._origin = origin
        self._repository = context.scratch / f"received_{context.pgwal.parent.parent.name}"

    def receive_all(self) -> Measurement:
        shutil.rmtree(self._repository, ignore_errors=True)
        with self._origin.copied() as slot:
            return self._stream("-S", slot)

    def resume(self) -> Measurement:
        return self._stream()

    def _stream(self, *options: str) -> Measurement:
        server: list[str | Path] = ["--repo", self._repository, "-d", self._server.conninfo]
        return self._context.run_pgwal("stream", *server, "--once", "-n", "-Z", "none", *options)


def _backups(context: Context, sides: dict[str, Context]) -> Iterator[Comparison]:
    with context.server("backups") as server, ExitStack() as receivers:
        repositories: dict[str, BenchmarkedRepository] = {}
        for number, (name, side) in enumerate(sides.items()):
            path = context.scratch / f"repository_{name}"
            repositories[name] = BenchmarkedRepository(side, server, path, slot=f"benchmark{number}")
            receivers.enter_context(repositories[name].receiving())
        server.run_tool("pgbench", "-i", "-q", "-s", str(_SCALE))
        places: dict[str, list[str | Path]] = {"local": ["--pgdata", server.data_directory], "over SQL": []}
        for place, options in places.items():
            fulls = {name: partial(_full, each, *options) for name, each in repositories.items()}
            yield _compare(f"full backup, {place}", context, fulls)
        priors = {name: each.keep("full") for name, each in repositories.items()}
        change_blocks(server, 10)
        for place, options in places.items():
            yield _compare(
                f"incremental backup, {place}",
                context,
                {
                    name: partial(each.backup, "incremental", "--since", priors[name], *options)
                    for name, each in repositories.items()
                },
            )
        newest = {name: each.backup_ids()[-1] for name, each in repositories.items()}
    restores = {name: partial(_restore, sides[name], each.path, newest[name]) for name, each in repositories.items()}
    yield _compare("restore --copy", context, restores)


def _full(repository: BenchmarkedRepository, *options: str | Path) -> Measurement:
    measured = repository.backup("full", *options)
    repository.drop(repository.backup_ids()[-1])
    return measured


def _restore(context: Context, repository: Path, backup_id: str) -> Measurement:
    target = context.scratch / "restored"
    shutil.rmtree(target, ignore_errors=True)
    return context.run_pgwal("restore", backup_id, "--repo", repository, "-D", target, "--copy")
