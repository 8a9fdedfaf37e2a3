"""backup_manifest: the list of a backup's files, written as pg_verifybackup and pg_combinebackup read it.

It is a stream, as ``manifest_reader`` is: a million files pass through without being held.

Source of the format: src/backend/backup/backup_manifest.c and src/common/parse_manifest.c, PostgreSQL 13 to 19.
Version 2, of 17 and later, differs from version 1 by the line with the system identifier.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Protocol

from pgwal.backup.stored_path import check_path, decode_path
from pgwal.checksum import crc32c
from pgwal.errors import BrokenInvariant, FormatError
from pgwal.lsn import LsnRange
from pgwal.postgres_version import version_of_major

MANIFEST_NAME = "backup_manifest"

CHECKSUM_HEX_LENGTHS = {"NONE": 0, "CRC32C": 8, "SHA224": 56, "SHA256": 64, "SHA384": 96, "SHA512": 128}
"""The checksum algorithms of a manifest, and how many hex digits their results have."""

_EPOCH = datetime(1970, 1, 1)
_EARLIEST_S = int((datetime.min - _EPOCH).total_seconds())
_LATEST_S = int((datetime.max.replace(microsecond=0) - _EPOCH).total_seconds())

MAX_SIZE = (1 << 63) - 1
"""Of a file, in bytes."""


def manifest_version(major: int) -> int:
    """Return the version of the manifests that servers and tools of ``major`` take."""
    return version_of_major(major).manifest_version


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

    def update(self, data: bytes | memoryview) -> None:
        if self._state is not None:
            self._state.update(data)

    def hexdigest(self) -> str | None:
        """Return the checksum so far in lower-case hex, or None under the algorithm NONE."""
        return None if self._state is None else self._state.hexdigest()


class _Checksum(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Crc32c:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
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
        if not 0 <= size <= MAX_SIZE:
            raise FormatError(f"manifest: size {size} of {path!r} is out of range")
        check_checksum(path, checksum_algorithm, checksum_hex)
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


def manifest_time(text: str) -> int:
    """Return a time of a manifest in seconds since 1970, 0 for one in another form: readers ignore it."""
    try:
        found = datetime.strptime(text, "%Y-%m-%d %H:%M:%S GMT")
    except ValueError:
        return 0
    return int((found - _EPOCH).total_seconds())


def check_checksum(path: object, algorithm: str, checksum_hex: str | None) -> None:
    """Raise FormatError for what is no checksum of an algorithm, as a manifest spells it."""
    expected = CHECKSUM_HEX_LENGTHS.get(algorithm)
    if expected is None:
        raise FormatError(f"manifest: unknown checksum algorithm {algorithm!r} of {path!r}")
    found = "" if checksum_hex is None else checksum_hex
    if len(found) != expected or re.fullmatch("[0-9a-f]*", found) is None or (checksum_hex == ""):
        raise FormatError(f"manifest: {found!r} of {path!r} is no {algorithm} checksum")
