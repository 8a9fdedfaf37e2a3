"""What a chain is once backups in it have been merged: the full backup has the place of the one that it was made of."""

from dataclasses import replace

import pytest

from pgwal.backup.backup_file import BackupTotals
from pgwal.backup.backup_id import BackupKind, parse_backup_id
from pgwal.backup.chain import is_on_history, is_superseded, newest, prior_of, root_of
from pgwal.backup.entry import BackupEntry
from pgwal.errors import ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.timeline import TimelineHistory, TimelineSwitch

FIRST, SECOND, THIRD = "20261122T101530Z", "20261122T111530Z", "20261122T121530Z"
BRANCHED = TimelineHistory(2, (TimelineSwitch(1, Lsn(250)),))


def backup(backup_id: str, start: int, prior: str | None = None) -> BackupEntry:
    return BackupEntry(
        backup_id=backup_id,
        kind=parse_backup_id(backup_id)[1],
        prior_id=prior,
        system_identifier=1,
        major=17,
        start_lsn=Lsn(start),
        start_timeline_id=1,
        stop_lsn=Lsn(start),
        stop_timeline_id=1,
        label="",
        started_at="2026-11-22T11:15:30Z",
        finished_at="2026-11-22T11:16:00+00:00",
        wal_segment_size=1 << 24,
        data_checksums=True,
        tablespaces={},
        totals=BackupTotals(),
    )


FULL = backup(f"{FIRST}_full", 100)
INCREMENTAL = backup(f"{SECOND}_incr", 200, FULL.backup_id)
LAST = backup(f"{THIRD}_incr", 300, INCREMENTAL.backup_id)
MERGED = replace(INCREMENTAL, backup_id=f"{SECOND}_full", kind=BackupKind.FULL, prior_id=None)


def by_id(*entries: BackupEntry) -> dict[str, BackupEntry]:
    return {entry.backup_id: entry for entry in entries}


def test_what_a_backup_builds_on_is_what_that_was_merged_into() -> None:
    assert prior_of(LAST, by_id(FULL, INCREMENTAL, LAST)) == INCREMENTAL
    assert prior_of(LAST, by_id(FULL, INCREMENTAL, LAST, MERGED)) == MERGED
    assert prior_of(LAST, by_id(FULL, LAST)) is None
    assert prior_of(FULL, by_id(FULL, INCREMENTAL, LAST)) is None


def test_the_root_is_the_full_backup_as_far_as_the_chain_is_there() -> None:
    assert root_of(LAST, by_id(FULL, INCREMENTAL, LAST)) == FULL
    assert root_of(LAST, by_id(FULL, INCREMENTAL, LAST, MERGED)) == MERGED
    assert root_of(LAST, by_id(INCREMENTAL, LAST)) == INCREMENTAL
    assert root_of(LAST, by_id(LAST)) == LAST
    # Two that build on each other are no chain, and end the search.
    circle = replace(INCREMENTAL, prior_id=LAST.backup_id)
    assert root_of(LAST, by_id(circle, LAST)) == circle


def test_an_incremental_backup_is_superseded_by_the_full_one_of_its_time() -> None:
    assert is_superseded(INCREMENTAL, by_id(INCREMENTAL, MERGED))
    assert not is_superseded(INCREMENTAL, by_id(FULL, INCREMENTAL, LAST))
    # A full one stands for itself.
    assert not is_superseded(MERGED, by_id(INCREMENTAL, MERGED))


def test_the_newest_backup_counts_in_its_merged_form() -> None:
    assert newest([FULL, INCREMENTAL]) == INCREMENTAL
    assert newest([INCREMENTAL, FULL]) == INCREMENTAL
    assert newest([MERGED, FULL, INCREMENTAL]) == MERGED
    # A timeline outweighs a position: what is on the later one was taken later.
    later = replace(FULL, backup_id=f"{THIRD}_full", start_timeline_id=2, stop_timeline_id=2)
    assert newest([later, INCREMENTAL]) == later
    with pytest.raises(ObjectNotFound):
        newest([])


def test_both_ends_of_a_timelines_part_are_on_the_history() -> None:
    beyond = replace(FULL, start_timeline_id=2, stop_timeline_id=2)
    for lsn, is_there in ((249, False), (250, True), (251, True)):
        assert is_on_history(replace(beyond, start_lsn=Lsn(lsn), stop_lsn=Lsn(lsn)), BRANCHED) is is_there
    thrice = TimelineHistory(3, (TimelineSwitch(1, Lsn(250)), TimelineSwitch(2, Lsn(300))))
    for lsn, is_there in ((249, False), (250, True), (300, True), (301, False)):
        assert is_on_history(replace(beyond, start_lsn=Lsn(lsn), stop_lsn=Lsn(lsn)), thrice) is is_there
