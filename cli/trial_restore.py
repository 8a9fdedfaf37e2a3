"""Restore a backup into a throw-away server, have it replay WAL, and check every table and index with amcheck."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pgwal.backup.entry import BackupEntry
from pgwal.engine.restore import RestoreRequest, require_empty, restore_backup
from pgwal.errors import PgwalError, ServerError, WrongCluster
from pgwal.lsn import Lsn
from pgwal_cli.restore_command import fetch_wal_words, restore_command
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_account import require_own_place, require_reachable, server_account
from pgwal_cli.throwaway_server import (
    ServerInstallation,
    ThrowawayServer,
    access_files,
    make_reachable,
    setting_lines,
)

REPLAY_TIMEOUT_S = 24 * 3600
_MAINTENANCE_DATABASE = "template1"
_POLL_S = 0.1
_NOT_READY = "the database system is "
"""What a server answers as long as it replays WAL: starting up, not yet accepting connections, and the like."""

# The restored cluster's own configuration is not used: it may want memory, files and libraries that are not here, and
# it may archive into the real archive, or connect to the real primary or publisher.
_SETTINGS: dict[str, str | int | bool] = {
    "archive_mode": False,
    "autovacuum": False,
    "fsync": False,
    "hot_standby": False,
    "jit": False,
    "max_logical_replication_workers": 0,
    "shared_buffers": "128MB",
    "dynamic_shared_memory_type": "mmap",
}
_TABLES = """
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence <> 't'
        AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'heap') ORDER BY 2"""
_INDEXES = """
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_index i ON i.indexrelid = c.oid
    WHERE c.relkind = 'i' AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')
        AND c.relpersistence <> 't' AND i.indisready AND i.indisvalid ORDER BY 2"""


@dataclass(slots=True)
class TrialReport:
    """What a trial restore checked, and all that was wrong."""

    backup_id: str
    problems: list[str] = field(default_factory=list)
    end_lsn: Lsn | None = None
    database_count: int = 0
    table_count: int = 0
    index_count: int = 0
    seconds: float = 0.0

    def document(self) -> dict[str, object]:
        return {
            "backup": self.backup_id,
            "end_lsn": None if self.end_lsn is None else str(self.end_lsn),
            "databases": self.database_count,
            "tables": self.table_count,
            "indexes": self.index_count,
            "seconds": round(self.seconds, 3),
            "problems": self.problems,
        }


def try_restore(
    repository_path: Path,
    entry: BackupEntry,
    directory: Path | None,
    bin_dir: Path | None,
    superuser: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrialReport:
    """Restore a backup below a directory, start a server there and check it; nothing of that stays.

    The server replays all WAL received, as after a real restore.  Raises PgwalError when there are no programs of
    the right version, TargetError when the directory is not empty; what is wrong with the backup is in the report.
    """
    installation = _find_installation(bin_dir)
    if installation.major != entry.major:
        raise WrongCluster(
            f"those in {installation.bin_dir} are of PostgreSQL {installation.major}, the backup is of {entry.major}",
            hint=f"Name the directory of PostgreSQL {entry.major} with --bindir.",
        )
    report = TrialReport(entry.backup_id)
    begin_s = time.monotonic()
    with _workplace(directory) as workplace, ExitStack() as opened:
        try:
            server = _restored_server(repository_path, entry, installation, workplace, opened, superuser, on_progress)
            server.start(timeout_s=REPLAY_TIMEOUT_S)
            _check_server(server, superuser, report)
        except ServerError as error:
            report.problems.append(f"the restored server does not run: {error}")
    report.seconds = time.monotonic() - begin_s
    return report


def _find_installation(bin_dir: Path | None) -> ServerInstallation:
    if bin_dir is not None:
        return ServerInstallation.found_in(bin_dir)
    found = shutil.which("pg_ctl")
    if found is None:
        raise PgwalError(
            "there is no pg_ctl in PATH", hint="Name the directory of the server's programs with --bindir."
        )
    # Debian has pg_ctl outside of PATH; elsewhere it may be a link into the directory with the others.
    return ServerInstallation.found_in(Path(found).resolve().parent)


@contextmanager
def _workplace(directory: Path | None) -> Iterator[Path]:
    """Give a directory that the server's user can enter; what is put into it is removed at the end.

    Raises PgwalError when this process is root and others could exchange what lies there.
    """
    if directory is not None:
        require_empty(directory)
        require_own_place(directory)
        directory.mkdir(parents=True, exist_ok=True)
    name = Path(tempfile.mkdtemp(prefix="pgwal-trial-", dir=directory)).absolute()
    try:
        require_own_place(name)
        if server_account() is not None:
            # To pass through; what lies in it has modes of its own.
            name.chmod(0o711)
        require_reachable(name)
        yield name
    finally:
        shutil.rmtree(name, ignore_errors=True)


def _restored_server(
    repository_path: Path,
    entry: BackupEntry,
    installation: ServerInstallation,
    workplace: Path,
    opened: ExitStack,
    superuser: str,
    on_progress: Callable[[int, int], None] | None,
) -> ThrowawayServer:
    target = workplace / "data"
    # What would be fetched ahead might come into a directory that is just being removed.
    # The backup is on trial: WAL that is missing behind it is no fault of it.
    command = restore_command(repository_path, prefetch=False, to_gap=True)
    if server_account() is not None:
        # The server's user may not be able to run this Python, nor to read the repository of root.
        relay = RestoreCommandRelay(fetch_wal_words(repository_path, to_gap=True), workplace / "relay")
        command = opened.enter_context(relay).restore_command
    locations = {path: str(workplace / f"tablespace_{oid}") for oid, path in entry.tablespaces.items()}
    request = RestoreRequest(repository_path, entry.backup_id, target, command, locations, to_gap=True)
    restore_backup(request, on_progress)
    # All of it before the directory is handed over.
    for name, content in (access_files(superuser) | {"postgresql.conf": setting_lines(_SETTINGS)}).items():
        (target / name).write_text(content)
    auto_conf = target / "postgresql.auto.conf"
    kept = [line for line in auto_conf.read_text().splitlines() if line.startswith("restore_command ")]
    auto_conf.write_text("\n".join([*kept, ""]))
    server = ThrowawayServer(make_reachable(installation, workplace), workplace / "server")
    opened.enter_context(server)
    server.adopt(target)
    return server


# ---- amcheck


def _check_server(server: ThrowawayServer, superuser: str, report: TrialReport) -> None:
    with _connect_after_replay(server, superuser) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1").fetchall()
        (end_lsn,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("0/0",)
    report.end_lsn = Lsn.parse(end_lsn)
    for (name,) in rows:
        report.database_count += 1
        try:
            with server.connect(user=superuser, dbname=name) as connection:
                _check_database(connection, name, report)
        except psycopg.OperationalError as error:
            report.problems.append(f"database {name}: {_first_line(error)}")


def _connect_after_replay(server: ThrowawayServer, superuser: str) -> psycopg.Connection:
    """Wait until the server has replayed all WAL; raises ServerError when it ends instead."""
    while True:
        try:
            return server.connect(user=superuser, dbname=_MAINTENANCE_DATABASE)
        except psycopg.OperationalError as error:
            if not server.is_running:
                raise ServerError(f"it ended\n{server.log_tail()}") from error
            if _NOT_READY not in str(error):
                raise PgwalError(
                    f"cannot connect to the restored server: {_first_line(error)}",
                    hint="Name a superuser of the cluster with -U.",
                ) from error
        time.sleep(_POLL_S)


def _check_database(connection: psycopg.Connection, name: str, report: TrialReport) -> None:
    available = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'").fetchone()
    if available is None:
        raise PgwalError(
            "the server's installation lacks the extension amcheck", hint="Install PostgreSQL's contrib modules."
        )
    connection.execute("DROP EXTENSION IF EXISTS amcheck CASCADE")
    connection.execute("CREATE SCHEMA pgwal_trial_restore")
    connection.execute("CREATE EXTENSION amcheck SCHEMA pgwal_trial_restore")
    if connection.info.server_version >= 140000:
        for oid, relation in connection.execute(_TABLES).fetchall():
            report.table_count += 1
            query = "SELECT format('block %%s, offset %%s: %%s', blkno, offnum, msg) FROM verify_heapam(%s::oid)"
            report.problems += _run(connection, query, oid, f"{name}: table {relation}")
    for oid, relation in connection.execute(_INDEXES).fetchall():
        report.index_count += 1
        query = "SELECT NULL FROM bt_index_check(%s::oid, heapallindexed => true)"
        report.problems += _run(connection, query, oid, f"{name}: index {relation}")


def _run(connection: psycopg.Connection, query: str, oid: int, what: str) -> list[str]:
    """Run a check and return what it finds, or how it fails."""
    query = query.replace(" FROM ", " FROM pgwal_trial_restore.")
    try:
        rows = connection.execute(query, (oid,)).fetchall()
    except psycopg.Error as error:
        return [f"{what}: {_first_line(error)}"]
    return [f"{what}: {text}" for (text,) in rows if text is not None]


def _first_line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0]
