"""What a server says that is streamed from: whose it is, its timeline history, and where its slot is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from pgwal.engine.start_point import agreed_history
from pgwal.engine.stop import StopRequest
from pgwal.engine.stream_options import StreamOptions
from pgwal.errors import ReplicationInterrupted, ServerError, SlotUnavailable, TimelineMismatch, WalRemoved
from pgwal.lsn import Lsn
from pgwal.postgres.connection import Connection, ConnectionParameters, connect_sql
from pgwal.postgres.replication_answer import SlotPosition, SystemIdentity
from pgwal.postgres.server import read_server_facts
from pgwal.postgres.slots import read_slot
from pgwal.postgres.walsender import WalSender
from pgwal.postgres_version import version_of_server
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.wal_archive import WalArchive
from pgwal.segment import parse_segment_size
from pgwal.timeline import TimelineHistory

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class ServerPosition(NamedTuple):
    """What is known of the server when a stream begins.

    Its WAL reaches ``flush_lsn`` along ``history``.  ``is_standby`` asks it, before it streams: a standby may be
    behind what it had sent before it restarted.
    """

    history: TimelineHistory
    flush_lsn: Lsn
    is_standby: Callable[[], bool]


class StreamedServer:
    """The server at the other end of one connection; what that cannot tell is asked by SQL.

    ``slot`` is the one that holds back WAL at present.
    """

    def __init__(
        self, sender: WalSender, parameters: ConnectionParameters, options: StreamOptions, stop: StopRequest
    ) -> None:
        self._sender = sender
        self._parameters = parameters
        self._options = options
        self._stop = stop
        self.slot = options.slot

    def identity(self) -> RepositoryIdentity:
        """Return what a repository of the server's must have been made for."""
        return RepositoryIdentity(
            self._sender.identify_system().system_identifier,
            parse_segment_size(self._sender.show("wal_segment_size")),
            self._sender.server_version // 10000,
        )

    def position(self, archive: WalArchive, system: SystemIdentity) -> ServerPosition:
        """Ask for the server's history, hold it against the archive's, and keep what is new of it."""
        content = self._sender.timeline_history(system.timeline_id)
        stored = {timeline_id: archive.history_content(timeline_id) for timeline_id in archive.history_timelines()}
        history = agreed_history(system.timeline_id, content, stored, archive.segments())
        if not archive.has_history(system.timeline_id):
            archive.write_history(system.timeline_id, content)
        for timeline_id, _ in history.recorded:
            if not archive.has_history(timeline_id):
                self._keep_history(archive, history, timeline_id)
        return ServerPosition(history, system.flush_lsn, self._is_standby)

    def _keep_history(self, archive: WalArchive, history: TimelineHistory, timeline_id: int) -> None:
        """Fetch an ancestor's history, which a server need not have that was restored without it."""
        try:
            content = self._sender.timeline_history(timeline_id)
        except ServerError as error:
            logger.info("cannot get the history of timeline %d: %s", timeline_id, error)
            return
        if TimelineHistory.decode(timeline_id, content) != history.part_up_to(timeline_id):
            raise TimelineMismatch(
                f"the server's history of timeline {timeline_id} is not that of which timeline"
                f" {history.timeline_id} tells",
                hint="Look at the server's timeline history files.",
            )
        archive.write_history(timeline_id, content)

    def _is_standby(self) -> bool:
        if version_of_server(self._sender.server_version).shows_in_hot_standby:
            return self._sender.show("in_hot_standby") == "on"
        return self._asked(lambda connection: read_server_facts(connection).in_recovery)

    # -- the slot ----------------------------------------------------------------------------------------------

    def check_slot(self) -> None:
        """Refuse a slot that is missing, or one to create that exists, before anything is made."""
        slot = self._options.slot
        if slot is None:
            return
        exists = self._find_slot(slot) is not None
        if exists and self._options.create_slot and not self._options.if_not_exists:
            raise SlotUnavailable(
                f'replication slot "{slot}" already exists',
                hint="Use it as it is: leave out --create-slot, or add --if-not-exists.",
                slot=slot,
            )
        if not exists and not self._options.create_slot:
            raise _slot_missing(slot)

    def ensure_slot(self, *, may_exist: bool) -> None:
        """Have the slot that the options want; ``may_exist`` also allows one that ``if_not_exists`` would not."""
        slot = self._options.slot
        if slot is not None and self._options.create_slot:
            # Each time: after a failover, the new primary has not had it yet.
            is_new = self._sender.create_physical_slot(slot, if_not_exists=may_exist or self._options.if_not_exists)
            if is_new:
                logger.info("created replication slot %s", slot)
        if slot is None and self._options.temporary_slot:
            self.slot = self._sender.create_temporary_slot()

    def slot_position(self) -> SlotPosition | None:
        """Return where the slot is, None without a slot; raises SlotUnavailable when it does not exist."""
        if self.slot is None:
            return None
        position = self._find_slot(self.slot)
        if position is None and self._options.slot is None:
            raise ReplicationInterrupted("the connection has broken, and with it the temporary slot is gone")
        if position is None:
            raise _slot_missing(self.slot)
        return position

    def reported_flush_lsn(self) -> Lsn:
        """Return what the server's slot has been told already: less must not be reported again."""
        position = self.slot_position()
        return position.restart_lsn or Lsn(0) if position is not None else Lsn(0)

    def missing(self, error: WalRemoved, start: Lsn, present: Lsn) -> WalRemoved:
        """Name the range that is known to be missing: up to where the server is, or holds WAL back by the slot."""
        position = self.slot_position() if self._options.slot is not None else None
        end = position.restart_lsn if position is not None and position.restart_lsn is not None else present
        if end <= start:
            return error
        error.restate(f"{error}; missing is WAL from {start} on, up to {end} at most", lsn=start, end_lsn=end)
        return error

    def _find_slot(self, slot: str) -> SlotPosition | None:
        if version_of_server(self._sender.server_version).has_read_replication_slot:
            return self._sender.read_replication_slot(slot)
        facts = self._asked(lambda connection: read_slot(connection, slot))
        return SlotPosition(facts.restart_lsn, None) if facts is not None else None

    def _asked(self, ask: Callable[[Connection], _Answer]) -> _Answer:
        """Ask the server by SQL."""

        def run() -> _Answer:
            with connect_sql(self._parameters) as connection:
                return ask(connection)

        return self._stop.outlast(run)


def _slot_missing(slot: str) -> SlotUnavailable:
    return SlotUnavailable(
        f'replication slot "{slot}" does not exist',
        hint="Create it: run pgwal stream once with --create-slot.",
        slot=slot,
    )
