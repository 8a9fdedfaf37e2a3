"""Full and incremental backups of PostgreSQL 15, local, against Debian's pgBackRest, where both are installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.backup import SCALE, SHARES, change_blocks
from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare, run_command
from benchmarks.repository import BenchmarkedRepository
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import SUPERUSER, ThrowawayServer

_POSTGRESQL_15 = Path("/usr/lib/postgresql/15/bin")
_JOBS = 2
"""As many as pgwal uses by default."""

_CONFIGURATION = """\
[global]
repo1-path={path}/repository
lock-path={path}/lock
log-path={path}/log
spool-path={path}/spool
log-level-file=off
start-fast=y
archive-check=n
expire-auto=n
compress-type=none
process-max={jobs}

[measured]
pg1-path={data_directory}
pg1-socket-path={socket_directory}
pg1-port={port}
pg1-user={user}
"""


@dataclass(frozen=True, slots=True)
class _PgBackRest:
    """Its repository below ``path``, for one server."""

    program: str
    path: Path
    server: ThrowawayServer

    def create(self) -> None:
        self.path.mkdir()
        self._configuration.write_text(
            _CONFIGURATION.format(
                path=self.path,
                jobs=_JOBS,
                data_directory=self.server.data_directory,
                socket_directory=self.server.socket_directory,
                port=self.server.port,
                user=SUPERUSER,
            )
        )
        run_command(self._command("stanza-create"))

    def keep_full(self) -> None:
        run_command(self._command("backup", "--type=full"))

    def backup(self, kind: str) -> Measurement:
        """Take a backup, measure it, and throw it away."""
        measured = run_command(self._command("backup", f"--type={kind}"))
        info = json.loads(subprocess.check_output(self._command("info", "--output=json")))
        run_command(self._command("expire", f"--set={info[0]['backup'][-1]['label']}"))
        return measured

    @property
    def _configuration(self) -> Path:
        return self.path / "pgbackrest.conf"

    def _command(self, name: str, *options: str) -> list[str]:
        return [self.program, f"--config={self._configuration}", "--stanza=measured", *options, name]


def run(context: Context) -> list[Comparison]:
    """Compare incremental backups; pgBackRest's are differential ones, so that each run has the same to do."""
    program = shutil.which("pgbackrest")
    if program is None or not _POSTGRESQL_15.is_dir():
        print("\npgbackrest: not measured: Debian's pgbackrest and postgresql-15 are not both installed")
        return []
    old = replace(context, installation=ServerInstallation.found_in(_POSTGRESQL_15))
    comparisons = []
    with old.server("pgbackrest-server") as server:
        peer = _PgBackRest(program, context.scratch / "pgbackrest", server)
        peer.create()
        repository = BenchmarkedRepository(old, server, context.scratch / "beside-pgbackrest")
        with repository.receiving():
            server.run_tool("pgbench", "-i", "-q", "-s", str(SCALE))
            for percent in SHARES:
                prior = repository.keep("full")
                peer.keep_full()
                change_blocks(server, percent)
                options = ("--since", prior, "--pgdata", server.data_directory, "-j", str(_JOBS))
                sides = [
                    Side("pgbackrest --type=diff", partial(peer.backup, "diff")),
                    Side("pgwal incremental", partial(repository.backup, "incremental", *options)),
                ]
                comparisons.append(
                    compare(f"incremental backup of PostgreSQL 15, local, {percent} % changed", sides, context.rounds)
                )
    return comparisons
