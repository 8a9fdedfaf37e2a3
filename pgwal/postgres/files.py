"""Read a server's data directory over an ordinary SQL connection.

The role needs no more than EXECUTE on ``pgwal.postgres.privileges.FILE_FUNCTIONS``; these follow symbolic links, so
tablespaces are reached through pg_tblspc.  They tell a symbolic link from what it points to nowhere: a file or
directory that is linked into the data directory is read as if it were there.
"""

from __future__ import annotations

import logging
import re
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from types import TracebackType
from typing import NamedTuple, Self

import psycopg

from pgwal.backup.source import (
    SourceDirectory,
    SourceFile,
    Unread,
    WantedContent,
    extents,
    read_each,
    read_until_whole,
)
from pgwal.backup.stored_path import decode_path, encode_path
from pgwal.backup.walk import EntryKind, EntryStatus, walk
from pgwal.checksum import ContentDigest
from pgwal.control_file import CONTROL_FILE_PATH, CONTROL_FILE_SIZE
from pgwal.errors import BrokenInvariant, FileReplaced, PrivilegeMissing, ServerError, WrongCluster
from pgwal.postgres.binary_copy import BinaryCopyReader
from pgwal.postgres.connection import Connection, translated_errors
from pgwal.postgres.privileges import FILE_FUNCTIONS, require_functions

logger = logging.getLogger(__name__)

_READ_SIZE = 256 << 10
_READS_PER_QUERY = 2000
_BYTES_PER_QUERY = 128 << 20
"""Blocks that lie apart are as many reads; the two together bound how long one query, and its snapshot, lasts."""

_WHOLE_BYTES = 8 << 20
"""A file up to here that is wanted to its end is read by one call of the server, which opens it once."""
_SETTLED_S = 10
"""How long ago a file must have changed last, for its times, in whole seconds, to show that it no longer does."""

_STATUSES_PER_QUERY = 1000

_DEEPEST = 32
"""Directories within directories that are looked into; no cluster comes near, but a circular link does."""

# What the server's own directory calls its sockets; SQL does not tell them from files.
_SOCKET_NAME = re.compile(r"\.s\.PGSQL\.[0-9]+")

# Names come as the bytes they are, whatever the database's encoding makes of them: a backslash, which bytea takes for
# the start of an escape, is doubled.
_NAMES = r"COPY (SELECT replace(name, E'\\', E'\\\\')::bytea FROM pg_ls_dir({path}, true, false) AS name)"
# Numbers are given as text and the path as a subquery, of which there is one value: a list of expressions, and a path
# that is converted for each block, took the server a third of its time.
_CONTENTS = (
    "COPY (SELECT pg_read_binary_file((SELECT {path}), piece.start, piece.size, true)"
    " FROM unnest({starts}, {sizes}) AS piece (start, size))"
)
# Several pieces a row, in order; one that is short, or of a file that is gone, shows in the length.
_JOINED_CONTENTS = (
    "COPY (SELECT (SELECT string_agg(pg_read_binary_file((SELECT {path}), piece.start, piece.size, true), NULL"
    " ORDER BY piece.no) FROM unnest(joined.starts, joined.sizes) WITH ORDINALITY AS piece (start, size, no))"
    " FROM (VALUES {rows}) AS joined (starts, sizes))"
)
_SMALL_CONTENTS = (
    "COPY (SELECT pg_read_binary_file(convert_from(decode(piece.path, 'hex'), getdatabaseencoding()),"
    " piece.start, piece.size, true)"
    " FROM unnest({paths}::text[], {starts}, {sizes}) AS piece (path, start, size))"
)
_CONTENT = "SELECT pg_read_binary_file(convert_from(%s, getdatabaseencoding()), %s::bigint, %s::bigint, true)"
_STATUSES = """
    SELECT status.size, extract(epoch FROM status.modification)::float8, status.isdir
      FROM unnest(%(paths)s::bytea[]) WITH ORDINALITY AS listed (path, no),
           pg_stat_file(convert_from(listed.path, getdatabaseencoding()), true) AS status
     ORDER BY listed.no
"""
_CHANGE = """
    SELECT size, modification, change,
           greatest(modification, change) < clock_timestamp() - make_interval(secs => %(settled)s)
      FROM pg_stat_file(convert_from(%(path)s, getdatabaseencoding()), true)
"""


