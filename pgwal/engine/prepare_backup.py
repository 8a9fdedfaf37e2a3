"""What a backup asks of a server before anything is made: shared by backups, forecasts and ``check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pgwal.backup.exclusion import TABLESPACE_DIRECTORY
from pgwal.backup.source import BlockSource
from pgwal.control_file import ControlFile
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.servers_directory import require_servers_directory
from pgwal.errors import SettingRequired, WrongCluster
from pgwal.postgres.connection import connect_sql
from pgwal.postgres.files import SqlDataDirectory
from pgwal.postgres.privileges import FILE_FUNCTIONS, require_functions
from pgwal.postgres.server import ServerFacts, backup_function_signatures, read_server_facts

if TYPE_CHECKING:
    import psycopg


class PreparedBackup(NamedTuple):
    """A server that can be backed up, and what its files are read from: one source to list, and one for each job."""

    facts: ServerFacts
    sources: list[BlockSource]


@contextmanager
def prepare_backup(request: BackupRequest, connection: psycopg.Connection) -> Iterator[PreparedBackup]:
    """Refuse what can be refused of a server before anything is made, and open what a backup reads from.

    Raises PrivilegeMissing, SettingRequired, UnsupportedVersion, WrongCluster, ServerError or FormatError.
    """
    facts = read_server_facts(connection)
    _require_privileges(connection, request)
    with _opened_sources(request, connection) as sources:
        require_wal_level(facts)
        require_page_images(facts, is_full=request.since is None)
        control = ControlFile.decode(sources[0].read_control_file())
        require_data_directory(request.data_directory, control, facts, connection)
        yield PreparedBackup(facts, sources)


def _require_privileges(connection: psycopg.Connection, request: BackupRequest) -> None:
    """Raise PrivilegeMissing, naming all that is missing, when the role may not take the backup."""
    needed = backup_function_signatures(connection.info.server_version)
    require_functions(connection, needed if request.data_directory is not None else (*needed, *FILE_FUNCTIONS))


@contextmanager
def _opened_sources(request: BackupRequest, connection: psycopg.Connection) -> Iterator[list[BlockSource]]:
    """Open what is read from, a local directory or the server to which ``connection`` leads: one source to list, and,
    for more jobs than one, another for each.
    """
    count = 1 if request.jobs == 1 else 1 + request.jobs
    if request.data_directory is not None:
        yield [LocalDataDirectory(request.data_directory)] * count
        return
    with ExitStack() as resources:
        sources: list[BlockSource] = []
        for _ in range(count):
            # The connection that holds the backup open does nothing else: what fails on another one leaves it alone.
            source = resources.enter_context(SqlDataDirectory(connect_sql(request.parameters)))
            source.require_same_server(connection)
            sources.append(source)
        yield sources


def require_wal_level(facts: ServerFacts) -> None:
    """Raise SettingRequired for a server whose WAL lacks changes."""
    if facts.wal_level == "minimal":
        raise SettingRequired(
            "wal_level is minimal, which leaves changes out of WAL",
            hint="Set wal_level = replica, restart the server, then take a full backup.",
            setting="wal_level",
        )


def require_page_images(facts: ServerFacts, *, is_full: bool) -> None:
    """Raise SettingRequired where pages that are torn while they are read could not be repaired from WAL.

    A primary writes page images while a backup runs, whatever the setting (runningBackups in xlog.c; forcePageWrites in
    13 and 14), so that a full backup is right.  What its standbys replay has them only with the setting.
    """
    if facts.full_page_writes or (is_full and not facts.in_recovery):
        return
    hint = "Set full_page_writes = on and reload the server."
    if facts.in_recovery:
        hint = f"{hint[:-1]}, on the primary, or back the primary up."
    elif not is_full:
        hint += " A full backup is possible as it is."
    raise SettingRequired(
        "full_page_writes is off: pages that are torn while they are read could not be repaired",
        hint=hint,
        setting="full_page_writes",
    )


def require_data_directory(
    path: Path | None, control: ControlFile, facts: ServerFacts, connection: psycopg.Connection
) -> None:
    """Raise WrongCluster unless a data directory, with what its pg_control holds, is the server's.

    ``path`` is None where it is read over SQL.  Raises ServerError or FormatError where it cannot be told.
    """
    if control.system_identifier != facts.system_identifier:
        where = f"data directory {path}" if path is not None else "pg_control, as the server hands it over,"
        raise WrongCluster(
            f"{where} has system identifier {control.system_identifier}, the server has {facts.system_identifier}",
            hint="--pgdata and the connection must name the same server.",
        )
    if path is not None:
        require_servers_directory(path, connection)


def directories_to_empty(
    facts: ServerFacts, tablespaces: Mapping[int, str], data_directory: Path | None
) -> frozenset[str]:
    """Return the directories below the data directory of which a backup holds the names alone.

    Where the server tells the role neither setting, what they would name is copied as it lies.
    """
    root = servers_data_directory(facts, data_directory)
    found = set()
    for path in filter(None, (*tablespaces.values(), facts.stats_temp_directory)):
        relative = Path(path)
        if relative.is_absolute() and root is not None and relative.is_relative_to(root):
            relative = relative.relative_to(root)
        # Tablespaces in place are below pg_tblspc, where they are looked for.
        if not relative.is_absolute() and relative.parts and relative.parts[0] != TABLESPACE_DIRECTORY:
            found.add(relative.as_posix())
    return frozenset(found)


def servers_data_directory(facts: ServerFacts, data_directory: Path | None) -> Path | None:
    """Return the data directory as the server names it, if the role may see that, or the one that is read locally."""
    if facts.data_directory is not None:
        return Path(facts.data_directory)
    return None if data_directory is None else data_directory.absolute()
