"""What became of a file that was stored."""

from __future__ import annotations

from typing import NamedTuple

from pgwal.backup.pack_table import Extent


class WrittenFile(NamedTuple):
    """A file that was stored: its size in bytes, the digest of its content, and where it lies, if that is in packs."""

    size_bytes: int
    digest: str
    extents: tuple[Extent, ...] = ()
