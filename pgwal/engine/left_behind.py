"""Leave a process behind that nobody waits for, where a server waits for the one that leaves it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise

from pgwal.errors import PgwalError


def leave_behind(work: Callable[[], None], *kept: int) -> None:
    """Have a process do ``work`` that keeps open these descriptors and nothing else; returns in the other one alone.

    Whoever asks for what it was to do meets the cause of its failure, and says it; here nothing is said.
    """
    if os.fork():
        return
    try:
        # An end, not a death: what was begun is put in order.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit())
        # Of the server's session, pipes and files nothing may stay open: it waits for the ends of some.
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for before, after in pairwise((2, *sorted(kept), os.sysconf("SC_OPEN_MAX"))):
            os.closerange(before + 1, after)
        work()
    except (OSError, PgwalError):
        pass
    finally:
        os._exit(0)
