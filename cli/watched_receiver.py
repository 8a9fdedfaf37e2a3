"""A receiver that others look at: whoever scrapes its metrics, and the guard of its slot."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from pgwal.budget import REPORTED_S
from pgwal_cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgwal.engine.receiver_metrics import ReceiverMetrics
    from pgwal.engine.stop import StopRequest
    from pgwal.engine.stream import Receiver
    from pgwal.postgres.connection import ConnectionParameters
    from pgwal.report.document import Document
    from pgwal.repository.place import Place

DropSlot = Annotated[
    bool,
    typer.Option("--drop-slot", help="Drop a slot that retains more than --max-retained, and end with exit code 4."),
]


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """How much the slot may make the server retain, and whether it goes when that is passed."""

    max_retained: options.MaxRetained = None
    drop_slot: DropSlot = False

    def require_slot(self, slot: str | None) -> None:
        """Raise the usage error of a guard without a slot, or without a limit."""
        if self.max_retained is not None and slot is None:
            raise typer.BadParameter("--max-retained needs --slot")
        if self.drop_slot and self.max_retained is None:
            raise typer.BadParameter("--drop-slot needs --max-retained")


class Watched(NamedTuple):
    """What is looked at beside the receiver: its slot, and where metrics are served, host and port, if anywhere."""

    slot: str | None
    guarding: GuardOptions
    metrics: tuple[str, int] | None


def run_watched(
    repo: Place,
    connect_to: ConnectionParameters,
    new_receiver: Callable[[], Receiver],
    stop: StopRequest,
    watched: Watched,
) -> None:
    """Receive, and ask the server now and then: for whoever scrapes metrics, and for the guard of the slot.

    Raises SlotDropped when the guard has dropped it, PgwalError.
    """
    if watched.metrics is None and watched.guarding.max_retained is None:
        new_receiver().run()
        return
    from pgwal.engine.server_watch import ServerWatch
    from pgwal.engine.slot_guard import RetentionLimit, SlotGuard, drop_slot, receive_guarded

    receivers = [new_receiver()]

    def metrics() -> ReceiverMetrics:
        return receivers[-1].progress.metrics

    def receive() -> None:
        receivers[-1].run()

    def receive_afresh() -> None:
        # What the last one held is given back.
        receivers[:] = [new_receiver()]
        receive()

    slot = watched.slot
    limit = None if watched.guarding.max_retained is None else RetentionLimit(watched.guarding.max_retained)
    guard = None if limit is None or slot is None else SlotGuard(slot, limit, stop, drops=watched.guarding.drop_slot)
    watch = ServerWatch(metrics, connect_to, slot, None if guard is None else guard.look)
    with ExitStack() as held:
        if watched.metrics is not None:
            # The library takes a while to import, and few want it.
            from pgwal.engine.newest_backup import NewestBackupWatch
            from pgwal_cli.metrics_endpoint import serving_metrics
            from pgwal_cli.report_endpoint import LiveReport

            report = LiveReport(lambda: _read_report(repo, connect_to, slot))
            newest = NewestBackupWatch(repo)
            newest.start()
            held.callback(newest.stop)
            held.enter_context(serving_metrics(watched.metrics, metrics, watch, limit, newest, report))
        watch.start()
        held.callback(watch.stop)
        if guard is None:
            receive()
            return
        receive_guarded(receive, receive_afresh, guard, stop)
    if guard.must_drop:
        drop_slot(guard, connect_to, repo)


def _read_report(repo: Place, connect_to: ConnectionParameters, slot: str | None) -> Document:
    from pgwal.engine.report import ReportRequest, read_report
    from pgwal.repository.repository import Repository

    since_s = time.time() - REPORTED_S
    return read_report(ReportRequest(Repository.open(repo), connect_to, slot, since_s, thoroughly=False))
