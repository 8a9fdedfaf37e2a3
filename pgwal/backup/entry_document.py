"""The document of a catalogue entry: what a backup is, and the list of its files.

An entry is a JSON document (backup.json) that is written and read as a stream, one file a line:

    {"pgwal-backup": 1, "id": "20261122T101530Z_full", ..., "files": [
    {"path": "PG_VERSION", "size": 3, "stored": 3, "mode": 384, "mtime": 1795344930, "digest": "..."},
    {"path": "base/5/16384", "size": 163840, "stored": 16384, ..., "truncation_block_length": 20, "blocks": 1,
     "header_digest": "..."}
    ],
    "digest": "xxh3-128:..."}

That of a packed backup has between its head and its files the packs, a line each, with their frames, a line each:

    {"pgwal-backup": 2, "id": "20261122T101530Z_full", ..., "packs": [
    {"pack": "3f...", "size": 268435480, "frames": 1024},
    [24, 130011, 1048576, "..."],
    ...
    ], "directories": ["base", ...], "files": [
    {"path": "base/5/16384", ..., "extents": [[0, 17, 0, 163840]]}
    ],
    "digest": "xxh3-128:..."}

The last line's digest is that of all lines before it: what may be left out of the next backup is decided by the
sizes in here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from pgwal.backup.backup_file import (
    BackupFile,
    BackupTotals,
    decode_file,
    load_json,
    load_object,
)
from pgwal.backup.document_lines import DocumentLines, digest_line
from pgwal.backup.entry import PACKED_VERSION, PLAIN_VERSION, BackupEntry, decode_head_members, head_members
from pgwal.backup.label import BACKUP_LABEL_NAME
from pgwal.backup.pack_table import (
    Pack,
    PackedContents,
    PackReader,
    check_directories,
    check_extents,
    encode_packs,
)
from pgwal.backup.stored_path import DistinctPaths, encode_path
from pgwal.checksum import ContentDigest
from pgwal.errors import FormatError, TruncatedInput, UnsupportedVersion

_FILES_START = ', "files": [\n'
_PACKS_START = ', "packs": [\n'
_STARTS = {PLAIN_VERSION: _FILES_START, PACKED_VERSION: _PACKS_START}
_DIRECTORIES_START = b'], "directories": '
_FILES_END = b"],\n"
_WHAT = "catalogue entry"


class EntryWriter:
    """Makes the document of a backup: ``head``, each ``file``, then ``finish``, written in that order.

    Every value is checked as a reader would check it; a document without its end is none.
    """

    def __init__(self, entry: BackupEntry) -> None:
        self._entry = entry
        self._digest = ContentDigest()
        self._paths = DistinctPaths()
        self._totals = BackupTotals()
        self._packs: Sequence[Pack] = ()

    def head(self, contents: PackedContents | None = None) -> Iterator[bytes]:
        """Yield all before the files; ``contents`` are those of a packed backup."""
        if (None if contents is None else contents.size_bytes) != self._entry.packed_size_bytes:
            raise FormatError("catalogue entry: its packs have another size than it says")
        head = json.dumps(head_members(self._entry))[:-1]
        if contents is None:
            yield self._emit(f"{head}{_FILES_START}".encode())
            return
        self._packs = contents.packs
        yield self._emit(f"{head}{_PACKS_START}".encode())
        separator = b""
        for line in encode_packs(contents.packs):
            yield self._emit(separator + line)
            separator = b",\n"
        directories = json.dumps(check_directories(list(contents.directories))).encode()
        end = b"\n" if contents.packs else b""
        yield self._emit(end + _DIRECTORIES_START + directories + _FILES_START.encode())

    def file(self, content: bytes) -> bytes:
        """Return the line of a file that ``encode_file`` has made; raises FormatError when it contradicts itself."""
        file = decode_file(content)
        self._paths.add(encode_path(file.path))
        _check_place(file, is_packed=self._entry.packed_size_bytes is not None)
        check_extents(file.extents, self._packs, file.path)
        separator = b",\n" if self._totals.file_count else b""
        self._totals = self._totals.plus(file)
        return self._emit(separator + content)

    def finish(self) -> bytes:
        """Return the end; raises FormatError when a path came twice or the sums are not the entry's totals."""
        self._paths.check()
        _check_totals(self._entry, self._totals)
        end = self._emit((b"\n" if self._totals.file_count else b"") + _FILES_END)
        return end + digest_line(self._digest)

    def _emit(self, content: bytes) -> bytes:
        self._digest.update(content)
        return content


def encode_entry(entry: BackupEntry, files: Iterable[bytes], contents: PackedContents | None = None) -> Iterator[bytes]:
    """Yield the document of a backup in pieces; ``files`` are as encoded.  Raises FormatError as EntryWriter does."""
    writer = EntryWriter(entry)
    yield from writer.head(contents)
    for file in files:
        yield writer.file(file)
    yield writer.finish()


