"""Backups and restores that are interrupted, or meet another one: nothing half done stays, or counts."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_servers import ServerFactory, Templates
from pgwal_process import Outcome, assert_failed, assert_nothing_raw, finish, run_pgwal, start_pgwal, succeed

from pgwal.backup.entry_document import decode_packs
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

pytestmark = pytest.mark.postgres(15, 18)
EITHER_WILL_DO = pytest.mark.postgres(18)
"""For what no version has a say in."""

LOCKED = 6
SIGNALS = (signal.SIGINT, signal.SIGTERM)
BIG_FILE_SIZE = 1 << 30
SLOWLY = ("--max-rate", "32M")
"""With these, a file takes far longer to copy than it takes to send a signal; in the data directory it is a hole."""


@pytest.fixture(scope="module")
def server(
    installation: ServerInstallation, server_templates: Templates, module_scratch: Path
) -> Iterator[ThrowawayServer]:
    directory = module_scratch / f"interrupt-{installation.major}"
    with ServerFactory(installation, server_templates, directory) as factory:
        yield factory()


@pytest.fixture
def big_file(server: ThrowawayServer) -> Iterator[str]:
    """A file of the data directory that takes long to copy; its name."""
    path = server.data_directory / "big"
    with path.open("wb") as file:
        file.truncate(BIG_FILE_SIZE)
    yield path.name
    path.unlink()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def full(server: ThrowawayServer, repo: Path, checkpoint: str = "fast") -> list[str | Path]:
    connection: list[str | Path] = ["-d", server.conninfo, "--pgdata", server.data_directory]
    return ["full", "--repo", repo, *connection, "-c", checkpoint]


def count_sessions(server: ThrowawayServer) -> int:
    """Count the sessions of pgwal on the server: one of them holds it in backup mode."""
    with server.connect() as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgwal'").fetchone()
    assert row is not None
    return int(row[0])


def waits_for_checkpoint(server: ThrowawayServer) -> bool:
    with server.connect() as connection:
        found = connection.execute("SELECT FROM pg_stat_activity WHERE application_name = 'pgwal' AND query ~ 'backup'")
        return found.rowcount > 0 and checkpoint_is_spread(server)


def checkpoint_is_spread(server: ThrowawayServer) -> bool:
    with server.connect() as connection:
        return connection.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'CheckpointWriteDelay'").rowcount > 0


def assert_interrupted(outcome: Outcome, number: signal.Signals) -> None:
    assert outcome.code == 128 + number, outcome.stderr
    assert_nothing_raw(outcome)
    assert outcome.stderr.splitlines()[-1] == "pgwal: interrupted"
    assert outcome.errors == []


def assert_nothing_left(server: ThrowawayServer, repo: Path) -> None:
    assert list((repo / "backups").iterdir()) == []
    assert packs(repo) == []
    deadline = time.monotonic() + 10
    while count_sessions(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with server.connect() as connection:
        assert connection.execute("SELECT FROM pg_replication_slots").rowcount == 0


def packs(repo: Path) -> list[Path]:
    """Return the packs, and what is there of one that is being written."""
    return [path for path in repo.glob("packs/*/*") if path.is_file()]


def needed_packs(repo: Path) -> set[str]:
    entries = [path.read_bytes().splitlines(keepends=True) for path in repo.glob("backups/*/backup.json")]
    return set() if not packs(repo) else {pack.name for lines in entries for pack in decode_packs(lines)}


def wait_for_copying(repo: Path, big_file: str, process: subprocess.Popen[str]) -> None:
    """Wait until the content of files is being stored."""
    wait_for(lambda: packs(repo) or list(repo.glob(f"backups/*.unfinished/data/{big_file}")), process)


def make_dirty(server: ThrowawayServer) -> None:
    """Give the next checkpoint work that it can spread."""
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS dirt")
        connection.execute("CREATE TABLE dirt AS SELECT repeat('x', 1000) AS t FROM generate_series(1, 5000)")


@pytest.mark.parametrize("jobs", ["1", "3"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_backup_interrupted_while_it_copies(
    server: ThrowawayServer, repo: Path, big_file: str, number: signal.Signals, jobs: str
) -> None:
    process = start_pgwal(*full(server, repo), *SLOWLY, "--jobs", jobs)
    wait_for_copying(repo, big_file, process)
    process.send_signal(number)
    # More than one may come for one request.
    process.send_signal(number)
    assert_interrupted(finish(process), number)
    assert_nothing_left(server, repo)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_backup_interrupted_while_it_waits_for_the_checkpoint(
    server: ThrowawayServer, repo: Path, number: signal.Signals
) -> None:
    make_dirty(server)
    process = start_pgwal(*full(server, repo, "spread"))
    wait_for(lambda: waits_for_checkpoint(server), process)
    second = run_pgwal(*full(server, repo))
    assert_failed(second, LOCKED, r"backup.lock is held by a backup, process \d+", "wait until")
    process.send_signal(number)
    assert_interrupted(finish(process), number)
    assert_nothing_left(server, repo)


@EITHER_WILL_DO
def test_what_a_killed_backup_leaves_is_no_backup(server: ThrowawayServer, repo: Path, big_file: str) -> None:
    process = start_pgwal(*full(server, repo), *SLOWLY)
    wait_for_copying(repo, big_file, process)
    process.kill()
    finish(process)
    (server.data_directory / big_file).open("wb").close()
    (left,) = (path.name.removesuffix(".unfinished") for path in (repo / "backups").iterdir())
    assert succeed("list", "--repo", repo) == "no backups\n"
    outcome = run_pgwal(*full(server, repo), "--json")
    assert outcome.code == 0, outcome.stderr
    assert f"removed what was left of the unfinished backup {left}" in outcome.stderr
    assert [path.name for path in (repo / "backups").iterdir()] == [json.loads(outcome.stdout)["id"]]
    assert {path.name for path in packs(repo)} == needed_packs(repo)
    succeed("verify", "--repo", repo)


@EITHER_WILL_DO
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_restore_interrupted(server: ThrowawayServer, repo: Path, tmp_path: Path, number: signal.Signals) -> None:
    target = tmp_path / "target"
    backup = json.loads(succeed(*full(server, repo), "--json"))["id"]
    process = start_pgwal("restore", backup, "--repo", repo, "-D", target)
    # Stopped in the middle, the signal finds it there.
    wait_for(lambda: (target / "base").exists(), process)
    process.send_signal(signal.SIGSTOP)
    assert not (target / "global/pg_control").exists()
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    outcome = finish(process)
    assert_interrupted(outcome, number)
    assert f"{target} is incomplete and cannot be started" in outcome.stderr
    assert not (target / "global/pg_control").exists()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_stream_ends_cleanly(server: ThrowawayServer, tmp_path: Path, number: signal.Signals) -> None:
    process = start_pgwal("stream", "--repo", tmp_path / "repo", "-d", server.conninfo)
    wait_for(lambda: count_sessions(server), process)
    process.send_signal(number)
    outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)
    assert outcome.errors == []
