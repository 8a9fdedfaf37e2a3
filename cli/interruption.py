"""How SIGINT, SIGTERM and SIGHUP end a command: it unwinds, and leaves nothing half done."""

from __future__ import annotations

import os
import signal
from types import FrameType

from pgwal.budget import UNWINDING_S

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Turns the first of these signals into KeyboardInterrupt; the others are ignored while the command unwinds.

    More than one may come for one request: ``timeout`` signals the process and then its group, and so does a shell.
    A command that has not ended after a while gets a second KeyboardInterrupt, and is then ended as it is.
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
            signal.signal(signal.SIGALRM, self._interrupt_again)
            signal.alarm(UNWINDING_S)
            raise KeyboardInterrupt

    def _interrupt_again(self, *_: object) -> None:
        """Interrupt what the first exception, which came at any moment, may not have reached: some code drops it."""
        signal.signal(signal.SIGALRM, self._end)
        signal.alarm(UNWINDING_S)
        raise KeyboardInterrupt

    def _end(self, *_: object) -> None:
        """End at once; what is left unfinished counts for nothing, as after a crash."""
        os.write(2, b"pgwal: interrupted\n")
        os._exit(self.exit_code)
