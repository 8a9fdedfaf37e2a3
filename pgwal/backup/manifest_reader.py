"""Reading a backup_manifest: what pg_verifybackup takes is taken, and no defect.

Source of the format: src/common/parse_manifest.c, PostgreSQL 13 to 19; see also ``manifest``.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pgwal.backup.manifest import MAX_SIZE, check_checksum
from pgwal.backup.manifest_members import TOP_LEVEL, MemberScanner
from pgwal.backup.stored_path import DistinctPaths, check_path, decode_path, encode_path
from pgwal.errors import ChecksumMismatch, FormatError, TruncatedInput, UnsupportedVersion
from pgwal.lsn import Lsn, LsnRange

_HEAD = re.compile(
    rb'\s*\{\s*"PostgreSQL-Backup-Manifest-Version"\s*:\s*2\s*,\s*"System-Identifier"\s*:\s*"?([0-9]{1,20})\b'
)


def system_identifier_of_head(start: bytes) -> int | None:
    """Return whose a manifest is, from its first bytes, as servers write it; None where it does not begin like that."""
    match = _HEAD.match(start)
    return None if match is None else int(match[1])


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
        self._scanner = MemberScanner()
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
        missing = set(TOP_LEVEL - self._scanner.seen)
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
    check_checksum(path, algorithm, checksum)
    return ManifestFile(path, _decode_integer("Size", item["Size"], MAX_SIZE), last_modified, algorithm, checksum)


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
