"""The names of WAL files in an archive: segments of any compression, partial ones, and timeline histories.

A receiver that writes into a directory names the segment that it is writing ``<segment>.partial``, as pg_receivewal
does.  In an object store nothing is ever overwritten: each time the segment has grown it is stored anew, under a name
that tells up to where its WAL counts, ``<segment>.<LSN, 16 hex digits>[.zst].partial``.  The furthest one counts.
"""

from __future__ import annotations

import re

from pgwal.lsn import Lsn
from pgwal.segment import is_history_name, is_segment_name

PARTIAL_SUFFIX = ".partial"
COMPRESSION_SUFFIXES = ("", ".zst", ".lz4", ".gz")

_END = re.compile(r"\.([0-9A-F]{16})")


def split_segment_name(name: str) -> tuple[str, str, bool]:
    """Return (segment name, compression suffix, whether complete) of a file name; the first part may be no segment."""
    base = name.removesuffix(PARTIAL_SUFFIX)
    complete = base == name
    compression = next((suffix for suffix in COMPRESSION_SUFFIXES[1:] if base.endswith(suffix)), "")
    base = base.removesuffix(compression)
    if not complete and _END.fullmatch(base[24:]):
        base = base[:24]
    return base, compression, complete


def partial_end(name: str) -> Lsn | None:
    """Return up to where the WAL of a partial segment counts, None where its name does not tell."""
    match = _END.match(name, 24)
    return None if match is None else Lsn(int(match[1], 16))


def partial_name(segment: str, end: Lsn, compression: str) -> str:
    """Return the name of a segment's object that holds its WAL up to ``end``."""
    return f"{segment}.{end:016X}{compression}{PARTIAL_SUFFIX}"


def is_wal_file_name(name: str) -> bool:
    """Tell whether a name is that of a segment file, of any compression, or of a timeline history."""
    return is_history_name(name) or is_segment_name(split_segment_name(name)[0])


def preference(name: str, *, is_in_files: bool) -> tuple[bool, bool, int, int]:
    """Return what sorts the files of one segment, the one that counts first: whole, being written, furthest.

    Only a file is written: where objects are no files, one whose name does not tell its end was copied from some, and
    holds less than the furthest, or nobody knows how much.
    """
    _, compression, complete = split_segment_name(name)
    end = partial_end(name)
    return not complete, (end is not None) == is_in_files, -(end or 0), COMPRESSION_SUFFIXES.index(compression)
