"""A network between receiver and server that can be cut, slowed and frozen."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self

_CHUNK = 16384
_ABORT = struct.pack("ii", 1, 0)
"""For SO_LINGER: a close that resets the connection, as a firewall does."""


class Proxy:
    """Passes connections on to a port of 127.0.0.1, as a context.

    ``delay_s`` is slept for each chunk that comes from the server; while ``frozen`` is set nothing passes, and nobody
    is told.  ``cut_after`` bytes from the server, wherever in a message that is, all connections are reset.  What comes
    from the server is changed where it holds the first of ``replaced``, into the second, of the same length.
    """

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self.frozen = threading.Event()
        self.cuts = 0
        self.replaced: tuple[bytes, bytes] | None = None
        self._target = port
        self._cut_after: int | None = None
        self._links: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        self.frozen.clear()
        # A thread in accept() does not notice a close.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            links, self._links = self._links, []
            self._cut_after = None
            self.cuts += 1
        for link in links:
            with suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                # A thread that waits in recv() keeps it open otherwise.
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def cut_after(self, size_bytes: int) -> None:
        with self._lock:
            self._cut_after = size_bytes

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._links += [client, server]
            self._start(self._pass, client, server, False)
            self._start(self._pass, server, client, True)

    def _pass(self, source: socket.socket, target: socket.socket, is_from_server: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                while self.frozen.is_set():
                    time.sleep(0.01)
                if is_from_server:
                    time.sleep(self.delay_s)
                    if self.replaced is not None:
                        data = data.replace(*self.replaced)
                    data, is_cut = self._allowed(data)
                    target.sendall(data)
                    if is_cut:
                        self.cut()
                        return
                else:
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _allowed(self, data: bytes) -> tuple[bytes, bool]:
        with self._lock:
            if self._cut_after is None:
                return data, False
            data = data[: self._cut_after]
            self._cut_after -= len(data)
            return data, self._cut_after == 0
