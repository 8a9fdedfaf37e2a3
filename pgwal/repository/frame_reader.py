"""Read frames of packs, the next ones while one is looked at; the last ones are kept: blocks and small files share one.

What is read of a frame is checked against its digest each time, so that nothing is given out that was not stored.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock

from pgwal.backup.pack_table import Pack
from pgwal.errors import FormatError, ObjectNotFound
from pgwal.repository.frame_codec import FrameDecoder
from pgwal.repository.pack_pool import pack_object
from pgwal.repository.store import ByteRange, ObjectStore

_FEWEST_KEPT = 32
_MOST_AHEAD = 24
_MOST_AHEAD_OF_ONE = 8
_ANOTHER_BACKUP = "Restore another backup."


class FrameReader:
    """Reads frames of any backups for any number of threads, and ahead of them in ``jobs`` threads, which end with it.

    One file may be most of a database: whoever writes it would decode frame by frame, and the others have nothing to
    do.
    """

    def __init__(self, store: ObjectStore, jobs: int = 1) -> None:
        self._store = store
        self._decoder = FrameDecoder()
        self._threads = ThreadPoolExecutor(jobs, "read-frame") if jobs > 1 else None
        # What was read ahead must not make room for itself before it is used.
        self._most_kept = max(_FEWEST_KEPT, 3 * jobs)
        self._ahead = max(1, min(_MOST_AHEAD_OF_ONE, _MOST_AHEAD // jobs))
        self._kept = OrderedDict[tuple[str, int], Future[bytes] | bytes]()
        self._lock = Lock()

    def content(self, pack: Pack, number: int, last: int | None = None) -> bytes:
        """Return what a frame holds; those behind it up to the frame ``last`` will be wanted next.

        Raises FormatError where it is not what was stored, RepositoryError.
        """
        key = (pack.name, number)
        kept = self._kept.get(key)
        if isinstance(kept, bytes):
            # Without the lock, for there may be a call for each block.
            with suppress(KeyError):
                self._kept.move_to_end(key)
            return kept
        return self._awaited(key, pack, number, last)

    def _awaited(self, key: tuple[str, int], pack: Pack, number: int, last: int | None) -> bytes:
        with self._lock:
            kept = self._kept.get(key)
            if isinstance(kept, bytes):
                return kept
            future = Future[bytes]() if kept is None else kept
            self._keep(key, future)
        try:
            if last is not None:
                self._read_ahead(pack, number, last)
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

    def _read_ahead(self, pack: Pack, number: int, last: int) -> None:
        if self._threads is None:
            return
        with self._lock:
            for later in range(number + 1, min(number + self._ahead, last) + 1):
                if (pack.name, later) not in self._kept:
                    self._keep((pack.name, later), self._threads.submit(self._read, pack, later))

    def _keep(self, key: tuple[str, int], content: Future[bytes] | bytes) -> None:
        self._kept[key] = content
        self._kept.move_to_end(key)
        while len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)

    def _read(self, pack: Pack, number: int) -> bytes:
        frame, name = pack[number], pack_object(pack.name)
        place = self._store.locate(name)
        try:
            (stored,) = self._store.get_ranges(name, [ByteRange(frame.offset, frame.offset + frame.stored_size_bytes)])
        except ObjectNotFound as error:
            raise FormatError(
                f"{place} is missing, and with it what it holds of files", hint=_ANOTHER_BACKUP
            ) from error
        return self._decoder.decode(stored, frame, number, place)
