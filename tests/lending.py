"""Lend a repository to the servers' own tools: pgwal does not write one that belongs to another user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgwal_cli.throwaway_server import give_to_server


@contextmanager
def lent_to_server(path: Path) -> Iterator[None]:
    """Have a tree belong to the servers' user while the context lasts, and then to this one again."""
    give_to_server(path)
    try:
        yield
    finally:
        for each in (path, *path.rglob("*")):
            os.chown(each, os.geteuid(), os.getegid(), follow_symlinks=False)
