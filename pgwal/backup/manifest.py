"""backup_manifest: the list of a backup's files, as pg_verifybackup and pg_combinebackup read it.

Both ways are streams: a million files pass through without being held.

Source of the format: src/backend/backup/backup_manifest.c and src/common/parse_manifest.c, PostgreSQL 13 to 19.
Version 2, of 17 and later, differs from version 1 by the line with the system identifier.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from pgwal.backup.stored_path import DistinctPaths, check_path, decode_path, encode_path
from pgwal.checksum import crc32c
from pgwal.errors import BrokenInvariant, ChecksumMismatch, FormatError, TruncatedInput, UnsupportedVersion
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres_version import version_of_major

MANIFEST_NAME = "backup_manifest"

CHECKSUM_HEX_LENGTHS = {"NONE": 0, "CRC32C": 8, "SHA224": 56, "SHA256": 64, "SHA384": 96, "SHA512": 128}
"""The checksum algorithms of a manifest, and how many hex digits their results have."""

_EPOCH = datetime(1970, 1, 1)
_EARLIEST_S = int((datetime.min - _EPOCH).total_seconds())
_LATEST_S = int((datetime.max.replace(microsecond=0) - _EPOCH).total_seconds())

_MAX_SIZE = (1 << 63) - 1


def manifest_version(major: int) -> int:
    """Return the version of the manifests that servers and tools of ``major`` take."""
    return version_of_major(major).manifest_version


_HEAD = re.compile(
    rb'\s*\{\s*"PostgreSQL-Backup-Manifest-Version"\s*:\s*2\s*,\s*"System-Identifier"\s*:\s*"?([0-9]{1,20})\b'
)


def system_identifier_of_head(start: bytes) -> int | None:
    """Return whose a manifest is, from its first bytes, as servers write it; None where it does not begin like that."""
    match = _HEAD.match(start)
    return None if match is None else int(match[1])


class FileChecksum:
    """The checksum of one file, fed piece by piece, as a manifest writes it."""

    def __init__(self, algorithm: str) -> None:
        """Start a checksum; raises FormatError for an algorithm that a manifest cannot name."""
        if algorithm not in CHECKSUM_HEX_LENGTHS:
            known = ", ".join(CHECKSUM_HEX_LENGTHS)
            raise FormatError(f"unknown checksum algorithm {algorithm!r}", hint=f"Choose one of {known}.")
        self.algorithm = algorithm
        self._state: _Checksum | None = None
        if algorithm == "CRC32C":
            self._state = _Crc32c()
        elif algorithm != "NONE":
            self._state = hashlib.new(algorithm.lower())

    def update(self, data: bytes) -> None:
        if self._state is not None:
            self._state.update(data)

    def hexdigest(self) -> str | None:
        """Return the checksum so far in lower-case hex, or None under the algorithm NONE."""
        return None if self._state is None else self._state.hexdigest()


class _Checksum(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Crc32c:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = crc32c(data, self._value)

    def hexdigest(self) -> str:
        # The server prints the four bytes as they lie in memory.
        return self._value.to_bytes(4, "little").hex()


class ManifestWriter:
    """Makes a manifest in the server's own bytes: ``header``, each ``file_entry``, then ``finish``.

    What is returned must be written in that order and without gaps.
    """

    def __init__(self, major: int, system_identifier: int) -> None:
        self._version = manifest_version(major)
        self._lsn_text = version_of_major(major).lsn_text
        self._system_identifier = system_identifier
        self._digest = hashlib.sha256()
        self._separator = ""

    def header(self) -> bytes:
        text = f'{{ "PostgreSQL-Backup-Manifest-Version": {self._version},\n'
        if self._version > 1:
            text += f'"System-Identifier": {self._system_identifier},\n'
        self._separator = "\n"
        return self._emit(text + '"Files": [')

    def file_entry(
        self,
        path: bytes | str,
        size: int,
        mtime_epoch_s: float,
        checksum_algorithm: str,
        checksum_hex: str | None,
    ) -> bytes:
        """Return the entry of one file; raises FormatError for a path or checksum that a reader would refuse."""
        content = check_path(path if isinstance(path, str) else decode_path(path))
        if not 0 <= size <= _MAX_SIZE:
            raise FormatError(f"manifest: size {size} of {path!r} is out of range")
        _check_checksum(path, checksum_algorithm, checksum_hex)
        fields = [_path_member(content), f'"Size": {size}', f'"Last-Modified": "{_format_time(mtime_epoch_s)}"']
        if checksum_hex is not None:
            fields += [f'"Checksum-Algorithm": "{checksum_algorithm}"', f'"Checksum": "{checksum_hex}"']
        return self._emit_item(", ".join(fields))

    def finish(self, wal_ranges: Iterable[LsnRange]) -> bytes:
        """Return the rest: the WAL that the backup needs, newest timeline first, and the manifest's checksum."""
        end = self._emit('\n],\n"WAL-Ranges": [')
        self._separator = "\n"
        for timeline_id, start, stop in wal_ranges:
            positions = f'"Start-LSN": "{self._lsn_text(start)}", "End-LSN": "{self._lsn_text(stop)}"'
            end += self._emit_item(f'"Timeline": {timeline_id}, {positions}')
        end += self._emit("\n],\n")
        return end + f'"Manifest-Checksum": "{self._digest.hexdigest()}"}}\n'.encode()

    def _emit_item(self, members: str) -> bytes:
        if not self._separator:
            raise BrokenInvariant("the header comes first")
        text = f"{self._separator}{{ {members} }}"
        self._separator = ",\n"
        return self._emit(text)

    def _emit(self, text: str) -> bytes:
        content = text.encode()
        self._digest.update(content)
        return content


