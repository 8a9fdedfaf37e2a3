"""Mistakes on the command line, help and version: no server is needed for these."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pgwal_process import PGWAL, Outcome, assert_failed, assert_nothing_raw, environment, run_pgwal

from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import Repository

COMMANDS = ("stream", "full", "incremental", "list", "map", "restore", "fetch-wal", "demo")
USAGE = 2
NOT_FOUND, FATAL = 1, 126


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """An empty repository."""
    path = tmp_path / "repo"
    Repository.open_or_create(path, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))
    return path


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["list", "--frobnicate", "--repo", "/tmp"], "No such option.*--frobnicate"),
        (["list"], "Missing option '--repo'"),
        (["full", "--repo", "/tmp/r", "--pgdata", "/tmp", "-c", "slow"], "'slow' is not one of 'fast', 'spread'"),
        (["incremental", "--repo", "/tmp/r", "--pgdata", "/tmp", "--since", "0/XYZ"], "invalid LSN '0/XYZ'"),
        (["map", "--repo", "/tmp/r", "--from", "nonsense", "--to", "0/1"], "invalid LSN 'nonsense'"),
        (["map", "--repo", "/tmp/r", "--from", "0/2000000", "--to", "0/1000000"], "--from 0/2000000 lies after --to"),
        (["stream", "--repo", "/tmp/r", "--create-slot"], "--create-slot needs --slot"),
        (["stream", "--repo", "/tmp/r", "-s", "often"], "'--status-interval': .* valid (number|float)"),
        (["restore", "latest", "--repo", "/tmp/r"], "Missing option '-D'"),
        (["restore", "--repo", "/tmp/r", "-D", "/tmp/d", "--target-action", "stop"], "'stop' is not one of"),
        (["restore", "--repo", "/tmp/r", "-D", "/tmp/d", "--target-lsn", "x"], "invalid LSN 'x'"),
        (["restore", "latest", "--repo", "/tmp/r", "-D", "/tmp/d", "-T", "a=b"], "'a=b' is not OLD=NEW"),
        (["grants", "--role", ""], "a role has a name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_misuse_is_refused_with_the_reason(args: list[str], cause: str) -> None:
    assert_failed(run_pgwal(*args), USAGE, cause, "--help")


def test_misuse_of_fetch_wal_is_fatal_for_the_server(tmp_path: Path) -> None:
    # The server takes 2 for "there is no such file", ends recovery and goes on without the rest of its WAL.
    assert_failed(run_pgwal("fetch-wal", "000000010000000000000001", tmp_path / "to"), FATAL, "--repo")
    assert_failed(run_pgwal("fetch-wal", "--repo", tmp_path), FATAL, "Missing argument")
    assert run_pgwal("fetch-wal", "0" * 24, tmp_path / "to", "--repo", tmp_path, env={"PGWAL_SCAN": "no"}).code == FATAL


@pytest.mark.parametrize("error", ["BaseException('a panic')", "SystemExit(1)", "RuntimeError('a mistake')"])
def test_whatever_ends_fetch_wal_is_fatal_for_the_server(repo: Path, tmp_path: Path, error: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"from pgwal.repository import address\ndef place_at(_):\n    raise {error}\naddress.place_at = place_at\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [*PGWAL, "fetch-wal", "--repo", repo, "0" * 24, tmp_path / "to"]
    finished = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False)
    assert finished.returncode == FATAL
    assert finished.stderr.startswith(b"pgwal: error: " + error.partition("(")[0].encode())


def test_fetch_wal_tells_what_is_absent_from_what_failed(repo: Path, tmp_path: Path) -> None:
    name, destination = "000000010000000000000001", tmp_path / "RECOVERYXLOG"
    absent = run_pgwal("fetch-wal", "--repo", repo, name, destination)
    assert absent.code == NOT_FOUND
    assert_nothing_raw(absent)
    assert_failed(run_pgwal("fetch-wal", "--repo", tmp_path / "no", name, destination), FATAL, "no repository in .*no")
    segment = repo / "wal" / name
    segment.write_bytes(b"short")
    cut_off = run_pgwal("fetch-wal", "--repo", repo, name, destination)
    assert_failed(cut_off, FATAL, f"{name} ends 16777211 bytes before", "whole copy")
    segment.write_bytes(bytes(16 << 20))
    assert_failed(run_pgwal("fetch-wal", "--repo", repo, name, destination), FATAL, f"{name} is damaged", "whole copy")
    history = "00000002.history"
    (repo / "wal" / history).write_text("1\t0/3000028\tpromoted\n")
    no = tmp_path / "nowhere" / "RECOVERYXLOG"
    assert_failed(run_pgwal("fetch-wal", "--repo", repo, history, no), FATAL, f"cannot write {no}: No such file")
    (repo / "pgwal.json").write_text("{}")
    assert_failed(run_pgwal("fetch-wal", "--repo", repo, name, destination), FATAL, "pgwal.json cannot be read")
    assert not destination.exists()


def test_the_repository_may_come_from_the_environment(repo: Path, tmp_path: Path) -> None:
    listed = run_pgwal("list", env={"PGWAL_REPO": str(repo)})
    assert (listed.code, listed.stdout) == (0, "no backups\n")
    absent = run_pgwal("list", env={"PGWAL_REPO": str(tmp_path / "no")})
    assert_failed(absent, 1, "no repository in .*no", "--repo or PGWAL_REPO")


def test_nothing_to_list_map_or_restore_is_said(repo: Path, tmp_path: Path) -> None:
    assert_failed(run_pgwal("map", "--repo", repo, "--from", "0/1", "--to", "0/2"), 4, "holds no WAL", "pgwal stream")
    restored = run_pgwal("restore", "latest", "--repo", repo, "-D", tmp_path / "target")
    assert_failed(restored, 1, "no backup yet", "pgwal full")
    assert not (tmp_path / "target").exists()


def test_version_is_printed() -> None:
    for option in ("--version", "-V"):
        outcome = run_pgwal(option)
        assert (outcome.code, outcome.stderr) == (0, "")
        assert outcome.stdout.startswith("pgwal 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    outcome = run_pgwal(command, "-?")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert command in outcome.stdout


def test_without_arguments_the_help_is_shown() -> None:
    outcome = run_pgwal()
    assert outcome.code == USAGE
    assert "incremental" in outcome.stdout + outcome.stderr
    assert "error" not in outcome.stderr


def test_a_reader_that_goes_away_is_no_drama(repo: Path) -> None:
    process = subprocess.Popen(
        [*PGWAL, "list", "--repo", str(repo)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error(repo: Path) -> None:
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(
            [*PGWAL, "list", "--repo", str(repo)], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert_failed(Outcome(finished.returncode, "", finished.stderr), 1, "No space left on device")
