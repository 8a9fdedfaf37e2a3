"""An HTTP proxy before an object store, that does to requests what networks and busy stores do.

Each request is passed on over a connection of its own, byte for byte: the signature holds the name of the proxy.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Self

PASS, DELAY, BUSY, CUT_BEFORE, CUT_AFTER, CUT_ANSWER, TWICE = (
    "pass", "delay", "busy", "cut before", "cut after", "cut answer", "twice",
)  # fmt: skip
FATES = (DELAY, BUSY, CUT_BEFORE, CUT_AFTER, CUT_ANSWER, TWICE)
_BUSY_STATUS = (b"500 Internal Server Error", b"503 Slow Down", b"429 Too Many Requests")


class StoreProxy:
    """Passes requests to 127.0.0.1:``port`` on, as a context; of ``trouble`` of 1 each meets another fate than that.

    ``delay_s`` is slept before each request.  While ``is_away`` is set all connections are closed.  ``counts`` are the
    requests by their methods, ``asked`` their first lines, ``met`` the fates.
    """

    def __init__(self, port: int, random: Random | None = None, *, trouble: float = 0.0, delay_s: float = 0.0) -> None:
        self.counts = Counter[str]()
        self.met = Counter[str]()
        self.asked: list[str] = []
        self.trouble = trouble
        self.delay_s = delay_s
        self.is_away = False
        self.denies: bytes | None = None
        """The method of requests that are refused."""
        self.holds: bytes | None = None
        """What is asked for by a path with this in it waits for ever, and ``held`` is set."""
        self.held = threading.Event()
        self.port = 0
        self._target = port
        self.random = random or Random(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()
        self._stop = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, asyncio.CancelledError):
            while not self.is_away and await self._request(reader, writer):
                pass
        with suppress(OSError):
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one request; False when the connection is to be closed."""
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(_length(head))
        if self.is_away:
            return False
        method = head.split(b" ", 1)[0]
        self.counts[method.decode()] += 1
        self.asked.append(head.partition(b" HTTP/")[0].decode())
        if self.holds is not None and self.holds in head.partition(b" HTTP/")[0]:
            self.held.set()
            await self._stop.wait()
            return False
        fate = self.random.choice(FATES) if self.random.random() < self.trouble else PASS
        self.met[fate] += 1
        await asyncio.sleep(self.delay_s + (self.random.uniform(0, 0.5) if fate == DELAY else 0))
        if method == self.denies:
            writer.write(
                _answer(b"403 Forbidden", b"<Error><Code>AccessDenied</Code><Message>Not you</Message></Error>")
            )
        elif fate == BUSY:
            writer.write(_answer(self.random.choice(_BUSY_STATUS), b"<Error><Code>SlowDown</Code></Error>"))
        elif fate == CUT_BEFORE:
            return False
        else:
            answer = await self._ask(head, body)
            if fate == TWICE:
                answer = await self._ask(head, body)
            if fate == CUT_AFTER or self.is_away:
                return False
            if fate == CUT_ANSWER:
                writer.write(answer[: self.random.randint(0, len(answer) - 1)])
                await writer.drain()
                return False
            writer.write(answer)
        await writer.drain()
        return True

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        """Return the whole answer to a request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            writer.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) + body)
            await writer.drain()
            # Until it is closed: answers may be of any form.
            return await reader.read()
        finally:
            writer.close()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _answer(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nContent-Type: application/xml\r\n\r\n%s" % (status, len(body), body)
