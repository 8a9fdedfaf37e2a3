"""Where the keys of a repository come from, as an option says or the environment; nothing is read here.

Every start of the command line imports this.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class KeySources(NamedTuple):
    """What options said, None for what none did."""

    identity_file: Path | None = None
    identity_command: str | None = None
    metadata_key_file: Path | None = None

    def resolved(self) -> KeySources:
        """Return the same with what the environment says of what no option did."""
        file, command = self.identity_file, self.identity_command
        if file is None and command is None:
            file, command = _path_in("PGWAL_IDENTITY"), os.environ.get("PGWAL_IDENTITY_COMMAND") or None
        return KeySources(file, command, self.metadata_key_file or _path_in("PGWAL_METADATA_KEY"))

    def environment(self) -> dict[str, str]:
        """Return what in the environment of another process of this machine says the same as options did here."""
        said = {
            "PGWAL_IDENTITY": self.identity_file,
            "PGWAL_IDENTITY_COMMAND": self.identity_command,
            "PGWAL_METADATA_KEY": self.metadata_key_file,
        }
        found = {name: str(value) for name, value in said.items() if value is not None}
        if self.identity_file is not None or self.identity_command is not None:
            # The other one would count as well.
            found = {"PGWAL_IDENTITY": "", "PGWAL_IDENTITY_COMMAND": "", **found}
        return found

    @property
    def has_identity(self) -> bool:
        """Whether an identity was named, wherever it is."""
        file, command, _ = self.resolved()
        return file is not None or command is not None


def _path_in(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None
