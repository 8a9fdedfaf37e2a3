"""The WAL format by the page magic that tells it, or by the major version that writes it."""

from __future__ import annotations

from pgwal.postgres_version import VERSIONS, WalFormat, version_of_magic, version_of_major

__all__ = ["WAL_FORMATS", "WalFormat", "wal_format_of_magic", "wal_format_of_major"]

WAL_FORMATS: dict[int, WalFormat] = {version.wal.magic: version.wal for version in VERSIONS}


def wal_format_of_magic(magic: int, where: str) -> WalFormat:
    """Return the format of pages with this magic.

    Raises UnsupportedVersion, which names ``where``, for a magic of no supported version.
    """
    return version_of_magic(magic, where).wal


def wal_format_of_major(major: int) -> WalFormat:
    """Return the format of a major version; raises UnsupportedVersion for one that is not supported."""
    return version_of_major(major).wal
