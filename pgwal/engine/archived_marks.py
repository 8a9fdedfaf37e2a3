"""What a server's directory remembers of segments that were archived, so that it is asked of the repository but once.

Beside the segments, in ``archived.pgwal``, lies a mark for each of the last ones.  It says which file was archived, by
what tells that from any other and from a changed one, to which repository, and as what; it counts for nothing where one
of these is not so any more.  Nothing here is made durable: without a mark the repository is looked at.

A server runs archive_command once for each segment; mostly this is all that is imported.
"""
# ruff: noqa: PTH102 PTH105 PTH108 PTH112 PTH116 PTH118 PTH120 PTH123 PTH208 (pathlib takes longer to import than all this)

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress

from pgwal.budget import ARCHIVE_POLL_S, MARK_UNSEEN_S, MARK_WAIT_S

MARKS_SUFFIX = "archived.pgwal"
_STATUS_DIRECTORY = "archive_status"
_VERSION = "pgwal-archived 1"


def state_of(path: str) -> str:
    """Return what tells a file from any other one, and from itself when it was changed; raises OSError."""
    found = os.stat(path)
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


class ArchivedMarks:
    """The marks beside the segments of one server; ``repo`` is the repository as the command names it."""

    def __init__(self, segment_path: str, repo: str) -> None:
        folder = os.path.dirname(segment_path)
        self.directory = os.path.join(folder, MARKS_SUFFIX)
        self.status_directory = os.path.join(folder, _STATUS_DIRECTORY)
        self._folder = folder
        self._repo = repo
        # Where it is no server's, nothing is left behind.
        self.is_servers = "\n" not in repo and os.path.isdir(self.status_directory)

    def path_of(self, name: str) -> str:
        """Return the path of a segment of the server."""
        return os.path.join(self._folder, name)

    def has(self, name: str) -> bool:
        """Tell whether a segment was archived, and nothing has changed since."""
        try:
            state, stored, stored_state, archived_at = self._read(name)
            if state != state_of(self.path_of(name)):
                return False
            if stored:
                return state_of(stored) == stored_state
            return 0 <= time.time() - float(archived_at) <= MARK_UNSEEN_S
        except (OSError, ValueError):
            return False

    def will_have(self, name: str) -> bool:
        """As ``has``, after waiting as long as a process archives ahead, which holds the lock of the marks."""
        until_s = time.monotonic() + MARK_WAIT_S
        while time.monotonic() < until_s:
            # In this order: it ends behind its last mark.
            is_over = not self._is_locked()
            if self.has(name):
                return True
            if is_over:
                return False
            time.sleep(ARCHIVE_POLL_S)
        return False

    def _is_locked(self) -> bool:
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def knows(self, name: str) -> bool:
        """Tell whether a segment of that name was archived from here; its file may be gone by now."""
        try:
            return bool(self._read(name))
        except (OSError, ValueError):
            return False

    def _read(self, name: str) -> tuple[str, str, str, str]:
        with open(os.path.join(self.directory, name), encoding="utf-8") as file:
            version, repo, state, stored, stored_state, archived_at = file.read().split("\n")
        if (version, repo) != (_VERSION, self._repo):
            raise ValueError("a mark of something else")
        return state, stored, stored_state, archived_at

    def add(self, name: str, state: str, stored: str) -> None:
        """Mark a segment, a file of the ``state`` that it was found in; ``stored`` is the path of a file, or nothing.

        Nothing is done where that cannot be.
        """
        with suppress(OSError):
            stored_state = state_of(stored) if stored else ""
            content = "\n".join((_VERSION, self._repo, state, stored, stored_state, str(time.time())))
            self.make()
            unfinished = os.path.join(self.directory, f"{name}.unfinished")
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
            os.replace(unfinished, os.path.join(self.directory, name))

    def make(self) -> None:
        """Have the directory of the marks be there; raises OSError."""
        with suppress(FileExistsError):
            os.mkdir(self.directory, 0o700)

    def names(self) -> list[str]:
        """Return which segments have marks."""
        try:
            return sorted(os.listdir(self.directory))
        except OSError:
            return []

    def drop_before(self, name: str) -> None:
        """Remove the marks of segments whose names come before one: the server does not ask for them again."""
        for other in self.names():
            if other < name:
                with suppress(OSError):
                    os.unlink(os.path.join(self.directory, other))

    def waiting(self) -> list[str]:
        """Return the files that the server wants archived, in the order in which it hands them over; raises OSError."""
        names = os.listdir(self.status_directory)
        return sorted(name.removesuffix(".ready") for name in names if name.endswith(".ready"))
