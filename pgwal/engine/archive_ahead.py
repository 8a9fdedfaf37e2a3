"""Archive what a server hands over, and what it is going to hand over next.

A server runs archive_command once for each segment, and waits.  When more of them wait, whoever is asked for one leaves
a process behind that archives the following ones, in their order, and marks each; then to be asked for one of those
takes next to nothing.  That process keeps the lock of the marks, and ends when nothing waits, when nobody asks for what
it has done, or at the first failure: whoever is asked for that segment meets the same, and says it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pgwal.budget import ARCHIVE_IDLE_S, ARCHIVE_POLL_S, ARCHIVE_THREADS, ARCHIVED_AHEAD, SEGMENT_IN_MEMORY_BYTES
from pgwal.engine.archive_wal import ArchiveRoom
from pgwal.engine.archived_marks import ArchivedMarks, state_of
from pgwal.engine.left_behind import leave_behind
from pgwal.segment import is_segment_name

if TYPE_CHECKING:
    from pgwal.repository.compression import Compression
    from pgwal.repository.place import Place

_GO_ON = b"1"


def archive(place: Place, repo: str, path: Path, compression: Compression) -> None:
    """Archive a file that a server hands over, durably, and leave behind what archives the next ones.

    ``repo`` is the repository as the command names it.  Raises kinds of PgwalError, with nothing of the file stored.
    """
    name = path.name
    marks = ArchivedMarks(str(path), repo)
    if not is_segment_name(name) or not marks.is_servers:
        ArchiveRoom(place, compression).archive_file(path)
        return
    if marks.will_have(name):
        marks.drop_before(name)
        return
    with _going_on_behind(marks, name, place, compression):
        _archive_next(ArchiveRoom(place, compression), marks, _found(marks, name))
    marks.drop_before(name)


class _Packed(NamedTuple):
    """A segment, the state in which its file was found, and what is to be stored of it, if that is known."""

    name: str
    state: str
    content: bytes = b""


def _found(marks: ArchivedMarks, name: str) -> _Packed:
    state = ""
    with suppress(OSError):
        state = state_of(marks.path_of(name))
    return _Packed(name, state)


def _archive_next(room: ArchiveRoom, marks: ArchivedMarks, segment: _Packed) -> None:
    """Archive a segment and mark it; what lies in front of it need not be compared where that came from here."""
    name, state, content = segment
    timeline_id, segment_no = room.identity.geometry.parse_file_name(name)
    before = room.identity.geometry.file_name(timeline_id, max(0, segment_no - 1))
    room.archive_file(Path(marks.path_of(name)), is_linked=marks.knows(before), packed=content)
    marks.add(name, state, room.stored_path(name))


@contextmanager
def _going_on_behind(marks: ArchivedMarks, name: str, place: Place, compression: Compression) -> Iterator[None]:
    """Have a process archive what waits behind a segment, once the context has ended well.

    It begins before, for what speaks to an object store has threads, which are not there behind a fork.
    """
    told = -1
    with suppress(OSError):
        if _segments_behind(marks, name):
            told = _leave_behind(marks, name, place, compression)
    try:
        yield
        if told >= 0:
            with suppress(OSError):
                os.write(told, _GO_ON)
    finally:
        if told >= 0:
            os.close(told)


def _leave_behind(marks: ArchivedMarks, name: str, place: Place, compression: Compression) -> int:
    """Begin the process, and return what to tell it through that it may go on; -1 where another one has the lock."""
    marks.make()
    lock = os.open(marks.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return -1
    heard, told = os.pipe()

    def go_on() -> None:
        if os.read(heard, 1) == _GO_ON:
            _archive_behind(marks, name, ArchiveRoom(place, compression))

    leave_behind(go_on, lock, heard)
    os.close(lock)
    os.close(heard)
    return told


def _archive_behind(marks: ArchivedMarks, last: str, room: ArchiveRoom) -> None:
    """Archive the segments of the same timeline that wait behind the last one that was asked for, in their order."""
    # Not above: it is imported by no call that is waited for.
    from concurrent.futures import ThreadPoolExecutor

    from pgwal.engine.ordered_map import ordered_map

    def pack(name: str) -> _Packed:
        found = _found(marks, name)
        if room.identity.geometry.segment_size > SEGMENT_IN_MEMORY_BYTES:
            return found
        return found._replace(content=room.packed(Path(marks.path_of(name))))

    with ThreadPoolExecutor(ARCHIVE_THREADS, "archive-wal") as pool:
        while following := [name for name in _segments_behind(marks, last) if name[:8] == last[:8]]:
            with closing(ordered_map(pool, pack, following, ahead=ARCHIVE_THREADS)) as packed:
                for segment in packed:
                    if not _is_asked_for(marks):
                        return
                    _archive_next(room, marks, segment)
                    last = segment.name


def _segments_behind(marks: ArchivedMarks, name: str) -> list[str]:
    return [other for other in marks.waiting() if is_segment_name(other) and other > name]


def _is_asked_for(marks: ArchivedMarks) -> bool:
    """Wait until there are not too many marks, and tell whether that has come in time."""
    until_s = time.monotonic() + ARCHIVE_IDLE_S
    while len(marks.names()) > ARCHIVED_AHEAD:
        if time.monotonic() > until_s:
            return False
        time.sleep(ARCHIVE_POLL_S)
    return True
