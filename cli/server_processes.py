"""Processes of a server, and the shared memory that a killed one leaves."""

from __future__ import annotations

import ctypes
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.errors import ServerError
from pgwal_cli.server_account import server_account, server_identity

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator

KILL_TIMEOUT_S = 10.0
# <sys/ipc.h>, the same on Linux and macOS.
IPC_RMID = 0


def live_processes() -> dict[int, int]:
    """Return the parent of every process; without those that have ended and wait to be reaped.

    In a container whose first process reaps nothing, an ended process keeps its number for ever.
    """
    if Path("/proc/self/stat").exists():
        return dict(_linux_processes())
    table = subprocess.check_output(["ps", "-axo", "pid=,ppid=,stat="], text=True)
    rows = [line.split() for line in table.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def _linux_processes() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            # "PID (NAME) STATE PPID ...", where the name may hold blanks and parentheses.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                yield int(entry.name), int(parent)


def descendants(ancestor: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    parents = live_processes()
    found = [ancestor]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]


def wait_until_gone(pids: list[int]) -> None:
    """Wait until killed processes have ended; raises ServerError when they do not."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while not live_processes().keys().isdisjoint(pids):
        if time.monotonic() > deadline:
            raise ServerError(f"processes of the server outlive being killed: {pids}")
        time.sleep(0.005)


def signal_as_server(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to processes, as the server's user: their numbers come from a file of that user."""
    command = ["/bin/sh", "-c", 'for pid; do kill -s "$0" "$pid"; done', number.name.removeprefix("SIG")]
    subprocess.run([*command, *map(str, pids)], cwd="/", capture_output=True, **server_identity())


def free_shared_memory(segment_id: str) -> None:
    """Remove a segment of System V shared memory, as the server's user: its number comes from a file of that user."""
    if not segment_id.isdecimal():
        return
    if server_account() is None:
        ctypes.CDLL(None).shmctl(int(segment_id), IPC_RMID, None)
    else:
        with suppress(OSError):
            subprocess.run(["ipcrm", "-m", segment_id], cwd="/", capture_output=True, **server_identity())
