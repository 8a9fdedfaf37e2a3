"""What a receiver tells systemd, or any service manager that speaks sd_notify.

Protocol: sd_notify(3): lines of NAME=value in a datagram to the socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


class ServiceManager:
    """The service manager that started this process; without one, nothing is said and nothing fails."""

    def __init__(self, address: str | None = None) -> None:
        address = os.environ.get("NOTIFY_SOCKET") if address is None else address
        # "@" stands for the zero byte that begins an abstract address.
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._is_ready = False
        self._last_status = ""

    def alive(self, status: str, *, ready: bool) -> None:
        """Say that progress is made, and when ``ready`` for the first time, that the service has started."""
        lines = ["WATCHDOG=1"]
        if ready and not self._is_ready:
            lines.append("READY=1")
            self._is_ready = True
        if status != self._last_status:
            lines.append(f"STATUS={status}")
            self._last_status = status
        self._send(lines)

    def stopping(self) -> None:
        """Say that the service ends."""
        self._send(["STOPPING=1"])

    def _send(self, lines: list[str]) -> None:
        if not self._address:
            return
        # A manager that went away or does not read is no reason to stop receiving, nor to wait.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), self._address)
