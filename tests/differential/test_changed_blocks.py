"""Safety: whatever differs between two cold copies of a data directory is in the map of the WAL between them.

Extra blocks are allowed, missing ones never.  What is not held to it, because no WAL or not all of it speaks of it:

* free space maps, never fully logged: backups copy them whole;
* visibility maps, whose bits heap records clear without a reference before 17.11 and 18.6: copied whole too;
* unlogged and temporary relations: not in backups, but for the init forks, which are held to it;
* blocks of zeros behind the old end of a file: extending is not logged, and blocks from the end that the prior
  backup knew on are copied anyway;
* the first page of an SP-GiST index, as far as it remembers pages with room, which is a hint and never logged
  (SpGistUpdateMetaPage): an older one is as good;
* other hint bits, without checksums: the clusters here have them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
from differential.workload import INITDB_ARGS, SETTINGS, Workload
from fix_servers import ServerFactory
from pgwal_process import succeed
from test_main_job import streaming

from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.engine.summarize import read_changes, window
from pgwal.relation import BLOCK_SIZE, Fork, RelFileLocator, parse_relation_path
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap, RelationFork

pytestmark = pytest.mark.other_minors


class Block(NamedTuple):
    """A block of a relation fork; ``is_new`` when its file did not reach as far before."""

    key: RelationFork
    block_no: int
    is_new: bool


class Contents(dict[str, Path]):
    """The relation files of a data directory by their paths in it, those of tablespaces included."""

    def __init__(self, data_directory: Path) -> None:
        super().__init__()
        # Path.rglob does not enter tablespaces, which are symbolic links.
        walk = os.walk(data_directory, followlinks=True)
        for path in sorted(Path(root, name) for root, _, names in walk for name in names):
            relative = str(path.relative_to(data_directory))
            if parse_relation_path(relative) is not None:
                self[relative] = path
        self.control_file = ControlFile.decode((data_directory / CONTROL_FILE_PATH).read_bytes())

    def unlogged(self) -> set[RelFileLocator]:
        parsed = [parse_relation_path(path) for path in self]
        return {file.locator for file in parsed if file is not None and file.fork == Fork.INIT}


SPGIST_MAGIC = (0xBA0BABEE).to_bytes(4, "little")


def lasting(block: bytes) -> bytes:
    """Return a block without what SP-GiST remembers in its first one, and the checksum that depends on it."""
    if block[24:28] != SPGIST_MAGIC:
        return block
    return block[:8] + bytes(6) + block[14:28] + bytes(64) + block[92:]


def changed_blocks(before: Contents, after: Contents) -> Iterator[Block]:
    """Yield the blocks of permanent relations that differ, and new ones that are not zeros."""
    unlogged = before.unlogged() | after.unlogged()
    for path, file in after.items():
        relation_file = parse_relation_path(path)
        assert relation_file is not None
        locator, fork, _ = relation_file
        if fork in (Fork.FSM, Fork.VM) or (fork == Fork.MAIN and locator in unlogged):
            continue
        old = before[path].read_bytes() if path in before else b""
        new = file.read_bytes()
        for offset in range(0, len(new), BLOCK_SIZE):
            block = new[offset : offset + BLOCK_SIZE]
            is_new = offset >= len(old)
            if any(block) if is_new else lasting(block) != lasting(old[offset : offset + BLOCK_SIZE]):
                block_no = relation_file.first_block + offset // BLOCK_SIZE
                yield Block(RelationFork(*locator, fork), block_no, is_new)


def is_in_whole_part(block: Block, block_map: BlockMap) -> bool:
    """Tell whether a block lies where everything is copied: behind a limit, or in a database that is new."""
    key, block_no, _ = block
    return block_map.database_copied(key.spc_oid, key.db_oid) or block_no >= block_map.limit_block(*key)


def uncovered(blocks: list[Block], block_map: BlockMap) -> list[Block]:
    """Return the blocks that the map does not speak of."""
    return [
        block
        for block in blocks
        if not is_in_whole_part(block, block_map)
        and not block_map.blocks_between(*block.key, block.block_no, block.block_no + 1)
    ]


@pytest.mark.postgres
def test_the_map_holds_every_block_that_differs(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(initdb_args=INITDB_ARGS, settings=SETTINGS)
    workload = Workload(server, scratch)
    workload.prepare()
    in_place = workload.changed_in_place()
    repo = scratch / "repo"
    slot = ["--slot", "pgwal", "--create-slot", "--if-not-exists"]
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once", *slot)
    server.stop()
    shutil.copytree(server.data_directory, scratch / "before", ignore=shutil.ignore_patterns("pg_wal"))
    before = Contents(scratch / "before")
    server.start()
    with streaming(server, repo, *slot):
        workload.run()
        server.stop()
    after = Contents(server.data_directory)

    start, end = before.control_file, after.control_file
    repository = Repository.open(repo)
    ranges = window(repository, start.timeline_id, start.redo_lsn, end.timeline_id, end.redo_lsn)
    block_map = read_changes(repository, ranges)
    changed = list(changed_blocks(before, after))
    assert uncovered(changed, block_map) == []

    # The comparison sees something in every place where relations are and of every kind of index, and it sees that
    # a single block is left out.
    assert {key.spc_oid for key, _, _ in changed} >= {1663, 1664}
    told_by_number = [block for block in changed if not is_in_whole_part(block, block_map)]
    assert {block.key.rel_number for block in told_by_number} >= set(in_place.values())
    for victim in told_by_number[::50]:
        assert uncovered(changed, without(block_map, victim)) == [victim]


def without(block_map: BlockMap, block: Block) -> BlockMap:
    copy = deepcopy(block_map)
    changes = copy.get(block.key)
    if changes is not None:
        changes.blocks.discard(block.block_no)
    return copy
