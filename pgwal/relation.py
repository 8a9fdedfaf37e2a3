"""Relation files: locators, forks, and the paths they have below a data directory.

Source of the names: src/common/relpath.c and src/backend/storage/file/reinit.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

BLOCK_SIZE = 8192
BLOCKS_PER_FILE = 131072
INVALID_BLOCK_NUMBER = 0xFFFFFFFF

DEFAULT_TABLESPACE_OID = 1663
GLOBAL_TABLESPACE_OID = 1664


class Fork(IntEnum):
    """A relation's forks, by their numbers in WAL and in summaries."""

    MAIN = 0
    FSM = 1
    VM = 2
    INIT = 3


_FORK_BY_SUFFIX = {None: Fork.MAIN, "fsm": Fork.FSM, "vm": Fork.VM, "init": Fork.INIT}

_RELATION_FILE = re.compile(r"([1-9][0-9]{0,9})(?:_(fsm|vm|init))?(?:\.([1-9][0-9]{0,4}))?")
_TEMPORARY_FILE = re.compile(r"t[0-9]+_[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?")
_DIRECTORY = re.compile(r"(?:global|base/([0-9]{1,10})|pg_tblspc/([0-9]{1,10})/PG_[0-9]+_[0-9]+/([0-9]{1,10}))")


class RelFileLocator(NamedTuple):
    """The name of a relation's storage: tablespace, database and relation number."""

    spc_oid: int
    db_oid: int
    rel_number: int


class RelationFile(NamedTuple):
    """One file of a relation fork: segment file ``segment`` holds blocks from segment x 131072 on."""

    locator: RelFileLocator
    fork: Fork
    segment: int

    @property
    def first_block(self) -> int:
        return self.segment * BLOCKS_PER_FILE


# Files come directory by directory, and of each is asked several times on its way through a backup.
@lru_cache(maxsize=64)
def parse_database_directory(path: str) -> tuple[int, int] | None:
    """Return (tablespace, database) of a directory that holds relation files, relative to the data directory."""
    match = _DIRECTORY.fullmatch(path)
    if match is None:
        return None
    if path == "global":
        return GLOBAL_TABLESPACE_OID, 0
    if match[1] is not None:
        return DEFAULT_TABLESPACE_OID, int(match[1])
    return int(match[2]), int(match[3])


@lru_cache(maxsize=256)
def parse_relation_path(path: str) -> RelationFile | None:
    """Return what relation file ``path`` (relative to the data directory) is, or None when it is none.

    Temporary relations are none.
    """
    directory, _, name = path.rpartition("/")
    place = parse_database_directory(directory)
    match = _RELATION_FILE.fullmatch(name)
    if place is None or match is None or int(match[1]) > 0xFFFFFFFF:
        return None
    locator = RelFileLocator(*place, int(match[1]))
    return RelationFile(locator, _FORK_BY_SUFFIX[match[2]], int(match[3] or 0))


def is_temporary_relation_name(name: str) -> bool:
    """Tell whether a file name in a database directory is that of a temporary relation."""
    return _TEMPORARY_FILE.fullmatch(name) is not None
