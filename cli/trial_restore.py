"""Restore a backup into a throw-away server, have it replay WAL, and check every table and index with amcheck."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from pgwal.backup.entry import BackupEntry
from pgwal.backup.recovery import RecoveryTarget, recovery_settings, with_settings
from pgwal.budget import REPLAY_TIMEOUT_S, STARTED_LOOK_S
from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.engine.rebuild_report import RebuildReport
from pgwal.engine.replayed_wal import CreatedTablespace
from pgwal.engine.restore import ArchiveMode, RestoreRequest, require_empty, restore_backup
from pgwal.engine.trial_target import TrialTarget, find_trial_target
from pgwal.errors import PgwalError, ServerError, WrongCluster
from pgwal.lsn import Lsn
from pgwal.postgres_version import version_of_major
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal_cli.amcheck import CheckedDatabase, check_database, first_line
from pgwal_cli.restore_command import fetch_wal_words, restore_command
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.restore_documents import TrialDocument
from pgwal_cli.server_account import require_own_place, require_reachable, server_account
from pgwal_cli.server_configuration import access_files, setting_lines
from pgwal_cli.server_installation import ServerInstallation, make_reachable
from pgwal_cli.throwaway_server import NOT_READY, ThrowawayServer

_MAINTENANCE_DATABASE = "template1"
STEPS = ("restore", "replay", "check")
"""What is timed of a trial."""
# The restored cluster's own configuration is not used: it may want memory, files and libraries that are not here, and
# it may archive into the real archive, run programs, or connect to the real primary or publisher.
_SETTINGS: dict[str, str | int | bool] = {
    "archive_mode": False,
    "archive_command": "",
    "autovacuum": False,
    "fsync": False,
    "hot_standby": False,
    "jit": False,
    "max_logical_replication_workers": 0,
    "shared_buffers": "128MB",
    "dynamic_shared_memory_type": "mmap",
    "logging_collector": False,
    "shared_preload_libraries": "",
    "ssl": False,
}
# These win over what databases and roles of the backup have set: programs of its own may run in no session, and none
# of its settings may end a check or change what a query means.
_SESSION: dict[str, str] = {
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "session_replication_role": "replica",
    "role": "none",
    "search_path": "pg_catalog",
    "default_transaction_read_only": "off",
    "default_table_access_method": "heap",
    "default_tablespace": "",
    "temp_tablespaces": "",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "client_encoding": "UTF8",
    "DateStyle": "ISO",
    "row_security": "off",
    "zero_damaged_pages": "off",
    "ignore_system_indexes": "off",
    "jit": "off",
}


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """Which backup to try, up to where, and with what; ``directory`` and ``bin_dir`` are found when they are None."""

    place: Place
    entry: BackupEntry
    target: RecoveryTarget
    directory: Path | None
    bin_dir: Path | None
    superuser: str


@dataclass(slots=True)
class TrialReport:
    """What a trial restore did and checked as far as it came, how long each took, and all that was wrong."""

    backup_id: str
    problems: list[str] = field(default_factory=list)
    target: TrialTarget | None = None
    server_version: str | None = None
    rebuilt: RebuildReport | None = None
    replayed_lsn: Lsn | None = None
    """Where the last record ends that was replayed, by what the server says."""
    last_transaction_at: datetime | None = None
    end_lsn: Lsn | None = None
    databases: list[CheckedDatabase] = field(default_factory=list)
    step_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @property
    def stopped_before(self) -> CreatedTablespace | None:
        return None if self.target is None else self.target.stopped_before

    @property
    def table_count(self) -> int:
        return sum(database.table_count for database in self.databases)

    @property
    def index_count(self) -> int:
        return sum(database.index_count for database in self.databases)

    @property
    def unchecked_indexes(self) -> list[str]:
        return [name for database in self.databases for name in database.unchecked_indexes]

    @property
    def seconds(self) -> float:
        return sum(self.step_seconds.values())

    def document(self) -> TrialDocument:
        return {
            "backup": self.backup_id,
            "end_lsn": None if self.end_lsn is None else str(self.end_lsn),
            "stopped_before_lsn": None if self.stopped_before is None else str(self.stopped_before.lsn),
            "database_count": len(self.databases),
            "table_count": self.table_count,
            "index_count": self.index_count,
            "unchecked_indexes": self.unchecked_indexes,
            "seconds": round(self.seconds, 3),
            "messages": self.problems,
        }


def try_restore(
    request: TrialRequest, report: TrialReport, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Restore a backup below a directory, start a server there and check it; nothing of that stays.

    The server replays up to the target, or the WAL that has been received, but never a record that creates a
    tablespace: replayed, it would write to the place that it names, which is not the trial's.  Raises PgwalError when
    there are no programs of the right version or the target cannot be reached, TargetError when the directory is not
    empty; what is wrong with the backup is in the report.
    """
    entry, installation = request.entry, _find_installation(request.bin_dir)
    report.server_version = installation.version
    if installation.major != entry.major:
        raise WrongCluster(
            f"the programs in {installation.bin_dir} are from PostgreSQL {installation.major}, but the backup is from"
            f" {entry.major}",
            hint=f"Name the directory of PostgreSQL {entry.major} with --bindir.",
        )
    report.target = find_trial_target(Repository.open(request.place), entry, request.target)
    with _workplace(request.directory) as workplace, ExitStack() as opened:
        try:
            with _timed(report, "restore"):
                trial = _Trial(request.place, entry, installation, request.superuser, report.target)
                server = _restored_server(trial, workplace, opened, report, on_progress)
            with _timed(report, "replay"):
                server.start(timeout_s=REPLAY_TIMEOUT_S)
                connection = _connect_after_replay(server, request.superuser)
            with _timed(report, "check"), connection:
                names = _note_end(connection, report)
            with _timed(report, "check"):
                _check_databases(server, request.superuser, names, report)
        except ServerError as error:
            report.problems.append(f"the restored server does not run: {error}")


