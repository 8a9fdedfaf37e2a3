"""Whose WAL arrives in a repository: that of a receiver which runs elsewhere, held against this server's.

A receiver may be connected to another server of the same cluster, whose WAL went on otherwise: a copy that was started,
or one that was reverted to a snapshot.  Then what a backup of this server waits for never comes.
"""

from __future__ import annotations

import logging

from pgwal.budget import COMPARED_WAL_S
from pgwal.engine.archive_comparison import ArchiveComparison
from pgwal.errors import HistoryMismatch, ServerError, TimelineMismatch, WalGap, WalRemoved
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters, connect_replication
from pgwal.postgres.replication_answer import EndOfTimeline
from pgwal.postgres.walsender import WalSender
from pgwal.replication.messages import WalData, decode_server_message
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.timeline import TimelineHistory

logger = logging.getLogger(__name__)

_HINT = "Connect the receiver and the backup to the same server; pgwal stream says what became of its WAL."


def require_servers_wal(repository: Repository, parameters: ConnectionParameters, waits_since: float) -> None:
    """Raise TimelineMismatch when what has arrived last is not WAL of the server that ``parameters`` lead to.

    Raises WalGap when that server no longer has what follows, and the receiver, since the Unix time ``waits_since``,
    has all that its server has.  Where the server cannot be asked, as for a role without REPLICATION, nothing is said.
    """
    state = repository.receiver_state()
    if state is None:
        return
    try:
        with WalSender(connect_replication(parameters)) as sender:
            _compare(repository, state, sender)
    except HistoryMismatch as error:
        raise TimelineMismatch(f"the WAL that arrives is not this server's: {error}", hint=_HINT) from error
    except ServerError as error:
        logger.info("the server cannot be asked whether the WAL that arrives is its own: %s", error)
    except WalRemoved as error:
        if state.level_at is not None and state.level_at > waits_since:
            raise WalGap(
                f"the receiver has all WAL that its server has, up to {state.flushed_lsn}, and this server has removed"
                " what follows: that is another server, or a standby that lags behind",
                hint=_HINT,
            ) from error


def _compare(repository: Repository, state: ReceiverState, sender: WalSender) -> None:
    system = sender.identify_system()
    history = TimelineHistory.decode(system.timeline_id, sender.timeline_history(system.timeline_id))
    if history.part_up_to(state.timeline_id) is None:
        raise TimelineMismatch(
            f"the WAL that arrives is not this server's: it is of timeline {state.timeline_id}, the server is on"
            f" {system.timeline_id}",
            hint=_HINT,
        )
    limit = history.end_of(state.timeline_id)
    end = min(state.flushed_lsn, system.flush_lsn, *([] if limit is None else [limit]))
    geometry = repository.geometry
    start = geometry.segment_start(geometry.last_segment_no(end))
    if start >= end or sender.start_replication(None, start, state.timeline_id) is not None:
        return
    comparison = ArchiveComparison(repository.wal, history, state.timeline_id, start)
    try:
        position = start
        while position < end:
            message = sender.receive(COMPARED_WAL_S)
            if message is None or isinstance(message, EndOfTimeline):
                return
            event = decode_server_message(message)
            if isinstance(event, WalData):
                comparison.compare(event.lsn, event.data)
                position = Lsn(event.lsn + len(event.data))
    finally:
        comparison.close()