def _path_member(content: bytes) -> str:
    try:
        # With ensure_ascii off, json escapes exactly what the server escapes.
        return f'"Path": {json.dumps(content.decode(), ensure_ascii=False)}'
    except UnicodeDecodeError:
        return f'"Encoded-Path": "{content.hex()}"'


def _format_time(epoch_s: float) -> str:
    # Readers ignore the time of a file, so one beyond the calendar is no reason to fail.
    clamped = min(max(int(epoch_s // 1), _EARLIEST_S), _LATEST_S)
    return (_EPOCH + timedelta(seconds=clamped)).isoformat(" ", "seconds") + " GMT"


def _check_checksum(path: object, algorithm: str, checksum_hex: str | None) -> None:
    expected = CHECKSUM_HEX_LENGTHS.get(algorithm)
    if expected is None:
        raise FormatError(f"manifest: unknown checksum algorithm {algorithm!r} of {path!r}")
    found = "" if checksum_hex is None else checksum_hex
    if len(found) != expected or re.fullmatch("[0-9a-f]*", found) is None or (checksum_hex == ""):
        raise FormatError(f"manifest: {found!r} of {path!r} is no {algorithm} checksum")


# -- reading ---------------------------------------------------------------------------------------------------------


class ManifestFile(NamedTuple):
    """One file of a manifest; ``checksum_hex`` is lower-case, None under the algorithm NONE."""

    path: str
    size: int
    last_modified: str
    checksum_algorithm: str
    checksum_hex: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole manifest; ``system_identifier`` is None in version 1."""

    version: int
    system_identifier: int | None
    files: tuple[ManifestFile, ...]
    wal_ranges: tuple[LsnRange, ...]


def read_manifest(content: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises FormatError, UnsupportedVersion, TruncatedInput, or ChecksumMismatch when it differs from its checksum.
    """
    reader = ManifestReader()
    files = tuple(reader.feed(content))
    version, system_identifier, wal_ranges = reader.finish()
    return Manifest(version, system_identifier, files, wal_ranges)


class ManifestEnd(NamedTuple):
    """What a manifest says besides its files."""

    version: int
    system_identifier: int | None
    wal_ranges: tuple[LsnRange, ...]


class ManifestReader:
    """Parses a manifest in chunks of any size; takes what the server's own parser takes, except defects.

    The files that ``feed`` returns are proven only when ``finish`` has returned.  Both raise FormatError or one of
    its kinds.
    """

    def __init__(self) -> None:
        self._checksum = _TrailingChecksum()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scanner = _MemberScanner()
        self._paths = DistinctPaths()
        self._members: dict[str, Any] = {}
        self._wal_ranges: list[LsnRange] = []

    def feed(self, chunk: bytes) -> list[ManifestFile]:
        """Return the files whose entries are complete with ``chunk``."""
        self._checksum.update(chunk)
        try:
            self._scanner.feed(self._decoder.decode(chunk))
        except UnicodeDecodeError as error:
            raise FormatError("manifest: not UTF-8") from error
        files = []
        for name, item in self._scanner.members():
            if name == "Files":
                file = _decode_file(item)
                self._paths.add(encode_path(file.path))
                files.append(file)
            elif name == "WAL-Ranges":
                self._wal_ranges.append(_decode_wal_range(item))
            else:
                self._take_scalar(name, item)
        return files

    def finish(self) -> ManifestEnd:
        """Check what only the end of the manifest can show, and return what it says besides files."""
        if not self._scanner.complete:
            raise TruncatedInput(f"manifest: incomplete, or not JSON, from {self._scanner.rest(40)!r} on")
        missing = set(_TOP_LEVEL - self._scanner.seen)
        if self._members["PostgreSQL-Backup-Manifest-Version"] == 1:
            missing.discard("System-Identifier")
        if missing:
            raise FormatError(f"manifest: member {min(missing)!r} is missing")
        self._checksum.verify()
        self._paths.check()
        return ManifestEnd(
            self._members["PostgreSQL-Backup-Manifest-Version"],
            self._members.get("System-Identifier"),
            tuple(self._wal_ranges),
        )

    def _take_scalar(self, name: str, value: Any) -> None:
        if name == "PostgreSQL-Backup-Manifest-Version":
            if type(value) is not int:
                raise FormatError("manifest: its version is not a number")
            if value not in (1, 2):
                raise UnsupportedVersion(f"manifest: version {value} is not 1 or 2")
            self._members[name] = value
        elif name == "System-Identifier":
            if self._members["PostgreSQL-Backup-Manifest-Version"] == 1:
                raise FormatError("manifest: version 1 has no system identifier")
            self._members[name] = _decode_integer(name, value, (1 << 64) - 1)
        # Manifest-Checksum: compared from the bytes of the last line.


_TOP_LEVEL = frozenset(
    {"PostgreSQL-Backup-Manifest-Version", "System-Identifier", "Files", "WAL-Ranges", "Manifest-Checksum"}
)
_FILE_KEYS = frozenset({"Path", "Encoded-Path", "Size", "Last-Modified", "Checksum-Algorithm", "Checksum"})
_WAL_RANGE_KEYS = frozenset({"Timeline", "Start-LSN", "End-LSN"})


def _decode_file(item: Any) -> ManifestFile:
    _check_keys(item, _FILE_KEYS, {"Size"})
    path = _decode_file_path(item)
    for name in ("Last-Modified", "Checksum-Algorithm", "Checksum"):
        if not isinstance(item.get(name, ""), str):
            raise FormatError(f"manifest: {name} of {path!r} is not a string")
    if "Checksum" in item and "Checksum-Algorithm" not in item:
        raise FormatError(f"manifest: {path!r} has a checksum without its algorithm")
    last_modified = item.get("Last-Modified", "")
    algorithm = item.get("Checksum-Algorithm", "NONE").upper()
    checksum = item["Checksum"].lower() if "Checksum" in item else None
    _check_checksum(path, algorithm, checksum)
    return ManifestFile(path, _decode_integer("Size", item["Size"], _MAX_SIZE), last_modified, algorithm, checksum)


def _decode_file_path(item: dict[str, Any]) -> str:
    if ("Path" in item) == ("Encoded-Path" in item):
        raise FormatError("manifest: a file needs either Path or Encoded-Path")
    if "Path" in item:
        path = item["Path"]
        if not isinstance(path, str) or not _is_unicode(path):
            raise FormatError(f"manifest: invalid Path {path!r}")
    else:
        encoded = item["Encoded-Path"]
        if not isinstance(encoded, str) or re.fullmatch("(?:[0-9A-Fa-f]{2})*", encoded) is None:
            raise FormatError(f"manifest: invalid Encoded-Path {encoded!r}")
        path = decode_path(bytes.fromhex(encoded))
    check_path(path)
    return path


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which is no character.
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _decode_wal_range(item: Any) -> LsnRange:
    _check_keys(item, _WAL_RANGE_KEYS, _WAL_RANGE_KEYS)
    start, end = item["Start-LSN"], item["End-LSN"]
    if not isinstance(start, str) or not isinstance(end, str):
        raise FormatError("manifest: an LSN of a WAL range is not a string")
    timeline_id = _decode_integer("Timeline", item["Timeline"], 0xFFFFFFFF)
    decoded = LsnRange(timeline_id, Lsn.parse(start), Lsn.parse(end))
    if timeline_id == 0 or decoded.end < decoded.start:
        raise FormatError(f"manifest: invalid WAL range {decoded}")
    return decoded


def _check_keys(item: Any, known: frozenset[str], required: Iterable[str]) -> None:
    if not isinstance(item, dict):
        raise FormatError("manifest: an entry of a list is not an object")
    unknown = item.keys() - known
    if unknown:
        raise FormatError(f"manifest: unknown member {min(unknown)!r}")
    missing = set(required) - item.keys()
    if missing:
        raise FormatError(f"manifest: member {min(missing)!r} is missing")


def _decode_integer(name: str, value: Any, maximum: int) -> int:
    """Return a number that may be written as a string of digits, as the server's parser allows."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= maximum:
        raise FormatError(f"manifest: invalid {name} {value!r}")
    return value


_MOST_LINE_BYTES = 16 << 20


class _TrailingChecksum:
    """Compares the SHA-256 of all lines but the last with the one that the last line gives."""

    _LAST_LINE = re.compile(rb'[ \t\r]*"Manifest-Checksum"[ \t\r]*:[ \t\r]*"([0-9A-Fa-f]{64})"[ \t\r]*}[ \t\r]*\n')

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._last_line = bytearray()

    def update(self, chunk: bytes) -> None:
        self._last_line += chunk
        # The newline at the very end may be that of the last line, which the digest does not cover.
        covered = self._last_line.rfind(b"\n", 0, -1) + 1
        self._digest.update(self._last_line[:covered])
        del self._last_line[:covered]
        if len(self._last_line) > _MOST_LINE_BYTES:
            raise FormatError(f"manifest: a line is longer than {_MOST_LINE_BYTES} bytes")

    def verify(self) -> None:
        if not self._last_line.endswith(b"\n"):
            raise TruncatedInput("manifest: does not end with a newline")
        # Requiring the line to hold nothing else makes sure that everything else is covered.
        match = self._LAST_LINE.fullmatch(self._last_line)
        if match is None:
            raise FormatError("manifest: its last line is not just the checksum and the closing brace")
        if match[1].lower().decode() != self._digest.hexdigest():
            raise ChecksumMismatch("manifest: its checksum does not match its contents")


class _MemberScanner:
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
        if not isinstance(name, str) or name not in _TOP_LEVEL:
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
