"""Which backup a user means: by its id, by the beginning of one, or the latest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.backup.backup_id import is_backup_id
from pgwal_cli.exit_codes import UsageError
from pgwal_cli.options import LATEST

if TYPE_CHECKING:
    from pgwal.repository.place import Place

Backup = Annotated[str, typer.Argument(metavar="ID|latest", help="The backup; the beginning of its ID is enough.")]

_NAMED = 3
"""How many backups an error lists."""


def backup_id(place: Place, name: str) -> str:
    """Return the id of the backup that ``name`` means: an id, the beginning of a single one, or "latest", the newest.

    What begins no id is returned as it is: the command that looks for it says so.  Raises UsageError for the beginning
    of several, ObjectNotFound for the latest of none.
    """
    if is_backup_id(name) or not name:
        return name
    from pgwal.backup.chain import newest
    from pgwal.repository.repository import Repository

    catalogue = Repository.open(place).catalogue
    if name == LATEST:
        return newest(catalogue.survey().entries).backup_id
    found = [each for each in catalogue.ids() if each.startswith(name)]
    if len(found) > 1:
        others = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise UsageError(
            f"{name!r} is the beginning of {len(found)} IDs: {', '.join(found[:_NAMED])}{others}",
            hint="Give more of the ID.",
        )
    return found[0] if found else name
