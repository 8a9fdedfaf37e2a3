"""Waiting for a server that may take long, or hang: how both are told apart.

A checkpoint, a lock or slow storage can keep a query waiting for any time, and then the server still takes new
connections.  One that does not is as good as gone: its processes are stopped, or the machine is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import psycopg

from pgwal.budget import SILENCE_S
from pgwal.errors import ConnectionFailed

if TYPE_CHECKING:
    from psycopg.abc import PQGen

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


def watched(steps: PQGen[_Result], on_silence: Callable[[float], None]) -> PQGen[_Result]:
    """Run psycopg's steps; call ``on_silence`` with the seconds of silence, each time that SILENCE_S have passed."""
    heard_at = asked_at = time.monotonic()
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            now = time.monotonic()
            if ready:
                heard_at = asked_at = now
            elif now - asked_at >= SILENCE_S:
                on_silence(now - heard_at)
                asked_at = time.monotonic()
            wanted = steps.send(ready)
    except StopIteration as end:
        result: _Result = end.value
        return result


def require_living(open_another: Callable[[], psycopg.Connection], silent_s: float) -> None:
    """Say that a server is waited for; raise ConnectionFailed when it does not answer a new connection either.

    ``open_another`` makes one to the same server, and has PROBE_S for it.
    """
    began = time.monotonic()
    try:
        open_another().close()
    except psycopg.errors.ConnectionTimeout as error:
        silent_s += time.monotonic() - began
        raise ConnectionFailed(
            f"the server hangs: it has not answered for {silent_s:.0f} s, and lets in no new connection",
            hint="Look at the server and its log: its processes may be stopped, or its storage may hang.",
        ) from error
    except psycopg.Error:
        # That it lets nobody in, it says at once.
        pass
    logger.warning("waiting for the server, which has not answered for %.0f s, but lives", silent_s)
