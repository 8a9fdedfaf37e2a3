"""Restores into a directory of which one percent has changed, from an S3 server at ten milliseconds a request, beside
restores into an empty one; stored: what was fetched, as the repository stores it.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.backup import change_blocks
from benchmarks.context import Context
from benchmarks.latency import Latency
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.repository import RepositoryInStore
from pgwal.errors import PgwalError
from pgwal_cli.throwaway_store import ThrowawayStore

SCALE = 100
"""Of pgbench: some 1.5 GB."""
JOBS = 2
BUCKET = "benchmark"
_TARGET = 0.5
_REQUEST_S = 0.010
_BLOCK = 8192
_SHARE = 100
"""One block of so many is changed."""


def run(context: Context) -> list[Comparison]:
    """Compare restores of a full backup, and of a chain, after changes in one place and after spread ones."""
    try:
        store = ThrowawayStore(context.scratch / "store", "benchmark", secrets.token_hex(16))
    except PgwalError as error:
        print(f"\nnot measured: {error}")
        return []
    with store, Latency(urlsplit(store.endpoint).port or 0, _REQUEST_S) as network:
        store.create_bucket(BUCKET)
        variables = store.environment() | {"XDG_STATE_HOME": str(context.scratch / "state")}
        near = replace(context, variables=variables)
        far = replace(context, variables=variables | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{network.port}"})
        with context.server("delta") as server:
            server.run_tool("pgbench", "-i", "-q", "-s", str(SCALE))
            repository = RepositoryInStore(near, server, f"s3://{BUCKET}/delta")
            with repository.receiving("zstd"):
                full = repository.keep("full", "--pgdata", server.data_directory, "-j", str(JOBS))
                change_blocks(server, 1)
                newest = repository.keep("incremental", "--pgdata", server.data_directory, "-j", str(JOBS))
        delta = _Delta(far, repository.address)
        return [
            delta.compare("a full backup, 1 % changed in one place", full, _in_one_place),
            delta.compare("full and incremental, 1 % changed in one place", newest, _in_one_place),
            delta.compare("a full backup, 1 % of the blocks changed, evenly spread", full, _spread),
        ]


class _Delta:
    """The sides, over one repository."""

    def __init__(self, context: Context, address: str) -> None:
        self._context = context
        self._address = address
        self._empty, self._target = context.scratch / "empty", context.scratch / "target"

    def compare(self, title: str, backup_id: str, change: Callable[[Path], None]) -> Comparison:
        self._fetched(backup_id, self._target, "--delta")
        sides = [
            Side("restore", partial(self._fresh, backup_id)),
            Side("restore --delta", partial(self._delta, backup_id, change)),
        ]
        size = sum(path.stat().st_size for path in self._target.rglob("*") if path.is_file())
        return compare(
            f"restore of {title}; 10 ms a request", sides, self._context.rounds, bytes_processed=size, target=_TARGET
        )

    def _fresh(self, backup_id: str) -> Measurement:
        shutil.rmtree(self._empty, ignore_errors=True)
        measured = self._context.run_pgwal(*self._words(backup_id, self._empty))
        shutil.rmtree(self._empty)
        return measured._replace(stored_bytes=self._fetched(backup_id, self._empty))

    def _delta(self, backup_id: str, change: Callable[[Path], None]) -> Measurement:
        change(self._target)
        measured = self._context.run_pgwal(*self._words(backup_id, self._target), "--delta")
        change(self._target)
        return measured._replace(stored_bytes=self._fetched(backup_id, self._target, "--delta"))

    def _fetched(self, backup_id: str, target: Path, *options: str) -> int:
        """Restore once more, and return how much was fetched."""
        command = [self._context.pgwal, *self._words(backup_id, target), *options, "--json"]
        said = json.loads(subprocess.check_output(command, env=self._context.environment, stderr=subprocess.DEVNULL))
        return int(said["fetched_bytes"])

    def _words(self, backup_id: str, target: Path) -> list[str | Path]:
        where: list[str | Path] = ["--repo", self._address, "-D", target, "-j", str(JOBS)]
        return ["restore", backup_id, *where, "--target-immediate"]


def _in_one_place(target: Path) -> None:
    """Change one percent of the blocks, one behind the other, in the largest files."""
    left = sum(path.stat().st_size for path in _relation_files(target)) // _SHARE // _BLOCK
    for path in sorted(_relation_files(target), key=lambda path: path.stat().st_size, reverse=True):
        count = min(left, path.stat().st_size // _BLOCK)
        _change(path, range(count))
        left -= count
        if not left:
            return


def _spread(target: Path) -> None:
    """Change each hundredth block."""
    for path in _relation_files(target):
        _change(path, range(_SHARE - 1, path.stat().st_size // _BLOCK, _SHARE))


def _relation_files(target: Path) -> Iterator[Path]:
    return (path for path in target.glob("base/*/*") if path.is_file())


def _change(path: Path, blocks: range) -> None:
    with path.open("r+b") as file:
        for number in blocks:
            file.seek(number * _BLOCK + 100)
            file.write(b"changed")
