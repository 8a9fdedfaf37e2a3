"""Keep secrets out of core files: a process that is about to have one will leave none."""

from __future__ import annotations

import sys
from functools import cache

_PR_SET_DUMPABLE = 4


@cache
def keep_out_of_core_files() -> None:
    """Have this process never leave a core file; what it starts may, but not by itself.

    On Linux its memory is closed to other processes of its user as well, debuggers among them.  Where the system
    refuses, it goes on: no more is lost than without it.
    """
    # Here: nobody who has no secret waits for it.
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        import ctypes

        # A limit alone is none to a program that the kernel hands core files to.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
