"""Have what a receiver writes get where it belongs: compressed in its directory, or through a spool into a store."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

from pgwal.budget import BACKUP_STATUS_INTERVAL_S, DELIVERED_LOOK_S
from pgwal.engine.stream_options import StreamOptions
from pgwal.lsn import Lsn
from pgwal.repository.delivery import Delivery
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.wal_compressor import SegmentCompressor

logger = logging.getLogger(__name__)

_BEHIND_ALL_TIMELINES = 1 << 32


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
        partial_interval_s=BACKUP_STATUS_INTERVAL_S if options.for_backup else spool.partial_interval_s,
        most_bytes=spool.most_bytes,
        is_awaited=repository.backup_is_running,
    )
    return Repository(place, repository.identity), held.enter_context(uploader)


def deliver_left(place: Place, options: StreamOptions) -> None:
    """Store what an earlier receiver left in the spool, though the server cannot be asked: it may never come back.

    That receiver had held it against the server when it wrote it.  Raises RepositoryError where it does not go on with
    what is stored, or the store fails; nothing is done for a repository in a directory.
    """
    from pgwal.repository.spooled_place import has_spooled_wal

    if not has_spooled_wal(place, options.spool.directory):
        return
    repository = Repository.open(place)
    if not repository.place.is_remote:
        return
    with ExitStack() as held:
        held.enter_context(repository.lock_receiver())
        _, delivery = deliver(repository, options, held)
        # No timeline is streamed: each is as it was left.
        delivery.begin(_BEHIND_ALL_TIMELINES)
        delivery.compared()
        delivery.prove(_BEHIND_ALL_TIMELINES, Lsn(0), Lsn(0), is_all=True)
        while delivery.is_behind:
            delivery.has_room()
            if delivery.trouble is not None:
                raise delivery.trouble
            time.sleep(DELIVERED_LOOK_S)
    logger.warning("the server cannot be reached; the WAL that was left in the spool has been stored")
