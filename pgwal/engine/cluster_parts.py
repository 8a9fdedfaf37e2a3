"""Prove that a backup has all that belongs to its cluster: absent is not dropped.

What pg_tablespace, pg_database or the prior backup has may be missing only where the server, asked again, or WAL says
that it was dropped.  A disk that is not mounted says nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pgwal.backup.exclusion import TABLESPACE_DIRECTORY, tablespace_oid, tablespace_version_directory
from pgwal.backup.missing_files import MissingFiles
from pgwal.backup.source import BlockSource
from pgwal.backup.stored_path import decode_path, encode_path
from pgwal.budget import PARTS_ATTEMPTS, PARTS_PAUSE_S
from pgwal.errors import ConnectionFailed, DataAbsent, ServerError
from pgwal.postgres.server import read_databases, read_tablespace_locations, read_tablespace_oids
from pgwal.relation import DEFAULT_TABLESPACE_OID, parse_database_directory

if TYPE_CHECKING:
    import psycopg

_Found = TypeVar("_Found", bool, set[int], set[tuple[int, int]])

logger = logging.getLogger(__name__)

_NAMED_FILES = 3


class ClusterParts(NamedTuple):
    """The databases of a cluster, with the tablespace of each, and the locations of its tablespaces, all by OID.

    Both were read once, at or after the start of the backup: what is created later is made by WAL.  Tablespaces in
    place have a location below the data directory.
    """

    databases: dict[int, int]
    tablespaces: dict[int, str]

    @property
    def linked_tablespaces(self) -> dict[int, str]:
        """The tablespaces but for those in place."""
        return {oid: location for oid, location in self.tablespaces.items() if location.startswith("/")}


def read_cluster_parts(
    connection: psycopg.Connection, source: BlockSource, major: int, data_directory: Path | None
) -> ClusterParts:
    """List the databases and tablespaces of a server, whose ``data_directory`` may not be known.

    Raises DataAbsent when one of the tablespaces has no directory, ServerError when it cannot be looked into, or when
    it is not known where its link leads.  One that is being created counts if it has a directory: WAL of before the
    backup's start may be all that tells of it.
    """
    absent: set[int] = set()
    for attempt in range(PARTS_ATTEMPTS):
        if attempt:
            time.sleep(PARTS_PAUSE_S)
        # Databases first: they may lie in tablespaces that are newer than a list of those.
        databases = read_databases(connection)
        there, closed = _tablespaces_there(source, major)
        created = read_tablespace_oids(connection)
        absent = created - there - set(closed)
        if absent:
            continue
        for oid, error in sorted(closed.items()):
            if oid in created:
                raise error
            logger.warning("leaving out %s/%d, which is no tablespace of this cluster", TABLESPACE_DIRECTORY, oid)
        try:
            locations = read_tablespace_locations(connection, there)
            return ClusterParts(
                databases, {oid: _absolute(oid, text, data_directory) for oid, text in locations.items()}
            )
        except ServerError as error:
            # One has been dropped since, unless it is so every time.
            if isinstance(error, ConnectionFailed) or attempt == PARTS_ATTEMPTS - 1:
                raise
    raise _tablespace_absent(connection, absent, major)


def require_cluster_parts(
    parts: ClusterParts, missing: MissingFiles, connection: psycopg.Connection, source: BlockSource, major: int
) -> None:
    """Raise DataAbsent when a tablespace or database is no longer there, and was not dropped or moved meanwhile.

    To be asked when everything has been listed.
    """
    gone = set(parts.tablespaces) - _tablespaces_there(source, major)[0]
    if left := _once_none(lambda: gone & read_tablespace_oids(connection)):
        raise _tablespace_absent(connection, left, major)
    unseen = {
        oid: spc_oid
        for oid, spc_oid in parts.databases.items()
        if _database_directory(oid, spc_oid, major) not in missing.databases
    }
    if absent := _once_none(lambda: unseen.items() & read_databases(connection).items()):
        oid, spc_oid = min(absent)
        raise DataAbsent(
            f"database {oid} has no files in {_database_directory(oid, spc_oid, major)}, and was not dropped",
            hint="See whether a disk is not mounted; then take the backup again.",
        )


def account_for_databases(parts: ClusterParts, missing: MissingFiles, connection: psycopg.Connection) -> None:
    """Take away from ``missing`` what lay in databases that have been dropped or moved, which WAL tells afterwards."""

    def look() -> bool:
        databases = read_databases(connection)
        for directory in missing.directories():
            place = parse_database_directory(directory)
            assert place is not None
            spc_oid, oid = place
            is_moved = parts.databases.get(oid) == spc_oid != databases.get(oid)
            if oid and (oid not in databases or is_moved):
                missing.account_for_database(directory)
        return bool(missing)

    _once_none(look)


def require_none_missing(missing: MissingFiles) -> None:
    """Raise DataAbsent when files of relations are missing that nothing accounts for."""
    if not missing:
        return
    paths = list(islice(missing.paths(), _NAMED_FILES + 1))
    more = " and more" if len(paths) > _NAMED_FILES else ""
    raise DataAbsent(
        f"missing from the data directory: {', '.join(paths[:_NAMED_FILES])}{more}; WAL does not say why",
        hint="See whether a disk is not mounted, and take the backup again. A file that was removed by hand is in older"
        " backups; if it is not needed, take a full backup.",
    )


def _once_none(look: Callable[[], _Found]) -> _Found:
    """Look again for a while, until nothing is found, and return what is found last."""
    found = look()
    for _ in range(PARTS_ATTEMPTS - 1):
        if not found:
            break
        time.sleep(PARTS_PAUSE_S)
        found = look()
    return found


def _tablespaces_there(source: BlockSource, major: int) -> tuple[set[int], dict[int, ServerError]]:
    """Return the tablespaces that have a directory of this cluster, and why others cannot be looked into.

    That of a disk which is not mounted has no such directory.
    """
    version_directory = tablespace_version_directory(major)
    there: set[int] = set()
    closed: dict[int, ServerError] = {}
    for oid in filter(None, map(tablespace_oid, source.names(TABLESPACE_DIRECTORY))):
        try:
            if version_directory in source.names(f"{TABLESPACE_DIRECTORY}/{oid}"):
                there.add(oid)
        except ConnectionFailed:
            raise
        except ServerError as error:
            closed[oid] = error
    return there, closed


def _absolute(oid: int, location: str, data_directory: Path | None) -> str:
    """Return where a tablespace is, given the text of its link, which may be relative to where that lies.

    A tablespace in place is named by its directory, and stays so.
    """
    if location.startswith("/") or location == f"{TABLESPACE_DIRECTORY}/{oid}":
        return location
    if data_directory is None:
        raise ServerError(
            f"the link of tablespace {oid} leads to {location}, relative to a data directory that the role may not see",
            hint="Grant the role pg_read_all_settings, use --pgdata, or make the link absolute while the server is"
            " stopped.",
        )
    real = os.path.realpath(data_directory / TABLESPACE_DIRECTORY / os.fsdecode(encode_path(location)))
    return decode_path(os.fsencode(real))


def _database_directory(oid: int, spc_oid: int, major: int) -> str:
    if spc_oid == DEFAULT_TABLESPACE_OID:
        return f"base/{oid}"
    return f"{TABLESPACE_DIRECTORY}/{spc_oid}/{tablespace_version_directory(major)}/{oid}"


def _tablespace_absent(connection: psycopg.Connection, oids: set[int], major: int) -> DataAbsent:
    oid = min(oids)
    try:
        location = read_tablespace_locations(connection, [oid])[oid]
    except ServerError:
        location = f"{TABLESPACE_DIRECTORY}/{oid}, which is no link"
    return DataAbsent(
        f"tablespace {oid} has no directory {tablespace_version_directory(major)} at {location}",
        hint="See whether its disk is mounted; then take the backup again.",
    )
