"""The document of a catalogue entry: what a backup is, and the list of its files.

An entry is a JSON document (backup.json) that is written and read as a stream, one file a line:

    {"pgwal-backup": 1, "id": "20261122T101530Z_full", ..., "files": [
    {"path": "PG_VERSION", "size": 3, "stored": 3, "mode": 384, "mtime": 1795344930, "digest": "..."},
    {"path": "base/5/16384", "size": 163840, "stored": 16384, ..., "truncation_block_length": 20, "blocks": 1,
     "header_digest": "..."}
    ],
    "digest": "xxh3-128:..."}

The last line's digest is that of all lines before it: what may be left out of the next backup is decided by the
sizes in here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from pgwal.backup.backup_file import BackupFile, BackupTotals, check_file, decode_file, encode_file, load_object
from pgwal.backup.entry import FORMAT_VERSION, BackupEntry, decode_head_members, head_members
from pgwal.backup.stored_path import DistinctPaths, encode_path
from pgwal.checksum import ContentDigest
from pgwal.errors import ChecksumMismatch, FormatError, TruncatedInput, UnsupportedVersion

_FILES_START = ', "files": [\n'
_FILES_END = b"],\n"
_LAST_LINE = re.compile(rb'"digest": "xxh3-128:([0-9a-f]{32})"\}\n')


class EntryWriter:
    """Makes the document of a backup: ``head``, each ``file``, then ``finish``, written in that order.

    Every value is checked as a reader would check it; a document without its end is none.
    """

    def __init__(self, entry: BackupEntry) -> None:
        self._entry = entry
        self._digest = ContentDigest()
        self._paths = DistinctPaths()
        self._totals = BackupTotals()

    def head(self) -> bytes:
        return self._emit(json.dumps(head_members(self._entry))[:-1].encode() + _FILES_START.encode())

    def file(self, file: BackupFile) -> bytes:
        """Return the line of one file; raises FormatError when its values contradict themselves."""
        self._paths.add(check_file(file))
        separator = b",\n" if self._totals.file_count else b""
        self._totals = self._totals.plus(file)
        return self._emit(separator + encode_file(file))

    def finish(self) -> bytes:
        """Return the end; raises FormatError when a path came twice or the sums are not the entry's totals."""
        self._paths.check()
        _check_totals(self._entry, self._totals)
        end = self._emit((b"\n" if self._totals.file_count else b"") + _FILES_END)
        return end + f'"digest": "xxh3-128:{self._digest.hexdigest()}"}}\n'.encode()

    def _emit(self, content: bytes) -> bytes:
        self._digest.update(content)
        return content


def encode_entry(entry: BackupEntry, files: Iterable[BackupFile]) -> Iterator[bytes]:
    """Yield the document of a backup in pieces; raises FormatError as EntryWriter does."""
    writer = EntryWriter(entry)
    yield writer.head()
    for file in files:
        yield writer.file(file)
    yield writer.finish()


def decode_head(first_line: bytes) -> BackupEntry:
    """Parse the first line of a document, all that a list of backups needs.

    The digest, which only the end of a document shows, is not checked.  Raises FormatError, UnsupportedVersion or
    TruncatedInput.
    """
    end = _FILES_START.encode()
    if not first_line.endswith(b"\n"):
        raise TruncatedInput("catalogue entry ends within its first line")
    if not first_line.endswith(end):
        raise FormatError("catalogue entry: its first line does not end where the files begin")
    members = load_object(first_line[: -len(end)] + b"}")
    if members.get("pgwal-backup") != FORMAT_VERSION:
        raise UnsupportedVersion(
            f"catalogue entry: format {members.get('pgwal-backup')!r}, this pgwal knows {FORMAT_VERSION}"
        )
    return decode_head_members(members)


def decode_entry(lines: Iterable[bytes]) -> tuple[BackupEntry, Iterator[BackupFile]]:
    """Parse a document given as its lines, newlines included; the files come one by one.

    They are proven only when the iterator has ended: it checks digest, totals and distinctness last.  Raises
    FormatError, UnsupportedVersion, TruncatedInput or ChecksumMismatch.
    """
    rest = iter(lines)
    first_line = next(rest, b"")
    entry = decode_head(first_line)
    digest = ContentDigest()
    digest.update(first_line)
    return entry, _decode_files(entry, rest, digest)


def _decode_files(entry: BackupEntry, lines: Iterator[bytes], digest: ContentDigest) -> Iterator[BackupFile]:
    paths = DistinctPaths()
    totals = BackupTotals()
    more = True
    for line in lines:
        digest.update(line)
        if line == _FILES_END and (not more or totals.file_count == 0):
            break
        if not line.endswith(b"\n"):
            raise TruncatedInput("catalogue entry ends within a line")
        if not more:
            raise FormatError("catalogue entry: a comma is missing between files")
        content = line[:-1].removesuffix(b",")
        more = len(content) < len(line) - 1
        file = decode_file(content)
        paths.add(encode_path(file.path))
        totals = totals.plus(file)
        yield file
    else:
        raise TruncatedInput("catalogue entry ends within its list of files")
    _check_last_line(next(lines, b""), digest)
    if next(lines, None) is not None:
        raise FormatError("catalogue entry: more lines after its end")
    paths.check()
    _check_totals(entry, totals)


def _check_last_line(line: bytes, digest: ContentDigest) -> None:
    if not line.endswith(b"\n"):
        raise TruncatedInput("catalogue entry ends before its digest")
    match = _LAST_LINE.fullmatch(line)
    if match is None:
        raise FormatError("catalogue entry: its last line is not its digest")
    if match[1].decode() != digest.hexdigest():
        raise ChecksumMismatch("catalogue entry: its digest does not match its contents")


def _check_totals(entry: BackupEntry, totals: BackupTotals) -> None:
    if totals != entry.totals:
        raise FormatError(f"catalogue entry: its files make {totals}, it says {entry.totals}")
