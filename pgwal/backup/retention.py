"""Which backups are kept, by which rules, and which WAL they need: pure decisions for expire.

A chain is a full backup with all that builds on it, a tree when several build on one.  Rules that count chains keep
each as a whole; those of the calendar keep backups, with what these build on.  Backups are old or new by the timeline
and the LSN at which they start, as WAL is: clocks may have been wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pgwal.backup.chain import (
    check_link,
    is_on_history,
    is_superseded,
    place_of,
    prior_of,
    restored_by_default,
)
from pgwal.backup.entry import BackupEntry
from pgwal.backup.retention_rules import (
    KEEP_DAYS,
    KEEP_FULL,
    NEWEST,
    NO_RULE,
    PINNED,
    Reason,
    RetentionRules,
    needed_by,
    newest_of_periods,
)
from pgwal.errors import ChainError
from pgwal.lsn import Lsn
from pgwal.timeline import TimelineHistory

_END_OF_TIMES = datetime.max.replace(tzinfo=UTC)
_NOTHING: Mapping[Lsn, Reason] = {}


@dataclass(frozen=True, slots=True)
class Chain:
    """A full backup, and those that build on it, each after the one that it builds on."""

    full: BackupEntry
    members: list[BackupEntry]


@dataclass(frozen=True, slots=True)
class Retention:
    """What is to become of each backup, and why it is kept.

    ``expired`` is in the order in which they go: none before those that build on it.  ``broken`` ones do not lead to
    a full backup; they are left to a person, and nothing is kept for them.
    """

    kept: list[BackupEntry] = field(default_factory=list)
    expired: list[BackupEntry] = field(default_factory=list)
    broken: list[BackupEntry] = field(default_factory=list)
    reasons: Mapping[str, Sequence[Reason]] = field(default_factory=dict, compare=False)
    """By id, of those that are kept."""


def find_chains(entries: Iterable[BackupEntry]) -> tuple[list[Chain], list[BackupEntry]]:
    """Return the chains, oldest first, and the backups that belong to none: something that they build on is amiss.

    For what is older see pgwal.backup.chain.place_of.
    """
    by_id = {entry.backup_id: entry for entry in entries}
    chains: dict[str, Chain] = {}
    broken: list[BackupEntry] = []
    chain_of: dict[str, Chain | None] = {}
    for backup_id in sorted(by_id, key=lambda backup_id: place_of(by_id[backup_id])):
        path: list[BackupEntry] = []
        at: str | None = backup_id
        # Upwards to a full backup, or one that is known already; what is on the way meanwhile belongs to none.
        while at is not None and at in by_id and at not in chain_of:
            chain_of[at] = None
            path.append(by_id[at])
            prior = prior_of(by_id[at], by_id)
            at = None if prior is None else prior.backup_id
        for entry in reversed(path):
            chain = _chain_for(entry, by_id, chain_of)
            chain_of[entry.backup_id] = chain
            if chain is None:
                broken.append(entry)
            else:
                chains[chain.full.backup_id] = chain
                chain.members.append(entry)
    return sorted(chains.values(), key=lambda chain: place_of(chain.full)), broken


def _chain_for(
    entry: BackupEntry, by_id: Mapping[str, BackupEntry], chain_of: Mapping[str, Chain | None]
) -> Chain | None:
    if entry.prior_id is None:
        return Chain(entry, [])
    prior = prior_of(entry, by_id)
    chain = None if prior is None else chain_of.get(prior.backup_id)
    if prior is not None and chain is not None:
        try:
            check_link(entry, prior)
        except ChainError:
            return None
    return chain


def decide_retention(
    entries: Iterable[BackupEntry],
    histories: Mapping[int, TimelineHistory],
    current_timeline_ids: Collection[int],
    rules: RetentionRules,
    *,
    pinned_ids: Collection[str] = (),
    unusable_ids: Collection[str] = (),
    built_on: Mapping[Lsn, Reason] = _NOTHING,
    merging: bool = False,
) -> Retention:
    """Decide what to keep: what any rule keeps, what is pinned, what these build on, and a chain from which to go on.

    ``keep_full`` and ``keep_since`` keep whole chains: for the latter, all with a backup that ended later, and the
    newest full backup that had ended by then, on any timeline and on the history of each one that still matters.  The
    newest chain of all, and the newest of each current timeline, are never removed, nor are the ``newest_backups``, on
    whatever they build.  A backup that has been merged into a full one counts for nothing.  Without a rule for backups,
    everything is kept.

    With ``merging``, each backup may be made a full one: so ``keep_since``, and what is never removed, are single
    backups, not chains.

    ``unusable_ids`` are backups that cannot be recovered, because WAL is missing.  A chain that has no other, and such
    a backup, do not stand in for what can be: the rules hold for the usable ones alone as well.  ``built_on`` is where
    backups start whose chains are kept for another reason.

    When a backup had ended is told by ``end_times``, not by its own clock alone.
    """
    chains, broken = find_chains(entries)
    if not rules.limits_backups:
        everything = [entry for chain in chains for entry in chain.members]
        reasons = {e.backup_id: [NO_RULE, *([PINNED] if e.backup_id in pinned_ids else [])] for e in everything}
        return Retention(everything, [], broken, reasons)
    keeping = _Keeping(chains, histories, current_timeline_ids, rules)
    for chain in chains:
        for lsn in {member.start_lsn for member in chain.members} & built_on.keys():
            keeping.keep(chain.members, built_on[lsn])
    for chain in keeping.counted:
        keeping.keep((member for member in chain.members if member.backup_id in pinned_ids), PINNED)
    for unusable in ((), unusable_ids):
        keeping.apply(unusable, merging=merging)
    return keeping.decision(broken)


class _Keeping:
    """What is kept, as far as rules have been applied."""

    def __init__(
        self,
        chains: Sequence[Chain],
        histories: Mapping[int, TimelineHistory],
        current_timeline_ids: Collection[int],
        rules: RetentionRules,
    ) -> None:
        self._chains = chains
        self._histories = histories
        self._current = current_timeline_ids
        self._rules = rules
        self._by_id = {entry.backup_id: entry for chain in chains for entry in chain.members}
        self._ended = end_times(self._by_id.values())
        self._reasons: dict[str, dict[Reason, None]] = {}
        self.counted = [
            Chain(chain.full, members)
            for chain in chains
            if (members := [entry for entry in chain.members if not is_superseded(entry, self._by_id)])
        ]
        """The chains, without what was merged into a full backup."""

    def keep(self, entries: Iterable[BackupEntry], reason: Reason) -> None:
        for entry in entries:
            self._reasons.setdefault(entry.backup_id, {})[reason] = None

    def apply(self, unusable_ids: Container[str], *, merging: bool) -> None:
        """Keep what the rules keep of all but the unusable backups."""
        rules = self._rules
        usable = [c for c in self.counted if any(entry.backup_id not in unusable_ids for entry in c.members)]
        backups = sorted(
            (entry for chain in usable for entry in chain.members if entry.backup_id not in unusable_ids), key=place_of
        )
        singles = [Chain(entry, [entry]) for entry in backups]
        units = singles if merging else usable
        self._keep_units(units, newest_of_each(units, self._histories, self._current), NEWEST)
        # They need not be of the newest chain: --since has a backup build on any.
        self._keep_units(singles, newest_backups(singles, self._histories, self._current), NEWEST)
        if rules.keep_full is not None:
            self._keep_units(usable, {chain.full.backup_id for chain in usable[-rules.keep_full :]}, KEEP_FULL)
        if rules.keep_since is not None:
            found = reaching_back(units, self._histories, self._current, rules.keep_since, self._ended)
            self._keep_units(units, found, KEEP_DAYS)
        ended = [(self._ended[entry.backup_id], entry.backup_id) for entry in backups]
        for period, count in rules.periods.items():
            for backup_id, reason in newest_of_periods(ended, period, count).items():
                self.keep([self._by_id[backup_id]], reason)

    def _keep_units(self, units: Iterable[Chain], full_ids: Container[str], reason: Reason) -> None:
        for unit in units:
            if unit.full.backup_id in full_ids:
                self.keep(unit.members, reason)

    def decision(self, broken: list[BackupEntry]) -> Retention:
        """Return it, with what is needed of other backups."""
        kept: list[BackupEntry] = []
        expired: list[BackupEntry] = []
        for chain in self._chains:
            for entry in reversed(chain.members):
                prior = prior_of(entry, self._by_id)
                if prior is not None and entry.backup_id in self._reasons:
                    self.keep([prior], needed_by(entry))
            kept += [entry for entry in chain.members if entry.backup_id in self._reasons]
            expired += [entry for entry in reversed(chain.members) if entry.backup_id not in self._reasons]
        return Retention(kept, expired, broken, {backup_id: list(found) for backup_id, found in self._reasons.items()})


def reaching_back(
    chains: list[Chain],
    histories: Mapping[int, TimelineHistory],
    current_timeline_ids: Collection[int],
    keep_since: datetime,
    ended: Mapping[str, datetime],
) -> set[str]:
    """Return the full backups of the chains from which every point since some time can be reached."""
    recent = [chain for chain in chains if any(ended[entry.backup_id] >= keep_since for entry in chain.members)]
    alive = {entry.stop_timeline_id for chain in recent for entry in chain.members}
    before = [chain for chain in chains if ended[chain.full.backup_id] <= keep_since]
    reaching = newest_of_each(before, histories, alive | set(current_timeline_ids))
    return reaching | {chain.full.backup_id for chain in recent}


def newest_of_each(
    chains: list[Chain], histories: Mapping[int, TimelineHistory], timeline_ids: Collection[int]
) -> set[str]:
    """Return the full backups of the newest chain of all and of the newest on each timeline's history."""
    found = {chain.full.backup_id for chain in chains[-1:]}
    for timeline_id in timeline_ids:
        history = histories.get(timeline_id, TimelineHistory(timeline_id))
        found |= set([c.full.backup_id for c in chains if is_on_history(c.full, history)][-1:])
    return found


