"""Few descriptors, signals that come early or from a terminal that goes, directories that cannot be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from guarded.other_user import as_ordinary_user
from pgwal_process import assert_failed, assert_nothing_raw, environment, finish, run_pgwal, start_pgwal
from restore.made_repository import Blocks, MadeRepository, block

from pgwal.repository.storage_format import StorageFormat
from pgwal_cli.exit_codes import FAILED, VERIFICATION_FAILED
from pgwal_cli.throwaway_server import ThrowawayServer

CHAIN_LENGTH = 60
RELATION = "base/5/16384"


@pytest.fixture
def long_chain(tmp_path: Path, storage_format: StorageFormat) -> MadeRepository:
    """A chain of which each backup has a block of its own that counts, in several files."""
    made = MadeRepository(tmp_path / "repo", storage_format=storage_format)
    files = [f"{RELATION}{number}" for number in range(4)]
    made.add({path: block("x") * CHAIN_LENGTH for path in files})
    for number in range(1, CHAIN_LENGTH):
        made.add({path: Blocks(CHAIN_LENGTH, {number: block(chr(ord("0") + number % 10))}) for path in files})
    return made


@pytest.mark.parametrize("jobs", ["1", "4"])
def test_a_long_chain_needs_few_descriptors(long_chain: MadeRepository, tmp_path: Path, jobs: str) -> None:
    limited = ["bash", "-c", 'ulimit -n 64; exec "$@"', "limited"]
    target = tmp_path / "target"
    outcome = run_pgwal(
        "combine", long_chain.ids[-1], "--repo", long_chain.path, "-o", target, "-j", jobs, prefix=limited
    )
    assert outcome.code == 0, outcome.stderr
    expected = [block("x"), *(block(chr(ord("0") + number % 10)) for number in range(1, CHAIN_LENGTH))]
    for number in range(4):
        assert (target / f"{RELATION}{number}").read_bytes() == b"".join(expected)


@pytest.mark.parametrize("limit", [6, 8, 10])
def test_too_few_descriptors_are_named(long_chain: MadeRepository, tmp_path: Path, limit: int) -> None:
    limited = ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "limited"]
    combining = ["combine", long_chain.ids[-1], "--repo", long_chain.path, "-o", tmp_path / "target", "-j", "4"]
    outcome = run_pgwal(*combining, prefix=limited)
    assert_nothing_raw(outcome)
    if outcome.code:
        assert outcome.code == 1
        assert "Too many open files" in outcome.errors[0]
        assert "ulimit -n" in outcome.hints[0]


def test_a_directory_that_cannot_be_read_is_named_and_the_rest_verified(tmp_path: Path) -> None:
    made = MadeRepository(tmp_path / "repo")
    damaged = made.add({RELATION: block("a"), "base/6/1": block("b")})
    made.add({RELATION: Blocks(1, {0: block("c")}), "base/6/1": block("d")})
    (made.data(damaged) / RELATION).write_bytes(block("z"))
    unread = made.data(made.ids[1]) / "base/6"
    with closed(unread):
        outcome = run_pgwal("verify", "--repo", made.path, prefix=as_ordinary_user())
    assert outcome.code == VERIFICATION_FAILED, outcome
    assert_nothing_raw(outcome)
    assert f"{damaged}/data/{RELATION}: it is not what was stored" in outcome.stdout
    assert f"{made.ids[1]}/data/base/6: cannot list {unread}: Permission denied" in outcome.stdout
    for name in ("wal", "summaries", "backups"):
        with closed(made.path / name):
            outcome = run_pgwal("verify", "--repo", made.path, prefix=as_ordinary_user())
        assert_failed(outcome, FAILED, f"cannot open {made.path / name}: Permission denied", "owns the repository")


@contextmanager
def closed(directory: Path) -> Iterator[None]:
    """Let nobody into a directory for a while, its owner included."""
    directory.chmod(0)
    try:
        yield
    finally:
        directory.chmod(0o700)


@pytest.mark.postgres(18)
def test_a_terminal_that_goes_ends_a_receiver_cleanly(server: ThrowawayServer, tmp_path: Path) -> None:
    process = start_pgwal("stream", "--repo", tmp_path / "repo", "-d", server.conninfo)
    deadline = time.monotonic() + 30
    while not (tmp_path / "repo/receiver.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)


def test_a_terminal_that_goes_ends_other_commands_as_sigterm_does(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "map.summary")
    process = start_pgwal("map", tmp_path / "map.summary")
    # It waits for whoever writes; then the handlers are there.
    writer = os.open(tmp_path / "map.summary", os.O_WRONLY)
    process.send_signal(signal.SIGHUP)
    outcome = finish(process)
    os.close(writer)
    assert outcome.code == 128 + signal.SIGHUP
    assert outcome.stderr == "pgwal: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_that_come_early_leave_no_traceback(number: signal.Signals) -> None:
    # The signal comes when the command has only begun to be imported.
    program = f"""
import builtins, os, signal, sys
real = builtins.__import__
def imported(name, *args, **options):
    if name.startswith("pgwal_cli.main"):
        builtins.__import__ = real
        os.kill(os.getpid(), {int(number)})
    return real(name, *args, **options)
builtins.__import__ = imported
sys.argv = ["pgwal", "--version"]
from pgwal_cli.start import main
main()
"""
    finished = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert finished.returncode == -number
    assert finished.stderr == ""
