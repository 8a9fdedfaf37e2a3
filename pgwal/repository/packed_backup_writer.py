"""Store the files of a backup in packs: see ``backup_data`` and ``pack_stream``.

Manifest and label are stored as they are, beside the packs: other tools read them, and expire does when an entry is
damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Condition
from typing import TYPE_CHECKING

from pgwal.backup.label import BACKUP_LABEL_NAME
from pgwal.backup.live_frames import slice_extents
from pgwal.backup.manifest import MANIFEST_NAME
from pgwal.backup.pack_table import Extent, Pack, PackedContents
from pgwal.budget import ONE_FRAME_RUN_BYTES
from pgwal.errors import BrokenInvariant, ObjectNotFound
from pgwal.repository.frame_codec import FrameEncoder
from pgwal.repository.pack_pool import begin_pack, pack_object
from pgwal.repository.pack_stream import NewPack, PackStream
from pgwal.repository.store import ObjectStore
from pgwal.repository.written_file import WrittenFile

if TYPE_CHECKING:
    from pgwal.repository.backup_data import BackupData, BackupDataWriter, NewContent


AS_THEY_ARE = (BACKUP_LABEL_NAME, MANIFEST_NAME)


class PackedBackupDataWriter:
    """See pgwal.repository.backup_data.BackupDataWriter; ``plain`` stores what is stored as it is.

    Frames are encoded in ``jobs`` threads, whoever stores files.
    """

    def __init__(self, store: ObjectStore, plain: BackupDataWriter, level: int | None, jobs: int = 1) -> None:
        self._store = store
        self._plain = plain
        self._encoder = FrameEncoder(level, jobs)
        self._changed = Condition()
        self._is_much = False
        """Whether that is worth another pack beside the first: less is put into one, which is one request."""
        self._stored_bytes = 0
        self._packs: list[Pack] = []
        self._carried: dict[tuple[str, int], int] = {}
        """By id and number there, the numbers that packs of other backups have here."""
        self._streams: list[PackStream] = []
        self._idle: list[PackStream] = []
        self._directories = set[str]()

    def make_directory(self, path: str) -> None:
        while path:
            self._directories.add(path)
            path = path.rpartition("/")[0]

    def write(self, path: str, chunks: Iterable[bytes]) -> WrittenFile:
        if path in AS_THEY_ARE:
            return self._plain.write(path, chunks)
        with self._stream() as stream:
            return stream.add(chunks if self._is_much else self._counted(chunks))

    def _counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if not self._is_much:
                with self._changed:
                    self._stored_bytes += len(chunk)
                    self._is_much = self._stored_bytes > ONE_FRAME_RUN_BYTES
                    if self._is_much:
                        self._changed.notify_all()
            yield chunk

    def write_small(self, files: Sequence[tuple[str, bytes]]) -> list[WrittenFile]:
        return [self.write(path, (content,)) for path, content in files]

    def carry(self, source: BackupData, path: str, offset: int, length: int) -> tuple[Extent, ...] | None:
        from pgwal.repository.packed_backup_data import PackedBackupData

        found = source.places(path) if isinstance(source, PackedBackupData) else None
        if found is None:
            return None
        packs, extents = found
        carried = slice_extents(extents, packs, offset, length)
        with self._changed:
            return tuple(
                extent._replace(pack=self._number_of(source.backup_id, extent.pack, packs)) for extent in carried
            )

    def _number_of(self, backup_id: str, number: int, packs: Sequence[Pack]) -> int:
        key = (backup_id, number)
        if key not in self._carried:
            self._carried[key] = len(self._packs)
            self._packs.append(packs[number])
        return self._carried[key]

    def create(self, path: str) -> NewContent:
        if path not in AS_THEY_ARE:
            raise BrokenInvariant(f"{path} is stored in packs, and so at once")
        return self._plain.create(path)

    def remove(self, path: str) -> None:
        # In a pack it stays, and no entry tells of it.
        if path in AS_THEY_ARE:
            self._plain.remove(path)

    def sync(self) -> None:
        for stream in self._streams:
            stream.finish()
        self._encoder.close()
        self._plain.sync()

    def contents(self) -> PackedContents:
        return PackedContents(self._packs, sorted(self._directories))

    def abandon(self) -> None:
        self._encoder.close()
        for stream in self._streams:
            stream.abandon()

    def discard(self) -> None:
        others = set(self._carried.values())
        for number, pack in enumerate(self._packs):
            if number not in others:
                with suppress(ObjectNotFound):
                    self._store.delete(pack_object(pack.name))

    @contextmanager
    def _stream(self) -> Iterator[PackStream]:
        """Lend a stream that nobody uses: there are as many as threads that store much at the same time."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_much or self._idle or not self._streams)
            stream = self._idle.pop() if self._idle else None
            if stream is None:
                stream = PackStream(self._store, self._begin_pack, self._encoder)
                self._streams.append(stream)
        try:
            yield stream
        finally:
            with self._changed:
                self._idle.append(stream)
                self._changed.notify()

    def _begin_pack(self) -> NewPack:
        pack, seal = begin_pack(self._store)
        with self._changed:
            self._packs.append(pack)
            return NewPack(len(self._packs) - 1, pack, seal)
