"""A repository of pgwal that is measured: its receiver in the background, its backups."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.context import Context
from benchmarks.measure import CommandFailed, Measurement
from pgwal_cli.throwaway_server import ThrowawayServer

_TIMEOUT_S = 60.0
_HAS_ALL = "SELECT restart_lsn >= pg_current_wal_lsn() FROM pg_replication_slots WHERE slot_name = %s"


class BenchmarkedRepository:
    """Runs pgwal on the repository in a directory, for one server.

    ``receiver_peak_bytes`` is the most memory that a receiver had which has ended, where the system tells.
    """

    def __init__(self, context: Context, server: ThrowawayServer, path: Path, slot: str = "benchmark") -> None:
        self.path = path
        self.address = str(path)
        self.receiver_peak_bytes = 0
        self._slot = slot
        self._context = context
        self._server = server

    def initialise(self, *options: str) -> None:
        """Make the repository, of a format."""
        self._context.run_pgwal("init", "--repo", self.address, *options)

    @contextmanager
    def receiving(self, compression: str = "none") -> Iterator[None]:
        """Run ``pgwal stream`` in the background."""
        command = [self._context.pgwal, "stream", *self._options(), "-S", self._slot, "--create-slot"]
        receiver = subprocess.Popen(
            [*command, "--if-not-exists", "-Z", compression],
            env=self._context.environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_for_receiver(receiver)
            yield
            self.receiver_peak_bytes = max(self.receiver_peak_bytes, _peak_bytes(receiver.pid))
        finally:
            receiver.terminate()
            receiver.wait()

    def _wait_for_receiver(self, receiver: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline_s:
            if receiver.poll() is not None:
                raise CommandFailed(f"pgwal stream ended with {receiver.returncode}")
            with self._server.connect() as connection:
                found = connection.execute(
                    "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active", [self._slot]
                ).fetchone()
            if found is not None:
                return
            time.sleep(0.1)
        raise CommandFailed("pgwal stream has not begun to receive")

    def complete_segment(self) -> None:
        """Have the server switch to a new segment, and wait until the receiver has the old one."""
        deadline_s = time.monotonic() + _TIMEOUT_S
        with self._server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")
            while time.monotonic() < deadline_s:
                if connection.execute(_HAS_ALL, [self._slot]).fetchone() == (True,):
                    return
                time.sleep(0.1)
        raise CommandFailed("pgwal stream does not keep up")

    def backup(self, command: str, *options: str | Path) -> Measurement:
        """Take a backup and measure it."""
        return self._context.run_pgwal(command, *self._options(), "-c", "fast", *options)

    def drop(self, backup_id: str) -> None:
        """Remove a backup; its packs stay until all are removed."""
        shutil.rmtree(self.path / "backups" / backup_id)

    def drop_all(self) -> None:
        """Remove all backups."""
        for backup_id in self.backup_ids():
            self.drop(backup_id)
        shutil.rmtree(self.path / "packs", ignore_errors=True)

    def keep(self, command: str, *options: str | Path) -> str:
        """Take a backup and return its id."""
        self.backup(command, *options)
        return self.backup_ids()[-1]

    def backup_ids(self) -> list[str]:
        """Return the ids of its backups, oldest first."""
        return [backup["id"] for backup in self.backups()]

    def backups(self) -> list[dict[str, Any]]:
        """Return what is told of its backups, oldest first."""
        command = [self._context.pgwal, "list", "--repo", self.address, "--json"]
        output = subprocess.check_output(command, env=self._context.environment)
        listed: list[dict[str, Any]] = json.loads(output)["backups"]
        return listed

    def _options(self) -> list[str | Path]:
        return ["--repo", self.address, "-d", self._server.conninfo]


class RepositoryInStore(BenchmarkedRepository):
    """The same in an object store, which the variables of the context lead to."""

    def __init__(self, context: Context, server: ThrowawayServer, address: str, slot: str = "benchmark") -> None:
        super().__init__(context, server, Path(), slot)
        self.address = address

    def keep_newest(self) -> None:
        """Remove all backups but the newest full one, and what builds on it."""
        self._context.run_pgwal("expire", "--repo", self.address, "--keep-full", "1")


def _peak_bytes(process_id: int) -> int:
    """Return the most memory that a process has had so far, 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
