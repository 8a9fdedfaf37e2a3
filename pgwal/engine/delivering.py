"""Have what a receiver writes get where it belongs: compressed in its directory, or through a spool into a store."""

from __future__ import annotations

from contextlib import ExitStack

from pgwal.engine.stream_options import StreamOptions
from pgwal.repository.delivery import Delivery
from pgwal.repository.repository import Repository
from pgwal.repository.wal_compressor import SegmentCompressor

_FOR_BACKUP_INTERVAL_S = 0.5
"""A backup's own receiver lives no longer than the backup, which waits for the open segment."""


def deliver(repository: Repository, options: StreamOptions, held: ExitStack) -> tuple[Repository, Delivery]:
    """Return the repository as a receiver writes it, and what delivers that, both for as long as ``held`` lasts.

    Only for whoever has the receiver's lock.  Raises RepositoryError where what an earlier receiver left in the spool
    does not belong there.
    """
    if not repository.place.is_remote:
        compressor = SegmentCompressor(repository.store, repository.wal, options.compression)
        return repository, held.enter_context(compressor)
    # Not above: most repositories are in directories.
    from pgwal.repository.spool_uploader import SpoolUploader
    from pgwal.repository.spooled_place import opened_spool

    spool = options.spool
    place = held.enter_context(opened_spool(repository.place, spool.directory, repository.identity))
    uploader = SpoolUploader(
        place,
        repository.geometry,
        options.compression,
        partial_interval_s=_FOR_BACKUP_INTERVAL_S if options.for_backup else spool.partial_interval_s,
        most_bytes=spool.most_bytes,
        is_awaited=repository.backup_is_running,
    )
    return Repository(place, repository.identity), held.enter_context(uploader)
