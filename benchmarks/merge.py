"""Merging in a packed repository beside a full backup: time, and what of files is read and stored."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial

from benchmarks.backup import SCALE, SHARES, change_blocks
from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare
from benchmarks.repository import BenchmarkedRepository

_TARGET = 0.1


def run(context: Context) -> list[Comparison]:
    """Merge an incremental backup with its full one, after each share of the blocks changed; evenly spread ones."""
    comparisons = []
    with context.server("merge") as server:
        server.run_tool("pgbench", "-i", "-q", "-s", str(SCALE))
        repository = BenchmarkedRepository(context, server, context.scratch / "repository")
        repository.initialise("--format", "packed")
        with repository.receiving():
            full = repository.keep("full", "--pgdata", server.data_directory)
            for percent in SHARES:
                change_blocks(server, percent)
                newest = repository.keep("incremental", "--since", full, "--pgdata", server.data_directory)
                sides = [
                    Side("full backup", partial(_full, repository, server.data_directory)),
                    Side("merge", partial(_merge, context, repository, newest)),
                ]
                title = f"merge after {percent} % of the blocks changed"
                comparisons.append(compare(title, sides, context.rounds, target=_TARGET))
    return comparisons


def _full(repository: BenchmarkedRepository, data_directory: object) -> Measurement:
    """Take another full backup, which is removed again; what it stores are the bytes of its files."""
    before = set(repository.backup_ids())
    measured = repository.backup("full", "--pgdata", str(data_directory))
    (made,) = set(repository.backup_ids()) - before
    (size_bytes,) = (backup["size_bytes"] for backup in repository.backups() if backup["id"] == made)
    repository.drop(made)
    return measured._replace(stored_bytes=size_bytes)


def _merge(context: Context, repository: BenchmarkedRepository, backup_id: str) -> Measurement:
    """Merge, measured, and once more for what was read and stored of files."""
    command = ["merge", backup_id, "--repo", str(repository.path), "--json"]
    merged = repository.path / "backups" / backup_id.replace("incr", "full")
    measured = context.run_pgwal(*command)
    shutil.rmtree(merged)
    said = json.loads(subprocess.check_output([context.pgwal, *command]))
    shutil.rmtree(merged)
    return measured._replace(stored_bytes=said["read_bytes"] + said["written_bytes"])
