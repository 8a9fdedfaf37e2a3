"""The steps of ``pgwal demo``: from the first byte of WAL of a throw-away PostgreSQL 18 to a restored copy."""

from __future__ import annotations

import json as json_codec
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pgwal.errors import PgwalError, TargetError
from pgwal_cli.demo_load import WriteLoad, create_tables, table_checksums
from pgwal_cli.demo_repository import DemoRepository, opened_repository
from pgwal_cli.output import size_text, table_lines
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_account import require_own_place, require_reachable, server_account
from pgwal_cli.server_installation import ServerInstallation, embedded_installation, make_reachable
from pgwal_cli.throwaway_server import ThrowawayServer

if TYPE_CHECKING:
    from pgwal_cli.documents import DemoDocument, DemoStepDocument

_Result = TypeVar("_Result")

# -P: what is installed, not a source tree that the demo happens to be started in.
_PGWAL = [sys.executable, "-P", "-m", "pgwal_cli"]
_SLOT = "pgwal_demo"
_PAUSE_S = 2.0
_TIMEOUT_S = 300.0
_HEADER = ("STEP", "SECONDS", "READ", "WRITTEN", "BLOCKS COPIED", "OF BLOCKS")


def run_demo(
    keep: Path | None, size_mb: int, rounds: int, *, kind: DemoRepository, file_format: str | None, quiet: bool
) -> DemoReport:
    """Run the demo below ``keep``, or in a temporary directory that is removed however it ends; prints its steps.

    ``file_format`` is that of the repository, as ``pgwal init`` takes it, None for what that takes by itself.

    Raises PgwalError when a step fails; that the restored server differs is in the report.
    """
    installation = embedded_installation()
    with _workplace(keep) as directory, opened_repository(kind, directory) as repository, ExitStack() as opened:
        demo = _Demo(installation, directory, repository, opened, quiet=quiet)
        return demo.run(size_mb, rounds, file_format)


