"""The text of a manifest, cut into its members and the items of its lists while it arrives."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import Any

from pgwal.errors import FormatError

TOP_LEVEL = frozenset(
    {"PostgreSQL-Backup-Manifest-Version", "System-Identifier", "Files", "WAL-Ranges", "Manifest-Checksum"}
)
"""The members of a manifest."""


class MemberScanner:
    """Splits the text of a manifest into members and, of lists, items, holding one of them at a time."""

    _LISTS = frozenset({"Files", "WAL-Ranges"})
    # A path has at most 1023 bytes (MAXPGPATH), six characters each when all are escaped.
    _MAX_ITEM_LENGTH = 1 << 16
    _SPACE = re.compile(r"[ \t\r\n]*")

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.complete = False
        self._text = ""
        self._at = 0
        self._walk = self._parse()
        self._json = json.JSONDecoder(object_pairs_hook=_object_without_duplicates)

    def feed(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def rest(self, length: int) -> str:
        """Return the beginning of what could not be taken yet."""
        return self._text[self._at : self._at + length]

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield (member, value), or (list, item), for what is complete."""
        for member in self._walk:
            if member is None:
                return
            yield member

    def _parse(self) -> Iterator[tuple[str, Any] | None]:
        yield from self._expect("{")
        more = True
        while more:
            name = yield from self._value()
            self._check_name(name)
            yield from self._expect(":")
            if name in self._LISTS:
                yield from self._items(name)
            else:
                yield name, (yield from self._value())
            more = (yield from self._expect(",}")) == ","
        self.complete = True
        while True:
            self._skip_space()
            if self._at < len(self._text):
                raise FormatError("manifest: text after its closing brace")
            yield None

    def _items(self, name: str) -> Iterator[tuple[str, Any] | None]:
        yield from self._expect("[")
        if (yield from self._next_character()) == "]":
            self._at += 1
            return
        more = True
        while more:
            yield name, (yield from self._value())
            more = (yield from self._expect(",]")) == ","

    def _check_name(self, name: Any) -> None:
        if not isinstance(name, str) or name not in TOP_LEVEL:
            raise FormatError(f"manifest: unknown member {name!r}")
        if not self.seen and name != "PostgreSQL-Backup-Manifest-Version":
            raise FormatError("manifest: its version is not its first member")
        if name in self.seen:
            raise FormatError(f"manifest: member {name!r} comes twice")
        self.seen.add(name)

    def _expect(self, characters: str) -> Generator[None, None, str]:
        """Take one of ``characters`` and return it."""
        found = yield from self._next_character()
        if found not in characters:
            raise FormatError(f"manifest: {found!r} where one of {characters!r} is due")
        self._at += 1
        return found

    def _next_character(self) -> Generator[None, None, str]:
        """Return the next character that is no space, without taking it."""
        while True:
            self._skip_space()
            if self._at < len(self._text):
                return self._text[self._at]
            yield None

    def _value(self) -> Generator[None, None, Any]:
        """Take one JSON value, waiting until the text holds all of it."""
        while True:
            self._skip_space()
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > self._MAX_ITEM_LENGTH:
                    raise FormatError(f"manifest: not JSON: {error}") from error
            else:
                # A number that reaches the end of the text may go on in the next chunk.
                if end < len(self._text) or isinstance(value, str | dict):
                    self._at = end
                    return value
            yield None

    def _skip_space(self) -> None:
        match = self._SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise FormatError("manifest: an object has a member twice")
    return members
