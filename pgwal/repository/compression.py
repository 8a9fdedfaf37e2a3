"""How something is compressed, as people spell it: the method, and its level."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from pgwal.errors import FormatError


class CompressionMethod(StrEnum):
    """How segments are kept; the names are those of ``--compress``."""

    NONE = "none"
    ZSTD = "zstd"
    LZ4 = "lz4"
    GZIP = "gzip"


_SUFFIXES = {CompressionMethod.ZSTD: ".zst", CompressionMethod.LZ4: ".lz4", CompressionMethod.GZIP: ".gz"}
# Method: default, lowest and highest level.  Zstandard's own default, 3, takes twice the time of 1 and makes WAL no
# smaller.
_LEVELS = {CompressionMethod.ZSTD: (1, 1, 22), CompressionMethod.GZIP: (6, 1, 9)}


class Compression(NamedTuple):
    """A method and its level; the level of a method that has none is 0."""

    method: CompressionMethod = CompressionMethod.ZSTD
    level: int = _LEVELS[CompressionMethod.ZSTD][0]

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Read ``METHOD[:LEVEL]``; raises FormatError."""
        name, colon, level_text = text.partition(":")
        try:
            method = CompressionMethod(name)
        except ValueError:
            raise FormatError(f"unknown compression method {name!r}: zstd, lz4, gzip or none") from None
        default, lowest, highest = _LEVELS.get(method, (0, 0, 0))
        if not colon:
            return cls(method, default)
        if not highest:
            raise FormatError(f"compression method {name} has no level")
        if re.fullmatch("[0-9]{1,9}", level_text) is None or not lowest <= int(level_text) <= highest:
            raise FormatError(f"the level of {name} is a number from {lowest} to {highest}, not {level_text!r}")
        return cls(method, int(level_text))

    def __str__(self) -> str:
        return f"{self.method}:{self.level}" if self.method in _LEVELS else str(self.method)

    @property
    def suffix(self) -> str:
        """What is added to a segment's name, nothing for NONE."""
        return _SUFFIXES.get(self.method, "")


DEFAULT_COMPRESSION = Compression()
