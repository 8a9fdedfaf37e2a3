"""Safety: whatever differs between two cold copies of a data directory is in the map of the WAL between them.

Extra blocks are allowed, missing ones never.  What is not held to it, because no WAL or not all of it speaks of it:

* free space maps, never fully logged: backups copy them whole;
* visibility maps, whose bits heap records clear without a reference before 17.11 and 18.6: copied whole too;
* unlogged and temporary relations: not in backups, but for the init forks, which are held to it;
* blocks of zeros behind the old end of a file: extending is not logged, and blocks from the end that the prior
  backup knew on are copied anyway;
* hint bits, without checksums: the clusters here have them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from differential.workload import INITDB_ARGS, SETTINGS, Workload
from fix_servers import ServerFactory
from test_main_job import pgwal, streaming

from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.engine.summarize import read_changes, window
from pgwal.relation import BLOCK_SIZE, Fork, RelFileLocator, parse_relation_path
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap, RelationFork


class Block(NamedTuple):
    """A block of a relation fork; ``is_new`` when its file did not reach as far before."""

    key: RelationFork
    block_no: int
    is_new: bool


class Contents(dict[str, Path]):
    """The relation files of a data directory by their paths in it, those of tablespaces included."""

    def __init__(self, data_directory: Path) -> None:
        super().__init__()
        for path in sorted(Path(root, name) for root, _, names in _walk(data_directory) for name in names):
            relative = str(path.relative_to(data_directory))
            if parse_relation_path(relative) is not None:
                self[relative] = path
        self.control_file = ControlFile.decode((data_directory / CONTROL_FILE_PATH).read_bytes())

    def unlogged(self) -> set[RelFileLocator]:
        parsed = [parse_relation_path(path) for path in self]
        return {file.locator for file in parsed if file is not None and file.fork == Fork.INIT}


def _walk(directory: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    import os

    return os.walk(directory, followlinks=True)


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
            if any(block) if is_new else block != old[offset : offset + BLOCK_SIZE]:
                block_no = relation_file.first_block + offset // BLOCK_SIZE
                yield Block(RelationFork(*locator, fork), block_no, is_new)


def is_covered(block: Block, block_map: BlockMap) -> bool:
    key, block_no, _ = block
    if block_map.database_copied(key.spc_oid, key.db_oid) or block_no >= block_map.limit_block(*key):
        return True
    return bool(block_map.blocks_between(*key, block_no, block_no + 1))


def uncovered(blocks: list[Block], block_map: BlockMap) -> list[Block]:
    return [block for block in blocks if not is_covered(block, block_map)]


@pytest.mark.postgres
def test_the_map_holds_every_block_that_differs(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(initdb_args=INITDB_ARGS, settings=SETTINGS)
    workload = Workload(server, scratch)
    workload.prepare()
    repo = scratch / "repo"
    slot = ["--slot", "pgwal", "--create-slot", "--if-not-exists"]
    pgwal("stream", "--repo", repo, "-d", server.conninfo, "--once", *slot)
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

    # The comparison sees something, of every place where relations are, and a single block that is left out.
    assert {key.spc_oid for key, _, _ in changed} >= {1663, 1664}
    assert len({key for key, _, _ in changed}) > 50
    for victim in [block for block in changed if not block.is_new and has_only_the_block(block_map, block)][::50]:
        assert uncovered(changed, without(block_map, victim)) == [victim]


def has_only_the_block(block_map: BlockMap, block: Block) -> bool:
    """Tell whether it is the block's own number that covers it, and no limit below it or whole database."""
    return not is_covered(block, without(block_map, block))


def without(block_map: BlockMap, block: Block) -> BlockMap:
    copy = BlockMap()
    copy.merge(block_map)
    changes = copy.get(block.key)
    if changes is not None:
        changes.blocks.discard(block.block_no)
    return copy
