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
from pgwal.backup.recovery import LATEST_TIMELINE, RecoveryTarget, TargetAction, recovery_settings, with_settings
from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.engine.recovery_window import target_history
from pgwal.engine.replayed_wal import CreatedTablespace, read_replayed_wal
from pgwal.engine.restore import ArchiveMode, RestoreRequest, require_empty, restore_backup
from pgwal.errors import PgwalError, ServerError, WrongCluster
from pgwal.lsn import Lsn
from pgwal.postgres_version import version_of_major, version_of_server
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal_cli.restore_command import fetch_wal_words, restore_command
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_account import require_own_place, require_reachable, server_account
from pgwal_cli.server_configuration import access_files, setting_lines
from pgwal_cli.server_installation import ServerInstallation, make_reachable
from pgwal_cli.throwaway_server import NOT_READY, ThrowawayServer

REPLAY_TIMEOUT_S = 24 * 3600
_MAINTENANCE_DATABASE = "template1"
_POLL_S = 0.1
_END_OF_LSNS = Lsn((1 << 64) - 1)
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

_TABLES = """
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence <> 't'
        AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'heap') ORDER BY 2"""
_INDEXES = """
    WITH own_function AS (
        SELECT p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
        WHERE p.oid >= 16384 AND l.lanname <> 'internal'
            AND NOT (l.lanname = 'c' AND p.probin LIKE '$libdir/%' AND strpos(p.probin, '..') = 0)
    ), own_operator AS (
        SELECT oid FROM pg_operator WHERE oprcode::oid IN (SELECT oid FROM own_function)
    ), own_family AS (
        SELECT amprocfamily AS oid FROM pg_amproc WHERE amproc::oid IN (SELECT oid FROM own_function)
        UNION SELECT amopfamily FROM pg_amop WHERE amopopr IN (SELECT oid FROM own_operator)
    )
    SELECT c.oid, format('%I.%I', n.nspname, c.relname),
        EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND (d.refclassid = 'pg_proc'::regclass AND d.refobjid IN (SELECT oid FROM own_function)
                OR d.refclassid = 'pg_operator'::regclass AND d.refobjid IN (SELECT oid FROM own_operator)
                OR d.refclassid = 'pg_type'::regclass
                    AND d.refobjid IN (SELECT oid FROM pg_type WHERE typtype = 'd' AND oid >= 16384)))
        OR EXISTS (SELECT FROM pg_opclass o
            WHERE o.oid = ANY (i.indclass) AND o.opcfamily IN (SELECT oid FROM own_family))
        OR EXISTS (SELECT FROM own_family)
            AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.atttypid >= 16384)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_index i ON i.indexrelid = c.oid
    WHERE c.relkind = 'i' AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')
        AND c.relpersistence <> 't' AND i.indisready AND i.indisvalid ORDER BY 2"""
"""All btree indexes, and whether checking one would run functions that the backup brings along."""


@dataclass(slots=True)
class TrialReport:
    """What a trial restore checked, and all that was wrong."""

    backup_id: str
    problems: list[str] = field(default_factory=list)
    stopped_before: CreatedTablespace | None = None
    end_lsn: Lsn | None = None
    database_count: int = 0
    table_count: int = 0
    index_count: int = 0
    unchecked_indexes: list[str] = field(default_factory=list)
    """Those whose check would run functions of the cluster's own."""
    seconds: float = 0.0

    def document(self) -> dict[str, object]:
        return {
            "backup": self.backup_id,
            "end_lsn": None if self.end_lsn is None else str(self.end_lsn),
            "stopped_before": None if self.stopped_before is None else str(self.stopped_before.lsn),
            "databases": self.database_count,
            "tables": self.table_count,
            "indexes": self.index_count,
            "unchecked_indexes": self.unchecked_indexes,
            "seconds": round(self.seconds, 3),
            "problems": self.problems,
        }


