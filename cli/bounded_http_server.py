"""An HTTP server that costs its process little, whoever connects: a bound on connections, and on the time of each."""

from __future__ import annotations

import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pgwal.budget import MAX_CONNECTION_S, MAX_CONNECTIONS, REFUSAL_PAUSE_S

logger = logging.getLogger("pgwal.metrics")


class BoundedHttpServer(ThreadingHTTPServer):
    """Serves at ``address``, with a thread for each connection; those beyond the bound are closed at once.

    Raises OSError when the address cannot be used.
    """

    daemon_threads = True
    block_on_close = False
    # Who waits longer than this for its turn is told to by the network, a second at first.
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        # The family is of the class in the library.
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, resolved = found[0]
        self._begun_s: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(resolved[:2], handler)  # type: ignore[arg-type]

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(REFUSAL_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            has_room = len(self._begun_s) < MAX_CONNECTIONS
            if has_room:
                self._begun_s[request] = time.monotonic()
        if not has_room:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # The system refuses another thread.
            self._forget(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def service_actions(self) -> None:
        """Called by the library about twice a second: ends connections that take too long."""
        with self._lock:
            late = [each for each, begun_s in self._begun_s.items() if time.monotonic() - begun_s > MAX_CONNECTION_S]
            for request in late:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    # It is ending already.
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Called where a connection fails, which concerns nobody else."""
        logger.debug("the connection of %s failed", client_address, exc_info=True)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._begun_s.pop(request, None)
