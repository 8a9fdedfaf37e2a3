"""Have the next WAL segments at hand before a server asks for them, so that replay does not wait.

A server runs restore_command once for each segment, and replays nothing meanwhile.  Whoever is asked for a segment
leaves a process behind that puts the following ones into a spool beside the destination, ``RECOVERYXLOG.pgwal`` in
pg_wal; restore_command looks there first, which takes no Python.  The spool holds

- segments under their own names: whole, checked and durable.  One that a power cut had emptied would end recovery
  early and in silence, as the server does not ask again for what is there;
- ``asked``, the last segment that was not found there.

That process keeps the spool's lock, and removes all of it when it ends: when nothing more is to be had, when the
server is gone or no longer in recovery, when something fails, or when nobody took anything for some time.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from pgwal.budget import (
    PREFETCH_IDLE_S,
    PREFETCH_POLL_S,
    PREFETCH_REMOTE_RETRY_S,
    PREFETCH_SPARE_FACTOR,
    PREFETCHED_AT_FIRST,
    PREFETCHED_AT_ONCE,
    PREFETCHED_BYTES,
)
from pgwal.engine.left_behind import leave_behind
from pgwal.segment import WalGeometry, is_segment_name

SPOOL_SUFFIX = ".pgwal"
_DESTINATION_NAME = "RECOVERYXLOG"
_ASKED = "asked"


class WholeSegments(Protocol):
    """The WAL of a repository; may be read by several threads."""

    geometry: WalGeometry

    def whole(self, name: str) -> Iterable[bytes] | None:
        """Return the content of a segment in pieces, each checked; None when there is no whole one."""


class Spool:
    """The spool beside a destination, and the decision who fills it."""

    def __init__(self, destination: Path) -> None:
        self.path = destination.with_name(_DESTINATION_NAME + SPOOL_SUFFIX)
        self._destination = destination
        # A server in recovery names it so.  Others, as pg_rewind, do not look into a spool.
        self._is_looked_into = destination.name == _DESTINATION_NAME

    def clear_leftovers(self) -> None:
        """Remove what a process left that was killed."""
        with suppress(OSError):
            self._lock_and(lambda _: self.remove())

    def take(self, name: str) -> bool:
        """Give the server a segment that has come while this process started; False when it is not there."""
        if self._is_looked_into:
            with suppress(OSError):
                (self.path / name).replace(self._destination)
                return True
        return False

    def fill_behind(self, name: str, open_wal: Callable[[], WholeSegments], *, is_remote: bool) -> None:
        """See to it that what follows a segment is fetched ahead, by a process that may run already.

        It is that process which calls ``open_wal``.
        Failures are nobody's: without a spool, each segment is fetched when the server asks for it.
        """
        if not self._is_looked_into:
            return
        with suppress(OSError):
            self.path.mkdir(mode=0o700, exist_ok=True)
            signs = _signs_of_recovery()

            def fill() -> None:
                try:
                    wal = open_wal()
                    if wal.geometry.segment_size <= PREFETCHED_BYTES:
                        _Prefetching(self, name, wal, signs, is_remote=is_remote).run()
                finally:
                    self.remove()

            if not self._lock_and(lambda lock: leave_behind(fill, lock)):
                self.write(_ASKED, [name.encode()])

    def asked(self) -> str | None:
        try:
            return (self.path / _ASKED).read_text()
        except FileNotFoundError:
            return None

    def segments(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if is_segment_name(path.name))

    def write(self, name: str, content: Iterable[bytes], *, durable: bool = False) -> None:
        """Write a file that is not seen before it is whole."""
        unfinished = self.path / f"{name}.unfinished"
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.writelines(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        unfinished.replace(self.path / name)

    def drop(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def clear(self) -> None:
        for path in self.path.iterdir():
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        self.clear()
        self.path.rmdir()

    def _lock_and(self, act: Callable[[int], None]) -> bool:
        """Do something with the lock, which is an open file; False when another process has it."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last process may just have removed it, and the next one made another.
            if not os.path.samestat(os.fstat(descriptor), self.path.stat()):
                return False
        except BlockingIOError:
            return False
        else:
            act(descriptor)
            return True
        finally:
            os.close(descriptor)


