"""The form in which every object of an encrypted repository is stored: a header, and sealed frames behind it.

All integers are little-endian; docs/formats.md has the offsets.  Each object has a key of its own, so that counted
nonces never meet twice under one.  What is sealed with each frame is of which repository, and of what name, the object
is, and its whole header: what was cut, extended, reordered, renamed or taken from elsewhere does not open.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from pgwal.errors import ChecksumMismatch, UnsupportedVersion

MAGIC = b"pgwalenc"
VERSION = 1
FRAME_BYTES = 64 << 10
"""The plain bytes of a frame, but of packs, whose entry says where frames begin."""
TAG_BYTES = 16
SEALED_FRAME_BYTES = FRAME_BYTES + TAG_BYTES
ID_BYTES = 16
KEY_BYTES = 32

_FIXED = struct.Struct("<8sBBHI16s")
_WRAPPED_LENGTH = struct.Struct("<H")
_SIZES = {1: 512, 2: _FIXED.size}
_NONCE_BYTES = 12
_HIGHEST_COUNTER = 1 << 63
_HINT = "Bring it back from a copy of the repository; nothing of it was used."


class SealedFor(IntEnum):
    """Who can open an object: whoever has an identity, or whoever has the metadata key."""

    RECIPIENTS = 1
    METADATA = 2

    @property
    def header_bytes(self) -> int:
        return _SIZES[self]


class Header(NamedTuple):
    """What an object begins with.

    ``object_id`` is random, ``wrapped`` the object's secret, encrypted for the content key of ``generation`` by age:
    both are 0 and empty where the key comes from the metadata key alone.  ``frame_bytes`` is 0 of a pack.
    """

    sealed_for: SealedFor
    generation: int
    frame_bytes: int
    object_id: bytes
    wrapped: bytes = b""

    def encode(self) -> bytes:
        fixed = _FIXED.pack(MAGIC, VERSION, self.sealed_for, self.generation, self.frame_bytes, self.object_id)
        if self.sealed_for is SealedFor.METADATA:
            return fixed
        return (fixed + _WRAPPED_LENGTH.pack(len(self.wrapped)) + self.wrapped).ljust(_SIZES[self.sealed_for], b"\0")

    @classmethod
    def decode(cls, content: bytes, wanted: SealedFor, place: str) -> Header:
        """Parse a header of the kind that an object of this name has; raises ChecksumMismatch, UnsupportedVersion."""
        if len(content) != wanted.header_bytes or not content.startswith(MAGIC):
            raise damaged(place, "it does not begin as one does")
        _, version, kind, generation, frame_bytes, object_id = _FIXED.unpack_from(content)
        if version != VERSION:
            raise UnsupportedVersion(f"{place} is sealed in format {version}, this pgwal knows {VERSION}")
        if kind != wanted or frame_bytes not in (0, FRAME_BYTES):
            raise damaged(place, "it is sealed otherwise than an object of this name")
        if wanted is SealedFor.METADATA:
            return cls(wanted, generation, frame_bytes, object_id)
        (length,) = _WRAPPED_LENGTH.unpack_from(content, _FIXED.size)
        start = _FIXED.size + _WRAPPED_LENGTH.size
        if any(content[start + length :]):
            raise damaged(place, "its header holds more than a key")
        return cls(wanted, generation, frame_bytes, object_id, content[start : start + length])


MOST_WRAPPED_BYTES = _SIZES[SealedFor.RECIPIENTS] - _FIXED.size - _WRAPPED_LENGTH.size


def derived_key(material: bytes, salt: bytes, purpose: bytes) -> bytes:
    """Return a key made of others, by HKDF-SHA256 (RFC 5869)."""
    return hmac.digest(hmac.digest(salt, material, "sha256"), purpose + b"\1", "sha256")


class FrameCipher:
    """Seals and opens the frames of one object by AES-256-GCM, in any number of threads.

    The nonce of a frame is its number, from 0, and a byte that is 1 for the last one (STREAM).
    """

    def __init__(self, key: bytes, repository_id: bytes, name: str, header: bytes) -> None:
        # Here: nobody who has no encrypted repository waits for this.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(key)
        self._associated = repository_id + header + name.encode(errors="surrogateescape")

    def seal(self, number: int, content: bytes | bytearray | memoryview, *, last: bool = False) -> bytes:
        """Return a frame as it is stored, once for each number."""
        return self._cipher.encrypt(_nonce(number, last=last), content, self._associated)

    def seal_into(self, target: memoryview, number: int, content: bytes | memoryview, *, last: bool = False) -> None:
        """As ``seal``, into memory of the size that it is stored in."""
        self._cipher.encrypt_into(_nonce(number, last=last), content, self._associated, target)

    def open(self, number: int, stored: bytes | memoryview, place: str, *, last: bool = False) -> bytes:
        """Return what a frame holds; raises ChecksumMismatch unless it is what was sealed there."""
        found = self.open_or_none(number, stored, last=last)
        if found is None:
            raise damaged(place, f"its frame {number} is not what was sealed there")
        return found

    def open_or_none(self, number: int, stored: bytes | memoryview, *, last: bool) -> bytes | None:
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(_nonce(number, last=last), stored, self._associated)
        except (InvalidTag, ValueError):
            # The latter of what is shorter than a tag.
            return None


def _nonce(number: int, *, last: bool) -> bytes:
    if number >= _HIGHEST_COUNTER:
        raise OverflowError("an object has no so many frames")
    return (number << 8 | last).to_bytes(_NONCE_BYTES, "big")


def damaged(place: str, reason: str) -> ChecksumMismatch:
    """Return the error for an object that does not open."""
    return ChecksumMismatch(
        f"{place} is damaged, cut, or not what was stored under this name: {reason}", hint=_HINT, path=place
    )


# ---- whole objects


class Frames:
    """Cuts an object into frames as its content comes, which must not change before it is returned."""

    def __init__(self) -> None:
        self.waiting: list[bytes | memoryview] = []
        """At most a frame: only when there is no more it is known to be the last."""
        self._waiting_bytes = 0

    def add(self, piece: bytes | memoryview) -> list[bytes | memoryview]:
        """Return what further frames hold that are known to be followed by others."""
        found: list[bytes | memoryview] = []
        size, taken = len(piece), FRAME_BYTES - self._waiting_bytes
        if size <= taken:
            self.waiting.append(piece)
            self._waiting_bytes += size
            return found
        view = memoryview(piece)
        if self.waiting:
            if taken:
                self.waiting.append(view[:taken])
            found.append(self.last())
        else:
            taken = 0
        while size - taken > FRAME_BYTES:
            found.append(view[taken : taken + FRAME_BYTES])
            taken += FRAME_BYTES
        self.waiting, self._waiting_bytes = [view[taken:]], size - taken
        return found

    def last(self) -> bytes | memoryview:
        """Return what the last frame holds, when there are no more pieces."""
        parts, self.waiting, self._waiting_bytes = self.waiting, [], 0
        # Copied only where a frame is in several pieces.
        return parts[0] if len(parts) == 1 else b"".join(parts)


def sealed_pieces(cipher: FrameCipher, header: bytes, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield an object as it is stored, from the pieces of what it holds."""
    yield header
    frames, number = Frames(), 0
    for piece in pieces:
        for content in frames.add(piece):
            yield cipher.seal(number, content)
            number += 1
    yield cipher.seal(number, frames.last(), last=True)


