"""A place that is reached over a network, with the spool in which a receiver keeps what is not stored there yet.

The spool is a directory of this machine, laid out as a repository's: ``wal/``, ``summaries/``, and ``spool.json``,
which says whose it is.  What it holds of the same names as the store is compared when it is opened, so that nothing of
another history is ever stored; the open segment is never shorter in it than in the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import IO

from pgwal.budget import SEGMENT_IN_MEMORY_BYTES
from pgwal.errors import ObjectNotFound, RepositoryError
from pgwal.lsn import Lsn
from pgwal.repository.held_segment import HeldSegment, WholeSegments
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY, RepositoryIdentity
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.place import Place, address_of
from pgwal.repository.place_wrapper import PlaceWrapper
from pgwal.repository.sealing import require_outside
from pgwal.repository.spool import Appender
from pgwal.repository.spool_directory import spool_directory
from pgwal.repository.spooled_store import SPOOLED_FOLDERS, SpooledStore
from pgwal.repository.store import as_sealing, objects_in
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.repository.wal_file_name import PARTIAL_SUFFIX, partial_end, split_segment_name
from pgwal.segment import LONG_PAGE_HEADER_SIZE, is_history_name, is_segment_name

_IDENTITY_NAME = "spool.json"
_LOCK_NAME = "receiver.lock"
_FORMAT_VERSION = 1


class SpooledPlace(PlaceWrapper):
    """See pgwal.repository.place.Place; only for whoever has the receiver's lease, within ``opened_spool``."""

    directory = None
    is_remote = True

    def __init__(self, place: Place, spool: LocalPlace, identity: RepositoryIdentity) -> None:
        super().__init__(place)
        self.local = spool
        self.store = SpooledStore(spool.store, place.store, identity.geometry)
        self.whole_segments: WholeSegments | None = None
        """Stores those that have not been in the spool, where storing one takes no longer than that would."""
        self._identity = identity
        self._archive = WalArchive(place.store, identity.geometry)

    @property
    def spool(self) -> SpooledPlace:
        return self

    # -- the spool ---------------------------------------------------------------------------------------------

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> Appender:
        """As Spool's: what is stored of a segment is there already."""
        if self.whole_segments is not None and self.holds(name, size_bytes, zeroed=zeroed):
            return HeldSegment(self.local.spool, name, size_bytes, self.whole_segments)
        if not self.local.store.exists(name):
            self._take_from_store(name.rpartition("/")[2])
        return self.local.spool.preallocate(name, size_bytes, zeroed=zeroed)

    def holds(self, name: str, size_bytes: int, *, zeroed: bool = False) -> bool:
        # Zeros are wanted where somebody waits for each sync: all is written then.
        if self.whole_segments is None or zeroed or size_bytes > SEGMENT_IN_MEMORY_BYTES:
            return False
        segment = split_segment_name(name.rpartition("/")[2])[0]
        return not self.store.stored_of(WAL_DIRECTORY, segment) and not self.local.store.exists(name)

    def settle(self, folder: str) -> None:
        self.local.spool.settle(folder)

    def create_notes(self, name: str) -> IO[bytes]:
        return self.local.spool.create_notes(name)

    def drop_notes(self, name: str) -> None:
        self.local.spool.drop_notes(name)

    def _take_from_store(self, name: str) -> None:
        """Have a partial segment here as far as it is stored, durably."""
        segment = split_segment_name(name)[0]
        if self._stored_partial(segment) is not None:
            pieces = WalArchive(self.place.store, self._identity.geometry).segment_pieces(segment)
            self.local.store.put(f"{WAL_DIRECTORY}/{name}", pieces, replace=True)

    def _stored_partial(self, segment: str) -> Lsn | None:
        """Return up to where a segment is stored that is not whole there, None where nothing is."""
        own = self.store.stored_of(WAL_DIRECTORY, segment)
        if any(split_segment_name(name)[2] for name in own):
            return None
        return max((partial_end(name) or Lsn(0) for name in own), default=None)

    # -- what an earlier receiver left -------------------------------------------------------------------------

    def take_over(self) -> None:
        """Compare what an earlier receiver left in the spool with the store, and keep what is not stored yet.

        Raises RepositoryError where the two differ, or the spool is of another repository.
        """
        self._require_identity()
        for folder in SPOOLED_FOLDERS:
            self.local.store.recover(folder, lambda _: True)
        self._drop_empty()
        for name, _ in objects_in(self.local.store, WAL_DIRECTORY):
            if is_history_name(name):
                self._settle_history(name)
        for segment in WalArchive(self.local.store, self._identity.geometry).segments():
            self._settle_segment(segment)
        # Nothing shows of which WAL they were made; whoever receives makes them again.
        for name, _ in objects_in(self.local.store, SUMMARY_DIRECTORY):
            self.local.store.delete(f"{SUMMARY_DIRECTORY}/{name}")

    def _drop_empty(self) -> None:
        """Delete what has no WAL, as a crash leaves it while room is taken: it would hide what is stored."""
        for name, size_bytes in objects_in(self.local.store, WAL_DIRECTORY):
            if name.endswith(PARTIAL_SUFFIX) and not size_bytes:
                self.local.store.delete(f"{WAL_DIRECTORY}/{name}")

    def _require_identity(self) -> None:
        document = {"pgwal-spool": _FORMAT_VERSION, "repository": str(self.place), **self._identity.cluster()}
        content = json.dumps(document, indent=2).encode() + b"\n"
        try:
            found = self.local.store.get(_IDENTITY_NAME)
        except ObjectNotFound:
            self.local.store.put(_IDENTITY_NAME, content)
            return
        if found != content:
            raise RepositoryError(
                f"the spool {self.local} holds WAL of another repository or cluster; nothing of it was stored",
                hint=f"See {_IDENTITY_NAME} there.  Move the directory away if nobody needs what it holds.",
                path=str(self.local),
            )

    def _settle_history(self, name: str) -> None:
        path = f"{WAL_DIRECTORY}/{name}"
        if self.store.is_stored(path):
            if self.local.store.get(path) != self.place.store.get(path):
                raise self.differs(name)
            self.local.store.delete(path)

    def _settle_segment(self, segment: WalSegmentFile) -> None:
        name = self._identity.geometry.file_name(segment.timeline_id, segment.segment_no)
        is_whole_there = self._is_stored_whole(name)
        stored_end = None if is_whole_there else self._stored_partial(name)
        if not is_whole_there and stored_end is None:
            return
        start = self._identity.geometry.segment_start(segment.segment_no)
        local = WalArchive(self.local.store, self._identity.geometry)
        ends = [self._identity.geometry.segment_start(segment.segment_no + 1)]
        if stored_end is not None:
            ends.append(stored_end)
        if not segment.complete:
            # Behind its whole records a receiver that was killed may have left anything.
            ends.append(local.end_of_records(segment)[0])
        begin = self._begin_of(name)
        if not _are_same(
            local.segment_pieces(name), self._archive.segment_pieces(name), begin - start, min(ends) - start
        ):
            raise self.differs(segment.name)
        if is_whole_there:
            self.local.store.delete(f"{WAL_DIRECTORY}/{segment.name}")
        elif not segment.complete and stored_end is not None and stored_end >= ends[-1]:
            self._take_from_store(segment.name)

    def _begin_of(self, name: str) -> Lsn:
        """Return from where on a segment counts: of a record that nobody has the beginning of, two may differ."""
        archive = WalArchive(self.store, self._identity.geometry)
        segments = {(segment.timeline_id, segment.segment_no): segment for segment in archive.segments()}
        segment = segments[self._identity.geometry.parse_file_name(name)]
        if self._in_front(archive, segment, segments) is None:
            return self._identity.geometry.position_behind(segment.segment_no, archive.continued_size(segment))
        return self._identity.geometry.segment_start(segment.segment_no)

    def require_continued(self, after: tuple[int, Lsn], before: tuple[int, Lsn]) -> bool:
        """Tell whether the spool has WAL between two positions, on timelines, that is not stored in part either.

        Raises RepositoryError unless all of that goes on, record by record, with the WAL in front of it.
        """
        start = self._identity.geometry.segment_start
        archive = WalArchive(self.store, self._identity.geometry)
        segments = {(segment.timeline_id, segment.segment_no): segment for segment in archive.segments()}
        stored = {split_segment_name(name)[0] for name, _ in self.store.stored(WAL_DIRECTORY)}
        left = [
            segment
            for segment in WalArchive(self.local.store, self._identity.geometry).segments()
            if after <= (segment.timeline_id, start(segment.segment_no)) < before
            # Others were compared.
            and split_segment_name(segment.name)[0] not in stored
        ]
        # Before anything was stored nothing can stand against what waits.
        has_first = not any(map(is_segment_name, stored))
        for segment in left[has_first:]:
            in_front = self._in_front(archive, segment, segments)
            if not (
                self._goes_on(archive, in_front, segment)
                or self._is_only_begun(archive, in_front, segment)
                or self._begins_alike(archive, segment, segments)
            ):
                raise RepositoryError(
                    f"{segment.name} in the spool {self.local} does not go on with the WAL in front of it, there or in"
                    f" {self.place}: it was not stored, nor what follows",
                    hint="When the server can be reached, pgwal stream receives what lies between, if the server still"
                    " has it.  Move the directory away if nobody needs what it holds.",
                    path=str(self.local),
                )
        return bool(left)

    def _in_front(
        self, archive: WalArchive, segment: WalSegmentFile, segments: Mapping[tuple[int, int], WalSegmentFile]
    ) -> WalSegmentFile | None:
        """Return the segment before one, of its timeline or of that which it came from."""
        found = segments.get((segment.timeline_id, segment.segment_no - 1))
        if found is None:
            with suppress(ObjectNotFound):
                last = Lsn(self._identity.geometry.segment_start(segment.segment_no) - 1)
                timeline_id = archive.history(segment.timeline_id).timeline_at(last)
                found = segments.get((timeline_id, segment.segment_no - 1))
        return found

    def _goes_on(self, archive: WalArchive, before: WalSegmentFile | None, segment: WalSegmentFile) -> bool:
        if before is None:
            return False
        end, is_invalid = archive.end_of_records(segment, before)
        # A record may reach through the whole of it.
        return end > self._identity.geometry.segment_start(segment.segment_no) or (before.complete and not is_invalid)

    def _is_only_begun(self, archive: WalArchive, before: WalSegmentFile | None, segment: WalSegmentFile) -> bool:
        """Tell whether no record begins in a segment, in which a receiver was killed at its start.

        What it holds of a record from before counts with the whole of that only.
        """
        if segment.complete:
            return False
        geometry, (end, _) = self._identity.geometry, archive.end_of_records(segment)
        if end <= geometry.segment_start(segment.segment_no):
            return True
        first = geometry.position_behind(segment.segment_no, archive.continued_size(segment))
        return before is not None and before.complete and end <= first

    def _begins_alike(
        self, archive: WalArchive, segment: WalSegmentFile, segments: Mapping[tuple[int, int], WalSegmentFile]
    ) -> bool:
        """Tell whether a segment begins with what is here of the same one of a timeline that it came from."""
        geometry, number = self._identity.geometry, segment.segment_no
        start = geometry.segment_start(number)
        with suppress(ObjectNotFound):
            for timeline_id, left_at in reversed(archive.history(segment.timeline_id).switches):
                ancestor = segments.get((timeline_id, number))
                if ancestor is None:
                    continue
                size_bytes = min(left_at, *(archive.end_of_records(each)[0] for each in (ancestor, segment))) - start
                names = (geometry.file_name(each.timeline_id, number) for each in (ancestor, segment))
                pieces, others = map(archive.segment_pieces, names)
                return size_bytes > 0 and _are_same(pieces, others, 0, size_bytes)
        return False

    def _is_stored_whole(self, segment: str) -> bool:
        return any(split_segment_name(name)[2] for name in self.store.stored_of(WAL_DIRECTORY, segment))

    def differs(self, name: str) -> RepositoryError:
        """Return the error for WAL that waits here and is stored otherwise."""
        return RepositoryError(
            f"{self.local}/{WAL_DIRECTORY}/{name} is not what {self.place} holds of the same name: nothing was"
            " overwritten, there or here",
            hint="WAL of two servers was received, or of one that was rolled back.  If the spool does not hold WAL"
            " of the present server, move it away.",
            path=str(self.local),
        )