class _Prefetching:
    """Keeps a spool filled with what follows the last segment that was asked for."""

    def __init__(self, spool: Spool, name: str, wal: WholeSegments, signs: Sequence[Path], *, is_remote: bool) -> None:
        """``signs`` go when recovery ends, or the server does."""
        self._spool = spool
        self._wal = wal
        self._geometry = geometry = wal.geometry
        self._max_depth = PREFETCHED_BYTES // geometry.segment_size
        self._most_at_a_time = PREFETCHED_AT_ONCE if is_remote else 1
        self._retry_s = PREFETCH_REMOTE_RETRY_S if is_remote else 0.0
        self._missed_at_s = -PREFETCH_REMOTE_RETRY_S
        # More with each one that is taken: a server that replays slowly, or waits, needs no more.  What comes over a
        # network may take longer than to replay what is there.
        self._depth = min(PREFETCHED_AT_FIRST if is_remote else 1, self._max_depth)
        self._timeline_id, self._asked_no = geometry.parse_file_name(name)
        self._next_no = self._asked_no + 1
        self._signs = signs

    def run(self) -> None:
        self._spool.clear()
        seen: list[str] = []
        last_change_s = time.monotonic()
        while time.monotonic() - last_change_s < PREFETCH_IDLE_S and all(sign.exists() for sign in self._signs):
            self._follow_what_is_asked()
            waiting = self._spool.segments()
            if waiting != seen:
                taken = sum(name not in waiting for name in seen)
                self._depth = min(self._depth << taken, self._max_depth)
                seen, last_change_s = waiting, time.monotonic()
            if len(waiting) < self._depth and self._has_room():
                if fetched := self._fetch_next(self._depth - len(waiting)):
                    # One of them may be taken before anybody looks.
                    seen, last_change_s = sorted({*waiting, *fetched}), time.monotonic()
                    continue
                if not waiting:
                    return
            time.sleep(PREFETCH_POLL_S)

    def _follow_what_is_asked(self) -> None:
        """Go on behind a segment that the server asked for before it was there, or on another timeline."""
        name = self._spool.asked()
        if name is None:
            return
        self._spool.drop(_ASKED)
        timeline_id, asked_no = self._geometry.parse_file_name(name)
        is_close = timeline_id == self._timeline_id and self._asked_no < asked_no <= self._next_no + self._depth
        self._timeline_id, self._asked_no = timeline_id, asked_no
        if not is_close:
            self._missed_at_s = -PREFETCH_REMOTE_RETRY_S
        self._next_no = max(self._next_no, asked_no + 1) if is_close else asked_no + 1
        for waiting in self._spool.segments():
            if not is_close or waiting <= name:
                self._spool.drop(waiting)

    def _has_room(self) -> bool:
        status = os.statvfs(self._spool.path)
        return status.f_bavail * status.f_frsize >= PREFETCH_SPARE_FACTOR * self._depth * self._geometry.segment_size

    def _fetch_next(self, count: int) -> list[str]:
        """Fetch what comes next, ``count`` segments at most, and return which; none when the first one is not there."""
        if time.monotonic() - self._missed_at_s < self._retry_s:
            return []
        numbers = range(self._next_no, self._next_no + min(count, self._most_at_a_time))
        names = [self._geometry.file_name(self._timeline_id, number) for number in numbers]
        # Here, one after the other: over a network, what is there of one is known of the next ones as well.
        found = list(takewhile(lambda each: each[1] is not None, ((name, self._wal.whole(name)) for name in names)))
        if len(found) < len(names):
            self._missed_at_s = time.monotonic()
        self._write_all([(name, content) for name, content in found if content is not None])
        self._next_no += len(found)
        return [name for name, _ in found]

    def _write_all(self, contents: Sequence[tuple[str, Iterable[bytes]]]) -> None:
        if len(contents) <= 1:
            for name, content in contents:
                self._spool.write(name, content, durable=True)
            return
        # Late: from a directory they come one by one.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(contents), "fetch-wal") as threads:
            written = [threads.submit(self._spool.write, name, content, durable=True) for name, content in contents]
            for each in written:
                each.result()


def _signs_of_recovery() -> list[Path]:
    signs = (Path("postmaster.pid"), Path("recovery.signal"), Path("standby.signal"))
    return [sign for sign in signs if sign.exists()]
