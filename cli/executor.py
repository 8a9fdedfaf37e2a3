"""The option ``--executor``: processes of this machine, or those behind a scheduler of Dask, that do pieces of work.

The only place that knows Dask: all else knows a concurrent.futures.Executor.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from pgwal.budget import MOST_PROCESSES, SCHEDULER_TIMEOUT_S, WORKER_TIMEOUT_S
from pgwal.errors import PgwalError, SchedulerUnavailable
from pgwal_cli.exit_codes import UsageError

if TYPE_CHECKING:
    from distributed import Client

    from pgwal.engine.fleet import Fleet
    from pgwal.repository.place import Place


class ExecutorAddress(NamedTuple):
    """Who does the work: so many processes of this machine, or the workers of the scheduler at ``host_and_port``."""

    process_count: int = 0
    host_and_port: str = ""

    def __str__(self) -> str:
        return f"dask://{self.host_and_port}" if self.host_and_port else f"process:{self.process_count}"


def parse_executor(text: str) -> ExecutorAddress:
    """Read the option; raises the usage error of what names nobody."""
    if match := re.fullmatch(r"process:([1-9][0-9]{0,3})", text):
        count = int(match[1])
        if count > MOST_PROCESSES:
            raise typer.BadParameter(f"{text!r} is more than {MOST_PROCESSES} processes")
        return ExecutorAddress(process_count=count)
    if match := re.fullmatch(r"dask://((?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5})", text):
        return ExecutorAddress(host_and_port=match[1])
    raise typer.BadParameter(f"{text!r} is neither process:N nor dask://HOST:PORT")


Executor = Annotated[
    ExecutorAddress | None,
    typer.Option(
        "--executor",
        parser=parse_executor,
        metavar="WHERE",
        help="Who does the work instead of threads: process:N, or workers of Dask at dask://HOST:PORT.",
        show_default=False,
    ),
]


@contextmanager
def opened_fleet(address: ExecutorAddress | None, *places: Place) -> Iterator[Fleet | None]:
    """Give those who work on what is in some places, None where threads of this process do; they end with the context.

    Raises UsageError for workers of other machines and a directory of this one, SchedulerUnavailable, WorkerMismatch;
    PgwalError where work has killed its workers.
    """
    if address is None:
        yield None
    elif address.process_count:
        with _processes(address.process_count, places) as fleet:
            yield fleet
    else:
        for place in places:
            if place.directory is not None:
                raise UsageError(
                    f"workers at {address} share no directory: {place} cannot be read there",
                    hint="Name a repository in an object store, or take --executor process:N.",
                )
        with _workers_of_dask(address) as fleet:
            yield fleet


# ---- processes of this machine


@contextmanager
def _processes(count: int, places: tuple[Place, ...]) -> Iterator[Fleet]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from pgwal.engine.fleet import Fleet

    # Those of the first place, which are given by options; any other one has keys of its own.
    environment = places[0].keys.environment() if places else {}
    # Not forked: the libraries of object stores have threads.
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_begin_process, initargs=(environment,)
    ) as pool:
        try:
            yield Fleet(pool, count)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_process(environment: dict[str, str]) -> None:
    """Begin a process of the pool: with the keys that options named, and to end with the process that began it."""
    import os
    import signal
    from threading import Thread

    from pgwal_cli.allocator import share_freed_memory

    share_freed_memory()
    os.environ.update(environment)
    # It goes to all processes of a terminal: the one that began this one says what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import os
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


# ---- workers of Dask


@contextmanager
def _workers_of_dask(address: ExecutorAddress) -> Iterator[Fleet]:
    from pgwal.engine.fleet import Fleet

    try:
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise PgwalError(
            f"{address} takes a package that is not installed: {error.name}", hint="Install pgwal[dask]."
        ) from error
    client = _connected(address)
    try:
        worker_count = _require_workers(client, address)
        yield Fleet(client.get_executor(pure=False), worker_count)
    except KilledWorker as error:
        raise PgwalError(
            f"workers at {address} died of the same piece of work, one after the other",
            hint="Their logs tell why; mostly for want of memory.",
        ) from error
    finally:
        client.close()


def _connected(address: ExecutorAddress) -> Client:
    import warnings

    import dask
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    for name in ("distributed", "distributed.client"):
        # With tracebacks: what fails is raised, and said in one line.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    protocol = "tls" if dask.config.get("distributed.comm.require-encryption", default=False) else "tcp"
    try:
        with warnings.catch_warnings():
            # It is an error, and said in one line.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            return Client(
                f"{protocol}://{address.host_and_port}",
                timeout=SCHEDULER_TIMEOUT_S,
                set_as_default=False,
                name="pgwal",
            )
    except (OSError, TimeoutError, ValueError) as error:
        raise SchedulerUnavailable(
            f"no scheduler of Dask answers at {address}: {error}", hint="Start one with dask scheduler."
        ) from error


def _require_workers(client: Client, address: ExecutorAddress) -> int:
    """Return how many pieces workers do at once; raises SchedulerUnavailable where there are none, WorkerMismatch."""
    from pgwal.engine.fleet import Versions, own_versions, require_same_versions
    from pgwal.errors import WorkerMismatch

    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT_S)
    except TimeoutError as error:
        raise SchedulerUnavailable(
            f"the scheduler at {address} has no workers", hint=f"Start some with dask worker {address.host_and_port}."
        ) from error
    _require_same_dask(client, address)
    for worker, found in client.run(own_versions, on_error="return").items():
        if not isinstance(found, Versions):
            raise WorkerMismatch(
                f"worker {worker} has no pgwal, or another version of it: {found}",
                hint="Install the same version of pgwal, for the same version of Python, wherever workers run.",
            )
        require_same_versions(found, f"worker {worker}")
    return sum(client.nthreads().values())


def _require_same_dask(client: Client, address: ExecutorAddress) -> None:
    """Raise WorkerMismatch unless all speak the same protocol."""
    from pgwal.errors import WorkerMismatch

    found = client.get_versions()
    others = {f"the scheduler at {address}": found["scheduler"]}
    others |= {f"worker {name}": versions for name, versions in found["workers"].items()}
    own = found["client"]["packages"]
    for where, versions in others.items():
        packages = {} if versions is None else versions["packages"]
        for name in ("distributed", "msgpack", "cloudpickle"):
            if packages.get(name) != own[name]:
                raise WorkerMismatch(
                    f"{where} has {name} {packages.get(name)}, this process {own[name]}",
                    hint="Install the same versions of pgwal[dask] on all machines.",
                )
