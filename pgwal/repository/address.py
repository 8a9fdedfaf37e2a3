"""From the address of a repository, as people give it, to the place that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from pgwal.repository.local_place import LocalPlace
from pgwal.repository.place import Place

Address: TypeAlias = str | Path | Place
"""A directory, a URL such as s3://bucket/prefix, or a place as it is."""


def place_at(address: Address) -> Place:
    """Return the place that an address names; nothing is looked at.  Raises FormatError for what is no address."""
    if isinstance(address, Path):
        return LocalPlace(address)
    if not isinstance(address, str):
        return address
    if "://" not in address:
        return LocalPlace(Path(address))
    # Here and not above: a server waits for each segment that it fetches.
    from pgwal.repository.cloud_place import CloudPlace

    return CloudPlace.parse(address)
