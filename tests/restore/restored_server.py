"""Servers on restored data directories, and what is checked of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from differential.test_safety import assert_sound
from fix_servers import ServerFactory
from pgwal_process import run_pgwal, succeed
from test_main_job import checksums, wait_until_promoted

from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import (
    ThrowawayServer,
    give_to_server,
)

Rows = dict[str, tuple[int, str]]

__all__ = ["Rows", "Scene", "assert_sound", "checksums"]


@dataclass(frozen=True)
class Scene:
    """A repository, and the servers that are made of it."""

    repo: Path
    make_server: ServerFactory

    def restore(self, target: Path, *args: str | Path, tablespaces: Mapping[Path, Path] | None = None) -> Path:
        """Restore as the command line does."""
        mappings = [f"--tablespace-mapping={old}={new}" for old, new in (tablespaces or {}).items()]
        succeed("restore", "--repo", self.repo, "-D", target, "-N", *mappings, *args)
        for new in (tablespaces or {}).values():
            give_to_server(new)
        return target

    @contextmanager
    def started(
        self, data_directory: Path, *, promoted: bool = True, for_standby: bool = False
    ) -> Iterator[ThrowawayServer]:
        """Start a server on a restored directory, which gets its WAL by pgwal fetch-wal, and close it at the end."""
        words = ["fetch-wal", "--repo", str(self.repo), *(["--standby"] if for_standby else [])]
        with _ForkedRelay(words, self.repo.parent / f"relay-{data_directory.name}") as relay:
            with (data_directory / "postgresql.auto.conf").open("a") as settings:
                settings.write(f"restore_command = '{relay.restore_command}'\nsynchronous_standby_names = ''\n")
            server = self.make_server(adopt=data_directory)
            if promoted:
                wait_until_promoted(server)
            try:
                yield server
            finally:
                server.kill()


class _ForkedRelay(RestoreCommandRelay):
    """A relay whose command is pgwal's, and runs as other commands of tests do."""

    def _run(self, name: str, destination: Path) -> int:
        outcome = run_pgwal(*self.command, name, destination)
        with self.log_file.open("a") as log:
            log.write(outcome.stderr)
        return outcome.code if outcome.code >= 0 else 128 - outcome.code
