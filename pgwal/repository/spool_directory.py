"""Where on this machine the spool of a repository lies that is reached over a network."""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path

from pgwal.errors import PgwalError

_UNLIKE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def spool_directory(address: str, chosen: Path | None) -> Path:
    """Return the directory of the spool of the repository at an address, below the one that was chosen.

    Without that it is PGWAL_SPOOL, or ``pgwal/spool`` where the user's programs keep their state.  Two repositories
    never have one spool, whatever their addresses look like.
    """
    digest = sha256(address.encode()).hexdigest()[:12]
    return (chosen or _default()) / f"{_UNLIKE_NAMES.sub('-', address).strip('-')[:60]}-{digest}"


def _default() -> Path:
    if named := os.environ.get("PGWAL_SPOOL"):
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    if state:
        return Path(state) / "pgwal" / "spool"
    home = os.path.expanduser("~")  # noqa: PTH111 (which is not an error without one)
    if not os.path.isabs(home):  # noqa: PTH117
        raise PgwalError("this user has no home directory, in which the spool would lie", hint="Name one: --spool DIR.")
    return Path(home) / ".local" / "state" / "pgwal" / "spool"
