"""A restored server with the restore_command that restore writes, run by the server itself as its own user."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import succeed
from test_main_job import checksums, wait_until_promoted

from pgwal_cli.throwaway_server import can_execute_python, give_to_server

PACKAGES = ("pgwal", "pgwal_cli", "zstandard", "lz4", "xxhash")


def python_for_server(directory: Path) -> Path:
    """Make a program that runs Python with pgwal as anyone, and notes each call in ``calls``."""
    variables, python = "", sys.executable
    if not can_execute_python():
        found = shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")
        if found is None:
            pytest.skip("there is no Python that the server's user can run")
        python = found
        variables = f"PYTHONPATH={shlex.quote(str(directory / 'packages'))} "
        for name in PACKAGES:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            shutil.copytree(Path(spec.origin).parent, directory / "packages" / name)
    calls = directory / "calls"
    calls.touch()
    calls.chmod(0o666)
    program = directory / "python"
    program.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n{variables}exec {python} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.postgres(13, 18)
def test_server_finds_most_segments_at_hand(make_server: ServerFactory, scratch: Path) -> None:
    source = make_server(initdb_args=("--wal-segsize=1",), settings={"max_wal_size": "1GB"})
    repo, target = scratch / "repo", scratch / "target"
    with source.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i, 'x' AS filler")
    options = ("--repo", repo, "-d", source.conninfo)
    succeed("stream", *options, "--create-slot", "-S", "pgwal", "--once")
    succeed("full", *options, "--pgdata", source.data_directory, "-c", "fast")
    with source.connect() as connection:
        connection.execute("CREATE TABLE filled AS SELECT repeat('x', 1000) AS x, i FROM generate_series(1, 100000) i")
        connection.execute("DELETE FROM filled WHERE i % 3 = 0")
    rows = checksums(source)
    succeed("stream", *options, "-S", "pgwal", "--once")
    segments = len(list((repo / "wal").iterdir()))
    assert segments > 60
    succeed("restore", "--repo", repo, "-D", target, "latest")

    python = python_for_server(scratch)
    settings = target / "postgresql.auto.conf"
    assert sys.executable in settings.read_text()
    settings.write_text(settings.read_text().replace(sys.executable, str(python)))
    give_to_server(repo)
    restored = make_server(adopt=target)
    wait_until_promoted(restored)
    assert checksums(restored) == rows
    calls = (scratch / "calls").read_text().splitlines()
    assert all("--prefetch" in call for call in calls)
    # The history files, the first segment, the last one, which is not whole, and those that came too late.
    assert len(calls) < segments / 2, calls
    spool = target / "pg_wal" / "RECOVERYXLOG.pgwal"
    deadline = time.monotonic() + 20
    while spool.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Nothing that was fetched ahead keeps the server from stopping.
    restored.stop()
    assert subprocess.run(["pgrep", "-f", str(python)], stdout=subprocess.DEVNULL).returncode == 1
