"""What expire keeps: random catalogues with trees and timelines, and the cases that other tools get wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from core.test_chain import entry
from hypothesis import given
from hypothesis import strategies as st

from pgwal.backup.backup_id import BackupKind, format_backup_id
from pgwal.backup.chain import is_on_history, place_of, resolve_chain
from pgwal.backup.entry import BackupEntry
from pgwal.backup.retention import Retention, decide_retention, find_chains
from pgwal.backup.retention_rules import RetentionRules
from pgwal.backup.wal_retention import WalRetention
from pgwal.lsn import Lsn, LsnRange
from pgwal.timeline import TimelineHistory, TimelineSwitch

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DAY = timedelta(days=1)


def backup(day: float, lsn: int, prior: BackupEntry | None = None, timeline_id: int = 1) -> BackupEntry:
    """Return a backup that was taken so many days after the first of them."""
    started = NOW - 30 * DAY + day * DAY
    kind = BackupKind.FULL if prior is None else BackupKind.INCREMENTAL
    return entry(
        format_backup_id(int(started.timestamp()), kind),
        None if prior is None else prior.backup_id,
        start_lsn=Lsn(lsn),
        stop_lsn=Lsn(lsn + 1),
        start_timeline_id=timeline_id,
        stop_timeline_id=timeline_id,
        started_at=started.isoformat(),
        finished_at=(started + DAY / 48).isoformat(),
    )


def ids(entries: list[BackupEntry]) -> list[str]:
    return [e.backup_id for e in entries]


# ---- random clusters


@dataclass
class Cluster:
    """Backups of a cluster that was promoted, or restored to an earlier point, now and then."""

    entries: list[BackupEntry]
    histories: dict[int, TimelineHistory]
    timeline_id: int
    lsn: int


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    cluster = Cluster([], {}, 1, 1000)
    history = TimelineHistory(1)
    for day in range(draw(st.integers(1, 14))):
        cluster.lsn += draw(st.integers(2, 50))
        step = draw(st.sampled_from(["full", "incremental", "incremental", "incremental", "switch"]))
        if step == "switch":
            # Back to any point after the last switch: the end is a promotion, an earlier one a restore.
            begin = history.switches[-1].switch_lsn if history.switches else Lsn(1000)
            cluster.lsn = draw(st.integers(begin, cluster.lsn))
            switch = TimelineSwitch(cluster.timeline_id, Lsn(cluster.lsn))
            cluster.timeline_id += 1
            history = TimelineHistory(cluster.timeline_id, (*history.switches, switch))
            cluster.histories[cluster.timeline_id] = history
            continue
        usable = [e for e in cluster.entries if is_on_history(e, history) and e.stop_lsn < cluster.lsn]
        prior = draw(st.sampled_from(usable)) if usable and step == "incremental" else None
        cluster.entries.append(backup(2 * day, cluster.lsn, prior, cluster.timeline_id))
        cluster.lsn += 1
    return cluster


rules = st.tuples(st.none() | st.integers(1, 5), st.none() | st.integers(0, 30))


def decide(cluster: Cluster, keep_full: int | None, keep_days: int | None) -> Retention:
    since = None if keep_days is None else NOW - keep_days * DAY
    return decide_retention(cluster.entries, cluster.histories, {cluster.timeline_id}, RetentionRules(keep_full, since))


def history_of(cluster: Cluster, timeline_id: int) -> TimelineHistory:
    return cluster.histories.get(timeline_id, TimelineHistory(timeline_id))


@given(clusters(), rules)
def test_what_is_kept_is_whole_and_has_its_wal(cluster: Cluster, rule: tuple[int | None, int | None]) -> None:
    found = decide(cluster, *rule)
    assert found.broken == []
    assert sorted(ids(found.kept + found.expired)) == sorted(ids(cluster.entries))
    wal = WalRetention(found.kept, cluster.histories, {cluster.timeline_id})
    for kept in found.kept:
        assert {e.backup_id for e in resolve_chain(found.kept, kept.backup_id)}
        for timeline_id in range(kept.start_timeline_id, cluster.timeline_id + 1):
            if is_on_history(kept, history_of(cluster, timeline_id)):
                # A timeline that was left may have gone on far beyond where the current one is.
                end = Lsn(max(cluster.lsn, kept.stop_lsn) + 100)
                for part in history_of(cluster, timeline_id).ranges_between(kept.start_lsn, end):
                    assert part.start == part.end or wal.needs(part)
                    assert wal.needs(LsnRange(part.timeline_id, part.start, Lsn(part.start + 1)))
    # Whatever goes, goes before what it builds on.
    gone: set[str] = set()
    for expired in found.expired:
        gone.add(expired.backup_id)
        assert all(e.backup_id in gone for e in cluster.entries if e.prior_id == expired.backup_id)


@given(clusters(), rules)
def test_the_last_chain_is_never_removed(cluster: Cluster, rule: tuple[int | None, int | None]) -> None:
    kept = decide(cluster, *rule).kept
    fulls = [e for e in cluster.entries if e.prior_id is None]
    kept_fulls = [e for e in kept if e.prior_id is None]
    assert not fulls or fulls[-1] in kept_fulls
    current = history_of(cluster, cluster.timeline_id)
    usable = [e for e in fulls if is_on_history(e, current)]
    assert not usable or usable[-1] in kept_fulls
    if rule[0] is not None:
        assert set(ids(fulls[-rule[0] :])) <= set(ids(kept_fulls))
    # Nor is the newest backup, which may build on any.
    for entries in (cluster.entries, [e for e in cluster.entries if is_on_history(e, current)]):
        assert not entries or max(entries, key=place_of) in kept


@given(clusters(), st.integers(1, 30))
def test_every_point_of_the_last_days_stays_reachable(cluster: Cluster, keep_days: int) -> None:
    since = NOW - keep_days * DAY
    kept = decide(cluster, None, keep_days).kept
    current = history_of(cluster, cluster.timeline_id)
    on_history = [e for e in cluster.entries if is_on_history(e, current)]
    # A point is reachable if a backup on its history ended before; the last that had ended when the days began counts.
    if any(datetime.fromisoformat(e.finished_at) <= since for e in on_history if e.prior_id is None):
        reaching = [e for e in kept if is_on_history(e, current) and datetime.fromisoformat(e.finished_at) <= since]
        assert reaching
    assert {e.backup_id for e in cluster.entries if datetime.fromisoformat(e.finished_at) >= since} <= set(ids(kept))


@given(clusters(), rules, st.data())
def test_the_last_chain_that_can_be_recovered_is_never_removed(
    cluster: Cluster, rule: tuple[int | None, int | None], data: st.DataObject
) -> None:
    unusable = data.draw(st.sets(st.sampled_from(ids(cluster.entries)))) if cluster.entries else set()
    since = None if rule[1] is None else NOW - rule[1] * DAY
    found = decide_retention(
        cluster.entries,
        cluster.histories,
        {cluster.timeline_id},
        RetentionRules(rule[0], since),
        unusable_ids=unusable,
    )
    chains = [c for c in find_chains(cluster.entries)[0] if set(ids(c.members)) - unusable]
    wanted = chains[-(rule[0] or 1) :]
    assert {c.full.backup_id for c in wanted} <= set(ids(found.kept))


@given(clusters())
def test_without_a_rule_everything_is_kept(cluster: Cluster) -> None:
    assert sorted(ids(decide(cluster, None, None).kept)) == sorted(ids(cluster.entries))


# ---- cases


def test_days_keep_the_full_backup_before_them_and_no_older_one() -> None:
    fulls = [backup(day, 100 + day) for day in (0, 7, 14, 21, 28)]
    found = decide_retention(fulls, {}, {1}, RetentionRules(keep_since=NOW - 5 * DAY))
    assert found.kept == fulls[3:]
    both = decide_retention(fulls, {}, {1}, RetentionRules(keep_since=NOW - 5 * DAY, keep_full=4))
    assert both.kept == fulls[1:]


def test_a_tree_stays_while_its_newest_branch_is_kept() -> None:
    old = backup(0, 100)
    branches = [backup(1, 110, old), backup(2, 120, old), backup(27, 300, old)]
    newer = [backup(20, 200), backup(26, 250)]
    found = decide_retention([old, *branches, *newer], {}, {1}, RetentionRules(keep_since=NOW - 5 * DAY))
    assert found.expired == []
    found = decide_retention([old, *branches, *newer], {}, {1}, RetentionRules(keep_full=1))
    assert found.kept == [old, branches[2], newer[1]]
    assert found.expired == [branches[1], branches[0], newer[0]]


def test_after_a_restore_to_an_earlier_point_the_chain_that_led_there_stays() -> None:
    # The newest full backup lies behind the point that was restored to: nothing leads from it to timeline 2.
    before, behind = backup(0, 100), backup(5, 300)
    histories = {2: TimelineHistory(2, (TimelineSwitch(1, Lsn(200)),))}
    assert decide_retention([before, behind], histories, {2}, RetentionRules(keep_full=1)).kept == [before, behind]
    on_new = backup(28, 250, timeline_id=2)
    found = decide_retention([before, behind, on_new], histories, {2}, RetentionRules(keep_since=NOW - 5 * DAY))
    assert found.kept == [before, behind, on_new]
    assert decide_retention([before, behind, on_new], histories, {2}, RetentionRules(keep_full=1)).kept == [on_new]


def test_newest_means_by_time_on_every_timeline() -> None:
    old = backup(0, 10_000)
    new = backup(20, 500, timeline_id=2)
    histories = {2: TimelineHistory(2, (TimelineSwitch(1, Lsn(400)),))}
    assert decide_retention([old, new], histories, {2}, RetentionRules(keep_full=1)).kept == [new]


def test_broken_chains_neither_count_nor_go() -> None:
    full = backup(0, 100)
    orphan = backup(2, 120, backup(1, 110, full))
    below = backup(3, 130, orphan)
    backwards = backup(4, 50, full)
    circle = [backup(5, 200, full), backup(6, 210, full)]
    circle = [replace(circle[0], prior_id=circle[1].backup_id), replace(circle[1], prior_id=circle[0].backup_id)]
    found = decide_retention([full, orphan, below, backwards, *circle], {}, {1}, RetentionRules(keep_full=1))
    assert (found.kept, found.expired) == ([full], [])
    assert sorted(ids(found.broken)) == ids([orphan, below, backwards, *circle])
    assert decide_retention([orphan], {}, {1}, RetentionRules(keep_full=1)) == Retention([], [], [orphan])


def test_wal_of_a_current_timeline_that_no_backup_leads_to_is_left_alone() -> None:
    kept = [backup(0, 300)]
    histories = {2: TimelineHistory(2, (TimelineSwitch(1, Lsn(200)),))}
    wal = WalRetention(kept, histories, {2})
    assert wal.needed_from == Lsn(300)
    assert wal.needs(LsnRange(2, Lsn(200), Lsn(250)))
    assert not wal.needs(LsnRange(1, Lsn(200), Lsn(300)))
    assert wal.needs(LsnRange(1, Lsn(200), Lsn(301)))


@pytest.mark.parametrize("count", [3000])
def test_many_backups(count: int) -> None:
    entries = [backup(0, 1)]
    for number in range(1, count):
        entries.append(backup(number / 200, 2 * number, entries[-1]))
    (chain,), broken = find_chains(reversed(entries))
    assert (ids(chain.members), broken) == (ids(entries), [])
