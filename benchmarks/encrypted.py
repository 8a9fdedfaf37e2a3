"""What encryption costs: full backup, restore, and receiving WAL, packed and compressed, with it and without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.repository import BenchmarkedRepository
from benchmarks.stream import OriginSlot, make_wal
from pgwal.encryption.age import Identity
from pgwal.encryption.key_files import write_identity
from pgwal.segment import is_segment_name
from pgwal_cli.throwaway_server import ThrowawayServer

SCALE = 100
WAL_BYTES = 1 << 30
_TARGET = 1.15
_JOBS = 2


def run(context: Context) -> list[Comparison]:
    """Compare each with a repository in a directory, from one server of pgbench's tables."""
    recipient, context = _with_keys(context)
    with context.server("encrypted") as server:
        server.run_tool("pgbench", "-i", "-q", "-s", str(SCALE))
        recipients = {"packed": [], "packed, encrypted": ["--recipient", recipient]}
        backups = _Backups(context, server, recipients)
        comparisons = backups.compare_all()
        origin = OriginSlot(server)
        make_wal(server, origin, WAL_BYTES)
        for compression in ("none", "zstd"):
            sides = [
                Side(name, partial(_stream, context, server, origin, options, compression))
                for name, options in recipients.items()
            ]
            title = f"stream --once, --compress {compression} (CPU seconds: target 1.10)"
            comparisons.append(compare(title, sides, context.rounds, bytes_processed=origin.wal_bytes()))
        return comparisons


def _with_keys(context: Context) -> tuple[str, Context]:
    """Make an identity; return its recipient, and a context whose commands find it."""
    scratch = context.scratch
    identity = Identity.generate()
    write_identity(scratch / "identity.txt", identity)
    command = scratch / "pgwal"
    command.write_text(
        f"""#!/bin/sh
export XDG_CONFIG_HOME={scratch}/config XDG_STATE_HOME={scratch}/state PGWAL_IDENTITY={scratch}/identity.txt
exec {context.pgwal} "$@"
"""
    )
    command.chmod(0o700)
    return identity.recipient, replace(context, pgwal=command)


class _Backups:
    """The sides, over one server: a repository each."""

    def __init__(self, context: Context, server: ThrowawayServer, recipients: dict[str, list[str]]) -> None:
        self._context = context
        self._server = server
        self._repositories: dict[str, BenchmarkedRepository] = {}
        for number, (name, options) in enumerate(recipients.items()):
            path = context.scratch / f"repository{number}"
            repository = BenchmarkedRepository(context, server, path, slot=f"slot{number}")
            repository.initialise("--format", "packed", *options)
            self._repositories[name] = repository

    def compare_all(self) -> list[Comparison]:
        with ExitStack() as receiving:
            for repository in self._repositories.values():
                receiving.enter_context(repository.receiving())
            full = self._compare("full backup", self._full)
            newest = {name: repository.keep("full", *self._local) for name, repository in self._repositories.items()}
        return [full, self._compare("restore", lambda repository: self._restore(repository, newest))]

    @property
    def _local(self) -> list[str | Path]:
        return ["--pgdata", self._server.data_directory, "-j", str(_JOBS)]

    def _compare(self, title: str, act: Callable[[BenchmarkedRepository], Measurement]) -> Comparison:
        sides = [Side(name, partial(act, repository)) for name, repository in self._repositories.items()]
        size = sum(path.stat().st_size for path in (self._server.data_directory / "base").rglob("*") if path.is_file())
        return compare(f"{title}, zstd:1", sides, self._context.rounds, bytes_processed=size, target=_TARGET)

    def _full(self, repository: BenchmarkedRepository) -> Measurement:
        measured = repository.backup("full", *self._local)
        packs = sum(path.stat().st_size for path in (repository.path / "packs").rglob("*") if path.is_file())
        repository.drop_all()
        return measured._replace(stored_bytes=packs)

    def _restore(self, repository: BenchmarkedRepository, newest: dict[str, str]) -> Measurement:
        target = self._context.scratch / "target"
        shutil.rmtree(target, ignore_errors=True)
        (wanted,) = (newest[name] for name, each in self._repositories.items() if each is repository)
        return self._context.run_pgwal("restore", wanted, "--repo", repository.path, "-D", target, "-j", str(_JOBS))


def _stream(
    context: Context, server: ThrowawayServer, origin: OriginSlot, options: list[str], compression: str
) -> Measurement:
    """Receive until all is stored as it is to be."""
    repository = context.scratch / "streamed"
    # The keys of the one before, and its spool, are at the same address.
    for left in (repository, context.scratch / "config", context.scratch / "state"):
        shutil.rmtree(left, ignore_errors=True)
    context.run_pgwal("init", "--repo", repository, "--format", "packed", *options)
    with origin.copied() as slot:
        command = ["stream", "--repo", repository, "-d", server.conninfo, "-S", slot, "--once", "-n", "-Z", compression]
        measured = context.run_pgwal(*command)
        # A directory in clear is compressed behind the receiver, which waits some seconds for that and no longer.
        while compression != "none" and any(is_segment_name(path.name) for path in (repository / "wal").iterdir()):
            more = context.run_pgwal(*command)
            seconds, cpu_seconds = measured.seconds + more.seconds, measured.cpu_seconds + more.cpu_seconds
            measured = measured._replace(seconds=seconds, cpu_seconds=cpu_seconds)
        return measured
