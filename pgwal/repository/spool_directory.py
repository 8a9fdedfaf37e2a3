"""Where on this machine the spool of a repository lies that is reached over a network."""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path

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
    return (Path(state) if state else Path("~/.local/state").expanduser()) / "pgwal" / "spool"