def newest_backups(
    singles: list[Chain], histories: Mapping[int, TimelineHistory], timeline_ids: Collection[int]
) -> set[str]:
    """Return which backups nobody may lose, of single ones: the newest, and what a restore takes that is told nothing.

    The newest are those of all and of each timeline's history.
    """
    restored = restored_by_default([each.full for each in singles], histories)
    found = newest_of_each(singles, histories, timeline_ids)
    return found if restored is None else found | {restored.backup_id}


def end_times(entries: Iterable[BackupEntry]) -> dict[str, datetime]:
    """Return when backups had ended at the latest, by id.

    In the order of WAL, times that do not ascend were told by a clock that was wrong.  As many as possible are taken
    for right; any other backup had ended by the time of the next that is right, and may just have when none follows.
    A clock that was behind for some backups must not make one before them older than it says: that is believed, unless
    it is later than all that is taken for right.
    """
    ordered = sorted(entries, key=place_of)
    times = [datetime.fromisoformat(entry.finished_at) for entry in ordered]
    right = _longest_ascent(times)
    latest = max((times[at] for at in right), default=_END_OF_TIMES)
    ended: dict[str, datetime] = {}
    following = _END_OF_TIMES
    for at in reversed(range(len(ordered))):
        if at in right:
            following = times[at]
        ended[ordered[at].backup_id] = max(following, times[at]) if times[at] <= latest else following
    return ended


def _longest_ascent(times: Sequence[datetime]) -> set[int]:
    """Return the places of the most times of which none is before an earlier one; of several ways, the latest times."""
    # Backwards, each list of one length more begins with the latest time that it can.
    heads: list[int] = []
    following: dict[int, int] = {}
    for at in reversed(range(len(times))):
        length = bisect_right(heads, -times[at].timestamp(), key=lambda place: -times[place].timestamp())
        if length:
            following[at] = heads[length - 1]
        heads[length : length + 1] = [at]
    found: set[int] = set()
    place = heads[-1] if heads else None
    while place is not None:
        found.add(place)
        place = following.get(place)
    return found
