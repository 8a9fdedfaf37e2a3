"""From the address of a repository, as people give it, to the place that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from pgwal.repository.local_place import LocalPlace
from pgwal.repository.place import Place

Address: TypeAlias = Path | Place
"""A directory, or a place as it is."""


def place_at(address: Address) -> Place:
    """Return the place that an address names; nothing is looked at."""
    return LocalPlace(address) if isinstance(address, Path) else address
