"""``pgwal verify`` of a repository in an S3 server on this machine, by one worker of Dask, two, processes and threads.

Store, scheduler, workers and whoever waits for them share the processors of this machine.  What two of these gain at
best is measured beside it: where they are threads of one core, two processes that hash do not do twice as much.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.context import Context
from benchmarks.measure import CommandFailed, Comparison, Measurement, Side, compare, run_command
from benchmarks.repository import RepositoryInStore
from pgwal.errors import PgwalError
from pgwal_cli.throwaway_store import ThrowawayStore

_SCALE = 100
"""Of pgbench: some 1.5 GB, in eight tables, so that files come in pieces of much the same size."""
_TABLES = 8
_TARGET_SPEED_UP = 1.6
_TIMEOUT_S = 60
_BUCKET = "benchmark"
_ADDRESS = f"s3://{_BUCKET}/fleet"
_STORE_USER = ("benchmark", "benchmark-secret")
_HASHED_BYTES = 128 << 30
_HASH = """
import os, sys, xxhash
processes, piece = int(sys.argv[1]), bytes(1 << 20)
children = []
for _ in range(processes):
    child = os.fork()
    if not child:
        for _ in range(int(sys.argv[2]) // len(piece) // processes):
            xxhash.xxh3_64_digest(piece)
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def run(context: Context) -> list[Comparison]:
    """Verify by one worker, by two, by two processes of this machine, and by two threads."""
    try:
        store = ThrowawayStore(context.scratch / "store", *_STORE_USER)
    except PgwalError as error:
        print(f"\nnot measured: {error}")
        return []
    with ExitStack() as running:
        running.enter_context(store)
        store.create_bucket(_BUCKET)
        variables = {**store.environment(), "XDG_STATE_HOME": str(context.scratch / "state")}
        context = replace(context, variables=variables)
        size = _fill(context)
        sides = []
        for count in (1, 2):
            directory = context.scratch / f"dask-{count}"
            directory.mkdir()
            address = running.enter_context(_workers(directory, context.environment, count))
            sides.append(Side(f"workers: {count}", partial(_verify, context, "--executor", f"dask://{address}")))
        sides += [
            Side("process:2", partial(_verify, context, "--executor", "process:2")),
            Side("threads: 2", partial(_verify, context, "-j", "2")),
        ]
        title = "verify in an object store"
        target = 1 / _TARGET_SPEED_UP
        found = compare(title, sides, context.rounds, bytes_processed=size, target=target)
    # When the store has ended.
    return [_limit(context.rounds), found]


def _limit(rounds: int) -> Comparison:
    """Measure what a second process gains on this machine, when neither waits for anything."""

    def hashing(count: int) -> Measurement:
        return run_command([sys.executable, "-c", _HASH, str(count), str(_HASHED_BYTES)])

    sides = [Side(f"processes: {count}", partial(hashing, count)) for count in (1, 2)]
    return compare("the machine: hashing what lies in a cache", sides, rounds, bytes_processed=_HASHED_BYTES)


def _verify(context: Context, *options: str) -> Measurement:
    return context.run_pgwal("verify", "--repo", _ADDRESS, *options)


def _fill(context: Context) -> int:
    """Take a full backup of some tables, with the WAL of making them; return how many bytes are to be read."""
    with context.server("fleet") as server:
        repository = RepositoryInStore(context, server, _ADDRESS)
        with repository.receiving("zstd"):
            server.run_tool("pgbench", "-i", "-q", "-s", str(_SCALE), f"--partitions={_TABLES}")
            repository.keep("full", "--pgdata", server.data_directory, "-j", "2")
            repository.complete_segment()
    command = [context.pgwal, "verify", "--repo", _ADDRESS, "--json"]
    document = json.loads(subprocess.check_output(command, env=context.environment))
    return int(document["read_bytes"])


@contextmanager
def _workers(directory: Path, environment: Mapping[str, str], count: int) -> Iterator[str]:
    """Run a scheduler and some workers of one thread each, and give its HOST:PORT."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--no-dashboard", *arguments]
        with (directory / "log").open("ab") as log:
            processes.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    try:
        file = directory / "scheduler.json"
        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not file.exists() or not file.read_text().endswith("}"):
            if processes[0].poll() is not None or time.monotonic() > deadline_s:
                raise CommandFailed(f"the scheduler does not start: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"].removeprefix("tcp://")
        for _ in range(count):
            start("dask_worker", address, "--no-nanny", "--nthreads", "1", "--local-directory", str(directory))
        # Each says so, once it is there.
        while (directory / "log").read_text().count("Registered to:") < count:
            if time.monotonic() > deadline_s:
                raise CommandFailed(f"the workers do not start: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield address
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
