"""What differs in WAL between PostgreSQL 13 and 18, by the page magic that tells them apart.

Source: XLOG_PAGE_MAGIC in src/include/access/xlog_internal.h of each version.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgwal.errors import UnsupportedVersion


@dataclass(frozen=True, slots=True)
class WalFormat:
    """The variant of the WAL format that one major version writes.

    ``apply_image_bit`` and ``compressed_image_bits`` are flags of an image header's ``bimg_info``.
    ``dbase_create_wal_log`` is None where CREATE DATABASE always copies files.
    """

    major: int
    magic: int
    apply_image_bit: int
    compressed_image_bits: int
    has_top_level_xid: bool
    has_custom_rmgrs: bool
    dbase_create_file_copy: int
    dbase_create_wal_log: int | None
    dbase_drop: int
    has_checkpoint_redo: bool


def _before_15(major: int, magic: int) -> WalFormat:
    return WalFormat(major, magic, 0x04, 0x02, major >= 14, False, 0x00, None, 0x10, False)


def _since_15(major: int, magic: int) -> WalFormat:
    return WalFormat(major, magic, 0x02, 0x1C, True, True, 0x00, 0x10, 0x20, major >= 17)


WAL_FORMATS: dict[int, WalFormat] = {
    wal_format.magic: wal_format
    for wal_format in (
        _before_15(13, 0xD106),
        _before_15(14, 0xD10D),
        _since_15(15, 0xD110),
        _since_15(16, 0xD113),
        _since_15(17, 0xD116),
        _since_15(18, 0xD118),
    )
}


def wal_format_of_magic(magic: int, where: str) -> WalFormat:
    """Return the format of pages with this magic.

    Raises UnsupportedVersion, which names ``where``, for a magic of no version from 13 to 18.
    """
    try:
        return WAL_FORMATS[magic]
    except KeyError:
        raise UnsupportedVersion(f"{where}: WAL page magic {magic:#06x} is not of PostgreSQL 13 to 18") from None


def wal_format_of_major(major: int) -> WalFormat:
    """Return the format of a major version; raises UnsupportedVersion outside of 13 to 18."""
    for wal_format in WAL_FORMATS.values():
        if wal_format.major == major:
            return wal_format
    raise UnsupportedVersion(f"PostgreSQL {major} is not supported, only 13 to 18 are")
