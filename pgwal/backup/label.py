"""backup_label and tablespace_map: what recovery needs to know of a backup.

Source of the formats: src/backend/access/transam/xlog.c, xlogrecovery.c and xlogbackup.c, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pgwal.backup.stored_path import decode_path, encode_path
from pgwal.errors import FormatError, TruncatedInput
from pgwal.lsn import Lsn
from pgwal.postgres_version import version_of_major

BACKUP_LABEL_NAME = "backup_label"
TABLESPACE_MAP_NAME = "tablespace_map"

_START = "START WAL LOCATION"
_CHECKPOINT = "CHECKPOINT LOCATION"
_METHOD = "BACKUP METHOD"
_FROM = "BACKUP FROM"
_TIME = "START TIME"
_LABEL = "LABEL"
_TIMELINE = "START TIMELINE"
_INCREMENTAL_LSN = "INCREMENTAL FROM LSN"
_INCREMENTAL_TLI = "INCREMENTAL FROM TLI"

_REQUIRED = (_START, _CHECKPOINT, _METHOD, _FROM, _TIME, _LABEL, _TIMELINE)
_INCREMENTAL = (_INCREMENTAL_LSN, _INCREMENTAL_TLI)
_KNOWN = frozenset(_REQUIRED + _INCREMENTAL)

_START_VALUE = re.compile(r"([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}) \(file ([0-9A-F]{24})\)")
_DECIMAL = re.compile(r"[1-9][0-9]{0,9}")


class PriorStart(NamedTuple):
    """Where the backup that an incremental builds on started."""

    lsn: Lsn
    timeline_id: int


class BackupLabel(NamedTuple):
    """A backup_label: its text as it is, and what the text says."""

    content: bytes
    start_lsn: Lsn
    start_segment_name: str
    checkpoint_lsn: Lsn
    backup_method: str
    backup_from: str
    start_time: str
    label: str
    start_timeline_id: int
    incremental_from: PriorStart | None

    @classmethod
    def decode(cls, content: bytes) -> BackupLabel:
        """Parse a backup_label; lines that are not known are kept and ignored.

        Raises FormatError when a line is missing, comes twice or has no valid value, TruncatedInput when the text
        does not end with a newline.
        """
        if not content.endswith(b"\n"):
            raise TruncatedInput("backup_label does not end with a newline")
        fields = _fields(content)
        missing = [name for name in _REQUIRED if name not in fields]
        if missing:
            raise FormatError(f"backup_label has no line {missing[0]!r}")
        start = _START_VALUE.fullmatch(fields[_START])
        if start is None:
            raise FormatError(f"backup_label: invalid {_START} {fields[_START]!r}")
        timeline_id = _decode_timeline(_TIMELINE, fields[_TIMELINE])
        if int(start[2][:8], 16) != timeline_id:
            raise FormatError(f"backup_label: {start[2]} is not a segment of timeline {timeline_id}")
        return cls(
            content,
            Lsn.parse(start[1]),
            start[2],
            _decode_lsn(_CHECKPOINT, fields[_CHECKPOINT]),
            fields[_METHOD],
            fields[_FROM],
            fields[_TIME],
            fields[_LABEL],
            timeline_id,
            _decode_prior_start(fields),
        )

    def encode(self) -> bytes:
        return self.content

    def with_incremental_from(self, lsn: Lsn, timeline_id: int, major: int) -> BackupLabel:
        """Return this label, of a server of ``major``, as that of an incremental backup on one that started at ``lsn``.

        The lines follow START TIMELINE, where servers of 17 and later look for them to refuse a start.
        """
        lsn_text = version_of_major(major).lsn_text(lsn)
        added = f"{_INCREMENTAL_LSN}: {lsn_text}\n{_INCREMENTAL_TLI}: {timeline_id}\n".encode()
        lines = []
        for line in _lines_without_incremental(self.content):
            lines.append(line)
            if _split_line(line)[0] == _TIMELINE:
                lines.append(added)
        return self.decode(b"".join(lines))

    def without_incremental(self) -> BackupLabel:
        """Return this label as that of a full backup, which it is once it has been reconstructed."""
        return self.decode(b"".join(_lines_without_incremental(self.content)))


def _lines(content: bytes) -> Iterator[bytes]:
    # Only a newline ends a line: the label may hold any other character.
    for line in content[:-1].split(b"\n"):
        yield line + b"\n"


def _split_line(line: bytes) -> tuple[str, str]:
    name, separator, value = line[:-1].decode("utf-8", "surrogateescape").partition(": ")
    # An empty label leaves "LABEL: " behind, so the separator is there whenever the name is known.
    return (name, value) if separator else ("", "")


def _fields(content: bytes) -> dict[str, str]:
    """Return the known lines.

    A label may contain newlines and so imitate any line; what comes twice could be read either way and is refused.
    """
    fields: dict[str, str] = {}
    for line in _lines(content):
        name, value = _split_line(line)
        if name not in _KNOWN:
            continue
        if name in fields:
            raise FormatError(f"backup_label has more than one line {name!r}")
        fields[name] = value
    return fields


def _lines_without_incremental(content: bytes) -> Iterator[bytes]:
    return (line for line in _lines(content) if _split_line(line)[0] not in _INCREMENTAL)


def _decode_prior_start(fields: dict[str, str]) -> PriorStart | None:
    present = [name for name in _INCREMENTAL if name in fields]
    if not present:
        return None
    if len(present) == 1:
        raise FormatError(f"backup_label has a line {present[0]!r} without its counterpart")
    lsn = _decode_lsn(_INCREMENTAL_LSN, fields[_INCREMENTAL_LSN])
    return PriorStart(lsn, _decode_timeline(_INCREMENTAL_TLI, fields[_INCREMENTAL_TLI]))


def _decode_lsn(name: str, text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except FormatError as error:
        raise FormatError(f"backup_label: invalid {name} {text!r}") from error


def _decode_timeline(name: str, text: str) -> int:
    if _DECIMAL.fullmatch(text) is None or int(text) > 0xFFFFFFFF:
        raise FormatError(f"backup_label: invalid {name} {text!r}")
    return int(text)


class TablespaceMap(dict[int, str]):
    """Where tablespaces lie, by OID: the symbolic links that recovery makes below pg_tblspc.

    A line is ``<oid> <absolute path>``.  Newlines and carriage returns in a path follow a backslash; from 14 on
    backslashes do so too, in 13 they stand for themselves.
    """

    @classmethod
    def decode(cls, content: bytes, major: int) -> TablespaceMap:
        """Parse a tablespace_map as a server of ``major`` reads it.

        Raises FormatError for a line that is none or an OID that comes twice, TruncatedInput when the last line
        does not end.
        """
        locations = cls()
        for line in _split_map(content, major):
            oid_text, space, path = decode_path(line).partition(" ")
            if not space or _DECIMAL.fullmatch(oid_text) is None or int(oid_text) > 0xFFFFFFFF:
                raise FormatError(f"tablespace_map: invalid line {line!r}")
            if int(oid_text) in locations:
                raise FormatError(f"tablespace_map: tablespace {oid_text} comes twice")
            _check_location(path)
            locations[int(oid_text)] = path
        return locations

    def encode(self, major: int) -> bytes:
        """Return the text for a server of ``major``, by OID; raises FormatError for a path it cannot express."""
        return b"".join(b"%d %s\n" % (oid, _escape_location(path, major)) for oid, path in sorted(self.items()))


# Groups: an escaped character, the end of a line, other characters; none of them: a backslash before the end.
_MAP_TOKEN = re.compile(rb"\\([\s\S])|([\r\n])|([^\\\r\n]+)|\\")
_MAP_TOKEN_13 = re.compile(rb"\\([\r\n])|([\r\n])|([^\\\r\n]+|\\)")


def _split_map(content: bytes, major: int) -> Iterator[bytes]:
    """Yield unescaped lines that are not empty."""
    line = bytearray()
    for match in (_MAP_TOKEN if version_of_major(major).escapes_backslashes else _MAP_TOKEN_13).finditer(content):
        escaped, end, plain = match.groups()
        if end is None:
            if escaped is None and plain is None:
                raise TruncatedInput("tablespace_map ends with a backslash")
            line += plain if escaped is None else escaped
        elif line:
            yield bytes(line)
            line.clear()
    if line:
        raise TruncatedInput("tablespace_map does not end with a newline")


def _escape_location(path: str, major: int) -> bytes:
    _check_location(path)
    content = encode_path(path)
    if version_of_major(major).escapes_backslashes:
        return re.sub(rb"([\\\r\n])", rb"\\\1", content)
    if content.endswith(b"\\"):
        raise FormatError(f"PostgreSQL {major} cannot express a tablespace at {path!r}, which ends with a backslash")
    return re.sub(rb"([\r\n])", rb"\\\1", content)


def _check_location(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise FormatError(f"tablespace_map: {path!r} is not an absolute path")
