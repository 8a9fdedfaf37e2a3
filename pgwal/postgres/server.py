"""What SQL tells about a server, and the session that holds a backup open.

Knows nothing of files and of replication.  Everything here works for a role without special rights, but for the
two backup functions.
Source of the functions: src/backend/access/transam/xlogfuncs.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import psycopg
from psycopg.rows import dict_row

from pgwal.backup.stored_path import decode_path
from pgwal.budget import DROP_PATIENCE_S, DROP_PAUSE_S
from pgwal.control_file import ControlStamp
from pgwal.errors import PgwalError, PrivilegeMissing, ServerError, SettingRequired
from pgwal.lsn import Lsn
from pgwal.postgres.connection import error_text, translated_errors
from pgwal.postgres.one_row import one_row, only_row
from pgwal.postgres.privileges import grant_hint
from pgwal.postgres_version import version_of_catalog, version_of_server
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, DEFAULT_TABLESPACE_OID, GLOBAL_TABLESPACE_OID
from pgwal.segment import WAL_PAGE_SIZE

# ---- facts ----


class ServerFacts(NamedTuple):
    """What a server is: sizes in bytes.

    ``data_directory`` is None when the role may not see it, and so is ``stats_temp_directory``, which 13 and 14
    alone have.  On a standby ``full_page_writes`` and ``timeline_id``
    are those of the last restart point, and the primary's.  ``tablespaces`` maps the OID of each tablespace that
    was created (not pg_default, pg_global) to its location.  ``group_access`` is that of initdb: its group may read
    the data directory.
    """

    version_num: int
    system_identifier: int
    timeline_id: int
    segment_size: int
    block_size: int
    wal_page_size: int
    blocks_per_file: int
    data_directory: str | None
    wal_level: str
    full_page_writes: bool
    data_checksums: bool
    in_recovery: bool
    stats_temp_directory: str | None
    group_access: bool
    tablespaces: dict[int, str]

    @property
    def major(self) -> int:
        return self.version_num // 10000


# The timeline: the checkpoint's lags behind after a promotion, until the first checkpoint; so a primary is asked
# for the name of the segment it writes, and a standby for the highest timeline it must have replayed.
# Timelines are unsigned, and come as int4, or as the name has them.
# pg_settings hides the rows that a role may not see, where current_setting would fail.
_FACTS = """
    SELECT current_setting('server_version_num')::int AS version_num,
           pg_control_version,
           catalog_version_no,
           system_identifier,
           CASE WHEN in_recovery
                THEN greatest(
                    checkpoint.timeline_id::bigint & 4294967295, min_recovery_end_timeline::bigint & 4294967295
                )
                ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint
           END AS timeline_id,
           bytes_per_wal_segment AS segment_size,
           database_block_size AS block_size,
           wal_block_size AS wal_page_size,
           blocks_per_segment AS blocks_per_file,
           (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
           current_setting('wal_level') AS wal_level,
           CASE WHEN in_recovery
                THEN checkpoint.full_page_writes
                ELSE current_setting('full_page_writes')::bool
           END AS full_page_writes,
           data_page_checksum_version > 0 AS data_checksums,
           in_recovery,
           (SELECT setting FROM pg_settings WHERE name = 'stats_temp_directory') AS stats_temp_directory,
           current_setting('data_directory_mode') = '0750' AS group_access
      FROM pg_control_system(),
           pg_control_init(),
           pg_control_checkpoint() AS checkpoint,
           pg_control_recovery(),
           pg_is_in_recovery() AS in_recovery
"""

# Locations are the bytes of the file system, whatever the database's encoding makes of them; see also directories.py.
_LOCATION = r"replace(pg_tablespace_location(oid), E'\\', E'\\\\')::bytea"
_TABLESPACES = f"SELECT oid, {_LOCATION} FROM pg_tablespace WHERE oid NOT IN (%s, %s) ORDER BY oid"
_LOCATIONS = f"SELECT oid::bigint, {_LOCATION} FROM unnest(%s::bigint[]::oid[]) AS oid ORDER BY oid"


def read_server_facts(connection: psycopg.Connection) -> ServerFacts:
    """Read what pgwal must know about a server; any role may.

    Raises UnsupportedVersion for a server of no supported version, and for a pre-release of one; SettingRequired for
    one that was built with other block sizes.
    """
    version_of_server(connection.info.server_version)
    with translated_errors(connection):
        row = only_row(connection.cursor(row_factory=dict_row).execute(_FACTS).fetchall())
        tablespaces = _read_tablespaces(connection)
        absent = [name for name, value in row.items() if value is None and name not in _MAY_BE_HIDDEN]
        if absent:
            raise ServerError(f"the server does not say its {', '.join(absent)}")
        # The number of a server is the same in its beta versions, whose WAL and files may differ.
        version_of_catalog(row.pop("catalog_version_no"), row.pop("pg_control_version"), "the server's pg_control")
        # The SQL type of the identifier is a signed bigint.
        row["system_identifier"] &= 0xFFFF_FFFF_FFFF_FFFF
        facts = ServerFacts(**row, tablespaces=tablespaces)
    _check_sizes(facts)
    return facts


_MAY_BE_HIDDEN = ("data_directory", "stats_temp_directory")


def _read_tablespaces(connection: psycopg.Connection) -> dict[int, str]:
    """Read the tablespaces; until DROP TABLESPACE commits, a row is there and its link no longer."""
    try:
        return _tablespaces(connection)
    except psycopg.errors.UndefinedFile:
        # Not above: it takes long to import, and hardly ever is there anything to wait for.
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(psycopg.errors.UndefinedFile),
            wait=tenacity.wait_fixed(DROP_PAUSE_S),
            stop=tenacity.stop_after_delay(DROP_PATIENCE_S),
            reraise=True,
        )
        return retrying(_tablespaces, connection)


def _tablespaces(connection: psycopg.Connection) -> dict[int, str]:
    rows = connection.execute(_TABLESPACES, (DEFAULT_TABLESPACE_OID, GLOBAL_TABLESPACE_OID)).fetchall()
    return {int(oid): decode_path(location) for oid, location in rows}


def _check_sizes(facts: ServerFacts) -> None:
    for name, needed, found in (
        ("block size", BLOCK_SIZE, facts.block_size),
        ("WAL block size", WAL_PAGE_SIZE, facts.wal_page_size),
        ("number of blocks in a relation segment", BLOCKS_PER_FILE, facts.blocks_per_file),
    ):
        if needed != found:
            raise SettingRequired(
                f"the server was built with a {name} of {found}, pgwal works with {needed} only",
                hint="These are PostgreSQL's defaults; only a server that was built with them is supported.",
            )


_CONTROL_STAMP = """
    SELECT extract(epoch FROM pg_control_last_modified)::bigint, checkpoint_lsn::text, redo_lsn::text,
           checkpoint.timeline_id::bigint & 4294967295, extract(epoch FROM checkpoint_time)::bigint,
           min_recovery_end_lsn::text
      FROM pg_control_system(), pg_control_checkpoint() AS checkpoint, pg_control_recovery()
"""


def read_control_stamp(connection: psycopg.Connection) -> ControlStamp:
    """Return what the server says of its pg_control; while that is written, parts may be of before."""
    with translated_errors(connection):
        written_at_s, checkpoint_lsn, redo_lsn, timeline_id, checkpoint_at_s, min_recovery_lsn = one_row(
            connection, _CONTROL_STAMP
        )
        return ControlStamp(
            int(written_at_s),
            Lsn.parse(checkpoint_lsn),
            Lsn.parse(redo_lsn),
            int(timeline_id),
            int(checkpoint_at_s),
            Lsn.parse(min_recovery_lsn),
        )


def read_clock(connection: psycopg.Connection) -> datetime:
    """Return the time by the clock that commits are stamped with.

    On a standby that is the primary's, of which it knows the last commit alone: then the later of that and its own.
    """
    with translated_errors(connection):
        (seconds,) = one_row(
            connection,
            "SELECT extract(epoch FROM greatest(clock_timestamp(), pg_last_xact_replay_timestamp()))::float8",
        )
    return datetime.fromtimestamp(seconds, UTC)


def read_postmaster(connection: psycopg.Connection) -> tuple[float, int]:
    """Return when the server was started, in seconds since 1970, and the port on which it listens."""
    with translated_errors(connection):
        started_at_s, port = one_row(
            connection,
            "SELECT extract(epoch FROM pg_postmaster_start_time())::float8, current_setting('port')::int",
        )
        return float(started_at_s), int(port)


def read_databases(connection: psycopg.Connection) -> dict[int, int]:
    """Return the tablespace of each database, by OID, but for those that DROP DATABASE has begun to remove."""
    with translated_errors(connection):
        return dict(
            connection.execute(
                "SELECT oid::bigint, dattablespace::bigint FROM pg_database WHERE datconnlimit <> -2"
            ).fetchall()
        )


def read_tablespace_oids(connection: psycopg.Connection) -> set[int]:
    """Return which tablespaces were created: not pg_default, pg_global."""
    query = "SELECT oid::bigint FROM pg_tablespace WHERE oid NOT IN (%s, %s)"
    with translated_errors(connection):
        rows = connection.execute(query, (DEFAULT_TABLESPACE_OID, GLOBAL_TABLESPACE_OID)).fetchall()
        return {int(oid) for (oid,) in rows}


def read_tablespace_locations(connection: psycopg.Connection, oids: Iterable[int]) -> dict[int, str]:
    """Return where the links in pg_tblspc lead; raises ServerError when one is not there."""
    with translated_errors(connection):
        rows = connection.execute(_LOCATIONS, (list(oids),)).fetchall()
        return {int(oid): decode_path(location) for oid, location in rows}


def current_flush_lsn(connection: psycopg.Connection) -> Lsn:
    """Return up to where WAL is durable on the server; on a standby, what it has received or replayed."""
    with translated_errors(connection):
        (lsn,) = one_row(
            connection,
            "SELECT CASE WHEN pg_is_in_recovery()"
            " THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
            " ELSE pg_current_wal_flush_lsn() END::text",
        )
        return Lsn.parse(lsn)


# ---- backups ----


class BackupStop(NamedTuple):
    """What the end of a backup gives: the files go into the backup, ``tablespace_map`` only if it is not empty."""

    stop_lsn: Lsn
    label_file: bytes
    tablespace_map: bytes


# The files as the bytes that they have in the database's own encoding.
_FILES = (
    "SELECT lsn::text, convert_to(labelfile, getdatabaseencoding()),"
    r" replace(coalesce(spcmapfile, ''), E'\\', E'\\\\')::bytea FROM "
)


def backup_function_signatures(version_num: int) -> tuple[str, str]:
    """Return the functions that start and stop a backup, as GRANT EXECUTE ON FUNCTION names them."""
    return version_of_server(version_num).backup_functions.signatures


class BackupSession:
    """A backup's session: the server stays in backup mode for as long as it is connected.

    Takes over the connection, and closes it when the context is left.  When that is without ``stop``, the server
    gives up backup mode, and the backup with it.
    """

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._functions = version_of_server(connection.info.server_version).backup_functions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    def start(self, label: str, *, fast: bool) -> Lsn:
        """Start the backup and return its start LSN: a redo position; it waits for a checkpoint.

        Without ``fast`` that checkpoint is spread out and takes minutes.
        Raises PrivilegeMissing or SettingRequired, each with what to do.
        """
        if "\n" in label:
            raise PgwalError("a backup's label must be a single line")
        with translated_errors(self._connection):
            query = f"SELECT {self._functions.start}::text"
            return Lsn.parse(self._call(query, {"label": label, "fast": fast})[0])

    def require_held(self) -> None:
        """Raise ConnectionFailed when the server has ended the session, and the backup with it; it is asked nothing."""
        with translated_errors(self._connection):
            self._connection.pgconn.consume_input()

    def stop(self) -> BackupStop:
        """Stop the backup; does not wait until WAL is archived.

        Raises ServerError when the server has given the backup up, as a standby does that was promoted.
        """
        with translated_errors(self._connection):
            stop_lsn, label_file, tablespace_map = self._call(_FILES + self._functions.stop, {})
            return BackupStop(Lsn.parse(stop_lsn), bytes(label_file), bytes(tablespace_map))

    def _call(self, query: str, parameters: dict[str, object]) -> tuple[Any, ...]:
        with translated_errors(self._connection):
            try:
                return one_row(self._connection, query, parameters)
            except psycopg.errors.InsufficientPrivilege as error:
                raise self._privilege_missing(error_text(error)) from error
            except psycopg.errors.ObjectNotInPrerequisiteState as error:
                raise self._not_possible(error) from error

    def _privilege_missing(self, problem: str) -> PrivilegeMissing:
        info = self._connection.info
        return PrivilegeMissing(problem, hint=grant_hint(info.dbname, info.user, self._functions.signatures))

    def _not_possible(self, error: psycopg.Error) -> ServerError:
        (wal_level,) = one_row(self._connection, "SELECT current_setting('wal_level')")
        if wal_level == "minimal":
            return SettingRequired(
                error_text(error),
                hint="Set wal_level = replica and restart the server: minimal WAL leaves out data.",
                setting="wal_level",
            )
        return ServerError(error_text(error), hint=error.diag.message_hint)
