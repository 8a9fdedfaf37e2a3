"""Whose the files of a directory are that root writes: those of the user to whom the directory belonged before.

Meanwhile the directory is root's alone, so that nobody can put a link in the way of what root writes into it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pgwal.disk.new_file import refused

_ROOT = 0


class Owner(NamedTuple):
    """A user and a group."""

    user_id: int
    group_id: int


def take_from_owner(directory: Path) -> Owner | None:
    """Take a directory for root, and return whose it was; None unless root runs this and it was another user's.

    Raises TargetError where the system refuses that.
    """
    if os.geteuid() != _ROOT:
        return None
    try:
        status = os.lstat(directory)
        if status.st_uid == _ROOT:
            return None
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, _ROOT, _ROOT)
            os.fchmod(descriptor, 0o700)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused("take over", directory, error) from error
    return Owner(status.st_uid, status.st_gid)


def give_contents(directory: Path, owner: Owner) -> None:
    """Give all that is in a directory, which is root's alone, to a user; links themselves, not what they lead to."""
    try:
        for _, directories, files, descriptor in os.fwalk(directory, follow_symlinks=False, onerror=_raise):
            for name in (*directories, *files):
                os.chown(name, *owner, dir_fd=descriptor, follow_symlinks=False)
    except OSError as error:
        raise refused("change the owner in", directory, error) from error


def give_directory(directory: Path, owner: Owner) -> None:
    """Give a directory itself to a user, last of all, durably."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, *owner)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise refused("change the owner of", directory, error) from error


def _raise(error: OSError) -> None:
    raise error
