"""Read frames of packs, the next ones while one is looked at; the last ones are kept: blocks and small files share one.

What is read of a frame is checked against its digest each time, so that nothing is given out that was not stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from pgwal.backup.moved_frames import FramePlace
from pgwal.backup.pack_table import Frame, Pack
from pgwal.budget import (
    FORGOTTEN_AFTER_FRAMES,
    FRAME_REQUEST_BYTES,
    FRAME_REQUEST_THREADS,
    FRAMES_AHEAD,
    FRAMES_AHEAD_IN_FILES,
    FRAMES_AHEAD_OF_ONE,
    FRAMES_KEPT,
)
from pgwal.encryption.container import FrameCipher, SealedFor
from pgwal.errors import FormatError, ObjectNotFound
from pgwal.repository.frame_codec import FrameDecoder
from pgwal.repository.frame_tables import FramePlaces
from pgwal.repository.pack_pool import pack_object
from pgwal.repository.store import ByteRange, ObjectStore, StoreFeature, as_sealing

_ANOTHER_BACKUP = "Restore another backup."

_Key = tuple[str, int]


class _Ahead(NamedTuple):
    """A frame that nobody has asked for yet; ``since`` counts the frames that had been asked for before."""

    content: Future[bytes]
    since: int


class FrameReader:
    """Reads frames of any backups for any number of threads, and ahead of them in ``jobs`` threads, which end with it.

    One file may be most of a database: whoever writes it would decode frame by frame, and the others have nothing to
    do.  Where objects are no files, each request takes its time: several frames are read by one, and several of those
    are under way, whatever ``jobs`` is.
    """

    def __init__(self, store: ObjectStore, jobs: int = 1) -> None:
        self.places = FramePlaces(store)
        self._store = store
        self._decoder = FrameDecoder()
        are_files = StoreFeature.FILES in store.features
        threads = jobs if are_files else max(jobs, FRAME_REQUEST_THREADS)
        self._threads = ThreadPoolExecutor(threads, "read-frame") if threads > 1 else None
        self._most_kept = max(FRAMES_KEPT, 4 * jobs)
        most_ahead_of_one = FRAMES_AHEAD_IN_FILES if are_files else FRAMES_AHEAD_OF_ONE
        self._ahead_of_one = max(2, min(most_ahead_of_one, FRAMES_AHEAD // jobs))
        self._kept = OrderedDict[_Key, Future[bytes] | bytes]()
        # Apart, so that frames which are in use never make room for those that will be, nor those for each other: each
        # would have to be read, and decoded, again.
        self._ahead = OrderedDict[_Key, _Ahead]()
        self._asked_count = 0
        self._lock = Lock()
        self.fetched_bytes = 0
        """What was asked of the store, as it is stored."""
        self._ciphers: dict[str, FrameCipher] = {}

    def content(self, pack: Pack, number: int, following: Sequence[int] = ()) -> bytes:
        """Return what a frame holds; those ``following`` will be wanted next, in this order.

        Raises FormatError where it is not what was stored, RepositoryError.
        """
        key = (pack.name, number)
        kept = self._kept.get(key)
        if isinstance(kept, bytes):
            # Without the lock, for there may be a call for each block.
            try:  # noqa: SIM105 (which takes as long as all of this)
                self._kept.move_to_end(key)
            except KeyError:
                pass
            return kept
        return self._awaited(key, pack, number, following)

    def _awaited(self, key: _Key, pack: Pack, number: int, following: Sequence[int]) -> bytes:
        with self._lock:
            kept = self._kept.get(key)
            if isinstance(kept, bytes):
                return kept
            self._asked_count += 1
            if kept is None and key in self._ahead:
                kept = self._ahead.pop(key).content
            future = Future[bytes]() if kept is None else kept
            self._keep(key, future)
        try:
            if following:
                self._read_ahead(pack, following)
            if kept is None:
                future.set_result(self._read(pack, number))
            content = future.result()
        except BaseException as error:
            with self._lock:
                self._kept.pop(key, None)
            if kept is None and not future.done():
                # Others may wait for it.
                future.set_exception(error)
            if kept is None or not isinstance(error, Exception):
                raise
            # What failed when it was read ahead, or for another, is tried again.
            content = self._read(pack, number)
        with self._lock:
            self._keep(key, content)
        return content

    def _read_ahead(self, pack: Pack, following: Sequence[int]) -> None:
        if self._threads is None:
            return
        with self._lock:
            while self._ahead and self._asked_count - next(iter(self._ahead.values())).since > FORGOTTEN_AFTER_FRAMES:
                self._ahead.popitem(last=False)
            for some in self._requests(pack, following):
                futures = [Future[bytes]() for _ in some]
                self._threads.submit(self._read_several, pack, some, futures)
                for later, future in zip(some, futures, strict=True):
                    self._ahead[pack.name, later] = _Ahead(future, self._asked_count)

    def _requests(self, pack: Pack, following: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the first of the frames that follow which nobody has read yet, as many together as one request reads.

        Fewer wait for those behind them, unless there are none.
        """
        most = self._ahead_of_one // 2
        some: list[int] = []
        size_bytes = 0
        for number in following[: self._ahead_of_one]:
            key = (pack.name, number)
            is_known = key in self._kept or key in self._ahead
            if some and (is_known or number != some[-1] + 1):
                yield some
                some, size_bytes = [], 0
            if is_known:
                continue
            if len(self._ahead) + len(some) >= FRAMES_AHEAD:
                return
            some.append(number)
            size_bytes += pack[number].stored_size_bytes
            if len(some) == most or size_bytes >= FRAME_REQUEST_BYTES or number == following[-1]:
                yield some
                some, size_bytes = [], 0

    def _keep(self, key: _Key, content: Future[bytes] | bytes) -> None:
        self._kept[key] = content
        self._kept.move_to_end(key)
        while len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)

    def _read(self, pack: Pack, number: int) -> bytes:
        ((stored,), place) = self._stored(pack, (number,))
        return self._decoder.decode(stored, pack[number], number, place, self._cipher(pack))

    def _read_several(self, pack: Pack, numbers: Sequence[int], futures: Sequence[Future[bytes]]) -> None:
        """Read frames with one request, and tell each of ``futures`` what there is of its own, or what failed."""
        try:
            found, place = self._stored(pack, numbers)
            cipher = self._cipher(pack)
        except BaseException as error:
            for future in futures:
                future.set_exception(error)
            return
        for number, stored, future in zip(numbers, found, futures, strict=True):
            try:
                future.set_result(self._decoder.decode(stored, pack[number], number, place, cipher))
            except BaseException as error:
                future.set_exception(error)

    def require_stored(self, pack: Pack, number: int) -> None:
        """Raise FormatError unless a frame is stored as its entry says; what is encrypted is not opened."""
        ((stored,), place) = self._stored(pack, (number,))
        if pack.sealed is None:
            self._decoder.decode(stored, pack[number], number, place)
        else:
            self._decoder.require_digest(stored, pack[number], number, place)

    def _stored(self, pack: Pack, numbers: Sequence[int]) -> tuple[Sequence[bytes], str]:
        """Return what is stored of frames, and what people call the place of their pack."""
        frames = [pack[number] for number in numbers]
        asked = [next(self.places.of(pack.name, frame.offset), None) for frame in frames]
        likely = [where for where in asked if where is not None]
        if len(likely) == len(frames) and len({where.pack_name for where in likely}) == 1:
            # Of those that were moved, too, what lay together mostly does.
            with suppress(ObjectNotFound):
                return self._get(likely, frames)
        found = [self._stored_alone(pack, frame) for frame in frames]
        return [stored for stored, _ in found], found[0][1]

    def _stored_alone(self, pack: Pack, frame: Frame) -> tuple[bytes, str]:
        for where in self.places.of(pack.name, frame.offset):
            with suppress(ObjectNotFound):
                ((stored,), place) = self._get([where], [frame])
                return stored, place
        raise FormatError(
            f"{self._store.locate(pack_object(pack.name))} is missing, and with it what it holds of files",
            hint=_ANOTHER_BACKUP,
        )

    def _get(self, places: Sequence[FramePlace], frames: Sequence[Frame]) -> tuple[Sequence[bytes], str]:
        """Return what is stored of frames, which lie in one pack; raises ObjectNotFound."""
        name = pack_object(places[0].pack_name)
        both = zip(places, frames, strict=True)
        ranges = [ByteRange(where.offset, where.offset + frame.stored_size_bytes) for where, frame in both]
        found = self._store.get_ranges(name, ranges)
        with self._lock:
            self.fetched_bytes += sum(frame.stored_size_bytes for frame in frames)
        return found, self._store.locate(name)

    def _cipher(self, pack: Pack) -> FrameCipher | None:
        if pack.sealed is None:
            return None
        cipher = self._ciphers.get(pack.name)
        if cipher is None:
            cipher = self._ciphers[pack.name] = pack_cipher(self._store, pack)
        return cipher


def pack_cipher(store: ObjectStore, pack: Pack) -> FrameCipher:
    """Return what opens the frames of an encrypted pack; raises KeyRequired, FormatError."""
    name, sealing = pack_object(pack.name), as_sealing(store)
    if sealing is None:
        raise FormatError(f"{store.locate(name)} is encrypted, in a repository that is not", hint=_ANOTHER_BACKUP)
    return sealing.keys.opening(pack.header, name, SealedFor.RECIPIENTS, store.locate(name))
