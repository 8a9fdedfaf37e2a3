"""The digest that an entry has of a stored file: xxh3-128; of one that a merge made of parts, CRC-32C, or none.

Of such a file the parts that did not change were not read.  Each of its frames has a digest of its own.
"""

from __future__ import annotations

from pgwal.backup.manifest import CHECKSUM_HEX_LENGTHS, FileChecksum
from pgwal.checksum import ContentDigest

PATCHED_ALGORITHM = "CRC32C"
PATCHED_DIGEST_LENGTH = CHECKSUM_HEX_LENGTHS[PATCHED_ALGORITHM]
NO_DIGEST = ""


class _AnyContent:
    """Says of every file what an entry without a digest says."""

    def update(self, data: bytes | memoryview) -> None:
        pass

    def hexdigest(self) -> str:
        return NO_DIGEST


StoredDigest = ContentDigest | FileChecksum | _AnyContent


def digest_like(expected: str) -> StoredDigest:
    """Return what makes a digest of the kind that ``expected`` is."""
    if expected == NO_DIGEST:
        return _AnyContent()
    return FileChecksum(PATCHED_ALGORITHM) if len(expected) == PATCHED_DIGEST_LENGTH else ContentDigest()
