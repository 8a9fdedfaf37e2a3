"""A disk whose machine can die: what a process that is killed, or a power cut, leaves of what it did.

What the process asks of the operating system is followed, as in test_durability.  After a power cut, each page of a
file holds what it held at its last sync or what was written since; names are those of some moment since their
directory was synced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

_PAGE = 4096


class Killed(BaseException):
    """The process is gone; no ``except Exception`` of its own sees it."""


class MortalDisk:
    """``kill_after`` is how many calls the process still makes that change the disk; None for as many as it likes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._left: int | None = None
        self._synced: dict[int, bytes] = {}
        self._undoing: list[tuple[Path, Callable[[], None]]] = []

    @contextmanager
    def process(self, kill_after: int | None) -> Iterator[None]:
        """Run something as a process that may be killed."""
        self._left = kill_after
        names = ("pwrite", "fsync", "rename", "unlink", "open", "posix_fallocate")
        real = {name: getattr(os, name) for name in names}
        replaced = {name: self._replacement(name, real) for name in names}
        with patch.multiple(os, **replaced):
            yield

    def cut_power(self, random: Random) -> None:
        """Leave what a power cut may leave."""
        for path in (path for path in self._root.rglob("*") if path.is_file()):
            inode = path.stat().st_ino
            if inode in self._synced:
                path.write_bytes(_mixed(self._synced[inode], path.read_bytes(), random))
                assert path.stat().st_ino == inode
        for _ in range(random.randint(0, len(self._undoing))):
            self._undoing.pop()[1]()
        self.settle()

    def settle(self) -> None:
        """Have everything reach the disk, as it does in time."""
        self._synced.clear()
        self._undoing.clear()

    def _replacement(self, name: str, real: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            before = getattr(self, f"_before_{name}", None)
            if name == "open" and not args[1] & os.O_CREAT:
                return real[name](*args, **kwargs)
            if self._left is not None:
                if self._left <= 0:
                    raise Killed
                self._left -= 1
            after = before(*args, **kwargs) if before is not None else None
            result = real[name](*args, **kwargs)
            if after is not None:
                after()
            return result

        return replacement

    def _note_content(self, descriptor: int) -> None:
        """Note what a file holds that is written the first time."""
        state = os.fstat(descriptor)
        if state.st_ino not in self._synced:
            self._synced[state.st_ino] = os.pread(descriptor, state.st_size, 0)

    def _before_pwrite(self, descriptor: int, *_: object) -> None:
        self._note_content(descriptor)

    def _before_posix_fallocate(self, descriptor: int, *_: object) -> None:
        self._note_content(descriptor)

    def _before_fsync(self, descriptor: int) -> Callable[[], None]:
        def synced() -> None:
            path = Path(f"/proc/self/fd/{descriptor}").resolve()
            if path.is_dir():
                self._undoing = [(directory, undo) for directory, undo in self._undoing if directory != path]
                return
            # By its path: it may be open for writing only.
            self._synced[os.fstat(descriptor).st_ino] = path.read_bytes()

        return synced

    def _before_open(self, name: Any, flags: int, *_: object, dir_fd: int | None = None) -> Any:
        path = _path(name, dir_fd)
        if path.exists():
            if flags & os.O_TRUNC:
                self._synced.setdefault(path.stat().st_ino, path.read_bytes())
            return None

        def opened() -> None:
            self._synced[path.stat().st_ino] = b""
            self._undoing.append((path.parent, lambda: path.unlink(missing_ok=True)))

        return opened

    def _before_rename(
        self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        source, target = _path(old, src_dir_fd), _path(new, dst_dir_fd)
        replaced = target.read_bytes() if target.is_file() else None

        def undo() -> None:
            if target.exists():
                target.rename(source)
                if replaced is not None:
                    target.write_bytes(replaced)

        self._undoing.append((target.parent, undo))

    def _before_unlink(self, name: Any, *_: object, dir_fd: int | None = None) -> None:
        path = _path(name, dir_fd)
        if path.is_file():
            content = path.read_bytes()
            self._undoing.append((path.parent, lambda: path.write_bytes(content) and None))


def _path(name: Any, directory: int | None) -> Path:
    """Return the path that a name in an open directory has."""
    return Path(name) if directory is None else Path(f"/proc/self/fd/{directory}").resolve() / name


def _mixed(synced: bytes, present: bytes, random: Random) -> bytes:
    """Return content of which each page is the one or the other, and the size that of the one or the other."""
    size = random.choice((len(synced), len(present)))
    chance = random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    pages = []
    for at in range(0, size, _PAGE):
        page = (present if random.random() < chance else synced)[at : at + _PAGE]
        pages.append(page.ljust(min(_PAGE, size - at), b"\0"))
    return b"".join(pages)
