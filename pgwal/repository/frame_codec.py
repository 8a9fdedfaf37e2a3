"""Compress a frame of a pack, and give back what it holds, once it is proven to be what was stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import zstandard
from xxhash import xxh3_128_digest

from pgwal.backup.pack_table import FRAME_SIZE, Frame
from pgwal.budget import FRAMES_WAITING
from pgwal.encryption.container import opened_pack_frame
from pgwal.errors import ChecksumMismatch, FormatError

if TYPE_CHECKING:
    from pgwal.encryption.container import FrameCipher

Seal: TypeAlias = Callable[[int, bytes | bytearray], bytes]
"""Encrypts what is stored of the frame of a number, once for each."""

_ANOTHER_BACKUP = "Restore another backup."


class EncodedFrame(NamedTuple):
    """What is stored of a frame, its digest, how many bytes of files it holds, and their digest if it is another."""

    stored: bytes
    digest: bytes
    size_bytes: int
    content_digest: bytes | None

    def at(self, offset: int) -> Frame:
        """Return the frame as it is when it begins at a byte offset of its pack."""
        return Frame(offset, len(self.stored), self.size_bytes, self.digest, self.content_digest)


class FrameEncoder:
    """Encodes frames, with a level of zstd, or as they are when that is None, in ``jobs`` threads of its own.

    One file may be most of a database, so that a thread for each file would have the others wait for it.
    """

    def __init__(self, level: int | None, jobs: int = 1) -> None:
        self._level = level
        self._of_thread = threading.local()
        self._threads = ThreadPoolExecutor(jobs, "encode-frame")
        self.most_waiting = min(jobs + 1, FRAMES_WAITING)
        """So many frames of one stream keep all threads at work; they are what it has in memory."""

    def begin(self, content: bytes | bytearray, seal: Seal | None = None, number: int = 0) -> Future[EncodedFrame]:
        """Have a frame encoded, which must not change any more; ``seal`` encrypts it, as the frame of a number."""
        return self._threads.submit(self.encode, content, seal, number)

    def encode(self, content: bytes | bytearray, seal: Seal | None = None, number: int = 0) -> EncodedFrame:
        """Encode a frame; what compression makes no smaller is stored as it is."""
        shrunk = b"" if self._level is None else self._compressor(self._level).compress(content)
        kept = shrunk if shrunk and len(shrunk) < len(content) else content
        stored = bytes(kept) if seal is None else seal(number, kept)
        content_digest = None if seal is None and kept is content else xxh3_128_digest(content)
        return EncodedFrame(stored, xxh3_128_digest(stored), len(content), content_digest)

    def close(self) -> None:
        """End; what has not begun is not encoded."""
        self._threads.shutdown(cancel_futures=True)

    def _compressor(self, level: int) -> zstandard.ZstdCompressor:
        if not hasattr(self._of_thread, "compressor"):
            self._of_thread.compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
        found: zstandard.ZstdCompressor = self._of_thread.compressor
        return found


class FrameDecoder:
    """Decodes frames, in any number of threads."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def decode(self, stored: bytes, frame: Frame, number: int, place: str, cipher: FrameCipher | None = None) -> bytes:
        """Return what a frame holds; ``number`` is its own, ``place`` what people call that of its pack.

        ``cipher`` opens it where it is encrypted.

        Raises ChecksumMismatch unless the stored bytes are what the entry says, FormatError unless they inflate to what
        it says: never to more.
        """
        self.require_digest(stored, frame, number, place)
        if cipher is not None:
            stored = opened_pack_frame(cipher, stored, place)
        if len(stored) == frame.size_bytes:
            return stored
        try:
            if zstandard.frame_content_size(stored) != frame.size_bytes or frame.size_bytes > FRAME_SIZE:
                raise zstandard.ZstdError("it holds another number of bytes")
            content: bytes = self._decompressor().decompress(stored, allow_extra_data=False)
            if len(content) != frame.size_bytes:
                raise zstandard.ZstdError("it holds another number of bytes")
        except zstandard.ZstdError as error:
            raise FormatError(
                f"frame {number} of {place}, from byte {frame.offset} on, is not what its entry says: {error}",
                hint=_ANOTHER_BACKUP,
                path=place,
                offset_bytes=frame.offset,
            ) from error
        return content

    def require_digest(self, stored: bytes, frame: Frame, number: int, place: str) -> None:
        """Raise ChecksumMismatch unless the stored bytes are what the entry says."""
        if len(stored) != frame.stored_size_bytes or xxh3_128_digest(stored) != frame.digest:
            raise ChecksumMismatch(
                f"frame {number} of {place} is damaged: the {frame.stored_size_bytes} bytes from byte {frame.offset}"
                " on are not what was stored",
                hint=_ANOTHER_BACKUP,
                path=place,
                offset_bytes=frame.offset,
            )

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._of_thread, "decompressor"):
            self._of_thread.decompressor = zstandard.ZstdDecompressor()
        found: zstandard.ZstdDecompressor = self._of_thread.decompressor
        return found