class SqlDataDirectory:
    """A server's data directory as a source of files and blocks; see pgwal.backup.source.BlockSource.

    Takes over the connection, and closes it when the context is left.  What one call has returned must be read to its
    end, or dropped, before the next call: there is one connection.
    Raises PrivilegeMissing, with the SQL that helps, ServerError, or FormatError for names that lead elsewhere.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def cut(self) -> None:
        self._connection.cut()

    def require_same_server(self, other: psycopg.Connection) -> None:
        """Raise WrongCluster when another connection leads to another server, as a list of hosts may make it."""
        if _server_start(self._connection) != _server_start(other):
            raise WrongCluster(
                "two connections made alike lead to two servers",
                hint="Name a single server with -h: no list of hosts, no balancer.",
            )

    def read_control_file(self) -> bytes:
        return read_until_whole(self._read_control_file_once, lambda: time.sleep(0.01))

    def list(
        self, emptied: Collection[str] = (), tablespaces: Collection[int] | None = None
    ) -> Iterator[SourceDirectory | SourceFile]:
        major = self._connection.info.server_version // 10000
        yield from walk(_Directories(self._connection), major, _warn_skipped, emptied, tablespaces)

    def names(self, directory: str) -> Sequence[str]:
        return _Directories(self._connection).names(directory)

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        return self._read(path, [(0, size_bytes)])

    def read_to_end(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        expected = size_bytes
        while expected < _WHOLE_BYTES:
            # One byte more shows whether it has become longer.
            content = _content(self._connection, path, 0, expected + 1)
            if content is None:
                return None
            if len(content) <= expected:
                return iter([content])
            expected = max(4 * expected, _READ_SIZE)
        found = self._change(path)
        return None if found is None else self._whole(path, found)

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        return self._read(path, extents(block_numbers))

    def read_small(self, wanted: Sequence[WantedContent]) -> Sequence[bytes | Unread | None]:
        # Names that are no text in the database's encoding are refused one by one, so that the error has the name.
        together = [file for file in wanted if file.path.isascii()]
        contents = _small_contents(self._connection, together) if together else iter(())
        return [next(contents) if file.path.isascii() else read_each(self, [file])[0] for file in wanted]

    def _read_control_file_once(self) -> bytes:
        chunks = self.read_file(CONTROL_FILE_PATH, CONTROL_FILE_SIZE)
        if chunks is None:
            raise ServerError(f"the server's data directory has no {CONTROL_FILE_PATH}")
        return b"".join(chunks)

    def _whole(self, path: str, found: _Change) -> Iterator[bytes]:
        """Yield the first bytes of a file, as many as it was found to have, by many calls that each open it.

        Raises FileReplaced where they are not of one file.  They are when nothing has changed since before, or when
        they are the same a second time: then they were all there in between.
        """
        digest = ContentDigest()
        for chunk in self._first_bytes(path, found.size_bytes):
            digest.update(chunk)
            yield chunk
        if found.is_settled and self._change(path) == found:
            return
        again = ContentDigest()
        for chunk in self._first_bytes(path, found.size_bytes):
            again.update(chunk)
        if again.hexdigest() != digest.hexdigest():
            raise _replaced(path)

    def _first_bytes(self, path: str, size_bytes: int) -> Iterator[bytes]:
        pieces = _pieces([(0, size_bytes)])
        while wanted := _one_query(pieces):
            for (_, size), content in zip(wanted, _contents(self._connection, path, wanted), strict=True):
                if content is None or len(content) < size:
                    raise _replaced(path)
                yield content

    def _change(self, path: str) -> _Change | None:
        with _translated(self._connection, path):
            row = self._connection.execute(_CHANGE, {"path": encode_path(path), "settled": _SETTLED_S}).fetchone()
        return None if row is None or row[0] is None else _Change(*row)

    def _read(self, path: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes] | None:
        chunks = self._chunks(path, _pieces(ranges))
        # Whether the file is there shows with the first piece.
        first = next(chunks, b"")
        return None if first is None else chain((first,), (chunk for chunk in chunks if chunk is not None))

    def _chunks(self, path: str, pieces: Iterator[tuple[int, int]]) -> Iterator[bytes | None]:
        """Yield the bytes of (offset, length) pieces, zeros beyond the end of the file; None alone when it is gone."""
        is_first = True
        while wanted := _one_query(pieces):
            read = 0
            for count, chunk in _joined_contents(self._connection, path, wanted):
                read += count
                is_first = False
                yield chunk
            contents = _contents(self._connection, path, wanted[read:])
            for (_, size), content in zip(wanted[read:], contents, strict=True):
                if content is None and is_first:
                    # The rest is read first, for it is cheaper than to cancel the query.
                    for _ in contents:
                        pass
                    yield None
                    return
                is_first = False
                # Shortened, or dropped, since it was listed: WAL says so, and replaying it makes it right.
                yield (content or b"").ljust(size, b"\0")


def _warn_skipped(path: str) -> None:
    logger.warning("skipping %s: it is not the link of a tablespace", path)


class _Change(NamedTuple):
    """What tells whether a file has changed: ``is_settled`` if it last did long enough ago for its times to show it."""

    size_bytes: int
    modified: object
    changed: object
    is_settled: bool


class _Directories:
    """What the directories hold; see pgwal.backup.walk.DirectoryReader."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def names(self, directory: str) -> list[str]:
        if directory.count("/") >= _DEEPEST:
            raise ServerError(
                f"directories lie more than {_DEEPEST} deep in each other: {directory}",
                hint="Remove the symbolic link that leads back to a directory above it.",
            )
        path = directory or "."
        names = _copied(self._connection, path, _NAMES.format(path=_literal(path)))
        found = [decode_path(name) for name in names if name is not None]
        return [name for name in found if directory or not _SOCKET_NAME.fullmatch(name)]

    def statuses(self, directory: str, names: Sequence[str]) -> Iterator[EntryStatus | None]:
        prefix = f"{directory}/" if directory else ""
        for start in range(0, len(names), _STATUSES_PER_QUERY):
            yield from self._batch([prefix + name for name in names[start : start + _STATUSES_PER_QUERY]])

    def _batch(self, paths: Sequence[str]) -> Iterator[EntryStatus | None]:
        for path in paths:
            if not path.isascii():
                _require_encodable(self._connection, path)
        with _translated(self._connection, paths[0]):
            rows = self._connection.execute(_STATUSES, {"paths": [encode_path(path) for path in paths]}).fetchall()
        return map(_status, rows)


