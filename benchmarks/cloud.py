"""Backups in an S3 server on this machine, over TLS, against pgBackRest's in the same; what memory each command takes;
replay from there at ten milliseconds a request, against replay from a directory.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.backup import SCALE, SHARES, change_blocks
from benchmarks.context import Context
from benchmarks.latency import Latency
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.pgbackrest import JOBS, PgBackRest, installed
from benchmarks.replay import load, measure_redo
from benchmarks.repository import BenchmarkedRepository, RepositoryInStore
from benchmarks.secure_store import BUCKET, SecureStore
from pgwal.errors import PgwalError
from pgwal.lsn import Lsn
from pgwal.repository.address import place_at
from pgwal.segment import WalGeometry
from pgwal_cli.restore_command import restore_command
from pgwal_cli.server_account import can_execute_python, give_to_server
from pgwal_cli.throwaway_server import ThrowawayServer

_TARGET = 0.8
_REPLAY_TARGET = 1.3
_REQUEST_S = 0.010
_MEMORY_MB = 300
_GEOMETRY = WalGeometry(16 << 20)


def run(context: Context) -> list[Comparison]:
    """Compare backups and restores, then replay, and measure every command."""
    found = installed(context)
    if found is None:
        return []
    program, context = found
    try:
        store = SecureStore(context.scratch / "store")
    except PgwalError as error:
        print(f"\nnot measured: {error}")
        return []
    with store:
        variables = store.secure_environment() | {"XDG_STATE_HOME": str(context.scratch / "state")}
        context = replace(context, variables=variables)
        with context.server("cloud") as server:
            server.run_tool("pgbench", "-i", "-q", "-s", str(SCALE))
            comparisons = _Cloud(context, program, server, store).compare_all()
        return [*comparisons, *_replay(context, store)]


class _Cloud:
    """The sides, over one server."""

    def __init__(self, context: Context, program: str, server: ThrowawayServer, store: SecureStore) -> None:
        self._context = context
        self._server = server
        self._target = context.scratch / "target"
        options = store.pgbackrest_options()
        self._pgbackrest = PgBackRest(program, context.scratch / "pgbackrest", server, "zst", options)
        self._repository = RepositoryInStore(context, server, f"s3://{BUCKET}/pgwal")
        self._local: list[str | Path] = ["--pgdata", server.data_directory, "-j", str(JOBS)]

    def compare_all(self) -> list[Comparison]:
        self._pgbackrest.create()
        self._pgbackrest.keep("full")
        with self._repository.receiving("zstd"):
            comparisons = [self._full()]
            prior = self._repository.keep("full", *self._local)
            # What builds on it must have a later name than all that there was.
            self._pgbackrest.keep("full")
            for percent in SHARES:
                change_blocks(self._server, percent)
                comparisons.append(self._incremental(percent, prior))
            newest = self._repository.keep("incremental", "--since", prior, *self._local)
            self._pgbackrest.keep("diff")
            comparisons.append(self._restore(newest))
            commands = self._commands(prior, newest)
        commands["stream"] = Measurement(0.0, 0.0, self._repository.receiver_peak_bytes)
        return [*comparisons, Comparison(f"memory of each command, at most {_MEMORY_MB} MB", commands, ranked=False)]

    def _full(self) -> Comparison:
        size = sum(path.stat().st_size for path in (self._server.data_directory / "base").rglob("*") if path.is_file())
        return self._compare(
            "full backup",
            {
                "pgbackrest --type=full, zst, bundle, block": partial(self._pgbackrest.backup, "full"),
                "pgwal full": self._full_backup,
            },
            bytes_processed=size,
        )

    def _full_backup(self) -> Measurement:
        measured = self._repository.backup("full", *self._local)
        self._repository.keep_newest()
        return measured

    def _incremental(self, percent: int, prior: str) -> Comparison:
        return self._compare(
            f"incremental backup, {percent} % changed",
            {
                "pgbackrest --type=diff, zst, bundle, block": partial(self._pgbackrest.backup, "diff"),
                "pgwal incremental": partial(self._repository.backup, "incremental", "--since", prior, *self._local),
            },
        )

    def _restore(self, newest: str) -> Comparison:
        return self._compare(
            "restore of full and incremental",
            {
                "pgbackrest restore": lambda: self._pgbackrest.restore(self._emptied()),
                "pgwal restore": lambda: self._run("restore", newest, "-D", self._emptied(), "-j", str(JOBS)),
            },
        )

    def _compare(
        self, title: str, sides: dict[str, Callable[[], Measurement]], *, bytes_processed: int = 0
    ) -> Comparison:
        named = [Side(name, run) for name, run in sides.items()]
        title = f"{title} of PostgreSQL 15, local, in an object store"
        return compare(title, named, self._context.rounds, bytes_processed=bytes_processed, target=_TARGET)

    def _commands(self, prior: str, newest: str) -> dict[str, Measurement]:
        """Run each command once, as far as it works on a repository."""
        starts = {backup["id"]: Lsn.parse(backup["start_lsn"]) for backup in self._repository.backups()}
        window = ("--from", str(starts[prior]), "--to", str(starts[newest]))
        segment = _GEOMETRY.file_name(1, _GEOMETRY.segment_no(starts[newest]))
        connection = ("-d", self._server.conninfo)
        found = {
            "full": self._repository.backup("full", *self._local),
            "incremental": self._repository.backup("incremental", "--since", prior, *self._local),
            "restore": self._run("restore", newest, "-D", self._emptied()),
            "combine": self._run("combine", newest, "-o", self._emptied()),
            "export": self._run("export", newest, "-o", self._emptied()),
            "fetch-wal": self._run("fetch-wal", segment, self._emptied() / "segment"),
            "map": self._run("map", *window),
            "list": self._run("list"),
            "show": self._run("show", newest),
            "status": self._run("status", *connection),
            "check": self._run("check", *connection),
            "verify": self._run("verify"),
            "expire": self._run("expire", "--keep-full", "1"),
        }
        shutil.rmtree(self._target)
        return found

    def _run(self, command: str, *arguments: str | Path) -> Measurement:
        return self._context.run_pgwal(command, *arguments, "--repo", self._repository.address)

    def _emptied(self) -> Path:
        shutil.rmtree(self._target, ignore_errors=True)
        self._target.mkdir(mode=0o700)
        return self._target


def _replay(context: Context, store: SecureStore) -> list[Comparison]:
    """Compare how long redo takes, by the server's own log, of the same WAL from a directory and from the store."""
    if not can_execute_python():
        print("\nreplay: not measured: the user who runs servers cannot run this Python")
        return []
    directory = context.scratch / "replayed"
    address = f"s3://{BUCKET}/replayed"
    with context.server("replay-source") as server:
        local = BenchmarkedRepository(context, server, directory, "directory")
        stored = RepositoryInStore(context, server, address, "store")
        with local.receiving("zstd"), stored.receiving("zstd"):
            backup_id, stored_id = load(server, local, stored)
    give_to_server(directory)
    size = sum(path.stat().st_size for path in (directory / "wal").iterdir())
    with Latency(urlsplit(store.endpoint).port or 0, _REQUEST_S) as network:
        variables = store.environment() | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{network.port}"}
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        far = replace(context, variables=variables)
        near_command = restore_command(place_at(directory))
        far_command = f"export {exports}; {restore_command(place_at(address))}"
        sides = [
            Side("from a directory", partial(measure_redo, context, directory, backup_id, near_command)),
            Side("from the store, 10 ms a request", partial(measure_redo, far, address, stored_id, far_command)),
        ]
        return [compare("replay", sides, context.rounds, bytes_processed=size, target=_REPLAY_TARGET)]
