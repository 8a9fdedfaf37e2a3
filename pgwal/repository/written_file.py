"""What became of a file that was stored."""

from __future__ import annotations

from typing import NamedTuple


class WrittenFile(NamedTuple):
    """A file that was stored: its size in bytes, and the digest of its content."""

    size_bytes: int
    digest: str