def _status(row: tuple[int | None, float, bool]) -> EntryStatus | None:
    size_bytes, mtime_s, is_directory = row
    if size_bytes is None:
        return None
    return EntryStatus(EntryKind.DIRECTORY if is_directory else EntryKind.FILE, size_bytes, mtime_s)


def _pieces(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut (offset, length) ranges into pieces of at most the size of one read."""
    for start, length in ranges:
        for offset in range(start, start + length, _READ_SIZE):
            yield offset, min(_READ_SIZE, start + length - offset)


def _one_query(pieces: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """Take as many pieces as one query reads."""
    taken: list[tuple[int, int]] = []
    left_bytes = _BYTES_PER_QUERY
    while left_bytes > 0 and len(taken) < _READS_PER_QUERY and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        left_bytes -= piece[1]
    return taken


# ---- queries ----


def _joined_contents(
    connection: Connection, path: str, pieces: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, bytes]]:
    """Yield how many pieces follow each other in a chunk, and the chunk: of the first pieces, up to one that is short.

    Of pieces that are large already, none are joined.
    """
    groups = _groups(pieces)
    if 2 * len(groups) > len(pieces):
        return
    rows = ",".join(f"({_column(group, 0)}, {_column(group, 1)})" for group in groups)
    contents = _copied(connection, path, _JOINED_CONTENTS.format(path=_literal(path), rows=rows))
    for group, content in zip(groups, contents, strict=True):
        if content is None or len(content) != sum(size for _, size in group):
            # The rest is read first, for it is cheaper than to cancel the query.
            for _ in contents:
                pass
            return
        yield len(group), content


def _groups(pieces: Sequence[tuple[int, int]]) -> list[Sequence[tuple[int, int]]]:
    """Put consecutive pieces together, up to the size of one read."""
    groups: list[Sequence[tuple[int, int]]] = []
    start = size_bytes = 0
    for at, (_, size) in enumerate(pieces):
        if at > start and size_bytes + size > _READ_SIZE:
            groups.append(pieces[start:at])
            start, size_bytes = at, 0
        size_bytes += size
    return [*groups, pieces[start:]]


def _column(pieces: Sequence[tuple[int, int]], number: int) -> str:
    """Return one number of each piece, as an array in SQL."""
    return f"'{{{','.join(str(piece[number]) for piece in pieces)}}}'::bigint[]"


def _contents(connection: Connection, path: str, pieces: Sequence[tuple[int, int]]) -> Iterator[bytes | None]:
    """Yield the contents of (offset, length) pieces of a file, short beyond its end, None when it is gone."""
    if not pieces:
        return
    if len(pieces) == 1:
        # Most files are small, and a statement that is prepared takes half the time of a COPY.
        yield _content(connection, path, *pieces[0])
        return
    query = _CONTENTS.format(path=_literal(path), starts=_column(pieces, 0), sizes=_column(pieces, 1))
    yield from _copied(connection, path, query)


def _small_contents(connection: Connection, wanted: Sequence[WantedContent]) -> Iterator[bytes | Unread | None]:
    """Yield what is wanted of each file, in one query; zeros for what is beyond its end, None when it is gone."""
    # Of a file that is wanted to its end, one byte more shows whether it has become longer.
    pieces = [[(0, file.size_bytes + 1)] if file.to_end else list(file.extents()) for file in wanted]
    together = [piece for of_file in pieces for piece in of_file]
    paths = ",".join(
        encode_path(file.path).hex() for file, of_file in zip(wanted, pieces, strict=True) for _ in of_file
    )
    query = _SMALL_CONTENTS.format(paths=f"'{{{paths}}}'", starts=_column(together, 0), sizes=_column(together, 1))
    found = list(_copied(connection, wanted[0].path, query))
    if len(found) != len(together):
        raise BrokenInvariant("the server did not answer with one row for each piece")
    at = 0
    for file, of_file in zip(wanted, pieces, strict=True):
        of_pieces = found[at : at + len(of_file)]
        at += len(of_file)
        if of_pieces and of_pieces[0] is None:
            yield None
        elif file.to_end:
            (content,) = of_pieces
            yield Unread.LONGER if content is not None and len(content) > file.size_bytes else content
        else:
            # Shortened, or dropped, since it was listed: WAL says so, and replaying it makes it right.
            yield b"".join((c or b"").ljust(size, b"\0") for c, (_, size) in zip(of_pieces, of_file, strict=True))


def _content(connection: Connection, path: str, start: int, size: int) -> bytes | None:
    with _translated(connection, path), connection.cursor(binary=True) as cursor:
        row = cursor.execute(_CONTENT, (encode_path(path), start, size), prepare=True).fetchone()
    assert row is not None
    content: bytes | None = row[0]
    return content


def _replaced(path: str) -> FileReplaced:
    return FileReplaced(
        f"{path} was replaced or written over while it was read, and is too large to be read at once",
        hint="Keep such files out of the data directory, or use --pgdata, which reads a file that stays the same.",
    )


def _literal(path: str) -> str:
    """Return a path as SQL: COPY takes no parameters."""
    return f"convert_from(decode('{encode_path(path).hex()}', 'hex'), getdatabaseencoding())"


def _copied(connection: Connection, path: str, query: str) -> Iterator[bytes | None]:
    """Yield the values of a COPY query's single column, as they arrive."""
    rows = BinaryCopyReader()
    statement = f"{query} TO STDOUT (FORMAT BINARY)".encode()
    with _translated(connection, path), connection.cursor() as cursor, cursor.copy(statement) as copy:
        try:
            for piece in copy:
                yield from rows.feed(piece)
        except BaseException as error:
            # What ends the COPY asks the server to, and waits for it.
            if connection.was_cut or isinstance(error, KeyboardInterrupt):
                connection.close()
            elif isinstance(error, GeneratorExit):
                # The reader needs no more, or was interrupted between two pieces.
                connection.give_up()
            raise
        rows.finish()


def _require_encodable(connection: Connection, path: str) -> None:
    """Raise ServerError when a path cannot be named in SQL."""
    with _translated(connection, path):
        connection.execute("SELECT convert_from(%s, getdatabaseencoding()) IS NULL", (encode_path(path),))


def _server_start(connection: psycopg.Connection) -> object:
    with translated_errors(connection):
        return connection.execute("SELECT pg_postmaster_start_time()").fetchone()


@contextmanager
def _translated(connection: Connection, path: str) -> Iterator[None]:
    """Turn psycopg's errors into pgwal's, with the grants that are missing."""
    try:
        with translated_errors(connection):
            try:
                yield
            except psycopg.errors.CharacterNotInRepertoire as error:
                raise ServerError(
                    f"the name of {path!r} is no text in the encoding of database {connection.info.dbname}",
                    hint="Rename or remove the file, connect to a database of encoding SQL_ASCII, or use --pgdata.",
                ) from error
    except PrivilegeMissing:
        # The same SQLSTATE stands for a file that the server itself may not open.
        require_functions(connection, FILE_FUNCTIONS)
        raise
