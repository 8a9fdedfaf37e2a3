"""Full and incremental backups of PostgreSQL 15, local, against Debian's pgBackRest, where both are installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.backup import SCALE, SHARES, change_blocks
from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare, run_command
from benchmarks.repository import BenchmarkedRepository
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import SUPERUSER, ThrowawayServer

_POSTGRESQL_15 = Path("/usr/lib/postgresql/15/bin")
JOBS = 2
"""As many as pgwal uses by default."""

_CONFIGURATION = """\
[global]
{repository}
lock-path={path}/lock
log-path={path}/log
spool-path={path}/spool
log-level-file=off
start-fast=y
archive-check=n
expire-auto=n
compress-type={compression}
repo1-bundle={bundle}
{beta}process-max={jobs}

[measured]
pg1-path={data_directory}
pg1-socket-path={socket_directory}
pg1-port={port}
pg1-user={user}
"""
# Debian's, 2.45, takes storing by block for a trial yet.
_BLOCKS = """\
repo1-block=y
beta=y
"""


@dataclass(frozen=True, slots=True)
class PgBackRest:
    """Its repository below ``path``, for one server.

    With a ``compression``, small files are bundled, and large ones stored by block.
    """

    program: str
    path: Path
    server: ThrowawayServer
    compression: str = "none"
    repository: str | None = None
    """Lines of its configuration for one elsewhere."""

    def create(self) -> None:
        self.path.mkdir()
        self._configuration.touch(mode=0o600)
        self._configuration.write_text(
            _CONFIGURATION.format(
                repository=self.repository or f"repo1-path={self.path}/repository",
                path=self.path,
                jobs=JOBS,
                compression=self.compression,
                bundle="n" if self.compression == "none" else "y",
                beta="" if self.compression == "none" else _BLOCKS,
                data_directory=self.server.data_directory,
                socket_directory=self.server.socket_directory,
                port=self.server.port,
                user=SUPERUSER,
            )
        )
        run_command(self.command("stanza-create"))

    def backup(self, kind: str) -> Measurement:
        """Take a backup, measure it, and throw it away."""
        measured = run_command(self.command("backup", f"--type={kind}"))
        newest = self._newest()
        measured = measured._replace(stored_bytes=newest["info"]["repository"]["delta"])
        run_command(self.command("expire", f"--set={newest['label']}"))
        return measured

    def keep(self, kind: str) -> None:
        """Take a backup."""
        run_command(self.command("backup", f"--type={kind}"))

    def restore(self, target: Path) -> Measurement:
        """Restore the newest backup into an empty directory."""
        return run_command(self.command("restore", f"--pg1-path={target}", "--type=none"))

    def _newest(self) -> dict[str, Any]:
        info = json.loads(subprocess.check_output(self.command("info", "--output=json")))
        found: dict[str, Any] = info[0]["backup"][-1]
        return found

    @property
    def _configuration(self) -> Path:
        return self.path / "pgbackrest.conf"

    def command(self, name: str, *options: str) -> list[str]:
        """Return the words of one of its commands."""
        return [self.program, f"--config={self._configuration}", "--stanza=measured", *options, name]


def installed(context: Context) -> tuple[str, Context] | None:
    """Return the program, and a context with PostgreSQL 15; None, and say so, where one of them is not installed."""
    program = shutil.which("pgbackrest")
    if program is None or not _POSTGRESQL_15.is_dir():
        print("\nnot measured: Debian's pgbackrest and postgresql-15 are not both installed")
        return None
    return program, replace(context, installation=ServerInstallation.found_in(_POSTGRESQL_15))


def run(context: Context) -> list[Comparison]:
    """Compare incremental backups; pgBackRest's are differential ones, so that each run has the same to do."""
    found = installed(context)
    if found is None:
        return []
    program, old = found
    comparisons = []
    with old.server("pgbackrest-server") as server:
        peer = PgBackRest(program, context.scratch / "pgbackrest", server)
        peer.create()
        repository = BenchmarkedRepository(old, server, context.scratch / "beside-pgbackrest")
        with repository.receiving():
            server.run_tool("pgbench", "-i", "-q", "-s", str(SCALE))
            for percent in SHARES:
                prior = repository.keep("full")
                peer.keep("full")
                change_blocks(server, percent)
                options = ("--since", prior, "--pgdata", server.data_directory, "-j", str(JOBS))
                sides = [
                    Side("pgbackrest --type=diff", partial(peer.backup, "diff")),
                    Side("pgwal incremental", partial(repository.backup, "incremental", *options)),
                ]
                comparisons.append(
                    compare(f"incremental backup of PostgreSQL 15, local, {percent} % changed", sides, context.rounds)
                )
    return comparisons
