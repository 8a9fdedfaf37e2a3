"""What gives access to a store is nowhere but in the environment: not in what is stored, restored, started, or said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cloud.test_object_lock import THIRD_FULL, build
from pgwal_process import PGWAL, run_pgwal
from support.seaweedfs import SECRET_KEY
from support.shared_bucket import shared_bucket

from pgwal.repository.address import place_at

_TELLING = """
import os, sys

def hook(event, arguments):
    # Of what is started; the environment goes along.
    if event in ("os.exec", "os.posix_spawn", "subprocess.Popen"):
        with open(os.environ["PGWAL_TEST_STARTED"], "a") as log:
            log.write(repr(arguments[1]))

sys.addaudithook(hook)
"""
_FAILING = """
import obstore

def fail(client, *arguments, **options):
    raise TypeError(f"nobody expects that of {client!r} and {arguments}")

obstore.get = fail
"""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    address = shared_bucket().place().address
    build(place_at(address))
    return address


def with_source(directory: Path, source: str, **variables: str) -> dict[str, str]:
    """Return variables with which Python runs something before a command."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(source)
    path = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)} | variables


def test_no_secret_is_left_anywhere(address: str, tmp_path: Path) -> None:
    started, destination = tmp_path / "started", tmp_path / "segments"
    destination.mkdir()
    # Not in UTF-8, a command starts itself anew.
    variables = with_source(tmp_path / "telling", _TELLING, PGWAL_TEST_STARTED=str(started), PYTHONUTF8="0")
    said = ""
    for command in (
        ["verify"],
        ["restore", THIRD_FULL, "-D", str(tmp_path / "restored")],
        ["fetch-wal", "000000010000000000000007", str(destination / "RECOVERYXLOG"), "--prefetch"],
        ["status", "-d", "host=/nonexistent"],
    ):
        outcome = run_pgwal(*command, "--repo", address, env=variables)
        assert outcome.code in (0, 3), outcome.stderr
        said += outcome.stdout + outcome.stderr
    assert SECRET_KEY not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert destination / "RECOVERYXLOG" in files
    assert not [path for path in files if SECRET_KEY.encode() in path.read_bytes()]
    store = place_at(address).store
    contents = {name: store.get(name) for name, _ in store.list()}
    assert not [name for name, content in contents.items() if SECRET_KEY.encode() in content]
    assert PGWAL[-1] in started.read_text()


def test_a_traceback_tells_no_secret(address: str, tmp_path: Path) -> None:
    outcome = run_pgwal("list", "--repo", address, env=with_source(tmp_path / "failing", _FAILING))
    assert outcome.code == 1
    assert "nobody expects that of S3Store" in outcome.stderr
    assert SECRET_KEY not in outcome.stderr
