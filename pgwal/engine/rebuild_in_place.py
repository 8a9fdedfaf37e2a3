"""Rebuild a data directory where there is one: what is right stays, what is not wanted goes, the rest is fetched."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import INCOMPLETE_NAME, TABLESPACE_DIRECTORY
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.datadir.clearing import Clearing
from pgwal.datadir.running_server import require_stopped
from pgwal.engine.chain_source import of_chain
from pgwal.engine.overwriting_forecast import OverwritingForecast, PresentPart, PresentPlaces
from pgwal.engine.overwritten import Overwriting, OverwrittenDirectory
from pgwal.engine.present_files import PresentFiles
from pgwal.engine.rebuild import Rebuild
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.rebuild_report import RebuiltFile
from pgwal.engine.wanted_tree import WantedTree
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.repository import Repository

Confirmation = Callable[[Overwriting], None]
"""Is told what is going to be overwritten; what it raises ends a restore that has changed nothing yet."""


class RebuildInPlace(Rebuild):
    """As Rebuild, in an ``overwritten`` directory; files that its user writes ``anew`` must not stay there.

    Nor must those that its user ``leaves_out``.
    """

    def __init__(
        self,
        repository: Repository,
        chain: Sequence[BackupEntry],
        overwritten: OverwrittenDirectory,
        options: RebuildOptions,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        anew: Collection[str],
        leaves_out: Collection[str],
        confirm: Confirmation,
    ) -> None:
        super().__init__(repository, chain, overwritten.root, options, on_progress)
        self._repository = repository
        self._overwritten = overwritten
        self._rewritten = {CONTROL_FILE_PATH, *anew}
        self._left_out = set(leaves_out)
        self._anew = self._rewritten | self._left_out
        self._confirm = confirm
        self._wanted: WantedTree | None = None
        self._present = PresentFiles(
            self.writer,
            self._stored,
            self._tables,
            self._threads,
            self._open_sources,
            data_checksums=self._entry.data_checksums,
        )

    def make_directories(self, tablespaces: Mapping[int, Path], clear: Callable[[], None] | None = None) -> None:
        """Tell what is overwritten, and then remove what is not wanted; see Rebuild."""
        overwriting = self._survey(tablespaces)
        wanted, found = self._wanted, self._overwritten
        assert wanted is not None
        self._confirm(overwriting)
        require_stopped(found.root)

        def make_room() -> None:
            found.make_unstartable()
            self._clear(Clearing(wanted, removes=True, directory_mode=self.writer.directory_mode), tablespaces)
            if clear is not None:
                clear()

        super().make_directories(tablespaces, make_room)

    def _survey(self, tablespaces: Mapping[int, Path]) -> Overwriting:
        """Look through the directory for what is not wanted."""
        paths = (file.path for file in self._catalogue.files(self._entry.backup_id) if file.path != INCOMPLETE_NAME)
        with of_chain(self._stored[0]):
            directories = list(self._stored[0].directories())
        self._wanted = WantedTree(self.writer.root, paths, directories, tablespaces, self._anew, self._rewritten)
        survey, found = Clearing(self._wanted, removes=False), self._overwritten
        self._clear(survey, tablespaces)
        return Overwriting(found.root, found.description(), survey.found, found.lost_wal(self._repository))

    def forecast(self, tablespaces: Mapping[int, Path], leaves_out: Callable[[str], bool]) -> OverwritingForecast:
        """Tell what would come of the directory, without its control file, and change nothing; reads all of it.

        ``leaves_out`` tells which files of the backup are not restored.
        """
        overwriting = self._survey(tablespaces)
        places = PresentPlaces(self.writer.root, tablespaces)
        forecast = OverwritingForecast(overwriting)
        looked_at = self._threads.write_all(lambda file: self._compare(file, places, leaves_out), self.files())
        for file, present in looked_at:
            if file.path in self._left_out:
                # What is there has been counted as removed.
                continue
            if not leaves_out(file.path):
                forecast.add(file, self._size_to_be(file), present)
            elif present is not None:
                overwriting.unwanted.add_file(file.path, present.size_bytes)
        return forecast

    def _compare(
        self, file: BackupFile, places: PresentPlaces, leaves_out: Callable[[str], bool]
    ) -> tuple[BackupFile, PresentPart | None]:
        place = places.find(file.path)
        present = None if place is None else self.writer.look_at(place)
        if present is None:
            return file, None
        with present:
            is_anew = file.path in self._anew or leaves_out(file.path) or self._size_to_be(file) != file.size_bytes
            proven = 0 if is_anew else self._present.proven_bytes(file, present)
            return file, PresentPart(present.size_bytes, proven)

    def _size_to_be(self, file: BackupFile) -> int:
        """Return how much of a file is no hole."""
        blocks = None if self.wanted_blocks is None else self.wanted_blocks(file)
        return file.size_bytes if blocks is None else len(blocks) * BLOCK_SIZE

    def _clear(self, clearing: Clearing, tablespaces: Mapping[int, Path]) -> None:
        clearing.clear(self.writer.root)
        for oid, location in tablespaces.items():
            clearing.clear(location, f"{TABLESPACE_DIRECTORY}/{oid}")
        for path, location in self._overwritten.dropped.items():
            clearing.clear(location, path)

    def write_all(self, files: Iterable[BackupFile]) -> Iterator[RebuiltFile]:
        """Make files of what is there, or write them, and yield each, in order, when it is as it is to be."""
        assert self._wanted is not None
        for rebuilt in super().write_all(files):
            self._wanted.note(rebuilt.file.path)
            yield rebuilt

    def _write(self, file: BackupFile) -> RebuiltFile:
        if self.wanted_blocks is not None and self.wanted_blocks(file) is not None:
            # Its holes are to be holes on disk, not zeros that were written over what is there.
            if os.path.lexists(self.writer.root / file.path):
                self.writer.remove(file.path)
            return super()._write(file)
        if not self._present.make(file):
            return super()._write(file)
        self._threads.count_file()
        return RebuiltFile(file, None)

    def finish(self) -> None:
        """Remove what of the backup was not to be restored, and end as Rebuild does."""
        assert self._wanted is not None
        for file in self._catalogue.files(self._entry.backup_id) if self._wanted.leaves_out else ():
            is_there = os.path.lexists(self.writer.root / file.path)
            if is_there and file.path != INCOMPLETE_NAME and self._wanted.is_left_out(file.path):
                self.writer.remove(file.path)
        super().finish()
