"""Restore some databases of a cluster: what comes whole, and what of the others, so that WAL can be replayed on them.

The files of other databases come as holes of their full size.  Redo reads pages that WAL changes without an image of
them (hash indexes, visibility without checksums, all where full_page_writes is off), and panics where it meets zeros:
so each block that WAL refers to comes with what the backup has of it, and a whole file where WAL shortens it, and a
whole database that WAL copies.  No other page is read before somebody connects.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.database_names import FIRST_NORMAL_OID, database_catalog_path, database_names
from pgwal.backup.entry import BackupEntry
from pgwal.backup.recovery import RecoveryTarget
from pgwal.backup.stored_path import decode_path
from pgwal.engine.rebuild import Rebuild
from pgwal.engine.recovery_window import target_history
from pgwal.engine.replay_forecast import ReplayForecast, end_of_wal_target
from pgwal.engine.replayed_wal import ReplayedWal, read_replayed_wal
from pgwal.engine.summarize import read_changes
from pgwal.errors import FormatError, ObjectNotFound, TargetError
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, INVALID_BLOCK_NUMBER, Fork, parse_relation_path
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap

_MAP_PATH = "global/pg_filenode.map"


@dataclass(frozen=True, slots=True)
class SelectedDatabases:
    """The databases that come whole, and what comes of the others; names are as pg_database has them, by OID."""

    wanted: Mapping[int, str]
    others: Mapping[int, str]
    _copied: Collection[int]
    """Databases that WAL copies: what it makes of them is as whole as they are."""
    _changes: BlockMap

    def lines(self) -> Iterator[str]:
        """Yield what people should know of it."""
        whole = ", ".join(f"{name} ({oid})" for oid, name in sorted(self.wanted.items()))
        yield f"databases that come whole, with their OIDs: {whole}"
        if self.others:
            empty = ", ".join(f"{name} ({oid})" for oid, name in sorted(self.others.items()))
            yield f"databases without their rows, which are to be dropped: {empty}"

    def blocks_of(self, file: BackupFile) -> array[int] | None:
        """Return which blocks of a file are wanted, counted from its start; None when all of it is."""
        relation = parse_relation_path(file.path)
        if relation is None or relation.locator.db_oid not in self.others or relation.fork != Fork.MAIN:
            return None
        locator = relation.locator
        if locator.db_oid in self._copied or self._changes.database_copied(locator.spc_oid, locator.db_oid):
            return None
        if self._changes.limit_block(*locator, relation.fork) != INVALID_BLOCK_NUMBER:
            # The map has lost what was changed before it was shortened.
            return None
        first = relation.first_block
        found = self._changes.blocks_between(*locator, relation.fork, first, first + BLOCKS_PER_FILE)
        block_count = file.size_bytes // BLOCK_SIZE
        return array("I", (block - first for block in found if block - first < block_count))


def select_databases(
    repository: Repository, entry: BackupEntry, rebuild: Rebuild, names: Iterable[str], replay: ReplayForecast
) -> SelectedDatabases:
    """Find the databases with these names in a backup, and what WAL that is replayed does to the others.

    Raises ObjectNotFound for a name that is in no row of the backup's pg_database, FormatError for a damaged one,
    WalGap and its like as ``read_changes``.
    """
    backup_id = entry.backup_id
    oids, by_name = _databases(rebuild, backup_id)
    wanted: dict[int, str] = {}
    for name in names:
        found = by_name.get(name, set()) & oids
        if not found:
            known = ", ".join(sorted(known for known, of_name in by_name.items() if of_name & oids))
            raise ObjectNotFound(
                f"backup {backup_id} has no database {name}",
                hint=f"It has these: {known}. One that was created later needs a newer backup.",
            )
        wanted.update(dict.fromkeys(found, name))
    names_of = {oid: name for name, of_name in by_name.items() for oid in of_name}
    wanted |= {oid: names_of.get(oid, str(oid)) for oid in oids - wanted.keys() if oid < FIRST_NORMAL_OID}
    others = {oid: names_of.get(oid, str(oid)) for oid in oids - wanted.keys()}
    replayed = replay.history.ranges_between(replay.start_lsn, replay.end_lsn)
    ranges = [part for part in replayed if part.start < part.end]
    copied = read_replayed_wal(repository, replay.history, replay.start_lsn, replay.end_lsn).copied_databases
    return SelectedDatabases(wanted, others, frozenset(copied), read_changes(repository, ranges))


def fixed_target(
    repository: Repository, entry: BackupEntry, wanted: RecoveryTarget, replayed: ReplayedWal
) -> RecoveryTarget:
    """Return a target at which recovery ends within the WAL that is there now: none but that has been looked at."""
    timeline = target_history(repository, wanted.timeline, entry).timeline_id
    return replace(wanted, timeline=timeline) if wanted.is_set else end_of_wal_target(entry, replayed, timeline)


def _databases(rebuild: Rebuild, backup_id: str) -> tuple[set[int], dict[str, set[int]]]:
    """Return the databases of which a backup has files, and the OIDs by name."""
    oids, shared = set[int](), dict[str, BackupFile]()
    for file in rebuild.files():
        relation = parse_relation_path(file.path)
        if relation is not None and relation.locator.db_oid:
            oids.add(relation.locator.db_oid)
        elif file.path.startswith("global/"):
            shared[file.path] = file
    if _MAP_PATH not in shared:
        raise FormatError(f"backup {backup_id} holds no {_MAP_PATH}")
    path = database_catalog_path(rebuild.content(shared[_MAP_PATH]))
    if path not in shared:
        raise TargetError(
            f"backup {backup_id} does not tell the names of its databases: pg_database was rewritten while it"
            " was taken",
            hint="Restore another backup, or all databases.",
        )
    catalog = rebuild.reconstructed(shared[path])
    return oids, {decode_path(name): found for name, found in database_names(catalog).items()}
