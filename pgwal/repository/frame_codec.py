"""Compress a frame of a pack, and give back what it holds, once it is proven to be what was stored."""

from __future__ import annotations

import threading

import zstandard
from xxhash import xxh3_128_digest

from pgwal.backup.pack_table import FRAME_SIZE, Frame
from pgwal.errors import ChecksumMismatch, FormatError

_ANOTHER_BACKUP = "Restore another backup."


class FrameEncoder:
    """Encodes frames, with a level of zstd, or as they are when that is None; for one thread at a time."""

    def __init__(self, level: int | None) -> None:
        self._compressor = None if level is None else zstandard.ZstdCompressor(level=level, write_checksum=False)

    def encode(self, content: memoryview, offset: int) -> tuple[Frame, bytes]:
        """Return a frame that begins at a byte offset of its pack, and what is stored there.

        What compression makes no smaller is stored as it is.
        """
        stored = b"" if self._compressor is None else self._compressor.compress(content)
        if not stored or len(stored) >= len(content):
            stored = bytes(content)
        return Frame(offset, len(stored), len(content), xxh3_128_digest(stored)), stored


class FrameDecoder:
    """Decodes frames, in any number of threads."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def decode(self, stored: bytes, frame: Frame, number: int, place: str) -> bytes:
        """Return what a frame holds; ``number`` is its own, ``place`` what people call that of its pack.

        Raises ChecksumMismatch unless the stored bytes are what the entry says, FormatError unless they inflate to what
        it says: never to more.
        """
        if len(stored) != frame.stored_size_bytes or xxh3_128_digest(stored) != frame.digest:
            raise ChecksumMismatch(
                f"frame {number} of {place} is damaged: the {frame.stored_size_bytes} bytes from byte {frame.offset}"
                " on are not what was stored",
                hint=_ANOTHER_BACKUP,
                path=place,
                offset_bytes=frame.offset,
            )
        if frame.stored_size_bytes == frame.size_bytes:
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

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._of_thread, "decompressor"):
            self._of_thread.decompressor = zstandard.ZstdDecompressor()
        found: zstandard.ZstdDecompressor = self._of_thread.decompressor
        return found