def has_spooled_wal(place: Place, directory: Path | None) -> bool:
    """Tell whether a receiver has left WAL in the spool of a repository."""
    local = LocalPlace(spool_directory(address_of(place), directory))
    return bool(objects_in(local.store, WAL_DIRECTORY))


@contextmanager
def opened_spool(place: Place, directory: Path | None, identity: RepositoryIdentity) -> Iterator[SpooledPlace]:
    """Hold the spool of a repository, which is made below a directory or where spools usually are.

    Raises RepositoryLocked while another receiver of this machine has it, RepositoryError as ``take_over`` does.
    """
    local = LocalPlace(spool_directory(address_of(place), directory))
    sealing = as_sealing(place.store)
    if sealing is not None:
        require_outside(place, local.root, "the spool, where WAL waits in clear")
        sealing.keys.holds_what_it_opens = True
    local.require_suitable()
    local.make(SPOOLED_FOLDERS)
    local.require_own()
    local.require_trusted()
    with local.leases.lock(_LOCK_NAME, "a receiver"):
        spooled = SpooledPlace(place, local, identity)
        spooled.take_over()
        yield spooled


def _are_same(pieces: Iterable[bytes], others: Iterable[bytes], begin: int, end: int) -> bool:
    """Tell whether two segments are the same between two offsets, and in their headers; pieces of both are as long."""
    position = 0
    for piece, other in zip_longest(pieces, others, fillvalue=b""):
        for first, last in ((0, LONG_PAGE_HEADER_SIZE), (begin, end)):
            part = slice(max(0, first - position), max(0, last - position))
            if piece[part] != other[part]:
                return False
        position += len(piece)
        if position >= end:
            break
    return True
