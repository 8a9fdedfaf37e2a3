"""A network between a client and a server on this machine: each request waits for some time before it is passed on."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Self

_PIECE = 1 << 18
_START_S = 10


class Latency:
    """Passes connections on to 127.0.0.1:``target``, at ``port``, as a context, in a thread.

    What a client sends waits ``delay_s`` when the server has answered what came before it, as every request has to, and
    each step of a handshake.  Neither side is slowed down otherwise.
    """

    def __init__(self, target: int, delay_s: float) -> None:
        self.port = 0
        self._target = target
        self._delay_s = delay_s
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="latency")

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise TimeoutError("the proxy did not start")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._link, "127.0.0.1", 0, limit=_PIECE)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target, limit=_PIECE)
            turn = _Turn()
            try:
                await asyncio.gather(self._ask(reader, back, turn), self._answer(there, writer, turn))
            finally:
                back.close()
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: _Turn) -> None:
        while data := await reader.read(_PIECE):
            if turn.is_clients:
                turn.is_clients = False
                await asyncio.sleep(self._delay_s)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: _Turn) -> None:
        while data := await reader.read(_PIECE):
            turn.is_clients = True
            writer.write(data)
            await writer.drain()
        writer.close()


class _Turn:
    """Whether the next that a client sends begins a request."""

    def __init__(self) -> None:
        self.is_clients = True
