"""The objects of a repository that is reached over a network, with what waits on this machine to be stored there.

Whoever receives WAL sees both as one: what waits hides what is stored of the same segment.  Names that are stored are
remembered, for nobody but the receiver adds to them: while the store is away, all but the contents is still known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from pgwal.errors import ObjectExists, ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.repository.layout import RECEIVER_STATE_NAME, SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.store import (
    MOST_BYTES_READ,
    ByteRange,
    Child,
    ObjectStore,
    StoredObject,
    StoreFeature,
    as_copying,
    objects_in,
)
from pgwal.repository.stored_names import StoredNames
from pgwal.repository.wal_file_name import PARTIAL_SUFFIX, partial_name, split_segment_name
from pgwal.segment import WalGeometry, is_segment_name

SPOOLED_FOLDERS = (WAL_DIRECTORY, SUMMARY_DIRECTORY)


class SpooledStore:
    """See pgwal.repository.store.ObjectStore.

    WAL and summaries that are put wait in ``local``; all else goes to ``remote`` at once, but the receiver's own
    state, which is left in ``pending_state`` for whoever stores what waits.  The beginning of a segment, put in place
    of more of it, does not wait where some of the segment is stored.
    """

    def __init__(self, local: ObjectStore, remote: ObjectStore, geometry: WalGeometry) -> None:
        self.local = local
        self.remote = remote
        self.features = remote.features & {StoreFeature.COPIES}
        self._geometry = geometry
        self.pending_state: bytes | None = None
        self._stored = StoredNames(self._listed())

    def _listed(self) -> dict[str, int]:
        return {
            f"{folder}/{name}": size_bytes
            for folder in SPOOLED_FOLDERS
            for name, size_bytes in objects_in(self.remote, folder)
        }

    def locate(self, name: str) -> str:
        return self.remote.locate(name)

    # -- what is stored ----------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """List the store again: another process may have deleted some of what is remembered."""
        # What is stored or deleted meanwhile by the receiver's own thread is known better here.
        before = self._stored.all()
        self._stored.renew(before, self._listed())

    def stored(self, folder: str) -> list[StoredObject]:
        """Return the objects directly in a folder that are stored, whatever waits, by the last part of each name."""
        return self._stored.directly_in(folder)

    def stored_of(self, folder: str, segment: str) -> list[str]:
        """Return the last parts of the names of what is stored of one segment, or of another file by its name."""
        return self._stored.of_segment(folder, segment)

    def is_stored(self, name: str) -> bool:
        return name in self._stored

    def note_stored(self, name: str, size_bytes: int) -> None:
        self._stored.add(name, size_bytes)

    def note_deleted(self, name: str) -> None:
        self._stored.remove(name)

    # -- reading -----------------------------------------------------------------------------------------------

    def get(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        if _is_spooled(name):
            # It may be stored, and no longer wait, by now.
            with suppress(ObjectNotFound):
                return self.local.get(name, most_bytes=most_bytes)
        return self.remote.get(name, most_bytes=most_bytes)

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        if _is_spooled(name):
            with suppress(ObjectNotFound):
                return self.local.get_ranges(name, ranges)
        return self.remote.get_ranges(name, ranges)

    def size(self, name: str) -> int:
        if not _is_spooled(name):
            return self.remote.size(name)
        with suppress(ObjectNotFound):
            return self.local.size(name)
        stored_bytes = self._stored.size(name)
        if stored_bytes is not None:
            return stored_bytes
        raise ObjectNotFound(f"cannot read {self.locate(name)}: it does not exist", path=self.locate(name))

    def exists(self, name: str) -> bool:
        if not _is_spooled(name):
            return self.remote.exists(name)
        return self.is_stored(name) or self.local.exists(name)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        folder, slash, _ = prefix.partition("/")
        if not slash or folder not in SPOOLED_FOLDERS:
            yield from self.remote.list(prefix, after=after)
            return
        for name, size_bytes, _ in self.children(folder):
            path = f"{folder}/{name}"
            if size_bytes is not None and path.startswith(prefix) and path > after:
                yield StoredObject(path, size_bytes)

    def children(self, folder: str = "") -> Iterator[Child]:
        if folder not in SPOOLED_FOLDERS:
            yield from self.remote.children(folder)
            return
        waiting = {child.name: child for child in self.local.children(folder)}
        # Whether they are whole, by the names of segments.
        hiding = {base: complete for base, _, complete in sorted(map(split_segment_name, waiting))}
        yield from waiting.values()
        for name, size_bytes in self.stored(folder):
            base, _, complete = split_segment_name(name)
            if name not in waiting and (base not in hiding or (complete and not hiding[base])):
                yield Child(name, size_bytes)

    # -- writing -----------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes | Iterable[bytes], *, replace: bool = False, durable: bool = True) -> None:
        if name == RECEIVER_STATE_NAME:
            self.pending_state = content if isinstance(content, bytes) else b"".join(content)
        elif not _is_spooled(name):
            self.remote.put(name, content, replace=replace, durable=durable)
        elif not replace and self.is_stored(name):
            raise ObjectExists(f"cannot write {self.locate(name)}: it is there already", path=self.locate(name))
        else:
            beginning = None
            if name.endswith(PARTIAL_SUFFIX):
                content = content if isinstance(content, bytes) else b"".join(content)
                beginning = self._store_beginning(name, content)
            self.local.put(name, content, replace=replace, durable=durable)
            # Whatever else waits may have been stored by now, and nothing of it is left here.
            if is_segment_name(split_segment_name(name.rpartition("/")[2])[0]):
                self._delete_hidden(name, beginning)

    def _store_beginning(self, name: str, content: bytes) -> str | None:
        """Store the beginning of a segment of which something is stored, and return its name there.

        It takes the place of what was reported, and of what stored summaries speak of.
        """
        folder, _, last = name.partition("/")
        segment = split_segment_name(last)[0]
        if not self.stored_of(folder, segment):
            return None
        start = self._geometry.segment_start(self._geometry.parse_file_name(segment)[1])
        beginning = f"{folder}/{partial_name(segment, Lsn(start + len(content)), '')}"
        if not self.is_stored(beginning):
            self.remote.put(beginning, content)
            self.note_stored(beginning, len(content))
        return beginning

    def copy(self, old: str, new: str) -> None:
        copying = as_copying(self.remote)
        if copying is None or (_is_spooled(old) and self.local.exists(old)):
            self.put(new, self.get(old, most_bytes=self.size(old)))
        else:
            copying.copy(old, new)

    def delete(self, name: str) -> None:
        if not _is_spooled(name):
            self.remote.delete(name)
            return
        try:
            self.local.delete(name)
        except ObjectNotFound:
            self.remote.delete(name)
            self.note_deleted(name)
        else:
            self._delete_hidden(name)

    def _delete_hidden(self, name: str, beginning: str | None = None) -> None:
        """Delete what is stored of a segment when its file here, which hides that, is deleted or replaced.

        What its ``beginning`` is stored as stays, as does what another file of it here still hides.
        """
        folder, _, last = name.partition("/")
        segment, _, complete = split_segment_name(last)
        is_begun = complete and self.local.exists(f"{folder}/{segment}{PARTIAL_SUFFIX}")
        for stored in (f"{folder}/{found}" for found in self.stored_of(folder, segment)):
            is_whole = not stored.endswith(PARTIAL_SUFFIX)
            if stored != beginning and (is_whole if is_begun else complete or not is_whole):
                self.remote.delete(stored)
                self.note_deleted(stored)

    def delete_all(self, folder: str) -> None:
        if folder in SPOOLED_FOLDERS:
            self.local.delete_all(folder)
        self.remote.delete_all(folder)

    def remove_folder(self, folder: str) -> bool:
        return self.remote.remove_folder(folder)

    def recover(self, folder: str, is_own: Callable[[str], bool]) -> None:
        if folder in SPOOLED_FOLDERS:
            self.local.recover(folder, is_own)
        self.remote.recover(folder, is_own)


def _is_spooled(name: str) -> bool:
    return name.partition("/")[0] in SPOOLED_FOLDERS
