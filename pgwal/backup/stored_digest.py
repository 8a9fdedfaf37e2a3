"""The digest that an entry has of a stored file: xxh3-128, or, of one that a merge made of parts, CRC-32C.

Of such a file the parts that did not change were not read.  Each of its frames has a digest of its own.
"""

from __future__ import annotations

from pgwal.backup.manifest import CHECKSUM_HEX_LENGTHS, FileChecksum
from pgwal.checksum import ContentDigest

PATCHED_ALGORITHM = "CRC32C"
PATCHED_DIGEST_LENGTH = CHECKSUM_HEX_LENGTHS[PATCHED_ALGORITHM]


def digest_like(expected: str) -> ContentDigest | FileChecksum:
    """Return what makes a digest of the kind that ``expected`` is."""
    return FileChecksum(PATCHED_ALGORITHM) if len(expected) == PATCHED_DIGEST_LENGTH else ContentDigest()
