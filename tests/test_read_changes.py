"""What changed between two positions, from summaries and WAL of a repository that is built here."""

from __future__ import annotations

from pathlib import Path

import pytest
from core.wal_builder import RM_HEAP, RM_SMGR, BlockSpec, RecordSpec, WalBuilder

from pgwal.engine.summarize import read_changes, window
from pgwal.errors import WalGap
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import WAL_DIRECTORY, RepositoryIdentity
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.link import Link
from pgwal.wal import layout

MB = 1 << 20
IDENTITY = RepositoryIdentity(0x1234567890ABCDEF, MB, 16)
TABLE = RelationFork(1663, 5, 16384, 0)

TRUNCATION = RecordSpec(
    RM_SMGR,
    layout.SMGR_TRUNCATE | layout.INFO_SPECIAL_REL_UPDATE,
    main_data=layout.SmgrTruncate.build(
        {"block_no": 100, "locator": {"spc_oid": 1663, "db_oid": 5, "rel_number": 16384}, "flags": 1}
    ),
)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open_or_create(tmp_path / "repo", IDENTITY)


def span(timeline_id: int, start: int, end: int) -> LsnRange:
    return LsnRange(timeline_id, Lsn(start), Lsn(end))


def write(repository: Repository, summary_range: LsnRange, block_map: BlockMap) -> None:
    """Write a summary that begins behind a record and ends behind one, each some bytes before that."""
    geometry = repository.geometry
    prev_lsn, last_lsn = (Lsn(geometry.first_record_position(lsn) - 72) for lsn in summary_range[1:])
    repository.summaries.write(summary_range, block_map, Link(prev_lsn, last_lsn))


def shortened(limit: int) -> BlockMap:
    block_map = BlockMap()
    block_map.set_limit(TABLE, limit)
    return block_map


def archive(repository: Repository, builder: WalBuilder) -> None:
    """Store what was built, one segment, as received and complete."""
    name = repository.geometry.file_name(builder.timeline_id, builder.start_lsn // MB)
    repository.store.put(f"{WAL_DIRECTORY}/{name}", builder.wal_to_segment_end())


def insertion(block_no: int) -> RecordSpec:
    return RecordSpec(RM_HEAP, 0, 700, (BlockSpec(0, locator=TABLE[:3], block_no=block_no, data=b"tuple"),), bytes(3))


def test_a_redo_point_behind_a_segments_header_needs_no_wal_of_that_segment(repository: Repository) -> None:
    # Up to 16 summaries are cut at segment ends, and a backup starts 40 bytes later.
    write(repository, span(1, MB, 2 * MB), shortened(100))
    write(repository, span(1, 2 * MB, 3 * MB), shortened(200))
    changes = read_changes(repository, window(repository, 1, Lsn(MB + 40), 1, Lsn(3 * MB + 40)))
    assert changes.limit_block(*TABLE) == 100


# A history file names a page's start as the switch point, or the end of the last record, which is the same place.
@pytest.mark.parametrize("switch", [2 * MB, 2 * MB + 40], ids=["page", "header"])
@pytest.mark.parametrize("first_end", [2 * MB, 2 * MB + 40], ids=["page", "header"])
@pytest.mark.parametrize("second_start", [2 * MB, 2 * MB + 40], ids=["page", "header"])
@pytest.mark.parametrize("touching", [1, 2])
def test_limits_beside_a_timeline_switch_count_as_0(
    repository: Repository, switch: int, first_end: int, second_start: int, touching: int
) -> None:
    repository.wal.write_history(2, f"1\t{Lsn(switch)}\tno recovery target specified\n".encode())
    write(repository, span(1, MB, first_end), shortened(100) if touching == 1 else BlockMap())
    write(repository, span(2, second_start, 3 * MB), shortened(100) if touching == 2 else BlockMap())
    changes = read_changes(repository, window(repository, 1, Lsn(MB), 2, Lsn(3 * MB)))
    assert changes.limit_block(*TABLE) == 0


def test_limits_away_from_a_timeline_switch_count(repository: Repository) -> None:
    repository.wal.write_history(2, b"1\t0/200000\t\n")
    write(repository, span(1, MB, MB + 8192), shortened(100))
    write(repository, span(1, MB + 8192, 2 * MB), BlockMap())
    write(repository, span(2, 2 * MB, 3 * MB), BlockMap())
    changes = read_changes(repository, window(repository, 1, Lsn(MB), 2, Lsn(3 * MB)))
    assert changes.limit_block(*TABLE) == 100


def test_records_count_by_where_they_start(repository: Repository) -> None:
    builder = WalBuilder(major=16, start_lsn=MB)
    builder.append_all([insertion(block_no) for block_no in (1, 2, 3)])
    builder.append_switch()
    archive(repository, builder)
    first, second, third, _ = builder.records
    cases = {(first.lsn, third.lsn): [1, 2], (second.lsn, third.end_lsn): [2, 3], (second.lsn, second.lsn): []}
    for (start, end), expected in cases.items():
        changes = read_changes(repository, [span(1, start, end)])
        assert list(changes.blocks_between(*TABLE, 0, 10)) == expected


def test_summaries_and_wal_are_merged_in_the_order_of_positions(repository: Repository) -> None:
    builder = WalBuilder(major=16, start_lsn=2 * MB, prev_lsn=2 * MB - 32)
    builder.append_all([insertion(150), TRUNCATION, insertion(120)])
    builder.append_switch()
    archive(repository, builder)
    regrown, earlier = BlockMap(), BlockMap()
    earlier.mark(TABLE, [50, 180])
    regrown.mark(TABLE, [130])
    write(repository, span(1, MB, 2 * MB), earlier)
    link = Link(builder.records[-1].lsn, Lsn(4 * MB - 32))
    repository.summaries.write(span(1, 3 * MB, 4 * MB), regrown, link)
    changes = read_changes(repository, [span(1, MB, 4 * MB)])
    assert changes.limit_block(*TABLE) == 100
    assert list(changes.blocks_between(*TABLE, 0, 1000)) == [50, 120, 130]


def test_a_hole_is_named(repository: Repository) -> None:
    write(repository, span(1, MB, 2 * MB), BlockMap())
    write(repository, span(1, 3 * MB, 4 * MB), BlockMap())
    with pytest.raises(WalGap, match="0/200000") as caught:
        read_changes(repository, [span(1, MB, 4 * MB)])
    assert caught.value.facts == {"timeline_id": 1, "lsn": 2 * MB, "end_lsn": 3 * MB}


def test_a_summary_of_an_older_pgwal_does_not_count_without_its_wal(repository: Repository) -> None:
    write(repository, span(1, MB, 2 * MB), BlockMap())
    repository.summaries.write(span(1, 2 * MB, 3 * MB), BlockMap(), None)
    with pytest.raises(WalGap, match="0/200000") as caught:
        read_changes(repository, [span(1, MB, 3 * MB)])
    assert "an older pgwal wrote" in str(caught.value.hint)


def test_a_missing_history_is_a_gap(repository: Repository) -> None:
    with pytest.raises(WalGap, match="history of timeline 2") as caught:
        window(repository, 1, Lsn(MB), 2, Lsn(2 * MB))
    assert caught.value.facts == {"timeline_id": 2}
