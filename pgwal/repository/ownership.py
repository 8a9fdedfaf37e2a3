"""Refuse a repository that others than its owner can write: they would decide what is restored, and what is removed."""

from __future__ import annotations

import os
import pwd
import stat

from pgwal.errors import RepositoryError
from pgwal.repository.layout import BACKUP_DIRECTORY, SET_ASIDE_DIRECTORY, SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.local import LocalStore
from pgwal.repository.local_errors import translated_errors

_ROOT = 0
_DIRECTORIES = ("", WAL_DIRECTORY, SUMMARY_DIRECTORY, BACKUP_DIRECTORY, SET_ASIDE_DIRECTORY)


def require_only_owner_writes(store: LocalStore) -> None:
    """Raise RepositoryError for a directory that its group or all others can write, or that is another user's.

    The repository may be another user's than the one that reads it.  What is not there is not looked at.
    """
    owner_id = None
    for name in _DIRECTORIES:
        if name and not store.exists(name):
            continue
        path = store.path(name)
        with translated_errors("open", path), store.beneath.directory(name) as descriptor:
            status = os.fstat(descriptor)
        owner_id = status.st_uid if owner_id is None else owner_id
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RepositoryError(
                f"{path} can be written by others than its owner (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"Check that nobody has put anything there, then run: chmod go-w {path}. If that is"
                " impossible, put the repository into a directory below it.",
            )
        if status.st_uid not in (owner_id, _ROOT, os.geteuid()):
            raise RepositoryError(
                f"{path} belongs to {_user(status.st_uid)}, and the repository to {_user(owner_id)}",
                hint="All of a repository must belong to one user.",
            )


def require_own(store: LocalStore) -> None:
    """Raise RepositoryError unless the user who runs this may write the repository, as its owner.

    That holds for root as well: the owner could put links and other files in the way of what root writes.
    """
    with translated_errors("open", store.root), store.beneath.directory("") as descriptor:
        owner_id = os.fstat(descriptor).st_uid
    if owner_id not in (os.geteuid(), _ROOT):
        raise RepositoryError(
            f"repository {store.root} belongs to {_user(owner_id)}, and {_user(os.geteuid())} runs this",
            hint=f"Run it as {_user(owner_id)}: one user alone may change a repository.",
        )


def _user(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return f"user {user_id}"
