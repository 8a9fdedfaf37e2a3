"""A path of the data directory in SQL, and the queries that name one: their rows and their errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pgwal.backup.stored_path import encode_path
from pgwal.errors import PrivilegeMissing, ServerError
from pgwal.postgres.binary_copy import BinaryCopyReader
from pgwal.postgres.connection import Connection, translated_errors
from pgwal.postgres.privileges import FILE_FUNCTIONS, require_functions


def literal(path: str) -> str:
    """Return a path as SQL: COPY takes no parameters."""
    return f"convert_from(decode('{encode_path(path).hex()}', 'hex'), getdatabaseencoding())"


def copied(connection: Connection, path: str, query: str) -> Iterator[bytes | None]:
    """Yield the values of a COPY query's single column, as they arrive."""
    rows = BinaryCopyReader()
    statement = f"{query} TO STDOUT (FORMAT BINARY)".encode()
    with translated(connection, path), connection.cursor() as cursor, cursor.copy(statement) as copy:
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


def require_encodable(connection: Connection, path: str) -> None:
    """Raise ServerError when a path cannot be named in SQL."""
    with translated(connection, path):
        connection.execute("SELECT convert_from(%s, getdatabaseencoding()) IS NULL", (encode_path(path),))


@contextmanager
def translated(connection: Connection, path: str) -> Iterator[None]:
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
