"""Checksums over bytes: CRC-32C as PostgreSQL uses it, and xxHash digests of what a repository holds."""

from __future__ import annotations

from google_crc32c import extend
from xxhash import xxh3_128


def crc32c(data: bytes | memoryview, value: int = 0) -> int:
    """Return the CRC-32C (Castagnoli) of ``data``, continued from ``value``."""
    # The library takes bytes alone.
    value_after: int = extend(value, data if isinstance(data, bytes) else bytes(data))
    return value_after


class ContentDigest:
    """The xxh3-128 digest of a stored object, fed piece by piece; identifies content, not authenticity."""

    algorithm = "xxh3-128"

    def __init__(self) -> None:
        self._state = xxh3_128()

    def update(self, data: bytes | memoryview) -> None:
        self._state.update(data)

    def hexdigest(self) -> str:
        return self._state.hexdigest()


def content_digest(content: bytes) -> str:
    """Return the ContentDigest of bytes that are all there."""
    digest = ContentDigest()
    digest.update(content)
    return digest.hexdigest()
