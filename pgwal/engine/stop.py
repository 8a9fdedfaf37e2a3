"""A request to stop that a signal handler or another thread can make, and a waiting receiver notices at once."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import TypeVar

from pgwal.budget import STOP_TIMEOUT_S
from pgwal.errors import NoAnswer

_Result = TypeVar("_Result")


class StopRequest:
    """Set once; ``fd`` becomes readable then."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        self._requested = False

    @property
    def fd(self) -> int:
        return self._read_fd

    def set(self) -> None:
        """Ask to stop; safe in a signal handler."""
        if not self._requested:
            self._requested = True
            os.write(self._write_fd, b"\0")

    def is_set(self) -> bool:
        return self._requested

    def wait(self, timeout_s: float) -> bool:
        """Sleep for at most ``timeout_s``; return whether to stop."""
        if not self._requested:
            select.select([self._read_fd], [], [], timeout_s)
        return self._requested

    def outlast(self, ask: Callable[[], _Result]) -> _Result:
        """Ask a server something that nothing can interrupt, and return the answer, or raise what that raises.

        Raises NoAnswer when a stop is requested and the answer does not come; it is given up then, with
        the thread that waits for it, which ends with the process at the latest.
        """
        answered_fd, answer_fd = os.pipe()
        answers: list[_Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                answers.append(ask())
            except BaseException as error:  # raised again where the answer is waited for
                errors.append(error)
            finally:
                os.close(answer_fd)

        thread = threading.Thread(target=run, name="pgwal-ask", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            os.close(answer_fd)
            os.close(answered_fd)
            raise
        try:
            select.select([answered_fd, self._read_fd], [], [])
            if not select.select([answered_fd], [], [], STOP_TIMEOUT_S)[0]:
                raise NoAnswer(f"the server did not answer within {STOP_TIMEOUT_S:.0f} s")
        finally:
            os.close(answered_fd)
        thread.join()
        if errors:
            raise errors[0]
        return answers[0]

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)
