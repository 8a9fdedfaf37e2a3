"""The objects of an encrypted repository: sealed when they are put, and opened when they are got.

What cannot be read without an identity is WAL; packs are sealed frame by frame by whoever writes them, and pass as they
are.  All else is sealed for whoever has the metadata key, but for what says whose the repository is, and its keys.
Names and, in listings, sizes are those of what is inside.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from threading import Lock

from pgwal.budget import CIPHERS_KEPT
from pgwal.encryption.container import (
    FRAME_BYTES,
    MAGIC,
    SEALED_FRAME_BYTES,
    TAG_BYTES,
    FrameCipher,
    Header,
    SealedFor,
    damaged,
    opened,
    opened_frames,
    plain_size,
    sealed_pieces,
    stored_size,
)
from pgwal.encryption.repository_keys import RepositoryKeys
from pgwal.errors import BrokenInvariant, ChecksumMismatch, FormatError
from pgwal.repository.layout import (
    BACKUP_ENTRY_NAME,
    IDENTITY_NAME,
    KEY_DIRECTORY,
    PACK_DIRECTORY,
    SET_ASIDE_DIRECTORY,
    STORAGE_FORMAT_NAME,
    SUMMARY_DIRECTORY,
)
from pgwal.repository.object_sealer import Buffers, Sealer
from pgwal.repository.store import (
    MOST_BYTES_READ,
    ByteRange,
    Child,
    ObjectStore,
    StoredObject,
    StoreFeature,
    as_renaming,
)
from pgwal.repository.store_wrapper import StoreWrapper
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.segment import WalGeometry, is_segment_name

_IN_CLEAR = (IDENTITY_NAME, STORAGE_FORMAT_NAME)


class SealedStore(StoreWrapper):
    """See pgwal.repository.store.SealingStore."""

    features = frozenset({StoreFeature.SEALS, StoreFeature.COPIES})

    def __init__(
        self,
        store: ObjectStore,
        keys: RepositoryKeys,
        geometry: WalGeometry,
        is_wal_in_use: Callable[[], bool] = lambda: False,
    ) -> None:
        """``is_wal_in_use`` tells whether somebody may still read WAL that is summarised, without an identity."""
        super().__init__(store)
        self.as_stored = store
        self.keys = keys
        self._geometry = geometry
        self._is_wal_in_use = is_wal_in_use
        self._ciphers = OrderedDict[str, _Opening]()
        """Of objects that were read last in part."""
        self._lock = Lock()
        self._buffers = Buffers()

    # -- reading -----------------------------------------------------------------------------------------------

    def get(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        kind = _sealed_for(name)
        if kind is None:
            return super().get(name, most_bytes=most_bytes)
        content = super().get(name, most_bytes=stored_size(most_bytes, kind))
        if not content and _may_be_empty(name):
            return content
        place = self.locate(name)
        header, body = content[: kind.header_bytes], memoryview(content)[kind.header_bytes :]
        return opened(self.cipher_of(header, name, kind), body, place)

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        kind = _sealed_for(name)
        if kind is None:
            return super().get_ranges(name, ranges)
        if any(start < 0 or (end is not None and end < 0) for start, end in ranges):
            # Most of which the end is wanted are small, and what takes one request need not take three.
            with suppress(FormatError):
                content = self.get(name, most_bytes=FRAME_BYTES)
                return [content[start:end] for start, end in ranges]
            size_bytes = self.size(name)
            ranges = [ByteRange(*slice(start, end).indices(size_bytes)[:2]) for start, end in ranges]
        with self._lock:
            opening = self._ciphers.get(name)
        if opening is not None:
            # Under the same name there may be another object by now.
            with suppress(ChecksumMismatch):
                return self._opened_ranges(name, kind, ranges, opening)
        return self._opened_ranges(name, kind, ranges, None)

    def _opened_ranges(
        self, name: str, kind: SealedFor, ranges: Sequence[ByteRange], opening: _Opening | None
    ) -> list[bytes]:
        spans = [_Span(part, kind) for part in ranges]
        wanted = [span.stored for span in spans]
        found = super().get_ranges(name, wanted if opening else [ByteRange(0, kind.header_bytes), *wanted])
        if opening is None:
            header, *found = found
            if not header and _may_be_empty(name):
                return [b"" for _ in ranges]
            opening = _Opening(self.cipher_of(header, name, kind))
            self._keep(name, opening)
        return [self._opened_span(name, kind, *each, opening) for each in zip(spans, found, strict=True)]

    def _opened_span(self, name: str, kind: SealedFor, span: _Span, body: bytes, opening: _Opening) -> bytes:
        place = self.locate(name)
        if not body:
            self._require_end(name, kind, span, opening)
            return b""
        asked = None if span.stored.end is None else span.stored.end - span.stored.start
        is_short = asked is None or len(body) < asked
        content = b"".join(opened_frames(opening.cipher, span.first, body, place, ends=is_short))
        opening.is_end_seen = opening.is_end_seen or is_short
        return (
            content[span.skipped : span.skipped + span.length] if span.length is not None else content[span.skipped :]
        )

    def _require_end(self, name: str, kind: SealedFor, span: _Span, opening: _Opening) -> None:
        """Raise ChecksumMismatch unless an object ends before a range where it was sealed to end: it may be cut."""
        if opening.is_end_seen or span.length == 0:
            return
        place, stored_bytes = self.locate(name), super().size(name)
        body_bytes = stored_bytes - kind.header_bytes
        if body_bytes <= 0:
            raise damaged(place, "it ends within its header")
        last = (body_bytes - 1) // SEALED_FRAME_BYTES
        start = kind.header_bytes + last * SEALED_FRAME_BYTES
        (body,) = super().get_ranges(name, [ByteRange(start, stored_bytes)])
        opening.cipher.open(last, body, place, last=True)
        opening.is_end_seen = True

    def require_form(self, name: str) -> None:
        kind = _required(name)
        place, stored_bytes = self.locate(name), super().size(name)
        (header,) = super().get_ranges(name, [ByteRange(0, kind.header_bytes)])
        Header.decode(header, kind, place)
        if (stored_bytes - kind.header_bytes - 1) % SEALED_FRAME_BYTES < TAG_BYTES - 1:
            raise damaged(place, "it ends within a frame")

    def cipher_of(self, header: bytes, name: str, kind: SealedFor) -> FrameCipher:
        """Return what opens the frames of an object that begins so; raises ChecksumMismatch, KeyRequired."""
        return self.keys.opening(header, _own_name(name), kind, self.locate(name), segment=_segment(name))

    def _keep(self, name: str, opening: _Opening) -> None:
        with self._lock:
            self._ciphers[name] = opening
            self._ciphers.move_to_end(name)
            while len(self._ciphers) > CIPHERS_KEPT:
                self._ciphers.popitem(last=False)

    def size(self, name: str) -> int:
        return _plain_size(name, super().size(name))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        for name, size_bytes in super().list(prefix, after=after):
            yield StoredObject(name, _plain_size(name, size_bytes))

    def children(self, folder: str = "") -> Iterator[Child]:
        for child in super().children(folder):
            size_bytes = child.size_bytes
            if size_bytes is not None:
                size_bytes = _plain_size(f"{folder}/{child.name}" if folder else child.name, size_bytes)
            yield child._replace(size_bytes=size_bytes)

    # -- writing -----------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes | Iterable[bytes], *, replace: bool = False, durable: bool = True) -> None:
        kind = _sealed_for(name)
        if kind is None:
            content = _sealed_pack(name, content) if name.startswith(f"{PACK_DIRECTORY}/") else content
            super().put(name, content, replace=replace, durable=durable)
            return
        if content != b"" or not _may_be_empty(name):
            header, cipher = self.keys.sealing(_own_name(name), kind, segment=_segment(name))
            pieces = sealed_pieces(cipher, header, [content] if isinstance(content, bytes) else content)
            # What is there at once is so for a store that only then can tell whether something was there.
            needs_all = isinstance(content, bytes) and as_renaming(self._store) is None
            content = b"".join(pieces) if needs_all else pieces
        with self._lock:
            self._ciphers.pop(name, None)
        super().put(name, content, replace=replace, durable=durable)
        if name.startswith(f"{SUMMARY_DIRECTORY}/"):
            self._forget_what_is_summarised(name)

    def sealer(self, name: str, size_bytes: int) -> Sealer:
        kind = _required(name)
        header, cipher = self.keys.sealing(_own_name(name), kind, segment=_segment(name))
        return Sealer(self.as_stored, name, stored_size(size_bytes, kind), header, cipher, self._buffers)

    def opener(self, name: str) -> Opener:
        return Opener(self, name)

    def copy(self, old: str, new: str) -> None:
        if _own_name(old) == _own_name(new):
            super().put(new, super().get(old, most_bytes=super().size(old)))
        else:
            self.put(new, self.get(old, most_bytes=self.size(old)))

    def _forget_what_is_summarised(self, summary_name: str) -> None:
        # Late: this is for receivers.
        from pgwal.summary.codec import parse_summary_file_name

        summary_range = parse_summary_file_name(summary_name.rpartition("/")[2])
        if summary_range is None:
            return

        def is_needed(segment: str) -> bool:
            segment_no = self._geometry.parse_file_name(segment)[1]
            return self._geometry.segment_start(segment_no + 1) > summary_range.start

        self.keys.forget_segments(is_needed, self._is_wal_in_use)


class Opener:
    """Opens an object that is stored, as its pieces come; raises ChecksumMismatch, KeyRequired."""

    def __init__(self, store: SealedStore, name: str) -> None:
        self._store = store
        self._name = name
        self._kind = _required(name)
        self._place = store.locate(name)
        self._waiting = b""
        self._cipher: FrameCipher | None = None
        self._number = 0

    def open(self, piece: bytes) -> bytes:
        """Return what is opened by now: the last frame is not, before it is known to be."""
        self._waiting += piece
        if self._cipher is None:
            header, rest = self._waiting[: self._kind.header_bytes], self._waiting[self._kind.header_bytes :]
            if not rest:
                return b""
            self._cipher, self._waiting = self._store.cipher_of(header, self._name, self._kind), rest
        count = (len(self._waiting) - 1) // SEALED_FRAME_BYTES
        if count <= 0:
            return b""
        body, self._waiting = self._waiting[: count * SEALED_FRAME_BYTES], self._waiting[count * SEALED_FRAME_BYTES :]
        found = opened_frames(self._cipher, self._number, body, self._place, ends=False)
        self._number += count
        return b"".join(found)

    def finish(self) -> bytes:
        """Return the rest, when there are no more pieces."""
        if self._cipher is None:
            raise damaged(self._place, "it ends within its header")
        return b"".join(opened_frames(self._cipher, self._number, self._waiting, self._place, ends=True))


class _Opening:
    """What opens the frames of an object, and whether its last frame was seen to be the last."""

    def __init__(self, cipher: FrameCipher) -> None:
        self.cipher = cipher
        self.is_end_seen = False


class _Span:
    """The frames that hold a range of what is inside, and where the range lies in them."""

    def __init__(self, part: ByteRange, kind: SealedFor) -> None:
        start, end = part
        self.first = start // FRAME_BYTES
        self.skipped = start - self.first * FRAME_BYTES
        self.length = None if end is None else max(0, end - start)
        stored_end = None
        if end is not None:
            frames = max(self.first + 1, -(-end // FRAME_BYTES))
            stored_end = kind.header_bytes + frames * SEALED_FRAME_BYTES
        self.stored = ByteRange(kind.header_bytes + self.first * SEALED_FRAME_BYTES, stored_end)


def _sealed_for(name: str) -> SealedFor | None:
    """Return for whom an object of this name is sealed, None where the store has it as it comes."""
    if name in _IN_CLEAR or name.startswith((f"{KEY_DIRECTORY}/", f"{PACK_DIRECTORY}/")):
        return None
    return SealedFor.METADATA if _segment(name) is None else SealedFor.RECIPIENTS


def _required(name: str) -> SealedFor:
    """As ``_sealed_for``; raises BrokenInvariant for what is not sealed by the store."""
    kind = _sealed_for(name)
    if kind is None:
        raise BrokenInvariant(f"{name} is not sealed here")
    return kind


def _own_name(name: str) -> str:
    """Return the name that an object is sealed for: what is set aside, and may be brought back, keeps its own."""
    folder, _, rest = name.partition("/")
    return rest.partition("/")[2] if folder == SET_ASIDE_DIRECTORY else name


def _segment(name: str) -> str | None:
    """Return the segment that an object holds WAL of, None of any other."""
    base = split_segment_name(name.rpartition("/")[2])[0]
    return base if is_segment_name(base) else None


def _may_be_empty(name: str) -> bool:
    """Tell whether an object is stored of no bytes where it holds none: an entry that only keeps a place."""
    return name.rpartition("/")[2] == BACKUP_ENTRY_NAME


def _plain_size(name: str, stored_bytes: int) -> int:
    kind = _sealed_for(name)
    if kind is None or (not stored_bytes and _may_be_empty(name)):
        return stored_bytes
    return plain_size(stored_bytes, kind)


def _sealed_pack(name: str, content: bytes | Iterable[bytes]) -> bytes | Iterable[bytes]:
    """Return the pieces of a pack; raises BrokenInvariant for one that was not sealed."""
    pieces = iter((content,) if isinstance(content, bytes) else content)
    first = next(pieces, b"")
    if not first.startswith(MAGIC):
        raise BrokenInvariant(f"{name} was to be stored unencrypted")
    return first if isinstance(content, bytes) else chain((first,), pieces)
