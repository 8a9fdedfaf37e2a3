"""What a restore takes that is told nothing can be restored after any expire, whatever the rules say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keeping.stored_repository import (
    FIRST,
    FULL,
    MB,
    ON_SECOND,
    SECOND,
    SECOND_FULL,
    TABLE,
    THIRD_FULL,
    Stored,
    build_chains,
    store_backup,
)
from keeping.test_retention import DAY, NOW, Cluster, backup, clusters, ids
from pgwal_process import run_pgwal, succeed

from pgwal.backup.backup_id import time_part
from pgwal.backup.chain import resolve_chain
from pgwal.backup.entry import BackupEntry
from pgwal.backup.retention import decide_retention
from pgwal.backup.retention_rules import NEWEST, Period, RetentionRules
from pgwal.backup.wal_retention import WalRetention, with_all_wal
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.lsn import Lsn, LsnRange

SINCE = "20261125T101530Z_incr"
RULES = st.builds(
    RetentionRules,
    st.none() | st.integers(1, 3),
    st.none() | st.integers(0, 30).map(lambda days: NOW - days * DAY),
    st.dictionaries(st.sampled_from(Period), st.integers(1, 4)),
    st.none() | st.integers(0, 30).map(lambda days: NOW - days * DAY),
    st.none() | st.integers(1, 3),
)


def taken_by_restore(cluster: Cluster) -> BackupEntry | None:
    """Return the one that ended last of those that the last timeline goes back to."""
    switches = cluster.histories[cluster.timeline_id].switches if cluster.histories else ()
    left = {switch.timeline_id: switch.switch_lsn for switch in switches}
    found = None
    for entry in cluster.entries:
        leads_there = entry.stop_lsn <= left.get(entry.stop_timeline_id, entry.stop_lsn)
        if leads_there and (found is None or entry.stop_lsn > found.stop_lsn):
            found = entry
    return found


def with_one_of_a_standby(cluster: Cluster, data: st.DataObject) -> Cluster:
    """Add one that starts earlier than others, where the standby's last restart point was, and ends after them."""
    switches = cluster.histories[cluster.timeline_id].switches if cluster.histories else ()
    start = data.draw(st.integers(switches[-1].switch_lsn if switches else 1000, cluster.lsn))
    own = backup(29, start, timeline_id=cluster.timeline_id)
    return replace(cluster, entries=[*cluster.entries, replace(own, stop_lsn=Lsn(cluster.lsn + 5))])


@given(clusters(), RULES, st.booleans(), st.data())
def test_what_a_restore_takes_is_kept_with_all_that_it_needs(
    cluster: Cluster, rules: RetentionRules, merging: bool, data: st.DataObject
) -> None:
    if data.draw(st.booleans()):
        cluster = with_one_of_a_standby(cluster, data)
    expected = taken_by_restore(cluster)
    # The server may be on a timeline that another one has left since.
    current = {data.draw(st.integers(1, cluster.timeline_id))}
    unusable = data.draw(st.sets(st.sampled_from(ids(cluster.entries)))) if cluster.entries else set()
    found = decide_retention(cluster.entries, cluster.histories, current, rules, unusable_ids=unusable, merging=merging)
    if expected is None:
        return
    resolve_chain(found.kept, expected.backup_id)
    assert not rules.limits_backups or NEWEST in found.reasons[expected.backup_id]
    full = with_all_wal(found.kept, cluster.histories, current, rules, unusable_ids=unusable)
    wal = WalRetention(full, cluster.histories, current, (), [e for e in found.kept if e not in full])
    for timeline_id in range(expected.start_timeline_id, cluster.timeline_id + 1):
        for lsn in range(expected.start_lsn, cluster.lsn + 50, 7):
            assert wal.needs(LsnRange(timeline_id, Lsn(lsn), Lsn(lsn + 1)))


# ---- as a repository has it


def with_since(stored: Stored) -> None:
    """The newest backup builds on the oldest chain, as --since has it."""
    _store(stored, SINCE, FULL, 8)


def with_a_standby(stored: Stored) -> None:
    """A standby had not come far when its backup began, on the oldest chain, and ended after the others."""
    _store(stored, SINCE, FULL, 4, last=8)


def with_a_timeline(stored: Stored) -> None:
    """Somebody has archived the history of a server that went on from the middle of the WAL."""
    stored.repository.wal.write_history(2, f"1\t{Lsn(4 * MB)}\tno recovery target specified\n".encode())


def _store(stored: Stored, backup_id: str, prior_id: str, number: int, *, last: int | None = None) -> None:
    start, after = Lsn(number * MB + 40), (last or number) * MB + 4000
    stop = next(Lsn(lsn) for lsn, _ in stored.records if lsn > after)
    with stored.repository.lock_backups():
        blocks = {TABLE: (3, 3, {1: b"\7" * 8192})}
        store_backup(stored.repository, backup_id, prior_id, start, stop, {"base/5/16385": b"\7" * 8192}, blocks)


STATES = {with_since: SINCE, with_a_standby: SINCE, with_a_timeline: SECOND}
GONE = {
    with_since: [FIRST, SECOND, SECOND_FULL, ON_SECOND],
    with_a_standby: [FIRST, SECOND, SECOND_FULL, ON_SECOND],
    with_a_timeline: [SECOND_FULL, ON_SECOND],
}


@pytest.fixture(params=STATES, ids=lambda state: state.__name__)
def state(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Stored, str, list[str]]:
    """A repository, the backup that a restore takes of it, and those that need not be kept."""
    stored = build_chains(tmp_path / "repo")
    request.param(stored)
    return stored, STATES[request.param], GONE[request.param]


def restored(stored: Stored, target: Path) -> tuple[str, dict[str, bytes]]:
    """Restore without a word on what; return the id of what was taken and the files."""
    chosen = restore_backup(RestoreRequest(stored.repository.place, None, target, "false")).entry.backup_id
    return chosen, {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [(), ("--keep-wal-for", "1"), ("--merge",)])
def test_a_restore_gives_the_same_after_an_expire(
    state: tuple[Stored, str, list[str]], tmp_path: Path, options: tuple[str, ...]
) -> None:
    stored, expected, gone = state
    before, files = restored(stored, tmp_path / "before")
    assert before == expected
    succeed("expire", "--repo", stored.root, "--keep-full", "1", *options)
    after, files_after = restored(stored, tmp_path / "after")
    assert (time_part(after), files_after) == (time_part(expected), files)
    assert not set(gone) & set(stored.repository.catalogue.ids())


def test_the_table_says_why_it_is_kept(tmp_path: Path) -> None:
    stored = build_chains(tmp_path / "repo")
    with_since(stored)
    shown = run_pgwal("expire", "--repo", stored.root, "--keep-full", "1", "--dry-run").stdout
    rows = {line.split()[0]: line for line in shown.splitlines() if line.startswith("2026")}
    assert "newest" in rows[SINCE]
    assert "keep-full" not in rows[SINCE]
    assert f"needed by {SINCE}" in rows[FULL]
    assert "keep-full" in rows[THIRD_FULL]