def opened(cipher: FrameCipher, body: bytes | memoryview, place: str) -> bytes:
    """Return what an object holds, from all that is stored behind its header; raises ChecksumMismatch."""
    return b"".join(opened_frames(cipher, 0, body, place, ends=True))


def opened_frames(cipher: FrameCipher, first: int, body: bytes | memoryview, place: str, *, ends: bool) -> list[bytes]:
    """Return what consecutive frames hold, from ``first`` on; ``ends`` when nothing is stored behind them.

    Without it the last of them may be the object's last, or not.  Raises ChecksumMismatch.
    """
    view = memoryview(body)
    starts = range(0, len(view), SEALED_FRAME_BYTES) if body else range(1)
    found = []
    for number, start in enumerate(starts, first):
        stored = view[start : start + SEALED_FRAME_BYTES]
        is_end = start == starts[-1]
        if is_end and not ends:
            content = cipher.open_or_none(number, stored, last=False)
            found.append(content if content is not None else cipher.open(number, stored, place, last=True))
        else:
            found.append(cipher.open(number, stored, place, last=is_end))
    return found


def stored_size(size_bytes: int, sealed_for: SealedFor) -> int:
    """Return how many bytes are stored of so many plain ones."""
    frames = max(1, -(-size_bytes // FRAME_BYTES))
    return sealed_for.header_bytes + size_bytes + frames * TAG_BYTES


def plain_size(stored_bytes: int, sealed_for: SealedFor) -> int:
    """Return how many plain bytes an object holds that is stored in so many.

    Of what cannot be one that is 1: it is not empty, and whoever reads it finds it damaged.
    """
    body = stored_bytes - sealed_for.header_bytes
    if body < TAG_BYTES:
        return 1
    return body - -(-body // SEALED_FRAME_BYTES) * TAG_BYTES


# ---- packs


PACK_NUMBER = struct.Struct("<I")


class PackSeal:
    """What seals one pack: each frame begins with its number, for an entry need not name all of them.

    A last frame, of nothing, ends it, and tells how many there are.
    """

    def __init__(self, header: bytes, cipher: FrameCipher) -> None:
        self.header = header
        self._cipher = cipher

    def seal(self, number: int, content: bytes | bytearray) -> bytes:
        """Return a frame as it is stored, once for each number."""
        return PACK_NUMBER.pack(number) + self._cipher.seal(number, content)

    def trailer(self, frame_count: int) -> bytes:
        """Return what ends a pack of so many frames."""
        return PACK_NUMBER.pack(frame_count) + self._cipher.seal(frame_count, b"", last=True)


def opened_pack_frame(cipher: FrameCipher, stored: bytes, place: str, *, last: bool = False) -> bytes:
    """Return what a frame of a pack holds; raises ChecksumMismatch."""
    if len(stored) < PACK_NUMBER.size:
        raise damaged(place, "a frame is cut")
    (number,) = PACK_NUMBER.unpack_from(stored)
    return cipher.open(number, memoryview(stored)[PACK_NUMBER.size :], place, last=last)