@contextmanager
def _workplace(keep: Path | None) -> Iterator[Path]:
    """Give a directory that the server's user can enter; removed at the end, however that comes, unless kept."""
    if keep is not None:
        # The server's user comes to it from elsewhere.
        keep = keep.absolute()
        if keep.exists() and any(keep.iterdir()):
            raise TargetError(f"directory {keep} is not empty", hint="--keep wants a new or empty directory.")
        require_own_place(keep)
        keep.mkdir(parents=True, exist_ok=True)
        require_reachable(keep)
        yield keep
        return
    directory = Path(tempfile.mkdtemp(prefix="pgwal-demo-"))
    try:
        require_own_place(directory)
        # For the server's user to pass through; what lies in it has modes of its own.
        directory.chmod(0o711 if server_account() is not None else 0o700)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step cost: time in seconds, sizes in bytes; None for what it does not have."""

    name: str
    seconds: float
    bytes_read: int | None = None
    bytes_written: int | None = None
    copied_blocks: int | None = None
    blocks: int | None = None

    def row(self) -> tuple[str, ...]:
        sizes = ("" if size is None else size_text(size) for size in (self.bytes_read, self.bytes_written))
        counts = ("" if count is None else str(count) for count in (self.copied_blocks, self.blocks))
        return (self.name, f"{self.seconds:.1f}", *sizes, *counts)

    def document(self) -> DemoStepDocument:
        return {
            "step": self.name,
            "seconds": round(self.seconds, 3),
            "read_bytes": self.bytes_read,
            "written_bytes": self.bytes_written,
            "copied_block_count": self.copied_blocks,
            "block_count": self.blocks,
        }


@dataclass(slots=True)
class DemoReport:
    """What each step cost, and what the tables of source and copy hold: rows and a checksum."""

    steps: list[_Step] = field(default_factory=list)
    source: dict[str, tuple[int, str]] = field(default_factory=dict)
    restored: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def is_equal(self) -> bool:
        return bool(self.source) and self.source == self.restored

    def verdict(self) -> str:
        if self.is_equal:
            rows = sum(count for count, _ in self.source.values())
            return f"the restored server equals the source: {len(self.source)} tables, {rows} rows"
        names = sorted({*self.source, *self.restored})
        different = [name for name in names if self.source.get(name) != self.restored.get(name)]
        return f"the restored server DIFFERS from the source in: {', '.join(different)}"

    def lines(self) -> list[str]:
        return table_lines(_HEADER, [step.row() for step in self.steps])

    def document(self) -> DemoDocument:
        return {
            "version": 1,
            "equal": self.is_equal,
            "table_count": len(self.source),
            "steps": [step.document() for step in self.steps],
        }


class _Demo:
    """The steps; each prints a line when it begins."""

    def __init__(
        self, installation: ServerInstallation, directory: Path, repository: str, opened: ExitStack, *, quiet: bool
    ) -> None:
        self._directory = directory
        self._repository = repository
        self._target = directory / "restored"
        self._opened = opened
        self._quiet = quiet
        self._begin_s = time.monotonic()
        self._report = DemoReport()
        self._installation = make_reachable(installation, self._scratch())
        self._server = ThrowawayServer(self._installation, directory / "source")

    def run(self, size_mb: int, rounds: int, file_format: str | None) -> DemoReport:
        self._say(" ".join(filter(None, ("making a", file_format, "repository in", self._repository))))
        self._pgwal("init", *([] if file_format is None else ["--format", file_format]))
        self._step(f"creating a PostgreSQL {self._installation.version} with {size_mb} MB", self._create, size_mb)
        receiver = self._step("streaming WAL in the background", self._start_receiver)
        with WriteLoad(self._server) as load:
            self._say("starting a write load")
            full = self._backup("full backup", "full")
            for number in range(1, rounds + 1):
                load.run_for(_PAUSE_S)
                latest = self._backup(f"incremental {number}, since latest", "incremental", "--since", "latest")
            load.run_for(_PAUSE_S)
            since = full["start_lsn"]
            latest = self._backup(f"incremental {rounds + 1}, since {since}", "incremental", "--since", since)
            load.run_for(_PAUSE_S)
        self._say(f"stopped the load after {load.transaction_count} transactions")
        self._step("receiving the rest of the WAL", self._receive_rest, receiver)
        self._report.source = self._step("reading every table of the source", table_checksums, self._server)
        self._server.stop()
        self._restore(latest["id"])
        return self._report

    # -- steps -------------------------------------------------------------------------------------------------

    def _create(self, size_mb: int) -> None:
        self._server.initdb()
        # Not less durable than any server, but a checkpoint in each round keeps the demo short.
        self._server.configure(max_wal_size="1GB", checkpoint_timeout="30s")
        self._opened.enter_context(self._server)
        self._server.start()
        create_tables(self._server, size_mb)

    def _start_receiver(self) -> subprocess.Popen[str]:
        log = self._opened.enter_context((self._directory / "stream.log").open("w"))
        command = ["stream", "--repo", self._repository, "-d", self._server.conninfo, "-S", _SLOT]
        # In a session of its own, so that Ctrl-C reaches it from here alone, in order.
        receiver = subprocess.Popen(
            [*_PGWAL, *command, "--create-slot"], stdout=log, stderr=log, text=True, start_new_session=True
        )
        self._opened.callback(_terminate, receiver)
        self._wait_for("the receiver to stream", self._is_streaming, lambda: receiver.poll() is None)
        return receiver

    def _is_streaming(self) -> bool:
        with self._server.connect() as connection:
            row = connection.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'").fetchone()
        return row is not None

    def _receive_rest(self, receiver: subprocess.Popen[str]) -> None:
        _terminate(receiver)
        if receiver.returncode != 0:
            raise PgwalError(f"pgwal stream ended with exit code {receiver.returncode}\n{self._log()}")
        self._pgwal("stream", "-d", self._server.conninfo, "-S", _SLOT, "--once")

    def _backup(self, name: str, *command: str) -> dict[str, Any]:
        """Take a backup through the command line and note what it says of itself."""
        self._say(name)
        begin_s = time.monotonic()
        arguments = ["-d", self._server.conninfo, "-c", "fast", "--json"]
        if server_account() is None:
            # Root does not read by names that the server's user can change; over SQL the server itself reads them.
            arguments += ["--pgdata", str(self._server.data_directory)]
        output = json_codec.loads(self._pgwal(*command, *arguments))
        seconds = time.monotonic() - begin_s
        counts = (output[key] for key in ("read_bytes", "written_bytes", "copied_block_count", "block_count"))
        self._report.steps.append(_Step(name, seconds, *counts))
        assert isinstance(output, dict)
        return output

    def _restore(self, backup_id: str) -> None:
        self._say(f"restoring {backup_id}")
        begin_s = time.monotonic()
        command: list[str] = []
        if server_account() is not None:
            # The server's user may not be able to run this Python, nor to read the repository of root.
            fetch = [*_PGWAL, "fetch-wal", "--repo", self._repository]
            relay = self._opened.enter_context(RestoreCommandRelay(fetch, self._directory / "relay"))
            command = ["--restore-command", relay.restore_command]
        output = json_codec.loads(self._pgwal("restore", backup_id, "-D", str(self._target), *command, "--json"))
        seconds = time.monotonic() - begin_s
        self._report.steps.append(_Step("restore", seconds, output["read_bytes"], output["written_bytes"]))
        restored = ThrowawayServer(self._installation, self._directory / "restored_server")
        restored.adopt(self._target)
        self._opened.enter_context(restored)
        self._step("replaying all WAL received", self._replay, restored)
        self._report.restored = self._step("reading every table of the copy", table_checksums, restored)
        restored.stop()

    def _replay(self, restored: ThrowawayServer) -> None:
        restored.start(timeout_s=int(_TIMEOUT_S))
        self._wait_for("recovery to end", restored.has_ended_recovery, lambda: restored.is_running)

    # -- around the steps --------------------------------------------------------------------------------------

    def _step(self, name: str, action: Callable[..., _Result], *args: Any) -> _Result:
        self._say(name)
        begin_s = time.monotonic()
        result = action(*args)
        self._report.steps.append(_Step(name, time.monotonic() - begin_s))
        return result

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(f"[{time.monotonic() - self._begin_s:6.1f} s] {text}", flush=True)

    def _pgwal(self, command: str, *args: str) -> str:
        """Run a pgwal command and return what it prints; raises PgwalError with its messages when it fails."""
        finished = subprocess.run([*_PGWAL, command, "--repo", self._repository, *args], capture_output=True, text=True)
        if finished.returncode != 0:
            raise PgwalError(f"pgwal {command} ended with exit code {finished.returncode}\n{finished.stderr.strip()}")
        return finished.stdout

    def _wait_for(self, what: str, is_done: Callable[[], bool], is_alive: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not is_done():
            if not is_alive() or time.monotonic() > deadline_s:
                raise PgwalError(f"waiting for {what} failed\n{self._log()}")
            time.sleep(0.1)

    def _log(self) -> str:
        path = self._directory / "stream.log"
        return path.read_text() if path.exists() else ""

    def _scratch(self) -> Path:
        scratch = self._directory / "server"
        scratch.mkdir()
        scratch.chmod(0o711)
        return scratch


def _terminate(process: subprocess.Popen[str]) -> None:
    """End a process and wait for it; no-op when it has ended."""
    if process.poll() is None:
        process.terminate()
        process.wait(timeout=_TIMEOUT_S)
