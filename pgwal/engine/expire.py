"""Remove the backups that are not to be kept, and then the WAL and the summaries that nothing needs any more.

What a backup is until the end is decided by names alone: each one that goes is renamed first, those that build on
others before these, and WAL goes only when no backup that needs it is left, and those are marked that keep their own
alone.  Wherever this is interrupted, every backup that is still one can be restored, and the next run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pgwal.backup.chain import resolve_chain
from pgwal.backup.entry import BackupEntry
from pgwal.backup.pack_use import WornPack
from pgwal.backup.retention_rules import RetentionRules
from pgwal.budget import MAX_REWRITTEN_BYTES
from pgwal.engine.expire_plan import ExpirePlanner, ExpireReport
from pgwal.engine.merge import merge_chain
from pgwal.errors import ObjectRetained, RepositoryLocked
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.deletion import delete_what_can_go
from pgwal.repository.layout import SUMMARY_DIRECTORY, UNFINISHED_SUFFIX, WAL_DIRECTORY
from pgwal.repository.pack_pool import PackGarbage
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExpireRequest:
    """By which rules to keep backups and WAL; with ``dry_run`` nothing is changed."""

    place: Place
    rules: RetentionRules = field(default_factory=RetentionRules)
    dry_run: bool = False
    merge: bool = False
    """Whether backups that are kept are merged into full ones, so that what they build on can go."""
    max_rewrite_bytes: int = MAX_REWRITTEN_BYTES
    """How much is stored anew at most of packs of which little is needed, so that these can go: see ``pack_use``."""


def expire(request: ExpireRequest, on_progress: Callable[[int, int], None] | None = None) -> ExpireReport:
    """Remove what is not to be kept, and return what that was.

    What cannot be judged is kept, with all that it may need: for a backup whose entry is damaged, its backup_label says
    what that is; nothing at all is removed where that cannot be read either.
    Raises RepositoryLocked when a backup is being taken, or one that is to go is being read; FormatError when a history
    file is damaged, because what is needed cannot be known then.
    """
    repository = Repository.open(request.place)
    planner = ExpirePlanner(
        repository, request.rules, merging=request.merge, max_rewrite_bytes=request.max_rewrite_bytes
    )
    if request.dry_run:
        merges = planner.merges()
        if not repository.backup_is_running():
            return planner.plan(repository.catalogue.unfinished(), foreseen=merges)
        # What that one has stored so far looks like something that was abandoned.
        return planner.plan([], only_named_packs=True, foreseen=merges)
    with repository.lock_backups():
        abandoned = repository.catalogue.clear_unfinished() if request.merge else []
        # Before what is read meanwhile is looked for: this may take long, and removes nothing.
        merged = list(_merge_all(repository, planner.merges(), on_progress))
        with repository.hold_all_backups(exclusive=True):
            report = _expire(repository, planner, on_progress)
        # Whoever reads meanwhile does not notice, and nobody waits for it.
        rewritten = _rewrite(repository, report.rewritten, on_progress)
    unfinished = [*(backup_id + UNFINISHED_SUFFIX for backup_id in abandoned), *report.unfinished]
    return replace(report, merged=merged, unfinished=unfinished, rewritten=rewritten)


def _merge_all(
    repository: Repository,
    entries: Iterable[BackupEntry],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[BackupEntry]:
    """Merge backups, each with the chain that it has now: others may have been merged before."""
    for entry in entries:
        chain = resolve_chain(repository.catalogue.entries(entry.backup_id), entry.backup_id)
        yield merge_chain(repository, chain, on_progress=on_progress).merged


def _rewrite(
    repository: Repository, worn: Sequence[WornPack], on_progress: Callable[[int, int], None] | None
) -> list[WornPack]:
    """Store what is needed of packs anew, and remove these; return those that were rewritten."""
    if not worn:
        return []
    # Here: it compresses nothing, but what stores packs otherwise does.
    from pgwal.repository.pack_rewriting import rewrite_packs

    total, done = sum(pack.needed_bytes for pack in worn), 0

    def on_stored(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if on_progress is not None:
            on_progress(done, total)

    rewritten = rewrite_packs(repository.place, worn, on_stored)
    repository.catalogue.remove_packs([pack.name for pack in rewritten])
    return rewritten


def _expire(
    repository: Repository, planner: ExpirePlanner, on_progress: Callable[[int, int], None] | None
) -> ExpireReport:
    unfinished = repository.catalogue.give_up_unfinished()
    removed, retained = list[BackupEntry](), list[BackupEntry]()
    report = planner.plan(unfinished)
    require_unread(repository, report.kept, report.expired)
    while (entry := _retire(repository, report.expired, removed)) is not None:
        # It stays, and with it what it builds on, and the WAL that it needs.
        retained.append(entry)
        report = planner.plan(unfinished, retained=retained)
    report = replace(report, expired=removed)
    _remove_unneeded(repository, report, on_progress)
    return report


def require_unread(repository: Repository, kept: Sequence[BackupEntry], expired: Sequence[BackupEntry]) -> None:
    """Raise RepositoryLocked while one that is to go is being read, maybe on behalf of one that is kept."""
    for entry in (*expired, *_read_through(kept, expired)):
        if repository.catalogue.is_held(entry.backup_id):
            raise RepositoryLocked(
                f"backup {entry.backup_id} is being read by a restore, a verification or a copy; nothing was removed",
                hint="Run it again when that has ended.",
                backup_id=entry.backup_id,
                holder="a restore, a verification or a copy",
            )


def _read_through(kept: Sequence[BackupEntry], expired: Sequence[BackupEntry]) -> Iterator[BackupEntry]:
    """Yield the kept backups that are read with some that go by whoever began before these had been merged."""
    by_id = {entry.backup_id: entry for entry in (*kept, *expired)}
    expired_ids = {entry.backup_id for entry in expired}
    for entry in kept:
        at, passed = entry, {entry.backup_id}
        while at.prior_id is not None and at.prior_id in by_id and at.prior_id not in passed:
            at = by_id[at.prior_id]
            passed.add(at.backup_id)
        if passed & expired_ids:
            yield entry


def _retire(repository: Repository, entries: Iterable[BackupEntry], removed: list[BackupEntry]) -> BackupEntry | None:
    """Have backups count no more, and note them; return one that the storage has to keep for some time, or None."""
    for entry in entries:
        try:
            repository.catalogue.retire(entry.backup_id)
        except ObjectRetained as error:
            logger.warning("backup %s stays until its retention is over: %s", entry.backup_id, error)
            return entry
        removed.append(entry)
    return None


def remove_rest_of_backups(
    repository: Repository, kept: Sequence[BackupEntry], expired: Sequence[BackupEntry], garbage: PackGarbage
) -> None:
    """Remove what is left of backups that count no more: marks, packs that nothing needs, and their directories."""
    BackupMarks(repository.store).forget(expired, kept)
    # Before the rest of what is unfinished: that tells, after a crash, that there may be some.
    repository.catalogue.remove_packs([pack.name for pack in garbage.packs], garbage.tables)
    repository.catalogue.clear_unfinished()


def _remove_unneeded(
    repository: Repository, report: ExpireReport, on_progress: Callable[[int, int], None] | None
) -> None:
    remove_rest_of_backups(repository, report.kept, report.expired, report.garbage)
    marks = BackupMarks(repository.store)
    total = report.backup_bytes + report.wal_bytes + report.summary_bytes
    done = report.backup_bytes
    sizes = {f"{SUMMARY_DIRECTORY}/{file.name}": file.size_bytes for file in report.summaries}
    sizes |= {f"{WAL_DIRECTORY}/{file.name}": file.size_bytes for file in report.wal}

    def on_done(name: str) -> None:
        nonlocal done
        done += sizes[name]
        if on_progress is not None:
            on_progress(done, total)

    for entry in report.long_term:
        marks.mark_long_term(entry)
    repository.place.leases.confirm()
    delete_what_can_go(repository.store, sizes, on_done)
