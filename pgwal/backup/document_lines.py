"""Read a document of lists, one item a line, that ends with its own digest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pgwal.checksum import ContentDigest
from pgwal.errors import ChecksumMismatch, FormatError, TruncatedInput

_LAST_LINE = re.compile(rb'"digest": "xxh3-128:([0-9a-f]{32})"\}\n')


class DocumentLines:
    """The lines of a document, taken into its digest as they are read; ``last`` is the last of them."""

    def __init__(self, lines: Iterable[bytes], what: str) -> None:
        """``what`` the document is called in errors; lines have their newlines."""
        self.last = b""
        self._digest = ContentDigest()
        self._lines = iter(lines)
        self._what = what

    def line(self) -> bytes:
        """Return the next line, empty at the end."""
        self.last = next(self._lines, b"")
        self._digest.update(self.last)
        return self.last

    def items(self, end: bytes) -> Iterator[bytes]:
        """Yield the items of a list, one a line, up to a line that begins with its ``end``."""
        more, is_first = True, True
        while line := self.line():
            if line.startswith(end) and (not more or is_first):
                return
            if not line.endswith(b"\n"):
                raise TruncatedInput(f"{self._what} ends within a line")
            if not more:
                raise FormatError(f"{self._what}: a comma is missing in a list")
            content = line[:-1].removesuffix(b",")
            more, is_first = len(content) < len(line) - 1, False
            yield content
        raise TruncatedInput(f"{self._what} ends within a list")

    def require_digest(self) -> None:
        """Take the last line; raises ChecksumMismatch unless it is the digest of those before, TruncatedInput."""
        line = next(self._lines, b"")
        if not line.endswith(b"\n"):
            raise TruncatedInput(f"{self._what} ends before its digest")
        match = _LAST_LINE.fullmatch(line)
        if match is None:
            raise FormatError(f"{self._what}: its last line is not its digest")
        if match[1].decode() != self._digest.hexdigest():
            raise ChecksumMismatch(f"{self._what}: its digest does not match its contents")

    def require_end(self) -> None:
        """Raise FormatError where lines follow."""
        if next(self._lines, b""):
            raise FormatError(f"{self._what}: more lines after its end")


def digest_line(digest: ContentDigest) -> bytes:
    """Return the last line of a document of which all before is in a digest."""
    return f'"digest": "xxh3-128:{digest.hexdigest()}"}}\n'.encode()
