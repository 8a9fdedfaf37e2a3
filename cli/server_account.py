"""The account that throw-away servers run as, and what may pass between it and root.

PostgreSQL refuses to run as root.  Where this process is root, servers run as the user ``nobody``, whom other programs
use as well.  So root never acts on a name that this user can write: what root makes for a server is handed over when it
is complete and not touched by name afterwards; what has to be done in the server's directories a process of its own
account does; and of files there root only reads those that are plain files, links not followed.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pgwal.errors import PgwalError

UNPRIVILEGED_USER = "nobody"

_TABLESPACE_LINKS = "pg_tblspc"


# ---- the accounts


def server_account() -> pwd.struct_passwd | None:
    """Return the account that servers run as, or None when they run as this process's own user.

    Raises PgwalError when this process is root and there is no unprivileged account.
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(UNPRIVILEGED_USER)
    except KeyError:
        raise PgwalError(
            f"PostgreSQL does not run as root, and there is no user {UNPRIVILEGED_USER}",
            hint="Run this as an ordinary user.",
        ) from None


def server_identity() -> dict[str, Any]:
    """Return the arguments that make subprocess start something as the server's user."""
    account = server_account()
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def peer_names() -> list[str]:
    """Return the operating system's names of those who may connect to a throw-away server: this user, and the server's.

    Raises PgwalError when this user has no name, as in a container: peer authentication goes by it.
    """
    try:
        own = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise PgwalError(
            f"the user with the number {os.geteuid()} has no name, and a server lets nobody in who has none",
            hint="Give the user a line in /etc/passwd, or run this as another one.",
        ) from None
    account = server_account()
    return [own] if account is None else [own, account.pw_name]


# ---- what the server's user can do


def can_execute_python() -> bool:
    """Tell whether the server's user can run this interpreter with ``pgwal_cli``; really tries, once."""
    return _succeeds_for_server((sys.executable, "-P", "-c", "import pgwal_cli"))


@cache
def _succeeds_for_server(command: tuple[str, ...]) -> bool:
    try:
        finished = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, **server_identity())
    except OSError:
        return False
    return finished.returncode == 0


def require_reachable(directory: Path) -> None:
    """Raise PgwalError unless the user who runs the server can enter a directory."""
    # Not by reading mode bits: access lists and mount options have a say as well.
    finished = subprocess.run(
        ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)],
        cwd="/",
        capture_output=True,
        **server_identity(),
    )
    if finished.returncode != 0:
        raise PgwalError(
            f"the user {UNPRIVILEGED_USER}, who runs the server, cannot enter {directory}",
            hint="Choose a directory all of whose parents have mode 0755.",
        )


def append_as_server(path: Path, content: bytes, *, afresh: bool = False) -> None:
    """Append to a file in a directory of the server, or write it ``afresh``, by a process of the server's user.

    Raises PgwalError when that fails.
    """
    command = 'cat >"$1"' if afresh else 'cat >>"$1"'
    finished = subprocess.run(
        ["/bin/sh", "-c", command, "sh", str(path)], cwd="/", input=content, capture_output=True, **server_identity()
    )
    if finished.returncode != 0:
        raise PgwalError(f"cannot write {path}: {finished.stderr.decode(errors='replace').strip()}")


# ---- what passes between root and the server's user


def belongs_to_server(path: Path) -> bool:
    """Tell whether the server's user owns a file or directory: then its content is not root's to give any more."""
    account = server_account()
    return account is not None and path.lstat().st_uid == account.pw_uid


def give_to_server(path: Path) -> None:
    """Make the server's user the owner of a file, or of a whole directory tree with the tablespaces it is linked to.

    A directory changes its owner after everything in it, so that nobody else can change it before.  Names are resolved
    in an open directory, and links are not followed, except those of tablespaces: they lead to a part of the data
    directory.
    """
    account = server_account()
    if account is None:
        return
    for location in _linked_tablespaces(path):
        give_to_server(location)
    if path.is_dir() and not path.is_symlink():
        for _, directories, files, descriptor in os.fwalk(path, topdown=False):
            for name in (*directories, *files):
                os.chown(name, account.pw_uid, account.pw_gid, dir_fd=descriptor, follow_symlinks=False)
    os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _linked_tablespaces(path: Path) -> Iterator[Path]:
    links = path / _TABLESPACE_LINKS
    if not links.is_dir() or links.is_symlink():
        return
    for link in links.iterdir():
        if link.is_symlink() and link.resolve().is_dir():
            yield link.resolve()


def read_of_server(path: Path) -> bytes | None:
    """Return the content of a file that the server's user may have put there, None when there is no plain file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def require_servers_own(directory: Path) -> None:
    """Raise PgwalError unless a directory, and no link, is closed to all but the server's user or this one."""
    found = directory.lstat()
    account = server_account()
    owners = {os.geteuid()} if account is None else {0, account.pw_uid}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or found.st_mode & 0o077:
        raise PgwalError(
            f"{directory} is open to other users, or theirs", hint="Remove it, or choose another directory."
        )


def require_own_place(directory: Path) -> None:
    """Raise PgwalError when this process is root and another user can change what a directory's path leads to.

    The directory need not exist.  A sticky directory, such as /tmp, may be on the way.
    """
    if server_account() is None:
        return
    place = Path(os.path.abspath(directory))  # noqa: PTH100 (links are looked at, not resolved)
    for each in (*reversed(place.parents), place):
        try:
            found = each.lstat()
        except FileNotFoundError:
            return
        is_open = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(found.st_mode)
        if found.st_uid != 0 or (is_open and (each == place or not found.st_mode & stat.S_ISVTX)):
            raise PgwalError(
                f"{each} can be written by others than root: what root makes in {directory} could be exchanged",
                hint="Choose a directory of root below directories of root, or run this as an ordinary user.",
            )
        if stat.S_ISLNK(found.st_mode):
            require_own_place(each.resolve() / place.relative_to(each))
            return
