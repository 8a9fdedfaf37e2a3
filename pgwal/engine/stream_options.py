"""How a receiver works: what its caller chooses."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pgwal.budget import STATUS_INTERVAL_S
from pgwal.lsn import Lsn
from pgwal.repository.compression import DEFAULT_COMPRESSION, Compression


class SpoolOptions(NamedTuple):
    """Where received WAL waits to be stored, below ``directory``, or None for where that usually is.

    ``most_bytes`` is how much may wait, ``partial_interval_s`` how long the open segment may grow before it is stored.
    """

    directory: Path | None = None
    most_bytes: int = 4 << 30
    partial_interval_s: float = 10.0


class StreamOptions(NamedTuple):
    """What a receiver is to do; ``end_lsn`` is where to stop, ``once`` to stop when level with the server.

    Without a ``slot``, ``temporary_slot`` has one made that lasts as long as the connection.  ``reconnect`` takes up
    an interrupted stream again, ``wait_for_room`` also one that a full disk has ended.  ``for_backup`` is the receiver
    that a backup command runs itself: any other one waits for it to end.  ``accept_new_history`` moves aside what the
    archive holds of a history that the server has lost, and goes on with the server's.  ``skip_removed`` gives up WAL
    that the server has removed, until the receiver has been level for the first time: a backup may have started then.
    With ``from_restart_point``, where the archive has nothing to go on from, it begins at the slot, be that temporary:
    a backup of a server in recovery starts at its last restart point.
    ``spool`` is for a repository that is reached over a network.
    """

    slot: str | None = None
    temporary_slot: bool = False
    create_slot: bool = False
    if_not_exists: bool = False
    reconnect: bool = True
    wait_for_room: bool = False
    for_backup: bool = False
    status_interval_s: float = STATUS_INTERVAL_S
    synchronous: bool = False
    end_lsn: Lsn | None = None
    once: bool = False
    skip_removed: bool = False
    from_restart_point: bool = False
    accept_new_history: bool = False
    compression: Compression = DEFAULT_COMPRESSION
    spool: SpoolOptions = SpoolOptions()
