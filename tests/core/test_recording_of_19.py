"""A recording of 19 that was not made by pgwal's own fixtures: 90 MB of WAL with page images in lz4, and a crash.

Beside the WAL lie the blocks that really changed, and what the server's own summaries say (see ORIGIN there).
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from pgwal.engine.recorded import read_recorded_changes, summarize_wal
from pgwal.lsn import Lsn
from pgwal.relation import INVALID_BLOCK_NUMBER, Fork
from pgwal.segment import WalGeometry
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.codec import decode_summary

RECORDING = Path(__file__).parent.parent.parent / "fixtures" / "recordings" / "pg19"
SEGMENT_SIZE = 1 << 20
FIRST_SEGMENT_NO = 0x10
BEFORE, AFTER = Lsn.parse("0/010BC268"), Lsn.parse("0/06A00028")

Entries = dict[RelationFork, tuple[int, frozenset[int]]]


@pytest.fixture(scope="module")
def wal_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("recording")
    geometry = WalGeometry(SEGMENT_SIZE)
    with lzma.open(RECORDING / "wal.xz") as content:
        number = FIRST_SEGMENT_NO
        while segment := content.read(SEGMENT_SIZE):
            (directory / geometry.file_name(1, number)).write_bytes(segment)
            number += 1
    yield directory
    for path in directory.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def block_map(wal_directory: Path) -> BlockMap:
    return read_recorded_changes(wal_directory, 1, BEFORE, AFTER)[0]


def table(name: str) -> list[list[str]]:
    content = zstandard.ZstdDecompressor().decompress((RECORDING / name).read_bytes())
    return [line.split("\t") for line in content.decode().splitlines()]


def key_of(row: list[str]) -> RelationFork:
    tablespace, database, relation, fork = row[:4]
    return RelationFork(int(tablespace), int(database), int(relation), Fork[fork.upper()])


def entries_of(block_map: BlockMap) -> Entries:
    return {key: (changes.limit_block, frozenset(changes.blocks)) for key, changes in block_map.entries()}


def native_entries() -> Entries:
    limits: dict[RelationFork, int] = {}
    blocks: dict[RelationFork, set[int]] = {}
    for row in table("native.tsv.zst"):
        key, number, is_limit = key_of(row), int(row[4]), row[5] == "t"
        blocks.setdefault(key, set())
        if is_limit:
            limits[key] = number
        else:
            blocks[key].add(number)
    return {key: (limits.get(key, INVALID_BLOCK_NUMBER), frozenset(numbers)) for key, numbers in blocks.items()}


def test_the_map_is_that_of_the_servers_summaries(block_map: BlockMap) -> None:
    native = native_entries()
    assert sum(len(blocks) for _, blocks in native.values()) > 10000
    assert entries_of(block_map) == native


def test_no_block_that_changed_is_missed(block_map: BlockMap) -> None:
    """A block is in the map, or at or behind the shortest length, or all of its database's directory counts."""
    entries = entries_of(block_map)
    changed = table("changed.tsv.zst")
    assert len(changed) > 8000
    missed = [row for row in changed if not is_covered(entries, key_of(row), int(row[4]))]
    assert missed == []


def is_covered(entries: Entries, key: RelationFork, block_no: int) -> bool:
    if key._replace(rel_number=0, fork=Fork.MAIN) in entries:
        return True
    limit, blocks = entries.get(key, (INVALID_BLOCK_NUMBER, frozenset[int]()))
    return block_no in blocks or block_no >= limit


def test_its_summaries_add_up_to_the_map(wal_directory: Path, block_map: BlockMap, tmp_path: Path) -> None:
    merged = BlockMap()
    for summary in summarize_wal(wal_directory, tmp_path, start=BEFORE, end=AFTER):
        (path,) = tmp_path.glob(f"*{summary.range.start:016X}{summary.range.end:016X}.summary")
        merged.merge(decode_summary(path.read_bytes(), path.name))
    assert entries_of(merged) == entries_of(block_map)
