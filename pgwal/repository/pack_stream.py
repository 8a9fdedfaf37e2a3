"""Cut files into frames, and put those into packs: one stream for each thread that stores files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pgwal.backup.pack_table import FRAME_SIZE, Extent, Pack
from pgwal.budget import PACK_SIZE, PACKS_PENDING
from pgwal.checksum import ContentDigest
from pgwal.repository.frame_codec import EncodedFrame, FrameEncoder
from pgwal.repository.pack_pool import pack_object
from pgwal.repository.passage import Abandoned, Passage
from pgwal.repository.store import ObjectStore
from pgwal.repository.written_file import WrittenFile

if TYPE_CHECKING:
    from pgwal.encryption.container import PackSeal


class NewPack(NamedTuple):
    """A pack that is begun: its number in the backup's entry, and what encrypts it, None where nothing does."""

    number: int
    pack: Pack
    seal: PackSeal | None


class PackStream:
    """Stores files in packs; for one thread at a time.

    ``begin`` gives a new pack.  What waits is a frame, a few that are being encoded, and a few more on
    their way.
    """

    def __init__(
        self,
        store: ObjectStore,
        begin: Callable[[], NewPack],
        encoder: FrameEncoder,
        *,
        pack_size: int = PACK_SIZE,
    ) -> None:
        self._store = store
        self._begin = begin
        self._encoder = encoder
        self._pack_size = pack_size
        self._frame = bytearray()
        self._encoding = deque[Future[EncodedFrame]]()
        """Frames of the open pack, in order, that are yet to go into it."""
        self._pack: Pack | None = None
        self._pack_number = -1
        self._seal: PackSeal | None = None
        self._passage = Passage()
        self._putter = ThreadPoolExecutor(PACKS_PENDING, "put-pack")
        self._pending: list[Future[None]] = []

    def add(self, chunks: Iterable[bytes]) -> WrittenFile:
        """Store a file; raises what the store raises, and what ``chunks`` do: that file does not count then.

        A file begins in the frame of those before it if it fits in there whole, otherwise in one of its own, so that
        the frames of a larger one begin at multiples of their size.
        """
        digest = ContentDigest()
        extents: list[Extent] = []
        shared = len(self._frame)
        size_bytes = 0
        try:
            for chunk in chunks:
                digest.update(chunk)
                size_bytes += len(chunk)
                self._frame += chunk
                if shared and len(self._frame) > FRAME_SIZE:
                    self._emit(shared)
                    shared = 0
                while len(self._frame) >= FRAME_SIZE and not shared:
                    self._extend(extents, 0, FRAME_SIZE)
                    self._emit(FRAME_SIZE)
        except BaseException:
            # Nothing but what others have there is kept: in a copy, for what an interruption left may still look at it.
            self._frame = self._frame[:shared]
            raise
        if len(self._frame) > shared:
            self._extend(extents, shared, len(self._frame) - shared)
        if len(self._frame) >= FRAME_SIZE:
            self._emit(FRAME_SIZE)
        return WrittenFile(size_bytes, digest.hexdigest(), tuple(extents))

    def finish(self) -> None:
        """Have all of it in the store, durably; nothing can be added after it.  Raises what the store raises."""
        try:
            if self._frame:
                self._emit(len(self._frame))
            self._finish_pack()
            while self._pending:
                self._await_oldest()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End without storing what waits."""
        self._passage.abandon()
        self._putter.shutdown()

    def _extend(self, extents: list[Extent], offset: int, length: int) -> None:
        """Note bytes of a file that lie in the frame that is being filled."""
        pack = self._open_pack()
        if extents and extents[-1].pack == self._pack_number:
            extents[-1] = extents[-1]._replace(length=extents[-1].length + length)
        else:
            extents.append(Extent(self._pack_number, len(pack) + len(self._encoding), offset, length))

    def _emit(self, size_bytes: int) -> None:
        """Make a frame of the first bytes that wait, and end a pack that is full."""
        pack = self._open_pack()
        frame, self._frame = self._frame, self._frame[size_bytes:]
        del frame[size_bytes:]
        seal = None if self._seal is None else self._seal.seal
        self._encoding.append(self._encoder.begin(frame, seal, len(pack) + len(self._encoding)))
        while len(self._encoding) > self._encoder.most_waiting or (self._encoding and self._may_be_full(pack)):
            self._store_oldest(pack)
        # Here, where nothing waits that is to be in this pack.
        if pack.size_bytes >= self._pack_size:
            self._finish_pack()

    def _may_be_full(self, pack: Pack) -> bool:
        """Tell whether a pack may be full when it has what is being encoded, which is at most a frame's size each."""
        most_bytes = FRAME_SIZE + pack.overhead_bytes
        return pack.size_bytes + len(self._encoding) * most_bytes >= self._pack_size

    def _store_oldest(self, pack: Pack) -> None:
        """Put the oldest frame that is being encoded into its pack."""
        encoded = self._encoding[0].result()
        self._push(encoded.stored)
        pack.add(encoded.at(pack.size_bytes))
        pack.size_bytes += len(encoded.stored)
        del self._encoding[0]

    def _open_pack(self) -> Pack:
        if self._pack is None:
            while len(self._pending) >= PACKS_PENDING or (self._pending and self._pending[0].done()):
                self._await_oldest()
            self._pack_number, self._pack, self._seal = self._begin()
            self._passage = Passage()
            self._pending.append(self._putter.submit(self._put, pack_object(self._pack.name), self._passage))
            self._push(self._pack.header)
        return self._pack

    def _await_oldest(self) -> None:
        """Wait until a pack is stored; one that could not be stays, so that nobody takes the rest for all of it."""
        self._pending[0].result()
        del self._pending[0]

    def _put(self, name: str, passage: Passage) -> None:
        try:
            self._store.put(name, passage)
        finally:
            passage.abandon()

    def _push(self, piece: bytes) -> None:
        try:
            self._passage.push(piece)
        except Abandoned:
            # Why the store did not take it is what must be said.
            with suppress(Abandoned):
                self._pending[-1].result()
            raise

    def _finish_pack(self) -> None:
        if self._pack is not None:
            while self._encoding:
                self._store_oldest(self._pack)
            if self._seal is not None:
                trailer = self._seal.trailer(len(self._pack))
                self._push(trailer)
                self._pack.end_with(trailer)
            self._passage.complete()
            self._pack = None
