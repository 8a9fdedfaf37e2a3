"""Work that processes do, on this machine or behind a scheduler of Dask: the result is that of one process."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from keeping.stored_repository import build_chains
from pgwal_process import assert_failed, finish, run_pgwal, start_pgwal
from support.crew_work import die, own_process
from support.dask_processes import DaskProcesses
from support.shared_bucket import shared_bucket
from support.store_proxy import StoreProxy

import pgwal
from pgwal.engine import fleet as fleet_module
from pgwal.engine import import_wal as import_module
from pgwal.engine import missing_summaries, stored_wal
from pgwal.engine.copy_repository import CopyReport, CopyRequest, copy_repository
from pgwal.engine.fleet import Fleet, Room, Versions, crew, own_versions, require_same_versions
from pgwal.engine.imported_segments import Outcome
from pgwal.engine.missing_summaries import write_missing_summaries
from pgwal.engine.problem import Problem
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import PgwalError, WorkerMismatch
from pgwal.repository.address import place_at
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.compression import Compression
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT
from pgwal_cli.executor import opened_fleet, parse_executor
from pgwal_cli.exit_codes import FAILED, NO_CONNECTION, USAGE, VERIFICATION_FAILED

IS_LARGE = "PGWAL_LARGE_TESTS" in os.environ
pytestmark = pytest.mark.xdist_group("fleet")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """What it takes to reach the bucket; this process has it, and only workers that are given it."""
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    return shared_bucket().server.environment()


@pytest.fixture
def place(environment: Mapping[str, str]) -> CloudPlace:  # noqa: ARG001
    return shared_bucket().place()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    with DaskProcesses(tmp_path_factory.mktemp("dask")) as processes:
        yield processes


@pytest.fixture
def dask(scheduler: DaskProcesses) -> Iterator[DaskProcesses]:
    """A scheduler, which has no workers yet."""
    yield scheduler
    scheduler.stop_workers()


@pytest.fixture
def proxy() -> Iterator[StoreProxy]:
    port = urlsplit(shared_bucket().server.endpoint).port
    assert port is not None
    with StoreProxy(port) as proxy:
        yield proxy


def damaged_repository(place: CloudPlace) -> Repository:
    """Build one in which a pack and a segment are not what was stored."""
    repository = build_chains(place, DEFAULT_PACKED_FORMAT).repository
    store = repository.store
    pack = max((size_bytes, name) for name, size_bytes in store.list("packs/"))[1]
    for name, at in ((pack, 10_000), ("wal/000000010000000000000002", 5_000)):
        content = bytearray(store.get(name))
        content[at] ^= 1
        store.put(name, bytes(content), replace=True)
    return repository


def summaries(repository: Repository) -> dict[str, bytes]:
    return {name: repository.store.get(name) for name, _ in repository.store.list("summaries/")}


def stored(place: CloudPlace) -> dict[str, bytes]:
    """Return all that is stored for good."""
    return {name: place.store.get(name) for name, _ in place.store.list("") if not name.endswith(".lock")}


class Killing:
    """Two workers, of which the first is killed (-9) while it waits for something of the store."""

    def __init__(self, dask: DaskProcesses, proxy: StoreProxy, environment: Mapping[str, str]) -> None:
        self._dask = dask
        self._proxy = proxy
        self._environment = environment

    def run(self, place: CloudPlace, holds: bytes, work: Callable[[Fleet], object]) -> object:
        self._proxy.holds = holds
        self._proxy.held.clear()
        endpoint = f"http://127.0.0.1:{self._proxy.port}"
        first = self._dask.start_worker({**self._environment, "AWS_ENDPOINT": endpoint, "AWS_ENDPOINT_URL": endpoint})
        with (
            opened_fleet(parse_executor(f"dask://{self._dask.address}"), place) as fleet,
            ThreadPoolExecutor(1) as client,
        ):
            assert fleet is not None
            result = client.submit(work, fleet)
            assert self._proxy.held.wait(60), self._dask.log()
            self._dask.start_worker(self._environment)
            first.send_signal(signal.SIGKILL)
            first.wait()
            found = result.result(120)
        self._dask.stop_workers()
        return found


def test_a_worker_killed_while_it_summarizes_changes_nothing(
    place: CloudPlace,
    environment: Mapping[str, str],
    dask: DaskProcesses,
    proxy: StoreProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(missing_summaries, "SUMMARY_PIECE_BYTES", 1)
    killing = Killing(dask, proxy, environment)
    intact = build_chains(place).repository
    for name, _ in list(intact.store.list("summaries/")):
        intact.store.delete(name)
    alone = write_missing_summaries(place)
    expected = summaries(intact)
    assert len(expected) > 5
    for name in expected:
        intact.store.delete(name)
    found = killing.run(
        CloudPlace.parse(place.address), b"/wal/", lambda fleet: write_missing_summaries(place, fleet=fleet)
    )
    assert found == alone
    assert summaries(intact) == expected


def test_a_worker_killed_while_it_verifies_or_copies_changes_nothing(
    environment: Mapping[str, str], dask: DaskProcesses, proxy: StoreProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_wal, "WAL_PIECE_BYTES", 1)
    killing = Killing(dask, proxy, environment)
    other = shared_bucket().place()
    damaged_repository(other)
    report = verify(VerifyRequest(other))
    assert {problem.path.partition("/")[0] for problem in report.problems} >= {"backups", "wal"}
    assert killing.run(other, b"/packs/", lambda fleet: verify(VerifyRequest(other, fleet=fleet))) == report
    if not IS_LARGE:
        return
    alone_to, to = shared_bucket().place(), shared_bucket().place()
    copied = copy_repository(CopyRequest(other, alone_to, with_wal=True))
    assert copied.problems
    assert copied.pack_count > 1

    def copy_with(fleet: Fleet) -> CopyReport:
        return copy_repository(CopyRequest(other, to, with_wal=True, fleet=fleet))

    found = killing.run(other, b"/packs/", copy_with)
    assert isinstance(found, CopyReport)
    assert dataclasses.replace(found, requests=None) == dataclasses.replace(copied, requests=None)
    assert stored(to) == stored(alone_to)


def test_commands_give_the_same_with_any_executor(
    place: CloudPlace, environment: Mapping[str, str], dask: DaskProcesses
) -> None:
    damaged_repository(place)
    dask.start_worker(environment)
    executors = ([], ["--executor", f"process:{2 if IS_LARGE else 1}"], ["--executor", f"dask://{dask.address}"])
    alone, *others = (run_pgwal("verify", "--json", "--repo", place.address, *each) for each in executors)
    assert alone.code == VERIFICATION_FAILED
    assert all(other == alone for other in others), (alone, others, dask.log())


def test_workers_come_in_with_what_their_own_environment_says(
    place: CloudPlace, environment: Mapping[str, str], dask: DaskProcesses
) -> None:
    build_chains(place, DEFAULT_PACKED_FORMAT)
    dask.start_worker({**environment, "AWS_SECRET_ACCESS_KEY": "another"})
    outcome = run_pgwal("verify", "--repo", place.address, "--executor", f"dask://{dask.address}")
    assert_failed(outcome, FAILED, "SignatureDoesNotMatch|not the right|refuses")
    assert environment["AWS_SECRET_ACCESS_KEY"] not in dask.log() + outcome.stderr


@pytest.mark.skipif(not IS_LARGE, reason="PGWAL_LARGE_TESTS=1 runs it: a scheduler of its own")
def test_a_scheduler_that_is_lost_ends_the_command_with_an_error(
    place: CloudPlace, environment: Mapping[str, str], proxy: StoreProxy, tmp_path: Path
) -> None:
    build_chains(place, DEFAULT_PACKED_FORMAT)
    proxy.holds = b"/packs/"
    with DaskProcesses(tmp_path) as dask:
        dask.start_worker({**environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"})
        process = start_pgwal("verify", "--repo", place.address, "--executor", f"dask://{dask.address}")
        assert proxy.held.wait(60), dask.log()
        dask.stop_scheduler()
        assert_failed(finish(process), FAILED, "workers have ended before their work was done: who gives them work")


def test_another_version_is_refused(
    place: CloudPlace, environment: Mapping[str, str], dask: DaskProcesses, tmp_path: Path
) -> None:
    build_chains(place, DEFAULT_PACKED_FORMAT)
    preload = tmp_path / "another_version.py"
    preload.write_text("import pgwal\npgwal.__version__ = '0.0.9'\n")
    dask.start_worker(environment, preload=preload)
    outcome = run_pgwal("verify", "--repo", place.address, "--executor", f"dask://{dask.address}")
    assert_failed(
        outcome,
        FAILED,
        rf"worker tcp://127\.0\.0\.1:\d+ has pgwal 0\.0\.9 on Python .*, this process pgwal {pgwal.__version__}",
        "Install the same version",
    )


def test_a_worker_that_comes_later_refuses_the_work_of_another_version() -> None:
    require_same_versions(own_versions(), "it")
    for other in (Versions("0.0.9", own_versions().python), Versions(pgwal.__version__, "2.7")):
        with pytest.raises(WorkerMismatch, match="the process that asks for work has pgwal"):
            fleet_module._do(fleet_module._Order("run", "nowhere", other), _nothing, None)


def _nothing(room: Room, tell: Callable[[int], None], piece: None) -> None:  # noqa: ARG001
    raise AssertionError("it is not begun")


def test_who_does_not_answer_or_cannot_read_is_named(tmp_path: Path, place: CloudPlace) -> None:
    build_chains(tmp_path / "repo")
    outcome = run_pgwal("verify", "--repo", tmp_path / "repo", "--executor", "dask://127.0.0.1:1")
    assert_failed(outcome, USAGE, "share no directory", "object store")
    outcome = run_pgwal("verify", "--repo", place.address, "--executor", "dask://127.0.0.1:1")
    assert_failed(outcome, NO_CONNECTION, "no scheduler of Dask answers at dask://127.0.0.1:1", "dask scheduler")
    for text in ("process:0", "process:999", "dask://host", "dask://a/b:1", "threads:2"):
        assert run_pgwal("verify", "--repo", tmp_path / "repo", "--executor", text).code == USAGE


# ---- processes of this machine


def test_a_killed_process_of_this_machine_ends_the_work_with_an_error(tmp_path: Path) -> None:
    repository, told = build_chains(tmp_path / "repo").repository, list[int]()
    with (
        opened_fleet(parse_executor("process:1"), repository.place) as fleet,
        crew(repository, told.append, 1, fleet) as workers,
    ):
        (process_id,) = set(workers.map(own_process, [1, 2, 3]))
        assert process_id != os.getpid()
        assert told == [1, 2, 3]
        with pytest.raises(PgwalError, match="workers have ended before their work was done"):
            list(workers.map(die, [1]))


def test_what_is_sent_says_nothing_secret(place: CloudPlace, environment: Mapping[str, str]) -> None:
    order = fleet_module._Order("run", str(place), own_versions())
    sent = pickle.dumps((order, Problem(None, "path", "message")))
    assert environment["AWS_SECRET_ACCESS_KEY"].encode() not in sent


# ---- archives of others


@pytest.mark.parametrize("damaged", [None, 4, 5] if IS_LARGE else [5])
def test_an_archive_is_taken_over_alike_by_processes(
    damaged: int | None,
    tmp_path: Path,
    environment: Mapping[str, str],  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is damaged, before and behind where the runs of two processes meet."""
    source = build_chains(tmp_path / "archive").repository.store
    archive = shared_bucket().place()
    for name, _ in source.list("wal/"):
        content = bytearray(source.get(name))
        if damaged is not None and name.endswith(f"{damaged:X}"):
            content[9000] ^= 1
        archive.store.put(name.removeprefix("wal/"), bytes(content))
    identity = Repository.open(tmp_path / "archive").identity
    monkeypatch.setattr(import_module, "SEGMENTS_IN_A_RUN", 4)
    found = []
    for to, executor in ((tmp_path / "alone", None), (tmp_path / "by_processes", "process:2")):
        own = Repository.open_or_create(to, identity).place
        with opened_fleet(None if executor is None else parse_executor(executor), own, archive) as fleet:
            report = import_module.import_wal(own, archive, Compression.parse("zstd"), fleet=fleet)
        found.append((report, {path.name: path.read_bytes() for path in (to / "wal").iterdir()}))
    assert found[0] == found[1]
    taken = [file.path for file in found[0][0].files if file.outcome is Outcome.TAKEN]
    assert len(taken) == (9 if damaged is None else 8)
    assert import_module.import_wal(place_at(tmp_path / "alone"), archive, Compression.parse("zstd")).count(
        Outcome.THERE
    ) == len(taken)
