"""Have work on a repository done in pieces, by threads of this process or by the processes behind an executor.

A piece says what it is about in a few values, and its result is as small: whoever does it opens the repository by its
address, reads there, and writes there what is to stay.  What a worker needs to get in, such as credentials and keys,
comes from its own environment, and is never sent.  Pieces are the same whoever does them, and results come in their
order: so is what comes of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from threading import Event, Lock
from typing import NamedTuple, TypeVar
from uuid import uuid4

from pgwal import __version__
from pgwal.budget import OPEN_REPOSITORIES, PIECES_FOR_EACH_WORKER
from pgwal.engine.ordered_map import ordered_map
from pgwal.errors import PgwalError, WorkerMismatch
from pgwal.repository.backup_data import BackupData
from pgwal.repository.place import address_of
from pgwal.repository.repository import Repository

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


class Versions(NamedTuple):
    """What must be the same on both sides, for what a piece means, and how it is sent, is not written down anywhere."""

    pgwal: str
    python: str

    @classmethod
    def own(cls) -> Versions:
        """Return those of this process; of Python's, what may change how it writes values down."""
        return cls(__version__, f"{sys.version_info.major}.{sys.version_info.minor}")

    def __str__(self) -> str:
        return f"pgwal {self.pgwal} on Python {self.python}"


def own_versions() -> Versions:
    """Return those of the process that runs this: for whoever asks a worker."""
    return Versions.own()


def require_same_versions(other: Versions, where: str) -> None:
    """Raise WorkerMismatch unless a worker, or whoever sends it pieces, has the versions of this process."""
    if other != Versions.own():
        raise WorkerMismatch(
            f"{where} has {other}, this process {Versions.own()}",
            hint="Install the same version of pgwal, for the same version of Python, wherever workers run.",
        )


class Fleet(NamedTuple):
    """Processes that do pieces of work: ``worker_count`` of them, as far as that is known when the work begins."""

    executor: Executor
    worker_count: int


class Room:
    """What one process has open for the pieces of one command."""

    def __init__(self, repository: Repository, jobs: int = 1, *, target: Repository | None = None) -> None:
        """What is packed is read ahead in ``jobs`` threads; ``target`` is where something is copied to."""
        self.repository = repository
        self._jobs = jobs
        self._target = target
        self._data: BackupData | None = None
        self._lock = Lock()

    def data(self, backup_id: str) -> BackupData:
        """Return what a backup holds; of the last one that was asked for, what is known of it stays in memory."""
        with self._lock:
            if self._data is None or self._data.backup_id != backup_id:
                (self._data,) = self.repository.catalogue.data(backup_id, jobs=self._jobs)
            return self._data

    def target(self, address: str) -> Repository:
        """Return the repository to copy to."""
        with self._lock:
            if self._target is None:
                self._target = Repository.open(address)
            return self._target


Tell = Callable[[int], None]
"""Is told of each number of bytes that was read."""
Work = Callable[[Room, Tell, _Piece], _Result]
"""A function of a module, which the processes of a fleet find by its name."""


class Crew:
    """Does pieces of work on a repository; ``room`` is that of this process, for what is done here."""

    def __init__(self, room: Room, tell: Tell, workers: Fleet, *, run: str | None = None) -> None:
        """``run`` names what other processes do for one command, None where threads of this one do it."""
        self.room = room
        self._tell = tell
        self._workers = workers
        self._run = run

    def map(self, work: Work[_Piece, _Result], pieces: Iterable[_Piece]) -> Generator[_Result]:
        """Yield what ``work`` makes of each piece, in order; few pieces are taken ahead.  To be closed.

        Raises what the work raises, when its turn has come; PgwalError for what ends the workers themselves.
        """
        workers, ahead = self._workers.executor, self._workers.worker_count * PIECES_FOR_EACH_WORKER
        if self._run is None:
            yield from ordered_map(workers, partial(work, self.room, self._tell), pieces, ahead=ahead)
            return
        order = _Order(self._run, address_of(self.room.repository.place), Versions.own())
        try:
            with closing(ordered_map(workers, partial(_do, order, work), pieces, ahead=ahead)) as results:
                for result, size_bytes in results:
                    self._tell(size_bytes)
                    yield result
        except (BrokenExecutor, CancelledError) as error:
            what = "who gives them work is gone" if isinstance(error, CancelledError) else str(error)
            raise PgwalError(
                f"the workers have ended before their work was done: {what}",
                hint="See whether something has killed them, as for want of memory; run the command again.",
            ) from error


@contextmanager
def crew(
    repository: Repository, tell: Tell, jobs: int, fleet: Fleet | None = None, *, target: Repository | None = None
) -> Iterator[Crew]:
    """Give who does pieces of work: ``jobs`` threads, or a fleet where there is one.

    When the context ends with an error, pieces that have not begun are dropped.  Those under way end with the next that
    they ``tell``; those of a fleet go to their end, and nobody waits for them.
    """
    room = Room(repository, jobs, target=target)
    if fleet is not None:
        yield Crew(room, tell, fleet, run=uuid4().hex)
        return
    stopping = Event()

    def tell_unless_stopping(size_bytes: int) -> None:
        if stopping.is_set():
            raise CancelledError
        tell(size_bytes)

    with ThreadPoolExecutor(jobs) as threads:
        try:
            yield Crew(room, tell_unless_stopping, Fleet(threads, jobs))
        except BaseException:
            # Without this, an interruption would wait for all that is read.
            stopping.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


class _Order(NamedTuple):
    """What comes with each piece: for which run of a command it is, where the repository is, and who sends it."""

    run: str
    address: str
    versions: Versions


def _do(order: _Order, work: Work[_Piece, _Result], piece: _Piece) -> tuple[_Result, int]:
    """Do a piece of work in the process of a worker, and return what came of it, and how many bytes were read."""
    require_same_versions(order.versions, "the process that asks for work")
    sizes: list[int] = []
    result = work(_room(order.run, order.address), sizes.append, piece)
    return result, sum(sizes)


@lru_cache(OPEN_REPOSITORIES)
def _room(run: str, address: str) -> Room:  # noqa: ARG001
    """Open the repository once for each run: the next one may find it changed."""
    return Room(Repository.open(address))
