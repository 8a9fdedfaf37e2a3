"""From the address of a repository, as people give it, to the place that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from pgwal.errors import FormatError
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.place import Place

_STORES = ("s3:", "gs:", "az:")

Address: TypeAlias = str | Path | Place
"""A directory, a URL such as s3://bucket/prefix, or a place as it is."""


def place_at(address: Address) -> Place:
    """Return the place that an address names; nothing is looked at.  Raises FormatError for what is no address."""
    if isinstance(address, Path):
        return LocalPlace(address)
    if not isinstance(address, str):
        return address
    if "://" not in address:
        if address.startswith(_STORES):
            raise FormatError(
                f"{address[:3]} without // names no object store",
                hint=f"It is {address[:3]}//BUCKET/PREFIX; a directory of such a name is ./{address[:3]}...",
            )
        return LocalPlace(Path(address))
    # Here and not above: a server waits for each segment that it fetches.
    from pgwal.repository.cloud_place import CloudPlace

    return CloudPlace.parse(address)
