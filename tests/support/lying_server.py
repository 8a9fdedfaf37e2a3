"""A server that lies: a proxy before a real one, which answers some queries itself, or changes what the server answers.

Follows "Message Formats" in the manual, protocol 3.0.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Self

from pgwal_cli.throwaway_server import ThrowawayServer

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_READY = b"Z\0\0\0\5I"

Answer = Callable[[str], "Iterable[bytes] | None"]
"""Given a query, returns the messages to answer it with, in pieces of any size; None passes it on."""
Change = Callable[[str, bytes, bytes], bytes]
"""Given the last query, and type and body of a message of the server's, returns the body to pass on."""


class LyingServer:
    """Passes connections to 127.0.0.1:``port`` on to a server, as a context; ``queries`` are those that came.

    ``answer`` and ``change`` say what it lies about; they are called by threads.
    """

    def __init__(
        self,
        server: ThrowawayServer,
        answer: Answer = lambda _: None,
        change: Change = lambda _, __, body: body,
        *,
        listener: socket.socket | None = None,
    ) -> None:
        """``listener`` is where connections come, instead of a free port."""
        self.queries: list[str] = []
        self._target = str(server.socket_directory / f".s.PGSQL.{server.port}")
        self._answer = answer
        self._change = change
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = 0 if listener is not None else int(self._listener.getsockname()[1])

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres sslmode=disable"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._sockets += [client, server]
                server.connect(self._target)
                self._start(_Link(self, client, server).run)

    def _lie(self, query: str) -> Iterable[bytes] | None:
        self.queries.append(query)
        return self._answer(query)


class _Link:
    """One connection, and the one to the server."""

    def __init__(self, owner: LyingServer, client: socket.socket, server: socket.socket) -> None:
        self._owner = owner
        self._client = client
        self._server = server
        self._query = ""

    def run(self) -> None:
        back = threading.Thread(target=self._pass_back)
        with suppress(OSError, EOFError):
            self._pass_startup()
            back.start()
            self._pass_forth()
        for each in (self._server, self._client):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if back.ident is not None:
            back.join()

    def _pass_startup(self) -> None:
        while True:
            header = _read(self._client, 8)
            size, code = struct.unpack("!II", header)
            if code not in (_SSL_REQUEST, _GSS_REQUEST):
                self._server.sendall(header + _read(self._client, size - 8))
                return
            self._client.sendall(b"N")

    def _pass_forth(self) -> None:
        while True:
            kind, body = _read_message(self._client)
            if kind == b"Q":
                self._query = body.rstrip(b"\0").decode()
                lies = self._owner._lie(self._query)
                if lies is not None:
                    for piece in lies:
                        self._client.sendall(piece)
                    continue
            elif kind == b"P":
                self._query = body.split(b"\0")[1].decode()
                self._owner.queries.append(self._query)
            self._server.sendall(message(kind, body))

    def _pass_back(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                kind, body = _read_message(self._server)
                self._client.sendall(message(kind, self._owner._change(self._query, kind, body)))
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)


def _read(source: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = source.recv(size - len(content))
        if not piece:
            raise EOFError
        content += piece
    return content


def _read_message(source: socket.socket) -> tuple[bytes, bytes]:
    header = _read(source, 5)
    return header[:1], _read(source, struct.unpack("!I", header[1:])[0] - 4)


# ---- messages


def message(kind: bytes, body: bytes) -> bytes:
    """Return a message as it is sent."""
    return kind + struct.pack("!I", len(body) + 4) + body


def row_body(values: Sequence[bytes | None]) -> bytes:
    """Return the body of a DataRow."""
    fields = (b"\xff\xff\xff\xff" if v is None else struct.pack("!I", len(v)) + v for v in values)
    return struct.pack("!H", len(values)) + b"".join(fields)


def row_values(body: bytes) -> list[bytes | None]:
    """Return the values of a DataRow."""
    (count,) = struct.unpack_from("!H", body)
    values: list[bytes | None] = []
    at = 2
    for _ in range(count):
        (size,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if size < 0 else body[at : at + size])
        at += max(0, size)
    return values


def rows_answer(columns: Sequence[str], *rows: Sequence[bytes | None]) -> list[bytes]:
    """Return the whole answer to a query, text columns and rows."""
    described = b"".join(name.encode() + b"\0" + struct.pack("!IHIhiH", 0, 0, 25, -1, -1, 0) for name in columns)
    return [
        message(b"T", struct.pack("!H", len(columns)) + described),
        *(message(b"D", row_body(row)) for row in rows),
        message(b"C", b"SELECT\0"),
        _READY,
    ]


def end_of_timeline_answer(next_timeline: bytes, lsn: bytes) -> list[bytes]:
    """Return what START_REPLICATION answers where the timeline ends."""
    row = rows_answer(["next_tli", "next_tli_startpos"], [next_timeline, lsn])
    return [*row[:-1], message(b"C", b"START_REPLICATION\0"), _READY]
