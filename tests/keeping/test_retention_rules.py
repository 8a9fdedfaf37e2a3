"""The rules of the calendar, pins, WAL and merges, each against a model that looks at everything, one by one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keeping.test_retention import DAY, NOW, Cluster, backup, clusters, history_of, ids

from pgwal.backup.chain import is_on_history, place_of, resolve_chain
from pgwal.backup.entry import BackupEntry
from pgwal.backup.merge_plan import merged_head, plan_merges, with_merged
from pgwal.backup.retention import Retention, decide_retention, end_times
from pgwal.backup.retention_rules import (
    KEEP_FULL,
    NEWEST,
    NO_RULE,
    PINNED,
    Period,
    Reason,
    RetentionRules,
    newest_of_periods,
)
from pgwal.backup.wal_retention import WalRetention, with_all_wal
from pgwal.lsn import Lsn, LsnRange

PERIODS = st.dictionaries(st.sampled_from(Period), st.integers(1, 4), min_size=1)


def decide(
    cluster: Cluster, rules: RetentionRules, *, merging: bool = False, pinned: set[str] | None = None
) -> Retention:
    return decide_retention(
        cluster.entries,
        cluster.histories,
        {cluster.timeline_id},
        rules,
        pinned_ids=pinned or set(),
        merging=merging,
    )


# ---- the calendar


def of_calendar(time: datetime, period: Period) -> tuple[int, ...]:
    """Return what two times have in common in a period, without any formatting."""
    time = time.astimezone(UTC)
    match period:
        case Period.HOURLY:
            return time.year, time.month, time.day, time.hour
        case Period.DAILY:
            return time.year, time.month, time.day
        case Period.WEEKLY:
            # Whole weeks since a Monday.
            return ((time - datetime(1900, 1, 1, tzinfo=UTC)) // timedelta(days=7),)
        case Period.MONTHLY:
            return time.year, time.month
        case Period.YEARLY:
            return (time.year,)


def model_of_periods(backups: list[tuple[datetime, str]], period: Period, count: int) -> set[str]:
    """Go from the newest to the oldest, as restic does, and keep whatever is the first of its period."""
    kept: set[str] = set()
    seen: list[tuple[int, ...]] = []
    for _, time, backup_id in sorted(((t, n), t, b) for n, (t, b) in enumerate(backups))[::-1]:
        if of_calendar(time, period) not in seen and len(seen) < count:
            seen.append(of_calendar(time, period))
            kept.add(backup_id)
    if backups and len(seen) < count:
        kept.add(min(backups, key=lambda each: each[0])[1])
    return kept


TIMES = st.datetimes(datetime(2019, 12, 1), datetime(2027, 2, 1), timezones=st.just(UTC))
CLOSE = st.integers(0, 90 * 24).map(lambda hours: datetime(2025, 12, 1, tzinfo=UTC) + timedelta(hours=hours / 3))


@given(st.lists(TIMES | CLOSE, max_size=40), st.sampled_from(Period), st.integers(1, 8))
def test_periods_keep_what_the_model_keeps(times: list[datetime], period: Period, count: int) -> None:
    backups = [(time, str(number)) for number, time in enumerate(times)]
    assert newest_of_periods(backups, period, count).keys() == model_of_periods(backups, period, count)


def test_periods_are_those_of_utc() -> None:
    east = timezone(timedelta(hours=9))
    times = [datetime(2026, 1, 1, 8, 59, tzinfo=east), datetime(2026, 1, 1, 9, 1, tzinfo=east)]
    backups = [(time, str(number)) for number, time in enumerate(times)]
    assert newest_of_periods(backups, Period.DAILY, 2) == {
        "0": Reason("daily", "2025-12-31"),
        "1": Reason("daily", "2026-01-01"),
    }
    # The first days of January may be of the last week of the year before.
    assert newest_of_periods([(datetime(2027, 1, 3, tzinfo=UTC), "a")], Period.WEEKLY, 1) == {
        "a": Reason("weekly", "2026-W53")
    }


def model_of_rules(cluster: Cluster, rules: RetentionRules, pinned: set[str]) -> set[str]:
    """Return the ids of what is kept, told by each rule on its own, and then with what that builds on."""
    entries = sorted(cluster.entries, key=place_of)
    ended = end_times(entries)
    kept = set(pinned)
    for period, count in rules.periods.items():
        kept |= model_of_periods([(ended[e.backup_id], e.backup_id) for e in entries], period, count)
    of_current = [e for e in entries if is_on_history(e, history_of(cluster, cluster.timeline_id))]
    kept |= set(ids(entries[-1:] + of_current[-1:]))
    fulls = [e for e in entries if e.prior_id is None]
    chosen = fulls[-(rules.keep_full or 1) :]
    chosen += [e for e in of_current if e.prior_id is None][-1:]
    for entry in entries:
        kept |= {entry.backup_id} if resolve_chain(entries, entry.backup_id)[-1] in chosen else set()
    return {e.backup_id for e in chain(*(resolve_chain(entries, backup_id) for backup_id in kept))}


@given(clusters(), st.none() | st.integers(1, 3), PERIODS, st.data())
def test_all_rules_keep_what_the_model_keeps(
    cluster: Cluster, keep_full: int | None, periods: dict[Period, int], data: st.DataObject
) -> None:
    pinned = data.draw(st.sets(st.sampled_from(ids(cluster.entries)))) if cluster.entries else set()
    rules = RetentionRules(keep_full, periods=periods)
    found = decide(cluster, rules, pinned=pinned)
    assert set(ids(found.kept)) == model_of_rules(cluster, rules, pinned)
    assert sorted(ids(found.kept + found.expired)) == sorted(ids(cluster.entries))
    assert found.reasons.keys() == set(ids(found.kept))
    assert all(found.reasons.values())
    for kept in found.kept:
        resolve_chain(found.kept, kept.backup_id)
    # Whatever goes, goes before what it builds on.
    gone: set[str] = set()
    for expired in found.expired:
        gone.add(expired.backup_id)
        assert all(e.backup_id in gone for e in cluster.entries if e.prior_id == expired.backup_id)


def test_reasons_name_the_rules() -> None:
    full = backup(0, 100)
    first, second = backup(1, 110, full), backup(2, 120, full)
    rules = RetentionRules(keep_full=1, periods={Period.DAILY: 1})
    found = decide_retention([full, first, second], {}, {1}, rules, pinned_ids={first.backup_id})
    day = datetime.fromisoformat(second.finished_at).strftime("%Y-%m-%d")
    assert found.reasons[second.backup_id] == [NEWEST, KEEP_FULL, Reason("daily", day)]
    assert found.reasons[first.backup_id] == [PINNED, NEWEST, KEEP_FULL]
    assert [str(reason) for reason in found.reasons[full.backup_id]][2:] == [
        f"needed by {second.backup_id}",
        f"needed by {first.backup_id}",
    ]
    assert decide_retention([full], {}, {1}, RetentionRules()).reasons == {full.backup_id: [NO_RULE]}


def test_branches_that_no_rule_keeps_go_alone() -> None:
    """As where each backup of a week builds on its full one."""
    old, full = backup(0, 100), backup(10, 200)
    branches = [backup(10 + day, 200 + 10 * day, full) for day in (1, 2, 3)]
    newer = backup(20, 300)
    rules = RetentionRules(periods={Period.WEEKLY: 2})
    found = decide_retention([old, full, *branches, newer], {}, {1}, rules)
    assert found.kept == [full, branches[2], newer]
    assert found.expired == [old, branches[1], branches[0]]


def test_a_backup_that_cannot_be_recovered_takes_no_place() -> None:
    fulls = [backup(day, 100 + day) for day in range(6)]
    rules = RetentionRules(periods={Period.DAILY: 2})
    lost = {fulls[5].backup_id, fulls[3].backup_id}
    found = decide_retention(fulls, {}, {1}, rules, unusable_ids=lost)
    assert found.kept == [fulls[2], fulls[4], fulls[5]]


# ---- merging


@given(clusters(), PERIODS, st.none() | st.integers(0, 30), st.data())
def test_merges_leave_every_point_that_is_wanted_and_nothing_else(
    cluster: Cluster, periods: dict[Period, int], days: int | None, data: st.DataObject
) -> None:
    pinned = data.draw(st.sets(st.sampled_from(ids(cluster.entries)))) if cluster.entries else set()
    rules = RetentionRules(None, None if days is None else NOW - days * DAY, periods)
    before = decide(cluster, rules, merging=True, pinned=pinned)
    wanted = {e.backup_id for e in before.kept if any(r.rule != "needed by" for r in before.reasons[e.backup_id])}
    merges = plan_merges(before)
    pinned |= {merged_head(e).backup_id for e in merges if e.backup_id in pinned}
    after = decide(replace(cluster, entries=with_merged(cluster.entries, merges)), rules, merging=True, pinned=pinned)
    merged = {e.backup_id: merged_head(e).backup_id for e in merges}
    assert set(ids(after.kept)) == {merged.get(backup_id, backup_id) for backup_id in wanted}
    for kept in after.kept:
        resolve_chain(after.kept, kept.backup_id)
    # A second time there is nothing to do, whether the others are gone or not.
    assert plan_merges(after) == []
    left = decide(replace(cluster, entries=after.kept), rules, merging=True, pinned=pinned)
    assert (ids(left.kept), left.expired) == (ids(after.kept), [])


def test_what_was_merged_counts_for_nothing_and_its_chain_goes() -> None:
    full = backup(0, 100)
    chain_of = [full]
    for day in (1, 2, 3, 4):
        chain_of.append(backup(day, 100 + 10 * day, chain_of[-1]))
    merged = merged_head(chain_of[3])
    found = decide_retention([*chain_of, merged], {}, {1}, RetentionRules(keep_full=1))
    assert found.kept == [merged, chain_of[4]]
    assert found.expired == [chain_of[3], chain_of[2], chain_of[1], full]
    # Of two chains, the older one is kept for what is in it besides.
    assert decide_retention([*chain_of, merged], {}, {1}, RetentionRules(keep_full=2)).expired == [chain_of[3]]
    assert resolve_chain([*chain_of, merged], chain_of[4].backup_id) == [chain_of[4], merged]
    assert resolve_chain(chain_of, chain_of[4].backup_id) == chain_of[::-1]


# ---- WAL

WAL_RULES = st.tuples(st.none() | st.integers(1, 5), st.none() | st.integers(0, 30)).filter(any)


@given(clusters(), WAL_RULES)
def test_every_backup_keeps_its_own_wal_and_the_newest_all(
    cluster: Cluster, rule: tuple[int | None, int | None]
) -> None:
    count, days = rule
    since = None if days is None else NOW - days * DAY
    entries = sorted(cluster.entries, key=place_of)
    rules = RetentionRules(keep_wal_for=count, keep_wal_since=since)
    full = with_all_wal(entries, cluster.histories, {cluster.timeline_id}, rules)
    long_term = [e for e in entries if e not in full]
    wal = WalRetention(full, cluster.histories, {cluster.timeline_id}, (), long_term)
    for entry in entries:
        for lsn in range(entry.start_lsn, entry.stop_lsn):
            assert wal.needs(LsnRange(entry.start_timeline_id, Lsn(lsn), Lsn(lsn + 1)))
    end = max((e.stop_lsn for e in entries), default=0) + 100
    for entry in full:
        for timeline_id in range(1, cluster.timeline_id + 1):
            assert all(wal.needs(LsnRange(timeline_id, Lsn(at), Lsn(at + 1))) for at in range(entry.start_lsn, end, 7))
    wanted = set(ids(entries[-1:]))
    wanted |= set(ids([e for e in entries if is_on_history(e, history_of(cluster, cluster.timeline_id))][-1:]))
    wanted |= set(ids(entries[-count:])) if count else set()
    if since is not None:
        ended = end_times(entries)
        wanted |= {e.backup_id for e in entries if ended[e.backup_id] >= since}
        wanted |= set(ids([e for e in entries if ended[e.backup_id] <= since][-1:]))
    assert wanted <= set(ids(full))


def test_wal_between_long_term_backups_goes() -> None:
    entries = [backup(day, 100 * day) for day in (1, 2, 3, 4)]
    full = with_all_wal(entries, {}, {1}, RetentionRules(keep_wal_for=2))
    assert full == entries[2:]
    wal = WalRetention(full, {}, {1}, (), entries[:2])
    needed = [wal.needs(LsnRange(1, Lsn(start), Lsn(start + 50))) for start in range(0, 450, 50)]
    assert needed == [False, False, True, False, True, False, True, True, True]
    # One that is long-term is so for good: the WAL behind it may be gone.
    again = with_all_wal(entries, {}, {1}, RetentionRules(), long_term_ids={entries[1].backup_id})
    assert again == [entries[0], *entries[2:]]


@pytest.mark.parametrize("unusable", [True, False])
def test_a_backup_that_cannot_be_recovered_holds_no_place_for_wal(unusable: bool) -> None:
    entries: list[BackupEntry] = [backup(day, 100 * day) for day in (1, 2, 3)]
    lost = {entries[2].backup_id} if unusable else set[str]()
    full = with_all_wal(entries, {}, {1}, RetentionRules(keep_wal_for=1), unusable_ids=lost)
    assert full == entries[1 if unusable else 2 :]
