"""What a restore would do, without doing it: the backup, the WAL to replay, where that ends, and the room it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry import BackupEntry
from pgwal.engine.overwriting_forecast import OverwritingForecast, PresentPlaces
from pgwal.engine.rebuild_in_place import RebuildInPlace
from pgwal.engine.restore import prepare_restore, prepared_rebuild, require_empty
from pgwal.engine.restore_room import FileSystemRoom, room_needed
from pgwal.relation import BLOCK_SIZE

if TYPE_CHECKING:
    from pgwal.engine.rebuild import Rebuild
    from pgwal.engine.replay_forecast import ReplayForecast
    from pgwal.engine.replayed_wal import CreatedTablespace
    from pgwal.engine.restore import RestoreRequest


@dataclass(frozen=True, slots=True)
class RestoreForecast:
    """What would be done; ``replay`` is None where WAL comes from elsewhere than the repository.

    ``chain`` begins with the backup that would be restored.  ``created`` are tablespaces that recovery creates.
    """

    chain: tuple[BackupEntry, ...]
    replay: ReplayForecast | None
    created: tuple[CreatedTablespace, ...]
    rooms: tuple[FileSystemRoom, ...]
    overwriting: OverwritingForecast | None
    """What comes of the directory that is there; None where there is none."""

    @property
    def has_room(self) -> bool:
        return all(room.is_enough for room in self.rooms)


def forecast_restore(request: RestoreRequest) -> RestoreForecast:
    """Tell what a restore would do; writes nothing.  Raises what ``restore_backup`` does before it writes."""
    prepared = prepare_restore(request)
    if prepared.overwritten is None:
        for directory in (request.target, *prepared.locations.values()):
            require_empty(directory)
    rebuild = prepared_rebuild(prepared)
    overwriting = None
    if isinstance(rebuild, RebuildInPlace):
        overwriting = rebuild.forecast(prepared.locations, prepared.replayed.init_forks.is_in_the_way)
    places = None if overwriting is None else PresentPlaces(request.target, prepared.locations)
    rooms = room_needed(_written(rebuild, places), request.target, prepared.locations, request.options.method)
    return RestoreForecast(tuple(prepared.chain), prepared.replay, tuple(prepared.created), tuple(rooms), overwriting)


def _written(rebuild: Rebuild, places: PresentPlaces | None) -> Iterator[BackupFile]:
    """Yield the files, those of which some blocks are written with the size of these, as what is never shared.

    Of those that have ``places``, what they take beyond what they have there.
    """
    for file in rebuild.files():
        blocks = None if rebuild.wanted_blocks is None else rebuild.wanted_blocks(file)
        size = file.size_bytes if blocks is None else len(blocks) * BLOCK_SIZE
        taken = 0 if places is None else places.room_taken(file.path)
        if blocks is None and not taken:
            yield file
        else:
            yield file._replace(size_bytes=max(0, size - taken), truncation_block_length=0)
    yield rebuild.control_file
