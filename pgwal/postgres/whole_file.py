"""A file that is no relation file, read to its end, whatever its size was when it was listed.

One call of the server opens the file once, and reads one file.  Where a file is too large for one call, it is shown
that all calls have read the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pgwal.backup.stored_path import encode_path
from pgwal.budget import SETTLED_S, SQL_READ_BYTES, SQL_WHOLE_FILE_BYTES
from pgwal.checksum import ContentDigest
from pgwal.errors import FileReplaced
from pgwal.postgres.connection import Connection
from pgwal.postgres.file_contents import cut_into_pieces, read_piece, read_pieces, take_one_query
from pgwal.postgres.sql_path import translated

_CHANGE = """
    SELECT size, modification, change,
           greatest(modification, change) < clock_timestamp() - make_interval(secs => %(settled)s)
      FROM pg_stat_file(convert_from(%(path)s, getdatabaseencoding()), true)
"""


def read_to_end(connection: Connection, path: str, size_bytes: int) -> Iterator[bytes] | None:
    """Return all bytes of a file that had ``size_bytes`` when it was listed, None when it is gone.

    What is returned raises FileReplaced when the file becomes another one, or is written over, while it is read.
    """
    expected = size_bytes
    while expected < SQL_WHOLE_FILE_BYTES:
        # One byte more shows whether it has become longer.
        content = read_piece(connection, path, 0, expected + 1)
        if content is None:
            return None
        if len(content) <= expected:
            return iter([content])
        expected = max(4 * expected, SQL_READ_BYTES)
    found = _change(connection, path)
    return None if found is None else _whole(connection, path, found)


def _whole(connection: Connection, path: str, found: _Change) -> Iterator[bytes]:
    """Yield the first bytes of a file, as many as it was found to have, by many calls that each open it.

    Raises FileReplaced where they are not of one file.  They are when nothing has changed since before, or when
    they are the same a second time: then they were all there in between.
    """
    digest = ContentDigest()
    for chunk in _first_bytes(connection, path, found.size_bytes):
        digest.update(chunk)
        yield chunk
    if found.is_settled and _change(connection, path) == found:
        return
    again = ContentDigest()
    for chunk in _first_bytes(connection, path, found.size_bytes):
        again.update(chunk)
    if again.hexdigest() != digest.hexdigest():
        raise _replaced(path)


def _first_bytes(connection: Connection, path: str, size_bytes: int) -> Iterator[bytes]:
    pieces = cut_into_pieces([(0, size_bytes)])
    while wanted := take_one_query(pieces):
        for (_, size), content in zip(wanted, read_pieces(connection, path, wanted), strict=True):
            if content is None or len(content) < size:
                raise _replaced(path)
            yield content


def _change(connection: Connection, path: str) -> _Change | None:
    with translated(connection, path):
        row = connection.execute(_CHANGE, {"path": encode_path(path), "settled": SETTLED_S}).fetchone()
    return None if row is None or row[0] is None else _Change(*row)


class _Change(NamedTuple):
    """What tells whether a file has changed: ``is_settled`` if it last did long enough ago for its times to show it."""

    size_bytes: int
    modified: object
    changed: object
    is_settled: bool


def _replaced(path: str) -> FileReplaced:
    return FileReplaced(
        f"{path} was replaced or written over while it was read, and is too large to be read at once",
        hint="Keep such files out of the data directory, or use --pgdata, which reads a file that stays the same.",
    )
