"""Work for a crew that a process of its own can import, as it cannot import a test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from pgwal.engine.fleet import Room


def own_process(room: Room, tell: Callable[[int], None], piece: int) -> int:  # noqa: ARG001
    """Tell of the piece, and return the process that does it."""
    tell(piece)
    return os.getpid()


def die(room: Room, tell: Callable[[int], None], piece: int) -> None:  # noqa: ARG001
    """End as if somebody had killed the process."""
    os.kill(os.getpid(), signal.SIGKILL)