def decode_head(first_line: bytes) -> BackupEntry:
    """Parse the first line of a document, all that a list of backups needs.

    The digest, which only the end of a document shows, is not checked.  Raises FormatError, UnsupportedVersion or
    TruncatedInput.
    """
    if not first_line.endswith(b"\n"):
        raise TruncatedInput("catalogue entry ends within its first line")
    for start in _STARTS.values():
        if first_line.endswith(start.encode()):
            members = load_object(first_line[: -len(start)] + b"}")
            break
    else:
        raise FormatError("catalogue entry: its first line does not end where the files begin")
    version = members.get("pgwal-backup")
    if type(version) is not int or version not in _STARTS:
        raise UnsupportedVersion(f"catalogue entry: format {version!r}, this pgwal knows {max(_STARTS)}")
    if _STARTS[version] != start:
        raise FormatError("catalogue entry: its first line does not end as those of its format")
    return decode_head_members(members)


def decode_entry(lines: Iterable[bytes]) -> tuple[BackupEntry, Iterator[BackupFile]]:
    """Parse a document given as its lines, newlines included; the files come one by one.

    They are proven only when the iterator has ended: it checks digest, totals and distinctness last.  Raises
    FormatError, UnsupportedVersion, TruncatedInput or ChecksumMismatch.
    """
    reader = DocumentLines(lines, _WHAT)
    entry = decode_head(reader.line())
    return entry, _decode_files(entry, reader, after_packs=False)


def decode_contents(lines: Iterable[bytes]) -> tuple[BackupEntry, PackedContents, Iterator[BackupFile]]:
    """Parse the document of a packed backup as ``decode_entry`` does, with its packs and directories.

    Raises FormatError also for a backup that is not packed.
    """
    reader = DocumentLines(lines, _WHAT)
    entry = decode_head(reader.line())
    if entry.packed_size_bytes is None:
        raise FormatError(f"catalogue entry: backup {entry.backup_id} is not packed")
    packs = PackReader()
    for content in reader.items(_DIRECTORIES_START):
        packs.feed(load_json(content))
    contents = PackedContents(packs.finish(), _directories(reader.last))
    if contents.size_bytes != entry.packed_size_bytes:
        raise FormatError("catalogue entry: its packs have another size than it says")
    return entry, contents, _decode_files(entry, reader, after_packs=True)


def decode_packs(lines: Iterable[bytes]) -> list[Pack]:
    """Return the packs that a backup needs, with the frames, proven by the digest: none where it is not packed.

    Its files are not parsed.  Raises as ``decode_entry``.
    """
    reader = DocumentLines(lines, _WHAT)
    if decode_head(reader.line()).packed_size_bytes is None:
        return []
    packs = PackReader()
    for content in reader.items(_DIRECTORIES_START):
        packs.feed(load_json(content))
    while reader.line() not in (_FILES_END, b""):
        pass
    reader.require_digest()
    return packs.finish()


def skim_packs(lines: Iterable[bytes], is_looked_into: Callable[[str], bool]) -> list[Pack]:
    """Return the packs that a backup names, and the frames of those alone that are looked into, by their names.

    Nothing is read behind them, and so nothing is proven: none where it is not packed.  Raises as ``decode_head``.
    """
    rest = iter(lines)
    if decode_head(next(rest, b"")).packed_size_bytes is None:
        return []
    packs = PackReader()
    for line in rest:
        if line.startswith(_DIRECTORIES_START):
            return packs.finish()
        packs.feed(load_json(line.rstrip(b",\n")))
        skipped = packs.skip_frames() if not is_looked_into(packs.packs[-1].name) else 0
        if skipped and next(islice(rest, skipped - 1, skipped), None) is None:
            break
    raise TruncatedInput("catalogue entry ends within its packs")


def _directories(line: bytes) -> list[str]:
    end = _FILES_START.encode()
    if not line.endswith(end):
        raise FormatError("catalogue entry: its directories do not end where the files begin")
    return check_directories(load_json(line[len(_DIRECTORIES_START) : -len(end)]))


def _decode_files(entry: BackupEntry, lines: DocumentLines, *, after_packs: bool) -> Iterator[BackupFile]:
    is_packed = entry.packed_size_bytes is not None
    if is_packed and not after_packs:
        for _ in lines.items(_DIRECTORIES_START):
            pass
    paths = DistinctPaths()
    totals = BackupTotals()
    for content in lines.items(_FILES_END):
        file = decode_file(content)
        _check_place(file, is_packed=is_packed)
        paths.add(encode_path(file.path))
        totals = totals.plus(file)
        yield file
    if lines.last != _FILES_END:
        raise FormatError("catalogue entry: its list of files does not end as one")
    lines.require_digest()
    lines.require_end()
    paths.check()
    _check_totals(entry, totals)


def _check_place(file: BackupFile, *, is_packed: bool) -> None:
    """Raise FormatError for a file that is in packs and must not be, or the other way round."""
    in_packs = is_packed and file.stored_size_bytes > 0 and file.path != BACKUP_LABEL_NAME
    if in_packs != bool(file.extents):
        raise FormatError(f"catalogue entry: file {file.path!r} {'has no' if in_packs else 'cannot have'} extents")


def _check_totals(entry: BackupEntry, totals: BackupTotals) -> None:
    if totals != entry.totals:
        raise FormatError(f"catalogue entry: its files make {totals}, it says {entry.totals}")
