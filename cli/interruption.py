"""How SIGINT, SIGTERM and SIGHUP end a command: it unwinds, and leaves nothing half done."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Turns the first of these signals into KeyboardInterrupt; the others are ignored while the command unwinds.

    More than one may come for one request: ``timeout`` signals the process and then its group, and so does a shell.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def install(self) -> None:
        """Take the signals over, except those that the caller has us ignore, as nohup does."""
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    @property
    def exit_code(self) -> int:
        """The exit code that a shell shows for a process which the signal ended."""
        return 128 + (self.signal_number or signal.SIGINT)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number
            raise KeyboardInterrupt
