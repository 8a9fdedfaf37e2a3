"""The secrets of WAL segments that this machine stored last, so that its receiver can go on without an identity.

A receiver that begins again reads WAL behind the last summary, and compares what the server sends with what is stored.
What is summarised is forgotten, but for the last segments; nothing is while a backup is taken, which proves its WAL at
its end.  The file says no more than the server's own WAL does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from pgwal.budget import HELD_SECRET_SEGMENTS, HELD_SECRETS
from pgwal.encryption.container import ID_BYTES, KEY_BYTES
from pgwal.errors import RepositoryError


class HeldSecrets:
    """A file of lines ``<object id> <segment> <secret>``, to which receivers and archive_command add.

    Whoever changes it has the lock of a file beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._found: dict[bytes, tuple[str, bytes]] = {}
        self._seen: tuple[int, int, int] | None = None
        """What the file was when it was read: another process may add to it, or replace it."""

    def find(self, object_id: bytes) -> bytes | None:
        """Return the secret of an object, None where it is not held."""
        with self._lock:
            found = self._all().get(object_id)
        return None if found is None else found[1]

    def add(self, object_id: bytes, segment: str, secret: bytes) -> None:
        """Hold a secret, durably; raises RepositoryError."""
        with self._lock, self._alone():
            # The newline in front: a crash may have cut the line before.
            self._write_file(b"\n" + _line(object_id, segment, secret), os.O_APPEND)

    def forget(self, is_needed: Callable[[str], bool], is_in_use: Callable[[], bool] = lambda: False) -> None:
        """Forget the secrets of segments that are not needed, except for the last ones; none while WAL is in use."""
        with self._lock, self._alone():
            known = self._all()
            newest = set(sorted({segment for segment, _ in known.values()})[-HELD_SECRET_SEGMENTS:])
            kept = [(object_id, held) for object_id, held in known.items() if held[0] in newest or is_needed(held[0])][
                -HELD_SECRETS:
            ]
            if len(kept) < len(known) and is_in_use():
                kept = list(known.items())[-HELD_SECRETS:]
            if len(kept) == len(known):
                return
            self._write_file(b"".join(_line(object_id, *held) for object_id, held in kept), os.O_TRUNC)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the file: what is added to one that is replaced would be lost."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path.with_name(f"{self._path.name}.lock"), flags, 0o600)
        except OSError as error:
            raise self._failed("lock", error) from error
        try:
            # Where the file system has none, nobody can have one.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _all(self) -> dict[bytes, tuple[str, bytes]]:
        seen = self._signature()
        if seen != self._seen:
            self._found, self._seen = {}, seen
            with suppress(FileNotFoundError):
                for line in self._read().split(b"\n"):
                    # A crash may have cut the last one.
                    with suppress(ValueError):
                        object_id, segment, secret = line.split(b" ")
                        key = bytes.fromhex(object_id.decode()), bytes.fromhex(secret.decode())
                        if len(key[0]) == ID_BYTES and len(key[1]) == KEY_BYTES:
                            self._found[key[0]] = segment.decode(), key[1]
        return self._found

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._failed("read", error) from error

    def _write_file(self, content: bytes, mode: int) -> None:
        path = self._path if mode == os.O_APPEND else self._path.with_name(f"{self._path.name}.new")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | mode
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if path != self._path:
                path.replace(self._path)
        except OSError as error:
            raise self._failed("write", error) from error

    def _failed(self, action: str, error: OSError) -> RepositoryError:
        return RepositoryError(f"cannot {action} {self._path}: {os.strerror(error.errno or 0)}", path=str(self._path))


def _line(object_id: bytes, segment: str, secret: bytes) -> bytes:
    return f"{object_id.hex()} {segment} {secret.hex()}\n".encode()
