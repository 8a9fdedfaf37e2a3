"""Keep a slot from filling the server's disk while nothing is received: a limit, a warning before it, and an end.

The limit is for what the slot makes the server retain.  A slot beyond it is dropped only where that was asked for: what
the server then removes can never be received, and is missing for backups.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from pgwal.budget import SLOT_GRACE_S, SLOT_NEAR_LIMIT, SLOT_RELEASE_S, SLOT_RETRY_S
from pgwal.engine.status import ServerStatus, read_server_status
from pgwal.engine.stop import StopRequest
from pgwal.errors import PgwalError, RepositoryError, RepositoryLocked, SlotDropped, SlotUnavailable, WrongCluster
from pgwal.postgres.connection import ConnectionParameters, connect_replication
from pgwal.postgres.walsender import WalSender
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)


class Retention(StrEnum):
    """What a slot retains beside its limit."""

    WITHIN = "within"
    NEAR = "near"
    """Three quarters of it and more."""
    BEYOND = "beyond"


class RetentionLimit(NamedTuple):
    """How much WAL a slot may make the server retain, in bytes."""

    max_bytes: int

    def judge(self, retained_bytes: int | None) -> Retention:
        """Hold against the limit what a slot retains, None for one that retains nothing."""
        if retained_bytes is None or retained_bytes < self.max_bytes * SLOT_NEAR_LIMIT:
            return Retention.WITHIN
        return Retention.NEAR if retained_bytes <= self.max_bytes else Retention.BEYOND


class SlotGuard:
    """Watches the slot of a receiver, and asks that to stop when the slot is to be dropped, which ``must_drop`` says.

    A slot that retains less with each look is left: its receiver catches up, and nothing needs to be lost.
    """

    def __init__(self, slot: str, limit: RetentionLimit, stop: StopRequest, *, drops: bool) -> None:
        self.slot = slot
        self.limit = limit
        self.drops = drops
        self.must_drop = False
        self._stop = stop
        self._told = Retention.WITHIN
        self._since_s: float | None = None
        self._least_bytes = 0

    def look(self, status: ServerStatus) -> None:
        """Take note of what the server says, warn once when the limit is near and once when it is passed."""
        retained = status.retained_bytes
        retention = self.limit.judge(retained)
        if retained is not None and retention not in (Retention.WITHIN, self._told):
            is_beyond = retention is Retention.BEYOND
            logger.warning(
                "replication slot %s makes the server retain %s of WAL, %s %s",
                self.slot,
                _size(retained),
                "more than" if is_beyond else "of at most",
                _size(self.limit.max_bytes),
            )
        self._told = retention
        now = time.monotonic()
        if retained is None or retention is not Retention.BEYOND:
            self._since_s = None
        elif self._since_s is None or retained < self._least_bytes:
            self._since_s, self._least_bytes = now, retained
        elif self.drops and now - self._since_s >= SLOT_GRACE_S:
            self.must_drop = True
            self._stop.set()

    @property
    def is_beyond(self) -> bool:
        """Whether the limit was passed at the last look."""
        return self._told is Retention.BEYOND


def receive_guarded(
    receive: Callable[[], None], receive_afresh: Callable[[], None], guard: SlotGuard, stop: StopRequest
) -> None:
    """Receive, and again and ``receive_afresh`` while the repository takes nothing and the slot is beyond its limit.

    Returns when that has lasted for so long that the slot is to be dropped, or as ``receive`` does.  Raises what that
    raises where it says nothing of a repository, and for as long as the slot is within its limit.
    """
    while True:
        try:
            return receive()
        except RepositoryError as error:
            if not guard.drops or isinstance(error, RepositoryLocked | WrongCluster):
                raise
            # While nothing streams, the server is asked each second: let that be before the slot counts as within.
            stop.wait(SLOT_RETRY_S)
            if not guard.must_drop and (stop.is_set() or not guard.is_beyond):
                raise
            logger.error("%s", error)
            if guard.must_drop:
                return None
        receive = receive_afresh


def drop_slot(guard: SlotGuard, parameters: ConnectionParameters, place: Place) -> None:
    """Drop a slot that is still beyond its limit, and raise SlotDropped, which says what that ends.

    Returns where it retains less now.  Raises SlotUnavailable while another receiver uses it, PgwalError.
    """
    status = read_server_status(parameters, guard.slot, system_identifier=None)
    if status.slot is None or guard.limit.judge(status.retained_bytes) is not Retention.BEYOND:
        return
    with WalSender(connect_replication(parameters)) as sender:
        deadline = time.monotonic() + SLOT_RELEASE_S
        while True:
            try:
                sender.drop_slot(guard.slot)
                break
            except SlotUnavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
    raise _dropped(guard, status, place)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MB"


def _dropped(guard: SlotGuard, status: ServerStatus, place: Place) -> SlotDropped:
    lsn = status.slot.restart_lsn if status.slot is not None else None
    from_here = "" if lsn is None else f" from {lsn} on"
    retained, allowed = _size(status.retained_bytes or 0), _size(guard.limit.max_bytes)
    error = SlotDropped(
        f'replication slot "{guard.slot}" was dropped: it made the server retain {retained} of WAL,'
        f" more than {allowed}. Once the server removes WAL{from_here},"
        f" {_ended_text(place)}",
        hint="Make sure that the repository can store WAL again, then start pgwal stream with --create-slot at once: it"
        " receives the WAL that the server still has. If WAL is missing then, take a full backup, which begins a new"
        f" chain; older backups can be restored up to {lsn or 'the WAL received'}.",
        slot=guard.slot,
    )
    error.facts.update({} if lsn is None else {"lsn": int(lsn)})
    return error


def _ended_text(place: Place) -> str:
    """Say which backups no incremental can build on any more: all, for each began before what is lost."""
    try:
        entries, _ = Repository.open(place).catalogue.survey()
    except PgwalError:
        return "no incremental can build on any backup that there is"
    if not entries:
        return "no backup is concerned, for there is none"
    names = ", ".join(entry.backup_id for entry in entries[-_NAMED:])
    others = f", nor on the {len(entries) - _NAMED} before" if len(entries) > _NAMED else ""
    return f"no incremental can build any more on {names}{others}"


_NAMED = 5
