"""Which backups are kept, and which WAL they need: pure decisions for expire.

A chain is a full backup with all that builds on it, a tree when several build on one.  It is kept or removed as a
whole.  Chains are old or new by the timeline and the LSN at which they start, as WAL is: clocks may have been wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pgwal.backup.chain import check_link, is_on_history, place_of
from pgwal.backup.entry import BackupEntry
from pgwal.errors import ChainError
from pgwal.lsn import Lsn, LsnRange
from pgwal.timeline import TimelineHistory

_END_OF_TIMES = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Chain:
    """A full backup, and those that build on it, each after the one that it builds on."""

    full: BackupEntry
    members: list[BackupEntry]


@dataclass(frozen=True, slots=True)
class Retention:
    """What is to become of each backup.

    ``expired`` is in the order in which they go: none before those that build on it.  ``broken`` ones do not lead to
    a full backup; they are left to a person, and nothing is kept for them.
    """

    kept: list[BackupEntry] = field(default_factory=list)
    expired: list[BackupEntry] = field(default_factory=list)
    broken: list[BackupEntry] = field(default_factory=list)


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
            at = by_id[at].prior_id
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
    chain = chain_of.get(entry.prior_id)
    if chain is not None:
        try:
            check_link(entry, by_id[entry.prior_id])
        except ChainError:
            return None
    return chain


def decide_retention(
    entries: Iterable[BackupEntry],
    histories: Mapping[int, TimelineHistory],
    current_timeline_ids: Collection[int],
    *,
    keep_full: int | None = None,
    keep_since: datetime | None = None,
    unusable_ids: Collection[str] = (),
    built_on: Collection[Lsn] = (),
) -> Retention:
    """Decide what to keep: what either rule keeps, and always a chain from which to go on.

    ``keep_full`` is how many of the newest chains.  ``keep_since`` is the time from which on every point must be
    reachable: all chains with a backup that ended later are kept, and the newest full backup that had ended by then,
    on any timeline and on the history of each one that still matters.  The newest chain of all, and the newest of
    each current timeline, are never removed.  Without a rule, everything is kept.

    ``unusable_ids`` are backups that cannot be recovered, because WAL is missing.  A chain that has no other does not
    stand in for one that has: the rules hold for the usable chains alone as well.  ``built_on`` is where backups start
    that some build on of which no more is known: their chains are kept.

    When a backup had ended is told by ``end_times``, not by its own clock alone.
    """
    chains, broken = find_chains(entries)
    if keep_full is None and keep_since is None:
        return Retention([entry for chain in chains for entry in chain.members], [], broken)
    ended = end_times(entry for chain in chains for entry in chain.members)
    usable = [chain for chain in chains if any(m.backup_id not in unusable_ids for m in chain.members)]
    kept = {chain.full.backup_id for chain in chains if any(m.start_lsn in built_on for m in chain.members)}
    for candidates in (chains, usable):
        kept |= _newest_of_each(candidates, histories, current_timeline_ids)
        if keep_full is not None:
            kept |= {chain.full.backup_id for chain in candidates[-keep_full:]}
        if keep_since is not None:
            kept |= _reaching_back(candidates, histories, current_timeline_ids, keep_since, ended)
    retention = Retention(broken=broken)
    for chain in chains:
        if chain.full.backup_id in kept:
            retention.kept.extend(chain.members)
        else:
            retention.expired.extend(reversed(chain.members))
    return retention


def _reaching_back(
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
    reaching = _newest_of_each(before, histories, alive | set(current_timeline_ids))
    return reaching | {chain.full.backup_id for chain in recent}


def _newest_of_each(
    chains: list[Chain], histories: Mapping[int, TimelineHistory], timeline_ids: Collection[int]
) -> set[str]:
    """Return the full backups of the newest chain of all and of the newest on each timeline's history."""
    found = {chain.full.backup_id for chain in chains[-1:]}
    for timeline_id in timeline_ids:
        history = histories.get(timeline_id, TimelineHistory(timeline_id))
        found |= set([c.full.backup_id for c in chains if is_on_history(c.full, history)][-1:])
    return found


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


class WalRetention:
    """Which WAL, and which summaries, the backups that are kept need: what ends after the first of them started.

    That holds on every timeline, so that each point which any of them leads to stays reachable.  A current timeline
    that none of them leads to is left alone: its receiver goes on there.
    """

    def __init__(
        self,
        kept: Iterable[BackupEntry],
        histories: Mapping[int, TimelineHistory],
        current_timeline_ids: Collection[int],
        also_from: Iterable[Lsn] = (),
    ) -> None:
        """``also_from`` are positions from which others need WAL, of which no more is known."""
        self._kept = list(kept)
        self._also_from = list(also_from)
        self._untouched = {
            timeline_id
            for timeline_id in current_timeline_ids
            if not any(is_on_history(e, histories.get(timeline_id, TimelineHistory(timeline_id))) for e in self._kept)
        }

    @property
    def needed_from(self) -> Lsn:
        """The position before which nothing is needed; 0 when no backup is kept."""
        return min((*(entry.start_lsn for entry in self._kept), *self._also_from), default=Lsn(0))

    def needs(self, part: LsnRange) -> bool:
        return part.end > self.needed_from or part.timeline_id in self._untouched
