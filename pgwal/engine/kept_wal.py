"""Which WAL is meant to be in a repository: that of long-term backups ends where they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pgwal.backup.entry import BackupEntry
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.repository import Repository

_START = Lsn(0)


@dataclass(frozen=True, slots=True)
class KeptWal:
    """All WAL from ``complete_from`` on, on every timeline, and before that the ranges ``own`` of long-term backups."""

    complete_from: Lsn = _START
    own: Sequence[tuple[Lsn, Lsn]] = ()

    def missed(self, holes: Iterable[LsnRange]) -> list[LsnRange]:
        """Return of what is missing that which is meant to be there."""
        return sorted({part for hole in holes for part in self._missed(hole)})

    def _missed(self, hole: LsnRange) -> Iterator[LsnRange]:
        if hole.end > self.complete_from:
            yield hole._replace(start=max(hole.start, self.complete_from))
        for start, stop in self.own:
            part = hole._replace(start=max(hole.start, start), end=min(hole.end, stop, self.complete_from))
            if part.start < part.end:
                yield part


def read_kept_wal(repository: Repository, entries: Sequence[BackupEntry]) -> KeptWal:
    """Return what is meant to be there for some backups, which must be all that can be read."""
    long_term_ids = BackupMarks(repository.store).long_term_ids(entries)
    if not long_term_ids:
        return KeptWal()
    own = [(entry.start_lsn, entry.stop_lsn) for entry in entries if entry.backup_id in long_term_ids]
    others = [entry.start_lsn for entry in entries if entry.backup_id not in long_term_ids]
    # Where no other is left, WAL goes on behind the last of them.
    complete_from = min(others, default=max(stop for _, stop in own))
    return KeptWal(complete_from, own)