@contextmanager
def _timed(report: TrialReport, step: str) -> Iterator[None]:
    begin_s = time.monotonic()
    try:
        yield
    finally:
        report.step_seconds[step] += time.monotonic() - begin_s


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
        # The server's user, where that is another one, passes through; nobody looks into it.
        directory.mkdir(0o700 if server_account() is None else 0o711, parents=True, exist_ok=True)
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


@dataclass(frozen=True, slots=True)
class _Trial:
    """What is tried, and with what."""

    place: Place
    entry: BackupEntry
    installation: ServerInstallation
    superuser: str
    end: TrialTarget


def _restored_server(
    trial: _Trial,
    workplace: Path,
    opened: ExitStack,
    report: TrialReport,
    on_progress: Callable[[int, int], None] | None,
) -> ThrowawayServer:
    target = workplace / "data"
    # What would be fetched ahead might come into a directory that is just being removed.
    # The backup is on trial: WAL that is missing behind it is no fault of it.
    command = restore_command(trial.place, prefetch=False, to_gap=True)
    if server_account() is not None or trial.place.directory is None:
        # The server's user may not be able to run this Python, nor to read the repository of root; and credentials of
        # an object store are no business of a server that may run anything.
        relay = RestoreCommandRelay(fetch_wal_words(trial.place, to_gap=True), workplace / "relay")
        command = opened.enter_context(relay).restore_command
    locations = {path: str(workplace / f"tablespace_{oid}") for oid, path in trial.entry.tablespaces.items()}
    request = RestoreRequest(
        trial.place,
        trial.entry.backup_id,
        target,
        command,
        locations,
        trial.end.target,
        to_gap=True,
        archive_mode=ArchiveMode.OFF,
        warns=False,
    )
    report.rebuilt = restore_backup(request, on_progress)
    # All of it before the directory is handed over, and nothing of what the backup says in it.
    settings = _SETTINGS | _room_for_transactions(target, trial.end.parameters)
    for name, content in (access_files(trial.superuser) | {"postgresql.conf": setting_lines(settings)}).items():
        (target / name).write_text(content)
    recovery = recovery_settings(trial.end.target, command, trial.entry.major)
    (target / "postgresql.auto.conf").write_bytes(with_settings(b"", recovery))
    server = ThrowawayServer(make_reachable(trial.installation, workplace), workplace / "server")
    opened.enter_context(server)
    server.adopt(target)
    server.overrides = settings
    return server


def _room_for_transactions(data_directory: Path, parameters: Mapping[str, int]) -> dict[str, int]:
    """Return settings without which recovery could not end: prepared transactions, with their locks, are kept."""
    before = ControlFile.decode((data_directory / CONTROL_FILE_PATH).read_bytes()).recovery_settings
    names = ("max_prepared_transactions", "max_locks_per_transaction")
    return {name: max(before[name], parameters.get(name, 0)) for name in names}


# ---- what the server says


def _note_end(connection: psycopg.Connection, report: TrialReport) -> list[str]:
    """Note where recovery ended, and return the names of the databases that can be connected to."""
    # Settings of databases and roles are for the real server, whose programs and timeouts they may want.
    connection.execute("DELETE FROM pg_catalog.pg_db_role_setting")
    ended = connection.execute(
        "SELECT pg_current_wal_lsn()::text, pg_last_wal_replay_lsn()::text,"
        " pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC'"
    ).fetchone()
    if ended is not None:
        report.end_lsn = Lsn.parse(ended[0])
        report.replayed_lsn = None if ended[1] is None else Lsn.parse(ended[1])
        report.last_transaction_at = None if ended[2] is None else ended[2].replace(tzinfo=UTC)
    # One that DROP DATABASE has begun to remove lets nobody in.
    rows = connection.execute(
        "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1"
    ).fetchall()
    return [name for (name,) in rows]


def _check_databases(server: ThrowawayServer, superuser: str, names: list[str], report: TrialReport) -> None:
    for name in names:
        checked = CheckedDatabase(name)
        report.databases.append(checked)
        try:
            with _connect(server, superuser, name) as connection:
                check_database(connection, checked)
        except psycopg.Error as error:
            checked.problems.append(f"database {name}: {first_line(error)}")
        finally:
            report.problems += checked.problems


def _connect(server: ThrowawayServer, superuser: str, database: str) -> psycopg.Connection:
    """Connect under settings of the trial alone, in which nothing runs that the backup brings along."""
    settings = _SESSION | dict(version_of_major(server.installation.major).quiet_session)
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return server.connect(user=superuser, dbname=database, options=options)


def _connect_after_replay(server: ThrowawayServer, superuser: str) -> psycopg.Connection:
    """Wait until the server has replayed all WAL; raises ServerError when it ends instead."""
    while True:
        try:
            return _connect(server, superuser, _MAINTENANCE_DATABASE)
        except psycopg.OperationalError as error:
            if not server.is_running:
                raise ServerError(f"it ended\n{server.log_tail()}") from error
            if NOT_READY not in str(error):
                raise PgwalError(
                    f"cannot connect to the restored server: {first_line(error)}",
                    hint="Name a superuser of the cluster with -U.",
                ) from error
        time.sleep(STARTED_LOOK_S)
