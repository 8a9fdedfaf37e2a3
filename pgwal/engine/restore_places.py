"""Where a restore may write: seen to before anything is made, whatever the catalogue entry of the backup says."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection, Mapping
from itertools import combinations
from pathlib import Path

from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import required_directories
from pgwal.errors import TargetError
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)


def require_places(
    repository: Repository,
    entry: BackupEntry,
    target: Path,
    locations: Mapping[int, Path],
    *,
    mapped: Collection[str],
    in_place: bool,
) -> None:
    """Raise TargetError for places that overlap, or that nobody but the catalogue entry has named; tell the others.

    ``mapped`` are the old locations that the caller gave another place.  Any other tablespace goes to where the entry
    says, outside of the target, only if that is ``in_place``, or an empty directory that the caller owns.
    """
    for place in (target, *locations.values()):
        if repository.place.directory is not None:
            _require_outside(place, repository.place.directory)
    own_names = {directory.partition("/")[0] for directory in required_directories(entry.major)}
    for oid, location in locations.items():
        below = _below(location, target)
        if below is not None and (not below or below[0] in own_names):
            raise TargetError(
                f"tablespace {oid} would go to {location}, where the data directory has files of its own",
                hint="Map it to a directory of its own with -T OLD=NEW.",
            )
    for (one, first), (other, second) in combinations(sorted(locations.items()), 2):
        if _is_same(first, second):
            raise TargetError(
                f"tablespaces {one} and {other} would share directory {os.path.realpath(first)}",
                hint="Map each to its own with -T OLD=NEW.",
            )
    unasked = [
        oid
        for oid, location in locations.items()
        if entry.tablespaces[oid] not in mapped and not in_place and not _is_expected(location, target)
    ]
    if unasked:
        places = ", ".join(f"tablespace {oid} at {locations[oid]}" for oid in unasked)
        raise TargetError(
            f"backup {entry.backup_id} would write outside of {target}: {places}",
            hint="Map each to a place with -T OLD=NEW, or accept these with --allow-tablespaces-in-place.",
        )
    for oid, location in sorted(locations.items()):
        logger.info("tablespace %d goes to %s", oid, location)


def _require_outside(place: Path, repository: Path) -> None:
    if _below(place, repository) is not None:
        raise TargetError(
            f"{place} lies in the repository {repository}", hint="Choose a place outside of the repository."
        )
    if _below(repository, place) is not None:
        raise TargetError(
            f"the repository {repository} lies in {place}",
            hint="Choose a place that does not have the repository in it.",
        )


def _below(place: Path, directory: Path) -> tuple[str, ...] | None:
    """Return the names that lead from a directory to a place, links resolved; None when it is not in there."""
    real_place, real_directory = Path(os.path.realpath(place)), Path(os.path.realpath(directory))
    for parent in (real_place, *real_place.parents):
        if _is_same(parent, real_directory):
            return real_place.relative_to(parent).parts
    return None


def _is_same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to one directory, there already or not."""
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _is_expected(location: Path, target: Path) -> bool:
    """Tell whether a place lies in the target, or was prepared by whoever runs this."""
    if _below(location, target) is not None:
        return True
    try:
        status = location.lstat()
        is_own_directory = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        return is_own_directory and next(location.iterdir(), None) is None
    except OSError:
        return False
