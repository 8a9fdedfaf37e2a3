"""Contents of files over SQL: pieces of one file, or of many small ones, as one query reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pgwal.backup.source import Unread, WantedContent
from pgwal.backup.stored_path import encode_path
from pgwal.budget import SQL_QUERY_BYTES, SQL_QUERY_READS, SQL_READ_BYTES
from pgwal.errors import BrokenInvariant
from pgwal.postgres.connection import Connection
from pgwal.postgres.sql_path import copied, literal, translated

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


def cut_into_pieces(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut (offset, length) ranges into pieces of at most the size of one read."""
    for start, length in ranges:
        for offset in range(start, start + length, SQL_READ_BYTES):
            yield offset, min(SQL_READ_BYTES, start + length - offset)


def take_one_query(pieces: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """Take as many pieces as one query reads."""
    taken: list[tuple[int, int]] = []
    left_bytes = SQL_QUERY_BYTES
    while left_bytes > 0 and len(taken) < SQL_QUERY_READS and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        left_bytes -= piece[1]
    return taken


def read_joined(connection: Connection, path: str, pieces: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """Yield how many pieces follow each other in a chunk, and the chunk: of the first pieces, up to one that is short.

    Of pieces that are large already, none are joined.
    """
    groups = _groups(pieces)
    if 2 * len(groups) > len(pieces):
        return
    rows = ",".join(f"({_column(group, 0)}, {_column(group, 1)})" for group in groups)
    contents = copied(connection, path, _JOINED_CONTENTS.format(path=literal(path), rows=rows))
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
        if at > start and size_bytes + size > SQL_READ_BYTES:
            groups.append(pieces[start:at])
            start, size_bytes = at, 0
        size_bytes += size
    return [*groups, pieces[start:]]


def _column(pieces: Sequence[tuple[int, int]], number: int) -> str:
    """Return one number of each piece, as an array in SQL."""
    return f"'{{{','.join(str(piece[number]) for piece in pieces)}}}'::bigint[]"


def read_pieces(connection: Connection, path: str, pieces: Sequence[tuple[int, int]]) -> Iterator[bytes | None]:
    """Yield the contents of (offset, length) pieces of a file, short beyond its end, None when it is gone."""
    if not pieces:
        return
    if len(pieces) == 1:
        # Most files are small, and a statement that is prepared takes half the time of a COPY.
        yield read_piece(connection, path, *pieces[0])
        return
    query = _CONTENTS.format(path=literal(path), starts=_column(pieces, 0), sizes=_column(pieces, 1))
    yield from copied(connection, path, query)


def read_small_files(connection: Connection, wanted: Sequence[WantedContent]) -> Iterator[bytes | Unread | None]:
    """Yield what is wanted of each file, in one query; zeros for what is beyond its end, None when it is gone."""
    # Of a file that is wanted to its end, one byte more shows whether it has become longer.
    pieces = [[(0, file.size_bytes + 1)] if file.to_end else list(file.extents()) for file in wanted]
    together = [piece for of_file in pieces for piece in of_file]
    paths = ",".join(
        encode_path(file.path).hex() for file, of_file in zip(wanted, pieces, strict=True) for _ in of_file
    )
    query = _SMALL_CONTENTS.format(paths=f"'{{{paths}}}'", starts=_column(together, 0), sizes=_column(together, 1))
    found = list(copied(connection, wanted[0].path, query))
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


def read_piece(connection: Connection, path: str, start: int, size: int) -> bytes | None:
    """Return the content of one piece, short beyond the end of the file, None when it is gone."""
    with translated(connection, path), connection.cursor(binary=True) as cursor:
        row = cursor.execute(_CONTENT, (encode_path(path), start, size), prepare=True).fetchone()
    assert row is not None
    content: bytes | None = row[0]
    return content
