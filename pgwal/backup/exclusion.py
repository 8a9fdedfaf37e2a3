"""What a base backup leaves out of a data directory.

Source of the rules: src/backend/backup/basebackup.c (13, 14: src/backend/replication/basebackup.c) and
src/backend/storage/file/reinit.c, PostgreSQL 13 to 19.  Paths are relative to the data directory.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum

from pgwal.postgres_version import version_of_major
from pgwal.relation import is_temporary_relation_name, parse_database_directory

INCOMPLETE_NAME = "pgwal_incomplete"
"""What marks a data directory that a restore has not finished; one in a cluster is what an earlier restore left."""
WAL_DIRECTORY = "pg_wal"
TABLESPACE_DIRECTORY = "pg_tblspc"

_EXCLUDED_PREFIXES = ("pgsql_tmp", "pg_internal.init")
_EXCLUDED_NAMES = frozenset(
    {
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "backup_label",
        "tablespace_map",
        "backup_manifest",
        "postmaster.pid",
        "postmaster.opts",
        # Of macOS's Finder; excluded by 17 and later, and by the later minors of the others.
        ".DS_Store",
    }
)
_EMPTY_DIRECTORIES = frozenset(
    {"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"}
)
# subdirs of src/bin/initdb/initdb.c, but for pg_wal's; base/1 is template1's, which may be dropped.
_INITIAL_DIRECTORIES = (
    "base", "global", "pg_commit_ts", "pg_dynshmem", "pg_logical/mappings", "pg_logical/snapshots",
    "pg_multixact/members", "pg_multixact/offsets", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat",
    "pg_stat_tmp", "pg_subtrans", TABLESPACE_DIRECTORY, "pg_twophase", "pg_xact",
)  # fmt: skip
_TABLESPACE_PATH = re.compile(rf"{TABLESPACE_DIRECTORY}/[1-9][0-9]*/([^/]+)(?:/.*)?", re.DOTALL)
_TABLESPACE_NAME = re.compile(r"[1-9][0-9]{0,9}")
_RELATION_NAME = re.compile(r"([1-9][0-9]*)(_(?:fsm|vm|init))?(?:\.[1-9][0-9]*)?")


class Inclusion(Enum):
    """What becomes of an entry of the data directory in a backup."""

    INCLUDED = "included"
    """A file is copied; a directory is made, and its entries are looked at in turn."""
    EMPTY = "empty directory"
    """A directory is made, whatever it is in the data directory, and nothing of what it holds is copied."""
    EXCLUDED = "excluded"
    """Nothing of it is in the backup."""


def wal_directories(major: int) -> tuple[str, ...]:
    """Return the directories below pg_wal that every backup holds, empty, whether the server has them or not."""
    names = ("archive_status", "summaries") if version_of_major(major).has_summaries else ("archive_status",)
    return tuple(f"{WAL_DIRECTORY}/{name}" for name in names)


def required_directories(major: int) -> tuple[str, ...]:
    """Return the directories without which a server does not start, some of them empty: those that initdb makes."""
    return (*wal_directories(major), *_INITIAL_DIRECTORIES)


def tablespace_version_directory(major: int) -> str:
    """Return the name of the only directory in a tablespace that belongs to a cluster of ``major``."""
    return f"PG_{major}_{version_of_major(major).catalog_version}"


def tablespace_oid(name: str) -> int | None:
    """Return the OID of the tablespace that is linked as ``name`` in pg_tblspc, None where that is no OID."""
    return int(name) if _TABLESPACE_NAME.fullmatch(name) else None


def inclusion(path: str, major: int, *, is_directory: bool, emptied: Collection[str] = ()) -> Inclusion:
    """Decide on one entry of the data directory, given that the directories above it are included.

    Relation files need a second look, at their directory as a whole: ``excluded_relation_files``.  pg_control is
    included, though it is copied last.  ``emptied`` are directories below the data directory that are made and left
    empty: the stats_temp_directory of 13 and 14, and where tablespaces are, which are reached through pg_tblspc.
    """
    name = path.rpartition("/")[2]
    if path == INCOMPLETE_NAME:
        return Inclusion.EXCLUDED
    if name.startswith(_EXCLUDED_PREFIXES) or name in _EXCLUDED_NAMES or _is_foreign_to_cluster(path, major):
        return Inclusion.EXCLUDED
    if path.startswith(f"{WAL_DIRECTORY}/"):
        return Inclusion.EMPTY if path in wal_directories(major) else Inclusion.EXCLUDED
    if name in _EMPTY_DIRECTORIES or path == WAL_DIRECTORY:
        return Inclusion.EMPTY
    if is_directory and path in emptied:
        return Inclusion.EMPTY
    return Inclusion.INCLUDED


def excluded_relation_files(directory: str, names: Collection[str], major: int) -> set[str]:
    """Return which ``names`` of one directory are relation files that a backup leaves out.

    These are temporary relations, and unlogged relations but for their init fork, from which recovery makes them
    anew; a relation is unlogged when its init fork is in the same directory.
    """
    if parse_database_directory(directory) is None:
        return set()
    if directory == "global":
        return _unlogged(names) if version_of_major(major).unlogged_in_global else set()
    return {name for name in names if is_temporary_relation_name(name)} | _unlogged(names)


def _unlogged(names: Collection[str]) -> set[str]:
    # Few have one; a set of all the names of a directory could be a million large.
    with_init_fork = {name.removesuffix("_init") for name in names if name.endswith("_init")}
    if not with_init_fork:
        return set()
    matches = filter(None, map(_RELATION_NAME.fullmatch, names))
    return {match[0] for match in matches if match[2] != "_init" and match[1] in with_init_fork}


def _is_foreign_to_cluster(path: str, major: int) -> bool:
    """Tell whether a path in a tablespace is outside the directory of this cluster's version.

    So is that directory itself where it lies in the data directory, elsewhere than below pg_tblspc: what is in it is
    reached, and stored, through the link to it there, however that is spelled.
    """
    version_directory = tablespace_version_directory(major)
    match = _TABLESPACE_PATH.fullmatch(path)
    if match is None:
        return path.rpartition("/")[2] == version_directory
    return match[1] != version_directory
