"""Hold what two repositories have of a cluster's WAL against each other: it must be of one history.

Equal names prove nothing, see rule 11 of docs/safety.md.  Of each timeline the last segment that both have is compared:
where that is the same, all before it is, for each record tells which one it follows.
"""

from __future__ import annotations

from itertools import groupby

from pgwal.budget import PART_BYTES
from pgwal.errors import HistoryMismatch
from pgwal.lsn import Lsn
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.repository import Repository
from pgwal.repository.store import ObjectStore, as_sealing
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.summary.codec import MAX_READ_SUMMARY_BYTES, summary_file_name
from pgwal.timeline import history_file_name


class SameHistory:
    """Compares ``source`` and ``target``; of an encrypted one, what is for the recipients is not opened."""

    def __init__(self, source: Repository, target: Repository) -> None:
        self._source = source
        self._target = target
        self._geometry = source.geometry
        self._opens = all(as_sealing(repository.store) is None for repository in (source, target))

    def require(self) -> None:
        """Raise HistoryMismatch where both have WAL, or a timeline's history, of one name that differ."""
        for timeline_id in set(self._source.wal.history_timelines()) & set(self._target.wal.history_timelines()):
            if self._source.wal.history_content(timeline_id) != self._target.wal.history_content(timeline_id):
                raise self._differs(timeline_id, Lsn(0), history_file_name(timeline_id))
        whole = {
            (segment.timeline_id, segment.segment_no): segment
            for segment in self._source.wal.segments()
            if segment.complete
        }
        both = [
            segment
            for segment in self._target.wal.segments()
            if segment.complete and (segment.timeline_id, segment.segment_no) in whole
        ]
        for _, segments in groupby(both, lambda segment: segment.timeline_id):
            last = list(segments)[-1]
            self.require_same_segment(whole[last.timeline_id, last.segment_no], last.name)

    def require_same_segment(self, segment: WalSegmentFile, name: str) -> None:
        """Raise HistoryMismatch unless a segment of the source has in the target, under a name, the same WAL."""
        other = segment._replace(name=name)
        if not (self._are_same(segment, other) if self._opens else self._are_same_unopened(segment, other)):
            raise self._differs(segment.timeline_id, self._geometry.segment_start(segment.segment_no), name)

    def _are_same(self, segment: WalSegmentFile, other: WalSegmentFile) -> bool:
        with self._source.wal.open_segment(segment) as first, self._target.wal.open_segment(other) as second:
            while data := first.read(PART_BYTES):
                if second.read(len(data)) != data:
                    return False
            return not second.read(1)

    def _are_same_unopened(self, segment: WalSegmentFile, other: WalSegmentFile) -> bool:
        """Compare what can be read without an identity: bytes as they are stored, or else what was summarised.

        Where there is neither, nothing shows that they differ.
        """
        if segment.name == other.name:
            stored = [
                _as_stored(repository.store, f"{WAL_DIRECTORY}/{other.name}")
                for repository in (self._source, self._target)
            ]
            if stored[0] == stored[1]:
                return True
        start = self._geometry.segment_start(segment.segment_no)
        both = set(self._source.summaries.ranges()) & set(self._target.summaries.ranges())
        end = start + self._geometry.segment_size
        parts = [part for part in both if part.timeline_id == segment.timeline_id and part.start < end]
        if not parts:
            return True
        name = f"{SUMMARY_DIRECTORY}/{summary_file_name(max(parts))}"
        found = [
            repository.store.get(name, most_bytes=MAX_READ_SUMMARY_BYTES) for repository in (self._source, self._target)
        ]
        return found[0] == found[1]

    def _differs(self, timeline_id: int, lsn: Lsn, name: str) -> HistoryMismatch:
        return HistoryMismatch(
            f"{WAL_DIRECTORY}/{name} in {self._target.place} is not the WAL that it is in {self._source.place}: nothing"
            " was copied",
            timeline_id=timeline_id,
            lsn=lsn,
            hint="They are of different histories of the cluster, as after a server was rolled back, or two standbys"
            " were promoted. Copy into another repository.",
        )


def _as_stored(store: ObjectStore, name: str) -> bytes:
    sealing = as_sealing(store)
    stored = store if sealing is None else sealing.as_stored
    return stored.get(name, most_bytes=stored.size(name))
