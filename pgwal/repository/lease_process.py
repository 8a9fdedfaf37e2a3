"""Which process has a lease, so that another one on the same machine can tell that it is no more.

Nobody has to wait then for a lease to expire whose holder was killed.  It is known where Linux tells which boot of
which machine this is, and within it which processes can see each other; elsewhere leases expire.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

Process: TypeAlias = dict[str, str | int]

_PROC = Path("/proc")
_ENDED = ("Z", "X")
"""States of what only waits for its parent to hear of it."""


def this_process() -> Process | None:
    """Return what tells this process from all others, None where that cannot be known."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        pids = str((_PROC / "self/ns/pid").readlink())
        _, started = _state(os.getpid())
    except (OSError, ValueError, IndexError):
        return None
    return {"host": socket.gethostname(), "boot": boot, "pids": pids, "pid": os.getpid(), "started": started}


def has_ended(process: object) -> bool:
    """Tell whether a process is known to be no more; False for one that this one could not see."""
    mine = this_process()
    if mine is None or not isinstance(process, dict):
        return False
    pid, started = process.get("pid"), process.get("started")
    if type(pid) is not int or pid <= 0 or type(started) is not int:
        return False
    if any(process.get(name) != mine[name] for name in ("host", "boot", "pids")):
        return False
    # Of other users, /proc may show nothing: that alone proves nothing.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    with suppress(OSError, ValueError, IndexError):
        state, started_now = _state(pid)
        return state in _ENDED or started_now != started
    return False


def _state(pid: int) -> tuple[str, int]:
    """Return the state of a process, a letter, and when it started, in ticks since the boot."""
    # The name of the program stands in parentheses before it, and may hold anything.
    words = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return words[0], int(words[19])
