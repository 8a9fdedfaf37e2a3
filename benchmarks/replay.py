"""Replay on a restored server that gets its WAL by pgwal fetch-wal, against one that gets it by cp."""

from __future__ import annotations

import re
import shutil
import time
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.context import Context
from benchmarks.measure import CommandFailed, Comparison, Measurement, Side, compare
from benchmarks.repository import BenchmarkedRepository
from pgwal.repository.address import place_at
from pgwal_cli.restore_command import restore_command
from pgwal_cli.throwaway_server import ThrowawayServer, can_execute_python, give_to_server

_SCALE = 20
_LOAD_S = 60
_TIMEOUT_S = 300.0
_REDO_DONE = re.compile(r"redo done at .* user: (\S+) s, system: (\S+) s, elapsed: (\S+) s")

_numbers = count(1)


def run(context: Context) -> list[Comparison]:
    """Compare how long redo takes, by the server's own log; segments are not compressed, for cp could not read them."""
    if not can_execute_python():
        print("\nreplay: not measured: the user who runs servers cannot run this Python")
        return []
    repository_path = context.scratch / "replayed"
    with context.server("replay-source") as server:
        repository = BenchmarkedRepository(context, server, repository_path)
        with repository.receiving():
            (backup_id,) = load(server, repository)
    wal = repository_path / "wal"
    size = sum(path.stat().st_size for path in wal.iterdir())
    give_to_server(repository_path)
    commands = {"cp": f'cp "{wal}/%f" "%p"', "pgwal fetch-wal": restore_command(place_at(repository_path))}
    sides = [
        Side(name, partial(measure_redo, context, repository_path, backup_id, command))
        for name, command in commands.items()
    ]
    return [compare("replay", sides, context.rounds, bytes_processed=size)]


def load(server: ThrowawayServer, *repositories: BenchmarkedRepository) -> list[str]:
    """Have WAL written behind a full backup in each of some repositories, which receive it, and return their ids."""
    server.run_tool("pgbench", "-i", "-q", "-s", str(_SCALE))
    backup_ids = [repository.keep("full") for repository in repositories]
    server.run_tool("pgbench", "-n", "-c", "4", "-j", "2", "-T", str(_LOAD_S))
    for repository in repositories:
        repository.complete_segment()
    return backup_ids


def measure_redo(context: Context, repository: Path | str, backup_id: str, command: str) -> Measurement:
    """Restore and let a server replay all WAL; the processor time is that of redo alone."""
    directory = context.scratch / f"replay-{next(_numbers)}"
    directory.mkdir()
    target = directory / "restored"
    context.run_pgwal(
        "restore", backup_id, "--repo", repository, "-D", target, "--no-sync", "--restore-command", command
    )
    try:
        with ThrowawayServer(context.installation, directory / "server") as server:
            server.adopt(target)
            give_to_server(target)
            server.configure(fsync=False, shared_buffers="512MB", max_wal_size="8GB")
            server.start()
            return _redo_time(server)
    finally:
        shutil.rmtree(directory)


def _redo_time(server: ThrowawayServer) -> Measurement:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline_s:
        done = _REDO_DONE.search(server.log_file.read_text())
        if done is not None:
            user, system, elapsed = map(float, done.groups())
            return Measurement(elapsed, user + system, 0)
        time.sleep(0.1)
    raise CommandFailed(f"the server has not replayed its WAL\n{server.log_tail()}")
