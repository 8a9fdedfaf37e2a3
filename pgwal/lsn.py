"""Log sequence numbers: byte positions in the WAL stream, and half-open ranges of them."""

from __future__ import annotations

import re
from typing import NamedTuple

from pgwal.errors import FormatError

_LSN_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A WAL position in bytes; prints as PostgreSQL prints it (``16/B374D848``)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read PostgreSQL's text form, the zero-padded one of version 19 included.

        Raises FormatError for anything else.
        """
        match = _LSN_TEXT.fullmatch(text.strip())
        if match is None:
            raise FormatError(f"invalid LSN {text!r}", hint="An LSN is two hexadecimal numbers, such as 0/3000028.")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec) if not spec or spec[-1] not in "dxX" else format(int(self), spec)


class LsnRange(NamedTuple):
    """WAL of one timeline from ``start`` (inclusive) to ``end`` (exclusive)."""

    timeline_id: int
    start: Lsn
    end: Lsn

    def __str__(self) -> str:
        return f"{self.start} to {self.end} on timeline {self.timeline_id}"
