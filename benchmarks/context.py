"""What every benchmark is given: the programs it runs, where it may write, and how often it repeats."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import Measurement, run_command
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

_SETTINGS: Mapping[str, str | int | bool] = {
    # The peers' writes are what is measured, not the server's.
    "fsync": False,
    "synchronous_commit": False,
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "autovacuum": False,
}


@dataclass(frozen=True, slots=True)
class Context:
    """``scratch`` is a directory that servers can reach; it is removed at the end.

    ``pgwal`` is the installed command, as users run it; ``before`` that of another installation, if there is one.
    ``variables`` are set for pgwal besides those of this process.
    """

    installation: ServerInstallation
    scratch: Path
    rounds: int
    before: Path | None = None
    pgwal: Path = Path(sys.executable).parent / "pgwal"
    variables: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def server(self, name: str, **settings: str | int | bool) -> Iterator[ThrowawayServer]:
        """Start a server with data checksums that makes WAL summaries if it can; it is stopped at the end."""
        with ThrowawayServer(self.installation, self.scratch / name) as server:
            server.initdb("-k")
            summarizing = {"summarize_wal": True} if self.installation.major >= 17 else {}
            server.configure(**{**_SETTINGS, **summarizing, **settings})
            server.start()
            yield server

    def run_pgwal(self, *arguments: str | Path) -> Measurement:
        """Run and measure pgwal."""
        return run_command([self.pgwal, *arguments], self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """What pgwal is run with."""
        return os.environ | dict(self.variables)

    def run_tool(self, name: str, *arguments: str | Path) -> Measurement:
        """Run and measure one of PostgreSQL's programs."""
        return run_command([self.installation.tool(name), *arguments], self.installation.environment())
