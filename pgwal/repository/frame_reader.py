"""Read frames of packs, the next ones while one is looked at; the last ones are kept: blocks and small files share one.

What is read of a frame is checked against its digest each time, so that nothing is given out that was not stored.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

from pgwal.backup.pack_table import Pack
from pgwal.encryption.container import FrameCipher, SealedFor
from pgwal.errors import FormatError, ObjectNotFound
from pgwal.repository.frame_codec import FrameDecoder
from pgwal.repository.pack_pool import pack_object
from pgwal.repository.store import ByteRange, ObjectStore, as_sealing

_MOST_KEPT = 32
_MOST_AHEAD = 24
_MOST_AHEAD_OF_ONE = 8
_FORGOTTEN_AFTER = 256
"""So many frames later nobody is going to ask for one that was read ahead: its file was given up."""
_ANOTHER_BACKUP = "Restore another backup."

_Key = tuple[str, int]


class _Ahead(NamedTuple):
    """A frame that nobody has asked for yet; ``since`` counts the frames that had been asked for before."""

    content: Future[bytes]
    since: int


class FrameReader:
    """Reads frames of any backups for any number of threads, and ahead of them in ``jobs`` threads, which end with it.

    One file may be most of a database: whoever writes it would decode frame by frame, and the others have nothing to
    do.
    """

    def __init__(self, store: ObjectStore, jobs: int = 1) -> None:
        self._store = store
        self._decoder = FrameDecoder()
        self._threads = ThreadPoolExecutor(jobs, "read-frame") if jobs > 1 else None
        self._most_kept = max(_MOST_KEPT, 4 * jobs)
        self._ahead_of_one = max(1, min(_MOST_AHEAD_OF_ONE, _MOST_AHEAD // jobs))
        self._kept = OrderedDict[_Key, Future[bytes] | bytes]()
        # Apart, so that frames which are in use never make room for those that will be, nor those for each other: each
        # would have to be read, and decoded, again.
        self._ahead = OrderedDict[_Key, _Ahead]()
        self._asked_count = 0
        self._lock = Lock()
        self._ciphers: dict[str, FrameCipher] = {}

    def content(self, pack: Pack, number: int, last: int | None = None) -> bytes:
        """Return what a frame holds; those behind it up to the frame ``last`` will be wanted next.

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
        return self._awaited(key, pack, number, last)

    def _awaited(self, key: _Key, pack: Pack, number: int, last: int | None) -> bytes:
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
            while self._ahead and self._asked_count - next(iter(self._ahead.values())).since > _FORGOTTEN_AFTER:
                self._ahead.popitem(last=False)
            for later in range(number + 1, min(number + self._ahead_of_one, last) + 1):
                if len(self._ahead) >= _MOST_AHEAD:
                    return
                key = (pack.name, later)
                if key not in self._kept and key not in self._ahead:
                    self._ahead[key] = _Ahead(self._threads.submit(self._read, pack, later), self._asked_count)

    def _keep(self, key: _Key, content: Future[bytes] | bytes) -> None:
        self._kept[key] = content
        self._kept.move_to_end(key)
        while len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)

    def _read(self, pack: Pack, number: int) -> bytes:
        stored, place = self._stored(pack, number)
        return self._decoder.decode(stored, pack[number], number, place, self._cipher(pack))

    def require_stored(self, pack: Pack, number: int) -> None:
        """Raise FormatError unless a frame is stored as its entry says; what is encrypted is not opened."""
        stored, place = self._stored(pack, number)
        if pack.sealed is None:
            self._decoder.decode(stored, pack[number], number, place)
        else:
            self._decoder.require_digest(stored, pack[number], number, place)

    def _stored(self, pack: Pack, number: int) -> tuple[bytes, str]:
        """Return what is stored of a frame, and what people call the place of its pack."""
        frame, name = pack[number], pack_object(pack.name)
        place = self._store.locate(name)
        try:
            (stored,) = self._store.get_ranges(name, [ByteRange(frame.offset, frame.offset + frame.stored_size_bytes)])
        except ObjectNotFound as error:
            raise FormatError(
                f"{place} is missing, and with it what it holds of files", hint=_ANOTHER_BACKUP
            ) from error
        return stored, place

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
