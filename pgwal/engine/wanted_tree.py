"""What a restored directory is to hold, and what of that a restore has made: in some thirty bytes a file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from xxhash import xxh3_128_digest

from pgwal.backup.exclusion import INCOMPLETE_NAME, TABLESPACE_DIRECTORY
from pgwal.backup.record_table import RecordTable
from pgwal.backup.stored_path import decode_path, encode_path


class WantedTree:
    """See pgwal.datadir.clearing.Wanted: the files of a backup but those that a restore writes ``anew``, or not at all.

    Of these it always writes the ``rewritten`` ones.  ``locations`` are where tablespaces are, by OID, the target being
    ``root``.
    """

    def __init__(
        self,
        root: Path,
        paths: Iterable[str],
        directories: Iterable[str],
        locations: Mapping[int, Path],
        anew: Collection[str],
        rewritten: Collection[str],
    ) -> None:
        self._files, self._made = RecordTable(""), RecordTable("")
        self._anew = anew
        self._rewritten = rewritten
        self._not_made_count = 0
        for path in paths:
            if path not in anew:
                self._files.add(_key(path))
                self._not_made_count += 1
        self._links = {f"{TABLESPACE_DIRECTORY}/{oid}": place.absolute() for oid, place in locations.items()}
        self._places = set(_places_within(root, locations.values()))
        above = {parent for place in self._places for parent in _above(place)}
        self._directories = {*directories, *above, TABLESPACE_DIRECTORY}

    def is_file(self, path: str) -> bool:
        return path == INCOMPLETE_NAME or self._files.find(_key(path)) is not None

    def is_directory(self, path: str) -> bool:
        return path in self._directories

    def is_place(self, path: str) -> bool:
        return path in self._places

    def link(self, path: str) -> Path | None:
        return self._links.get(path)

    def is_rewritten(self, path: str) -> bool:
        return path in self._rewritten

    def note(self, path: str) -> None:
        """Note that a file has been made, or was there as it is to be."""
        self._made.add(_key(path))
        self._not_made_count -= 1

    @property
    def leaves_out(self) -> bool:
        """Whether there are files of the backup that were not made, when all others have been."""
        return self._not_made_count > 0

    def is_left_out(self, path: str) -> bool:
        """Tell whether a file of the backup was not made, when all others have been."""
        return path not in self._anew and self._made.find(_key(path)) is None


def _key(path: str) -> bytes:
    return xxh3_128_digest(encode_path(path))


def _places_within(root: Path, locations: Iterable[Path]) -> Iterable[str]:
    real_root = Path(os.path.realpath(root))
    for location in locations:
        real = Path(os.path.realpath(location))
        if real != real_root and real.is_relative_to(real_root):
            yield decode_path(os.fsencode(real.relative_to(real_root)))


def _above(path: str) -> Iterable[str]:
    while path := path.rpartition("/")[0]:
        yield path
