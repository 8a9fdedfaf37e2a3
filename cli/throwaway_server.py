"""Run a PostgreSQL server in a temporary directory, for ``pgwal demo`` and for the tests.

Knows nothing of backups: of pgwal it imports the errors alone.

PostgreSQL refuses to run as root.  Where this process is root, the server and its tools run as the user
``nobody``, which must be able to reach everything they are given; pgwal_cli.server_account says what root may do then.

Nobody else gets in: a server listens on a Unix socket alone, in a directory that is closed to other users, and lets in
by peer authentication, under the superuser's name, the user of this process and the server's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg

from pgwal.errors import BrokenInvariant, ServerError
from pgwal_cli.server_account import UNPRIVILEGED_USER as UNPRIVILEGED_USER
from pgwal_cli.server_account import (
    append_as_server,
    belongs_to_server,
    read_of_server,
    require_servers_own,
    server_identity,
)
from pgwal_cli.server_account import can_execute_python as can_execute_python
from pgwal_cli.server_account import give_to_server as give_to_server
from pgwal_cli.server_account import require_reachable as require_reachable
from pgwal_cli.server_account import server_account as server_account
from pgwal_cli.server_configuration import access_files, setting_lines, setting_text
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.server_processes import (
    descendants,
    free_shared_memory,
    live_processes,
    signal_as_server,
    wait_until_gone,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from psycopg.rows import TupleRow

SUPERUSER = "postgres"

FAST_SETTINGS: Mapping[str, str | int | bool] = {
    # A power cut is the only thing that these servers need not survive; kill -9 they do.
    "fsync": False,
    "jit": False,
    "shared_buffers": "16MB",
    # Shared memory of a killed server then goes with its data directory and does not stay in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}
"""Settings that make a server of the tests quick; none of them changes what is written to WAL."""

# The address of a Unix socket has 108 bytes on Linux and 104 on macOS, the final zero included.
SOCKET_PATH_MAX_BYTES = 103
# Between choosing a free port and binding it, another process may take it.
START_ATTEMPTS = 5
LOG_TAIL_LINES = 40
NOT_READY = "the database system is "
"""What a server answers as long as it replays WAL: starting up, not yet accepting connections, and the like."""
STOP_TIMEOUT_S = 60


class ThrowawayServer:
    """One PostgreSQL server: its data directory, socket and log live below one directory.

    The installation must be one that ``make_reachable`` returned, and the server's user must be able to enter the
    directory, which it comes to own.  As a context manager, stops the server at the end; removing the directory
    is up to the caller.
    """

    def __init__(self, installation: ServerInstallation, directory: Path) -> None:
        self.installation = installation
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.socket_directory = self._make_socket_directory()
        """The directory of the Unix socket; elsewhere when the path would become too long for one."""
        if not belongs_to_server(self.directory):
            give_to_server(self.directory)
        require_reachable(self.directory)
        self.data_directory = self.directory / "data"
        self.log_file = self.directory / "server.log"
        self.port = _free_port()
        self.listen_addresses = ""
        """Addresses of TCP to listen at from the next start on, for tests that need them."""
        self.overrides: Mapping[str, str | int | bool] = {}
        """Settings that win over those of the data directory from the next start on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server in whatever way works, and remove its socket directory."""
        try:
            self.stop()
        except ServerError:
            self.kill()
        shutil.rmtree(self.socket_directory, ignore_errors=True)

    # -- the data directory

    def initdb(self, *extra_args: str) -> None:
        """Create the data directory: superuser ``postgres``, as whom only this user gets in, UTF8, locale C."""
        fixed = ["-U", SUPERUSER, "-A", "peer", "-E", "UTF8", "--locale=C", "--no-sync"]
        self.run_tool("initdb", "-D", str(self.data_directory), *fixed, *extra_args)
        for name, content in access_files(SUPERUSER).items():
            append_as_server(self.data_directory / name, content.encode(), afresh=True)

    def adopt(self, data_directory: Path) -> None:
        """Use an existing data directory from now on, a restored one for example."""
        if self.is_running:
            raise BrokenInvariant("the server runs already")
        self.data_directory = data_directory.absolute()
        give_to_server(self.data_directory)
        require_reachable(self.data_directory.parent)

    def configure(self, **settings: str | int | bool) -> None:
        """Append settings to postgresql.conf; they count from the next start or reload on."""
        append_as_server(self.data_directory / "postgresql.conf", setting_lines(settings).encode())

    # -- running

    def start(self, *, timeout_s: int = 60) -> None:
        """Start the server and wait until it accepts connections.

        Raises ServerError, with the end of the log, when it does not.
        """
        for _ in range(START_ATTEMPTS):
            log_size = self._log_size()
            started = self._pg_ctl("start", "-t", str(timeout_s), "-l", str(self.log_file), "-o", self._options())
            if started.returncode == 0:
                return
            if "could not create any TCP/IP sockets" not in self._log_since(log_size):
                break
            self.port = _free_port()
        raise ServerError(f"the PostgreSQL {self.installation.version} server did not start\n{self.log_tail()}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server, if it runs: ``smart``, ``fast`` or ``immediate``."""
        if self.is_running:
            self._control("stop", "-m", mode, "-t", str(STOP_TIMEOUT_S))

    def restart(self, mode: str = "fast") -> None:
        """Stop the server if it runs, and start it."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Make the server read its configuration again."""
        self._control("reload")

    def promote(self) -> None:
        """End recovery and wait until the server is a primary."""
        self._control("promote")

    def kill(self) -> None:
        """Kill the server with all its processes, as a crash of the machine would; no-op when it does not run."""
        postmaster = self._postmaster_pid()
        if postmaster is None:
            return
        # Stopped first, or it would go on starting processes while they are being listed.
        signal_as_server(signal.SIGSTOP, [postmaster])
        victims = [postmaster, *descendants(postmaster)]
        signal_as_server(signal.SIGKILL, victims)
        wait_until_gone(victims)
        self._remove_remains()

    @property
    def is_running(self) -> bool:
        """Whether the server has a live process."""
        return self._postmaster_pid() is not None

    # -- using it

    @property
    def conninfo(self) -> str:
        """The libpq connection string of the superuser, over the Unix socket."""
        return psycopg.conninfo.make_conninfo(
            host=str(self.socket_directory), port=self.port, user=SUPERUSER, dbname="postgres"
        )

    def connect(self, **parameters: Any) -> psycopg.Connection[TupleRow]:
        """Connect as the superuser, in autocommit mode; parameters are psycopg's, and override."""
        return psycopg.connect(self.conninfo, **{"autocommit": True, **parameters})

    def has_ended_recovery(self) -> bool:
        """Tell whether the server is a primary; one that lets nobody in while it recovers is none."""
        try:
            with self.connect() as connection:
                return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        except psycopg.OperationalError as error:
            if NOT_READY not in str(error):
                raise
            return False

    def run_tool(
        self, name: str, *args: str, check: bool = True, tools: ServerInstallation | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a client tool as the server's user, with the PG* variables of this server.

        ``tools`` is another installation to take it from.  Raises ServerError with the tool's output when ``check``
        is set and the exit code is not 0.
        """
        installation = tools or self.installation
        finished = subprocess.run(
            [installation.tool(name), *args],
            cwd=self.directory,
            env=installation.environment() | self._connection_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **server_identity(),
        )
        if check and finished.returncode != 0:
            output = (finished.stdout + finished.stderr).strip()
            raise ServerError(f"{name} failed with exit code {finished.returncode}\n{output}")
        return finished

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """Return the last lines of the server's log."""
        return "\n".join(self._log_since(0).splitlines()[-lines:])

    # -- inside

    def _connection_environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.directory),
            "PGHOST": str(self.socket_directory),
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGDATABASE": "postgres",
        }

    def _options(self) -> str:
        # On the command line, so that they win over what a restored or copied data directory is configured with.
        settings = {"listen_addresses": self.listen_addresses, **self.overrides}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={setting_text(value)}")]
        return shlex.join(["-p", str(self.port), "-k", str(self.socket_directory), *options])

    def _pg_ctl(self, action: str, *args: str) -> subprocess.CompletedProcess[str]:
        wait = [] if action == "reload" else ["-w"]
        return self.run_tool("pg_ctl", action, "-D", str(self.data_directory), *wait, *args, check=False)

    def _control(self, action: str, *args: str) -> None:
        finished = self._pg_ctl(action, *args)
        if finished.returncode != 0:
            raise ServerError(f"pg_ctl {action} failed: {finished.stderr.strip()}\n{self.log_tail()}")

    def _make_socket_directory(self) -> Path:
        own = self.directory / "socket"
        if len(os.fsencode(own / ".s.PGSQL.65535")) <= SOCKET_PATH_MAX_BYTES:
            # Another object for the same server may have made it: it stays as it is, and is the server's.
            own.mkdir(mode=0o700, exist_ok=True)
            require_servers_own(own)
        else:
            own = Path(tempfile.mkdtemp(prefix="pgwal-"))
        give_to_server(own)
        return own

    def _postmaster_pid(self) -> int | None:
        lines = self._postmaster_file()
        # The second line is the data directory: a copy of one holds the number of the process it was copied from.
        if len(lines) < 2 or Path(lines[1]).resolve() != self.data_directory.resolve() or not lines[0].isdecimal():
            return None
        pid = int(lines[0])
        return pid if pid in live_processes() else None

    def _postmaster_file(self) -> list[str]:
        content = read_of_server(self.data_directory / "postmaster.pid") or b""
        return os.fsdecode(content).splitlines()

    def _remove_remains(self) -> None:
        # Line 7 holds key and id of a small segment of System V shared memory, which no process frees any more;
        # a machine has only some thousands of them.
        lines = self._postmaster_file()  # none when it was about to end by itself
        if len(lines) >= 7:
            free_shared_memory(lines[6].split()[1])
        pid_file = self.data_directory / "postmaster.pid"
        # These name the killed postmaster.  As long as it waits to be reaped the server takes it for alive, and
        # later its number may come to belong to any other process.
        for lock in (pid_file, self.socket_directory / f".s.PGSQL.{self.port}.lock"):
            lock.unlink(missing_ok=True)

    def _log_size(self) -> int:
        return len(read_of_server(self.log_file) or b"")

    def _log_since(self, offset: int) -> str:
        return (read_of_server(self.log_file) or b"")[offset:].decode("utf-8", "replace")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port
