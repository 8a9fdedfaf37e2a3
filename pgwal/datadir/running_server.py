"""Whether a server runs on a data directory of this machine, as a server that is started there would find out.

Source: CreateLockFile in src/backend/utils/init/miscinit.c and PGSharedMemoryIsInUse in src/backend/port/sysv_shmem.c,
PostgreSQL 13 to 19.  postmaster.pid outlives a server that crashed, and its process id may be another process's by now;
processes of a server whose postmaster was killed may still write, and hold its shared memory.  Where the system has
/proc, each process tells which directory it works in: those of a server in their data directory.  That also shows a
server whose process ids are others here, because it runs in a container of this machine.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from pgwal.errors import TargetError

_PROCESSES = Path("/proc")
_SHARED_MEMORY = Path("/proc/sysvipc/shm")
_NAME = "postmaster.pid"
_MOST_BYTES = 1 << 16
_FIRST_LINE = re.compile(rb"-?([0-9]{1,10})\n")
"""Negative of a server in single-user mode."""
_SHARED_MEMORY_LINE = re.compile(rb"(?:[^\n]*\n){6} *([0-9]+) +([0-9]+) *\n")
"""The seventh has key and id of the shared memory segment."""
_SERVER_NAMES = frozenset(("postgres", "postmaster", "edb-postgres"))


def require_stopped(data_directory: Path) -> None:
    """Raise TargetError when a server runs on a data directory, or may: whatever it has open would be torn.

    A server in a container is seen from outside of it alone.
    """
    reason = _reason(data_directory)
    if reason is not None:
        raise TargetError(
            f"a server runs on {data_directory}: {reason}",
            hint="Stop it, with pg_ctl stop or its service.",
            path=str(data_directory),
        )


def _reason(data_directory: Path) -> str | None:
    try:
        status = data_directory.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(data_directory, error) from error
    content = _content(data_directory / _NAME)
    match = None if content is None else _FIRST_LINE.match(content)
    if match is not None and _is_servers(int(match[1]), status):
        return f"process {int(match[1])} of its {_NAME} is alive"
    if content is not None and _holds_shared_memory(content):
        return f"processes still use the shared memory that its {_NAME} names"
    for process_id in _processes_in(status):
        return f"process {process_id} is a server's, and works there"
    return None


def _content(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 (a descriptor)
            return file.read(_MOST_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if path.is_symlink():
            return None
        raise _unreadable(path, error) from error


def _is_servers(process_id: int, directory: os.stat_result) -> bool:
    """Tell whether a process is one of a server on a directory; True where that cannot be ruled out."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Of another user.  A server that is started takes it for no server's, as that would be its own user's.
        if os.geteuid() == directory.st_uid:
            return False
    except (OSError, OverflowError):
        return True
    process = _PROCESSES / str(process_id)
    if not process.exists():
        return process_id not in (os.getpid(), os.getppid())
    try:
        place = (process / "cwd").stat()
    except FileNotFoundError:
        return False
    except OSError:
        # Of another user, or one that keeps its memory to itself, as no server does.
        return process.stat().st_uid == directory.st_uid and _has_servers_name(process)
    return os.path.samestat(place, directory) and not (process_id in _own_line() and not _has_servers_name(process))


def _own_line() -> set[int]:
    """Return this process and those above it, among which the id of a server that is no more may be."""
    found: set[int] = set()
    process_id = os.getpid()
    while process_id and process_id not in found:
        found.add(process_id)
        try:
            content = (_PROCESSES / str(process_id) / "stat").read_text(errors="replace")
            process_id = int(content.rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def _has_servers_name(process: Path) -> bool:
    try:
        return (process / "comm").read_text(errors="replace").strip() in _SERVER_NAMES
    except OSError:
        return False


def _holds_shared_memory(content: bytes) -> bool:
    """Tell whether processes are attached to the segment that postmaster.pid names."""
    match = _SHARED_MEMORY_LINE.match(content)
    if match is None:
        return False
    # PostgreSQL takes 32 bits of each; the system prints the key as signed.
    key, identifier = int(match[1]) & 0xFFFFFFFF, int(match[2])
    try:
        with _SHARED_MEMORY.open() as segments:
            names = next(segments).split()
            rows = [dict(zip(names, line.split(), strict=False)) for line in segments]
        return any(
            int(row["key"]) & 0xFFFFFFFF == key and int(row["shmid"]) == identifier and int(row["nattch"]) > 0
            for row in rows
        )
    except (OSError, ValueError, KeyError, StopIteration):
        return False


def _processes_in(directory: os.stat_result) -> Iterator[int]:
    """Yield the processes of servers that work in a directory, as far as they may be looked at."""
    try:
        names = [entry.name for entry in os.scandir(_PROCESSES) if entry.name.isdecimal()]
    except OSError:
        return
    for name in names:
        process = _PROCESSES / name
        if not _has_servers_name(process):
            continue
        try:
            if os.path.samestat((process / "cwd").stat(), directory):
                yield int(name)
        except OSError:
            continue


def _unreadable(path: Path, error: OSError) -> TargetError:
    return TargetError(
        f"cannot tell whether a server runs on {path.parent}: {path}: {os.strerror(error.errno or 0)}",
        hint="Run pgwal as the server's user.",
        path=str(path),
    )
