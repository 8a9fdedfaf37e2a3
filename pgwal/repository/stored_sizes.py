"""How much room backups take in a repository, so that the sum is what is there: packs may be of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pgwal.backup.chain import place_of
from pgwal.backup.entry import BackupEntry
from pgwal.backup.entry_document import skim_packs
from pgwal.backup.moved_frames import FrameMoves
from pgwal.backup.pack_table import Pack
from pgwal.backup.pack_use import last_place
from pgwal.errors import FormatError, RepositoryError, StoreUnavailable
from pgwal.repository.frame_tables import FrameTables
from pgwal.repository.pack_pool import list_packs
from pgwal.repository.repository import Repository
from pgwal.repository.waiting_threads import ask_for_each


def stored_sizes(repository: Repository, entries: Iterable[BackupEntry]) -> dict[str, int]:
    """Return how many bytes the files of each of all backups take, by id.

    A pack counts once, with the size that it has now, for the oldest of the backups that need anything of it.  Only
    a merge refers to packs of others, and only then they are rewritten: where no entry says that it was merged, each
    tells its own size, and nothing is read.  So does one of which the packs cannot be read; nothing else of it is.
    """
    # One that was merged comes behind the one whose place it takes.
    ordered = sorted(entries, key=lambda entry: (place_of(entry)[:2], entry.prior_id is None, entry.backup_id))
    found = {entry.backup_id: entry.repository_bytes for entry in ordered}
    packed = [entry for entry in ordered if entry.packed_size_bytes is not None]
    if all(entry.merge_note is None for entry in packed):
        return found
    sizes = {pack.name: pack.size_bytes for pack in list_packs(repository.store)}
    moves = FrameTables(repository.store).read()

    def needed_by(entry: BackupEntry) -> set[str] | None:
        try:
            with repository.catalogue.document(entry.backup_id, are_all_read=False) as lines:
                packs = skim_packs(lines, moves.is_moved)
        except StoreUnavailable:
            raise
        except (FormatError, RepositoryError):
            return None
        return {name for pack in packs for name in _where(pack, moves, sizes)}

    counted = set[str]()
    for entry, needed in zip(packed, ask_for_each(repository.store, needed_by, packed), strict=True):
        if needed is not None:
            found[entry.backup_id] = sum(sizes[name] for name in needed - counted)
            counted |= needed
    return found


def _where(pack: Pack, moves: FrameMoves, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield the names of the packs that are there in which frames of one lie now."""
    if not moves.is_moved(pack.name):
        if pack.name in sizes:
            yield pack.name
        return
    for frame in pack:
        place = last_place(moves, sizes, pack.name, frame.offset)
        if place is not None:
            yield place.pack_name
