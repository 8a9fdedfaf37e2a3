"""Backups of files that change at random, and what the files held when each was taken."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from keeping.stored_repository import MAJOR, MB, SYSTEM_IDENTIFIER, store_backup
from repository.test_packs import small_frames

from pgwal.backup.backup_id import BackupKind, format_backup_id
from pgwal.backup.chain import prior_id_among
from pgwal.engine import merged_file
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.export import ExportRequest, export_backup
from pgwal.engine.initialise import initialise
from pgwal.lsn import Lsn
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import StorageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAME = 4 * BLOCK_SIZE
BEGIN_S = 1_800_000_000
TABLES = [f"base/5/{number}" for number in range(16384, 16390)]
MADE_BY_BACKUP = {"backup_label", "backup_manifest", "global/pg_control"}


@contextmanager
def tiny_frames(dense: int = 4) -> Iterator[None]:
    """Have files of a few blocks lie in several frames, and these in several packs.

    Changed blocks are referred to in frames that are larger by more than ``dense`` times.
    """
    with small_frames(FRAME, 6 * FRAME), pytest.MonkeyPatch.context() as patched:
        patched.setattr(merged_file, "FRAME_SIZE", FRAME)
        patched.setattr(merged_file, "DENSE_FACTOR", dense)
        patched.setattr(merged_file, "FRAME_PIECES", 3)
        yield


class GrowingChain:
    """A repository, the latest backup, and the files as each backup has them, by the time of its id."""

    def __init__(self, place: Place, storage_format: StorageFormat, random: Random, step_s: int = 60) -> None:
        if storage_format != place.default_format:
            initialise(place, storage_format)
        self.place = place
        self.repository = Repository.open_or_create(place, RepositoryIdentity(SYSTEM_IDENTIFIER, MB, MAJOR))
        self.contents: dict[str, dict[str, bytes]] = {}
        self.latest: str | None = None
        self._random = random
        self._step_s = step_s
        self._count = 0
        self._files = {path: random.randbytes(random.randrange(0, 24) * BLOCK_SIZE) for path in TABLES[:4]}

    def full(self) -> str:
        return self._store(BackupKind.FULL, None, {"base/5/PG_VERSION": b"16\n", **self._files}, {})

    def incremental(self, prior_id: str | None = None) -> str:
        """Change some of the files, and add a backup on the latest one, or on another as of which they are then."""
        random = self._random
        assert self.latest is not None
        on = prior_id_among(prior_id or self.latest, self.repository.catalogue.ids())
        if prior_id is not None:
            found = self.contents[prior_id.partition("_")[0]]
            self._files = {path: content for path, content in found.items() if path in TABLES}
        whole = {"base/5/PG_VERSION": b"16\n"}
        blocks: dict[str, tuple[int, int, dict[int, bytes]]] = {}
        for path in TABLES:
            content = self._files.get(path)
            if content is None or random.random() < 0.1:
                self._files.pop(path, None)
                if random.random() < 0.4:
                    whole[path] = self._files[path] = random.randbytes(random.randrange(0, 24) * BLOCK_SIZE)
                continue
            before = len(content) // BLOCK_SIZE
            length = before if random.random() < 0.6 else max(0, before + random.randrange(-6, 7))
            kept = min(before, length) - (random.randrange(0, 3) if random.random() < 0.1 else 0)
            kept = max(0, kept)
            some = random.sample(range(kept), min(kept, random.choice([0, 0, 1, 2, 9])))
            numbers = sorted({*some, *range(kept, length)})
            pages = {number: random.randbytes(BLOCK_SIZE) for number in numbers}
            blocks[path] = (kept, length, pages)
            self._files[path] = b"".join(
                pages.get(n, content[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE]) for n in range(length)
            )
        return self._store(BackupKind.INCREMENTAL, on, whole, blocks)

    def _store(
        self,
        kind: BackupKind,
        prior_id: str | None,
        whole: dict[str, bytes],
        blocks: dict[str, tuple[int, int, dict[int, bytes]]],
    ) -> str:
        self._count += 1
        start = Lsn(self._count * MB + 40)
        backup_id = format_backup_id(BEGIN_S + self._step_s * self._count, kind)
        with self.repository.lock_backups():
            store_backup(self.repository, backup_id, prior_id, start, Lsn(start + 200), whole, blocks)
        self.latest = backup_id
        files = {"PG_VERSION": b"16\n", "base/5/PG_VERSION": b"16\n", **self._files}
        self.contents[backup_id.partition("_")[0]] = dict(files)
        return backup_id

    def combined(self, backup_id: str, target: Path) -> dict[str, bytes]:
        """Return the files of a backup as its chain makes them, but those that a backup makes."""
        combine_backups(CombineRequest(self.place, backup_id, target))
        return _files(target)

    def exported(self, backup_id: str, target: Path) -> dict[str, bytes]:
        """Return the files of a backup as they are stored, but those that a backup makes."""
        export_backup(ExportRequest(self.place, backup_id, target))
        return _files(target)

    def expected(self, backup_id: str) -> dict[str, bytes]:
        return self.contents[backup_id.partition("_")[0]]


def _files(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    found = {str(path.relative_to(root)): path.read_bytes() for path in paths}
    return {path: content for path, content in found.items() if path not in MADE_BY_BACKUP}
