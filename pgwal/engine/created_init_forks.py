"""Unlogged relations whose init fork is first created by WAL: of which a backup may have the main fork.

At the end of recovery PostgreSQL copies each init fork to the main fork, which must not be there then: "could not
create file: File exists" (ResetUnloggedRelationsInDbspaceDir in src/backend/storage/file/reinit.c).  It removes main
forks first, but before WAL is replayed, and by the init forks that are there already.  Until its init fork is made,
nothing tells an unlogged relation's main fork from another's: while an index is built, while a table is moved to
another tablespace.
"""

from __future__ import annotations

from pgwal.budget import NOTED_RELATIONS
from pgwal.relation import Fork, RelFileLocator, parse_relation_path
from pgwal.wal import layout
from pgwal.wal.page_magic import WalFormat
from pgwal.wal.rmgr import shortenings

_ALL_RELATIONS = 0


class CreatedInitForks:
    """Collects, record by record, the relations whose init fork is created, and which were not there before that.

    A number may be used again for another relation: one that WAL creates, truncates or drops before is not among them,
    for its files may be wanted until then.
    """

    def __init__(self) -> None:
        self._unlogged: set[RelFileLocator] = set()
        self._others: set[RelFileLocator] = set()

    def is_in_the_way(self, path: str) -> bool:
        """Tell whether a path, relative to the data directory, is of a fork that recovery makes anew with these."""
        if not self._unlogged:
            return False
        file = parse_relation_path(path)
        return file is not None and file.fork != Fork.INIT and file.locator in self._unlogged

    def take(self, wal_format: WalFormat, lsn: int, rmid: int, info: int, main_data: bytes) -> None:
        """Take the next record; raises FormatError for one that is broken or unknown."""
        for shortening in shortenings(wal_format, lsn, rmid, info, main_data):
            locator = RelFileLocator(shortening.spc_oid, shortening.db_oid, shortening.rel_number)
            if max(len(self._unlogged), len(self._others)) >= NOTED_RELATIONS:
                return
            if rmid != layout.RM_SMGR or shortening.fork != Fork.INIT:
                self._others.add(locator)
            elif self._others.isdisjoint((locator, locator._replace(rel_number=_ALL_RELATIONS))):
                self._unlogged.add(locator)
