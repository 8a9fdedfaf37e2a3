"""Which backups are merged into full ones, so that what they build on can go: pure decisions for expire."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pgwal.backup.backup_id import BackupKind, merged_ids
from pgwal.backup.chain import prior_of
from pgwal.backup.entry import BackupEntry
from pgwal.backup.retention import Retention
from pgwal.backup.retention_rules import needed_by


def plan_merges(retention: Retention) -> list[BackupEntry]:
    """Return which backups to merge, oldest first, given what was decided with ``merging``.

    Those are the incremental ones that are kept for their own sake, and build on one that is kept for theirs alone.
    """
    by_id = {entry.backup_id: entry for entry in retention.kept}
    for_others = {
        entry.backup_id
        for entry in retention.kept
        if all(reason.rule == needed_by(entry).rule for reason in retention.reasons[entry.backup_id])
    }
    found = []
    for entry in retention.kept:
        prior = prior_of(entry, by_id)
        if prior is not None and prior.backup_id in for_others and entry.backup_id not in for_others:
            found.append(entry)
    return found


def with_merged(entries: Iterable[BackupEntry], merged: Iterable[BackupEntry]) -> list[BackupEntry]:
    """Return backups together with the full ones that some of them are merged into."""
    return [*entries, *(merged_head(entry) for entry in merged)]


def merged_head(entry: BackupEntry, backup_id: str | None = None) -> BackupEntry:
    """Return the entry of the full backup that one is merged into, with what a merge does not change."""
    return replace(entry, backup_id=backup_id or merged_ids(entry.backup_id)[0], kind=BackupKind.FULL, prior_id=None)
