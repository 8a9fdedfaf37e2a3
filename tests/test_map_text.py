"""What ``pgwal map`` prints of any map, beside the plainest way to print it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pgwal_process import peak_mb, succeed

from pgwal.relation import INVALID_BLOCK_NUMBER, Fork
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.codec import decode_summary, encode_summary
from pgwal_cli.map_blocks import json_of, text_of

LAST = INVALID_BLOCK_NUMBER - 1

Changes = dict[tuple[int, int], tuple[int | None, set[int]]]

changes = st.dictionaries(
    st.tuples(st.integers(16384, 16386), st.sampled_from([Fork.MAIN, Fork.VM])),
    st.tuples(st.none() | st.integers(0, 9), st.sets(st.integers(0, 40) | st.integers(LAST - 3, LAST))),
    max_size=3,
)


def made(content: Changes) -> BlockMap:
    block_map = BlockMap()
    for (rel_number, fork), (limit_block, blocks) in content.items():
        key = RelationFork(1663, 5, rel_number, fork)
        block_map.set_limit(key, INVALID_BLOCK_NUMBER if limit_block is None else limit_block)
        block_map.mark(key, blocks)
    return block_map


def intervals(blocks: set[int]) -> list[list[int]]:
    ordered = sorted(blocks)
    starts = ordered[:1] + [right for left, right in pairwise(ordered) if right != left + 1]
    ends = [left for left, right in pairwise(ordered) if right != left + 1] + ordered[-1:]
    return [[first, last] for first, last in zip(starts, ends, strict=True)]


def forks(content: Changes) -> list[dict[str, Any]]:
    return [
        {
            "tablespace_oid": 1663,
            "database_oid": 5,
            "relation_number": rel_number,
            "fork": Fork(fork).name.lower(),
            "limit_block_no": limit_block,
            "block_ranges": intervals(blocks),
        }
        for (rel_number, fork), (limit_block, blocks) in sorted(content.items())
    ]


def lines(content: Changes, *, individual: bool) -> list[str]:
    found = []
    for entry in forks(content):
        prefix = f"TS 1663, DB 5, REL {entry['relation_number']}, FORK {entry['fork']}:"
        found += [] if entry["limit_block_no"] is None else [f"{prefix} limit {entry['limit_block_no']}"]
        for first, last in entry["block_ranges"]:
            if individual:
                found += [f"{prefix} block {block_no}" for block_no in range(first, last + 1)]
            else:
                found.append(f"{prefix} block {first}" if first == last else f"{prefix} blocks {first}..{last}")
    return found


@given(content=changes, batch=st.integers(1, 4))
@example(content={}, batch=1)
@example(content={(16384, Fork.MAIN): (None, {0, 1, LAST}), (16385, Fork.MAIN): (0, set())}, batch=2)
def test_a_map_is_printed_in_batches_as_in_one_piece(content: Changes, batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgwal_cli.map_blocks.MAP_LINES_AT_ONCE", batch)
        for individual in (False, True):
            printed = "".join(text_of(made(content), individual))
            assert printed.splitlines() == lines(content, individual=individual)
            assert not printed or printed.endswith("\n")
        assert "".join(json_of(made(content))) == json.dumps({"version": 1, "forks": forks(content)}, indent=2) + "\n"


def test_the_memory_of_a_map_does_not_grow_with_what_is_printed(tmp_path: Path) -> None:
    block_map = BlockMap()
    block_map.mark(RelationFork(1663, 5, 16384, Fork.MAIN), range(0, 2_000_000, 2))
    path = tmp_path / "every_other.summary"
    path.write_bytes(encode_summary(block_map))
    assert decode_summary(path.read_bytes(), "") == block_map
    small = tmp_path / "small.summary"
    small.write_bytes(encode_summary(BlockMap()))
    least = peak_mb("map", small)
    for form in ((), ("--json",), ("-i",)):
        assert peak_mb("map", *form, path) < least + 25, form
    printed = succeed("map", path)
    assert printed.count("\n") == 1_000_000
    assert printed.endswith(" block 1999998\n")