def try_restore(
    place: Place,
    entry: BackupEntry,
    directory: Path | None,
    bin_dir: Path | None,
    superuser: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrialReport:
    """Restore a backup below a directory, start a server there and check it; nothing of that stays.

    The server replays the WAL that has been received, but never a record that creates a tablespace: replayed, it would
    write to the place that it names, which is not the trial's.  Raises PgwalError when there are no programs of the
    right version, TargetError when the directory is not empty; what is wrong with the backup is in the report.
    """
    installation = _find_installation(bin_dir)
    if installation.major != entry.major:
        raise WrongCluster(
            f"those in {installation.bin_dir} are of PostgreSQL {installation.major}, the backup is of {entry.major}",
            hint=f"Name the directory of PostgreSQL {entry.major} with --bindir.",
        )
    report = TrialReport(entry.backup_id)
    target, parameters = _end_of_trial(place, entry, report)
    begin_s = time.monotonic()
    with _workplace(directory) as workplace, ExitStack() as opened:
        try:
            trial = _Trial(place, entry, installation, superuser, target, parameters)
            server = _restored_server(trial, workplace, opened, on_progress)
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


def _end_of_trial(place: Place, entry: BackupEntry, report: TrialReport) -> tuple[RecoveryTarget, dict[str, int]]:
    """Return where recovery ends: with the last record that is there now, or before one that leads to another place;
    and what WAL raises settings to.

    What is received later was not looked at, and is not replayed.
    """
    repository = Repository.open(place)
    history = target_history(repository, LATEST_TIMELINE, entry)
    replayed = read_replayed_wal(repository, history, entry.start_lsn, _END_OF_LSNS)
    timeline = history.timeline_id
    parameters = replayed.parameters_before(_END_OF_LSNS)
    if not replayed.tablespaces:
        if replayed.last_record_lsn < entry.stop_lsn:
            # No record starts behind the backup yet, at which recovery could stop.
            return RecoveryTarget(immediate=True, timeline=timeline, action=TargetAction.PROMOTE), parameters
        end = replayed.last_record_lsn
        return RecoveryTarget(lsn=end, timeline=timeline, action=TargetAction.PROMOTE), parameters
    first = replayed.tablespaces[0]
    if first.lsn < entry.stop_lsn:
        raise PgwalError(
            f"backup {entry.backup_id} cannot be tried: while it was taken, {first} was created, and its server would"
            " write there",
            hint="Try a newer backup, or restore this one on another machine.",
        )
    report.stopped_before = first
    return RecoveryTarget(lsn=first.lsn, exclusive=True, timeline=timeline, action=TargetAction.PROMOTE), parameters


@dataclass(frozen=True, slots=True)
class _Trial:
    """What is tried, and with what."""

    place: Place
    entry: BackupEntry
    installation: ServerInstallation
    superuser: str
    target: RecoveryTarget
    parameters: dict[str, int]
    """What WAL raises settings to."""


def _restored_server(
    trial: _Trial, workplace: Path, opened: ExitStack, on_progress: Callable[[int, int], None] | None
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
        trial.target,
        to_gap=True,
        archive_mode=ArchiveMode.OFF,
        warns=False,
    )
    restore_backup(request, on_progress)
    # All of it before the directory is handed over, and nothing of what the backup says in it.
    settings = _SETTINGS | _room_for_transactions(target, trial.parameters)
    for name, content in (access_files(trial.superuser) | {"postgresql.conf": setting_lines(settings)}).items():
        (target / name).write_text(content)
    recovery = recovery_settings(trial.target, command, trial.entry.major)
    (target / "postgresql.auto.conf").write_bytes(with_settings(b"", recovery))
    server = ThrowawayServer(make_reachable(trial.installation, workplace), workplace / "server")
    opened.enter_context(server)
    server.adopt(target)
    server.overrides = settings
    return server


def _room_for_transactions(data_directory: Path, parameters: dict[str, int]) -> dict[str, int]:
    """Return settings without which recovery could not end: prepared transactions, with their locks, are kept."""
    before = ControlFile.decode((data_directory / CONTROL_FILE_PATH).read_bytes()).recovery_settings
    names = ("max_prepared_transactions", "max_locks_per_transaction")
    return {name: max(before[name], parameters.get(name, 0)) for name in names}


# ---- amcheck


def _check_server(server: ThrowawayServer, superuser: str, report: TrialReport) -> None:
    with _connect_after_replay(server, superuser) as connection:
        # Settings of databases and roles are for the real server, whose programs and timeouts they may want.
        connection.execute("DELETE FROM pg_catalog.pg_db_role_setting")
        # One that DROP DATABASE has begun to remove lets nobody in.
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1"
        ).fetchall()
        (end_lsn,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("0/0",)
    report.end_lsn = Lsn.parse(end_lsn)
    for (name,) in rows:
        report.database_count += 1
        try:
            with _connect(server, superuser, name) as connection:
                _check_database(connection, name, report)
        except psycopg.Error as error:
            report.problems.append(f"database {name}: {_first_line(error)}")


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
    # An event trigger runs what the backup brings along when something is created; a change of the catalog fires none.
    connection.execute("UPDATE pg_catalog.pg_event_trigger SET evtenabled = 'D'")
    connection.execute("DROP EXTENSION IF EXISTS amcheck CASCADE")
    connection.execute("CREATE SCHEMA pgwal_trial_restore")
    connection.execute("CREATE EXTENSION amcheck SCHEMA pgwal_trial_restore")
    if version_of_server(connection.info.server_version).has_verify_heapam:
        for oid, relation in connection.execute(_TABLES).fetchall():
            report.table_count += 1
            query = "SELECT format('block %%s, offset %%s: %%s', blkno, offnum, msg) FROM verify_heapam(%s::oid)"
            report.problems += _run(connection, query, oid, f"{name}: table {relation}")
    for oid, relation, runs_own_functions in connection.execute(_INDEXES).fetchall():
        if runs_own_functions:
            report.unchecked_indexes.append(f"{name}: {relation}")
            continue
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
