"""Store what a receiver has in its spool, away from the loop that receives it: see ``upload_order``.

Each round looks at what lies in the spool, so that a crash needs no repair.  A segment is deleted there when it is
stored, except the last one: a stream that is taken up again begins with it, also while the store is away.  While a
stream still compares what was there when it began, nothing is deleted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

from pgwal.budget import (
    SPARE_SEGMENTS,
    SPOOL_LOOK_S,
    SPOOL_NEAR_LOOK_S,
    STORED_BEFORE,
    UPLOAD_RETRY_MAX_S,
    UPLOAD_RETRY_MIN_S,
    UPLOAD_SLOW_S,
    UPLOADER_END_S,
)
from pgwal.errors import ObjectNotFound, RepositoryError
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression
from pgwal.repository.held_segment import HeldPieces
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.partial_schedule import PartialSchedule
from pgwal.repository.spooled_objects import SpooledObjects
from pgwal.repository.spooled_place import SpooledPlace
from pgwal.repository.spooled_store import SPOOLED_FOLDERS
from pgwal.repository.state_delivery import StateDelivery
from pgwal.repository.store import ObjectSealer, objects_in
from pgwal.repository.upload_order import Upload, next_upload
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_file_name import COMPRESSION_SUFFIXES, PARTIAL_SUFFIX, partial_end, split_segment_name
from pgwal.segment import WalGeometry, is_segment_name

logger = logging.getLogger(__name__)


class SpoolUploader:
    """See pgwal.repository.delivery.Delivery; a context, only within ``opened_spool``.

    The open segment is stored when it has grown and ``partial_interval_s`` have passed, or ``is_awaited``, which may
    ask the store, says that a backup runs.  ``most_bytes`` is how much room the spool may take.
    """

    def __init__(
        self,
        place: SpooledPlace,
        geometry: WalGeometry,
        compression: Compression,
        *,
        partial_interval_s: float,
        most_bytes: int,
        is_awaited: Callable[[], bool],
    ) -> None:
        if most_bytes < (SPARE_SEGMENTS + 1) * geometry.segment_size:
            raise RepositoryError(
                f"a spool of {most_bytes} bytes has no room for {SPARE_SEGMENTS + 1} WAL segments",
                hint=f"Give it at least {(SPARE_SEGMENTS + 1) * geometry.segment_size} bytes: --max-spool.",
            )
        self.done_count = 0
        self.failed_count = 0
        self.trouble: RepositoryError | None = None
        self._store = place.store
        self._place = place
        self._geometry = geometry
        self._objects = SpooledObjects(place, geometry, compression)
        self.sealer = self._objects.sealer
        self._most_bytes = most_bytes
        self._is_near = place.place.directory is not None
        self._partials = PartialSchedule(partial_interval_s, is_awaited, is_near=self._is_near)
        self._look_s = SPOOL_NEAR_LOOK_S if self._is_near else SPOOL_LOOK_S
        self._changed = threading.Condition()
        self._at_work = threading.Lock()
        self._ended = False
        self._failure: BaseException | None = None
        self._changes = 0
        self.is_proven = False
        self._proven = 0, Lsn(0)
        self._examined, self._has_left = self._proven, False
        self._goes_on = False
        """Whether what is received now goes on with what is proven."""
        self._streamed_timeline_id = self._left_timeline_id = 0
        self._growing: tuple[int, int] | None = None
        self._waiting: set[tuple[int, int]] = set()
        self._ends: dict[tuple[int, int], Lsn] = {}
        self._stored: dict[tuple[int, int], Lsn] = {}
        self._kept: str | None = None
        self._deletable: list[str] = []
        self._may_delete = False
        self._is_idle = False
        self._state = StateDelivery(place.store, is_near=self._is_near)
        self._began_s: float | None = None
        self._look()
        if self._is_near:
            place.whole_segments = self
        self._thread = threading.Thread(target=self._run, name="pgwal-uploader", daemon=True)

    def _look(self) -> None:
        """Find out what is in the spool, and what of the segments that are not whole is stored."""
        parse = self._geometry.parse_file_name
        names = [name for name, _ in objects_in(self._store.local, WAL_DIRECTORY)]
        segments = WalArchive(self._store.local, self._geometry).segments()
        with self._changed:
            self._left_timeline_id = max((segment.timeline_id for segment in segments), default=0)
            self._waiting = {parse(name) for name in names if is_segment_name(name) and name != self._kept}
            self._ends, self._stored = {}, {}
            for name, _ in self._store.stored(WAL_DIRECTORY):
                end, base = partial_end(name), split_segment_name(name)[0]
                if end is not None and is_segment_name(base):
                    self._stored[parse(base)] = max(end, self._stored.get(parse(base), end))
        for segment in segments:
            if not segment.complete:
                # What is received again may be more, and that it is whole is known then.
                end = WalArchive(self._store.local, self._geometry).end_of_records(segment)[0]
                self._ends[segment.timeline_id, segment.segment_no] = end

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        # It may wait for a store that does not answer, and ends with the process then.
        self._thread.join(UPLOADER_END_S)

    # -- what the receiver asks and tells ----------------------------------------------------------------------

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def spooled_bytes(self) -> int:
        return (len(self._waiting) + (self._growing is not None)) * self._geometry.segment_size

    @property
    def is_away(self) -> bool:
        began_s = self._began_s
        return self.trouble is not None or (began_s is not None and time.monotonic() - began_s > UPLOAD_SLOW_S)

    @property
    def is_behind(self) -> bool:
        return not self._is_idle

    def add(self, name: str) -> None:
        if self._is_whole(name):
            return
        with self._changed:
            self._waiting.add(self._geometry.parse_file_name(name))
            self._wake()

    def store_whole(self, name: str, content: HeldPieces | ObjectSealer) -> bool:
        """As WholeSegments'; False also where more waits that comes before, or it may not go on with what is stored."""
        timeline_id, segment_no = self._geometry.parse_file_name(name)
        partial = f"{name}{PARTIAL_SUFFIX}"
        with self._at_work:
            is_known = self._goes_on and timeline_id == self._streamed_timeline_id
            if not is_known or self._ended or self._failure is not None or self.trouble is not None:
                return False
            with self._changed:
                self._proven = max(self._proven, (timeline_id, self._geometry.segment_start(segment_no + 1)))
            try:
                for _ in range(STORED_BEFORE):
                    if (upload := self._next()) is None:
                        break
                    self._take(upload)
                others = (other for other, _ in objects_in(self._store.local, WAL_DIRECTORY) if other != partial)
                if not all(map(self._is_whole, others)):
                    return False
                self._objects.store_received(name, content)
                with suppress(ObjectNotFound):
                    self._store.local.delete(f"{WAL_DIRECTORY}/{partial}")
            except RepositoryError as error:
                # Whoever takes it from the spool knows whether that is to be tried again.
                logger.debug("%s", error)
                return False
            self.done_count += 1
            self._partials.note_stored()
            with self._changed:
                if self._kept is not None:
                    self._deletable.append(f"{WAL_DIRECTORY}/{self._kept}")
                    self._kept = None
        return True

    def _wake(self) -> None:
        self._changes += 1
        self._is_idle = False
        self._changed.notify_all()

    def begin(self, timeline_id: int) -> None:
        with self._changed:
            self._streamed_timeline_id, self._growing, self._may_delete = timeline_id, None, False
            self._goes_on = False
            # What was left of this timeline is going to be written again.
            self._deletable = [path for path in self._deletable if not _is_partial_of(path, timeline_id)]

    def compared(self) -> None:
        with self._changed:
            if not self._may_delete:
                self._may_delete = True
                self._wake()

    def look_again(self) -> None:
        if self.is_away:
            return
        try:
            self._store.look_again()
        except RepositoryError as error:
            if not error.is_transient:
                raise
            logger.debug("%s", error)

    def prove(self, timeline_id: int, start: Lsn, lsn: Lsn, *, is_all: bool) -> None:
        begin = timeline_id, start
        if begin > max(self._proven, self._examined):
            self._has_left = self._place.require_continued(self._proven, begin)
            self._examined = begin
        with self._changed:
            # What was left of a later timeline is compared when that is streamed.
            self.is_proven = self.is_proven or (is_all and timeline_id >= self._left_timeline_id)
            if begin > self._proven and self._has_left and not is_all:
                # It goes on with what is still to be compared.
                return
            self._goes_on = is_all and self.is_proven
            if (timeline_id, lsn) > self._proven:
                self._proven = timeline_id, lsn
                self._wake()

    def grow(self, timeline_id: int, flushed_lsn: Lsn) -> None:
        segment_no = self._geometry.segment_no(flushed_lsn)
        key = (timeline_id, segment_no) if flushed_lsn % self._geometry.segment_size else None
        with self._changed:
            before = self._growing, key and self._ends.get(key)
            self._growing = key
            if key is not None:
                self._ends[key] = max(flushed_lsn, self._ends.get(key, flushed_lsn))
            if before != (key, key and self._ends[key]):
                self._wake()

    def safe_lsn(self, timeline_id: int, flushed_lsn: Lsn) -> Lsn:
        start = self._geometry.segment_start
        key = timeline_id, self._geometry.segment_no(flushed_lsn)
        with self._changed:
            # Those of timelines before as well: they come first.
            first = min((start(segment_no) for _, segment_no in self._waiting), default=flushed_lsn)
            if key == self._growing and not self._is_whole(self._geometry.file_name(*key)):
                first = min(first, max(start(key[1]), self._stored.get(key, Lsn(0))))
        return min(first, flushed_lsn)

    def _is_whole(self, segment: str) -> bool:
        return any(self._store.is_stored(f"{WAL_DIRECTORY}/{segment}{suffix}") for suffix in COMPRESSION_SUFFIXES)

    def has_room(self) -> bool:
        if self._failure is not None:
            raise self._failure
        if not self.is_proven:
            # What is compared takes none; and before it is, nothing leaves a spool that is full.
            return True
        return (len(self._waiting) + SPARE_SEGMENTS) * self._geometry.segment_size <= self._most_bytes

    def hurry(self) -> None:
        with self._changed:
            self._partials.hurries = True
            self._wake()

    @property
    def wants_open_segment(self) -> bool:
        return not self._is_near or self._partials.is_due()

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._at_work:
            self._store.look_again()
            yield
            self._kept, self._deletable = None, []
            self.is_proven, self._proven, self._goes_on = False, (0, Lsn(0)), False
            self._examined, self._has_left = self._proven, False
            self._look()

    # -- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._upload_until_ended()
        if self._failure is None and self.trouble is None:
            with suppress(RepositoryError):
                self._state.send(at_once=True)

    def _upload_until_ended(self) -> None:
        tries = 0
        while not self._ended:
            try:
                self._began_s = time.monotonic()
                with self._at_work:
                    self._delete_what_is_stored()
                    upload = self._next()
                    if upload is not None:
                        self._take(upload)
                    self._state.send()
                self._began_s, self.trouble, tries = None, None, 0
            except BaseException as error:  # raised again in the receiver
                if not isinstance(error, RepositoryError) or not error.is_transient:
                    self._failure = error
                    return
                self.trouble = error
                self.failed_count += 1
                self._wait(min(UPLOAD_RETRY_MAX_S, UPLOAD_RETRY_MIN_S * 2**tries), is_retry=True)
                tries = min(tries + 1, 10)
                continue
            if upload is None:
                self._wait(self._state.look_s(self._look_s), is_retry=False)
            else:
                self._state.note_stored()

    def _wait(self, seconds: float, *, is_retry: bool) -> None:
        with self._changed:
            if is_retry or self._is_idle:
                self._changed.wait_for(lambda: self._ended or not (is_retry or self._is_idle), seconds)

    def _next(self) -> Upload | None:
        local = self._store.local
        changes = self._changes
        # Summaries first: what is seen of them was written after their WAL, which is seen then as well.
        names = [f"{folder}/{name}" for folder in reversed(SPOOLED_FOLDERS) for name, _ in objects_in(local, folder)]
        is_due = self._is_due()
        with self._changed:
            found = next_upload(
                [name for name in names if name != f"{WAL_DIRECTORY}/{self._kept}" and name not in self._deletable],
                self._geometry,
                proven=self._proven,
                streamed_timeline_id=self._streamed_timeline_id,
                growing=self._growing,
                ends=self._ends,
                stored=self._stored,
                is_due=is_due,
            )
            if found is None and changes == self._changes:
                self._is_idle, self._partials.hurries = True, False
        return found

    def _is_due(self) -> bool:
        """Tell whether the open segment is to be stored: it has grown, and that is long ago or awaited."""
        with self._changed:
            key = self._growing
            if key is None or self._ends.get(key, Lsn(0)) <= self._stored.get(key, Lsn(0)):
                return False
        return self._partials.is_due()

    def _take(self, upload: Upload) -> None:
        name = upload.name.rpartition("/")[2]
        if upload.end is not None:
            self._take_partial(split_segment_name(name)[0], upload.end)
        elif is_segment_name(name):
            self._objects.store_segment(name)
            self.done_count += 1
            with self._changed:
                self._waiting.discard(self._geometry.parse_file_name(name))
            kept, self._kept = self._kept, name
            if kept is not None:
                self._deletable.append(f"{WAL_DIRECTORY}/{kept}")
        else:
            self._objects.store_file(upload.name)

    def _take_partial(self, segment: str, end: Lsn) -> None:
        key = self._geometry.parse_file_name(segment)
        if end > self._stored.get(key, self._geometry.segment_start(key[1])):
            began_s = time.monotonic()
            try:
                self._objects.store_partial(segment, end)
            except ObjectNotFound:
                if self._store.local.exists(f"{WAL_DIRECTORY}/{segment}{PARTIAL_SUFFIX}"):
                    raise
                return  # It is whole by now, and is taken as such.
            self._partials.note_stored(time.monotonic() - began_s)
        with self._changed:
            self._stored[key] = max(end, self._stored.get(key, end))
            if key[0] < self._streamed_timeline_id:
                self._deletable.append(f"{WAL_DIRECTORY}/{segment}{PARTIAL_SUFFIX}")

    def _delete_what_is_stored(self) -> None:
        # Within the lock: a stream that begins may write some of it again.
        with self._changed:
            while self._may_delete and self._deletable:
                self._store.local.delete(self._deletable.pop())


def _is_partial_of(path: str, timeline_id: int) -> bool:
    name = path.rpartition("/")[2]
    return name.endswith(PARTIAL_SUFFIX) and int(name[:8], 16) == timeline_id
