"""``pgwal stream``: receive WAL continuously and summarise it as it arrives."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgwal.errors import FormatError
from pgwal.lsn import Lsn
from pgwal_cli import options
from pgwal_cli.allocator import keep_freed_memory
from pgwal_cli.service_manager import ServiceManager
from pgwal_cli.spool_options import SpoolGroup
from pgwal_cli.watched_receiver import GuardOptions, Watched, run_watched

if TYPE_CHECKING:
    from pgwal.engine.stop import StopRequest
    from pgwal.engine.stream import Receiver
    from pgwal.postgres.connection import ConnectionParameters


def _parse_address(text: str) -> tuple[str, int]:
    from pgwal_cli.metrics_endpoint import parse_address

    try:
        return parse_address(text)
    except FormatError as error:
        raise typer.BadParameter(str(error)) from error


CreateSlot = Annotated[bool, typer.Option("--create-slot", help="Create the slot first.")]
IfNotExists = Annotated[
    bool, typer.Option("--if-not-exists", help="With --create-slot: a slot that exists is no error.")
]
NoLoop = Annotated[bool, typer.Option("-n", "--no-loop", help="Do not reconnect after an interruption.")]
StatusInterval = Annotated[
    float, typer.Option("-s", "--status-interval", min=0, metavar="SECS", help="Time between status updates.")
]
Synchronous = Annotated[
    bool, typer.Option("--synchronous", help="Sync and report each write, to be a synchronous standby.")
]
Endpos = Annotated[
    Lsn | None, typer.Option("-E", "--endpos", parser=options.parse_lsn, metavar="LSN", help="Stop at this LSN.")
]
Once = Annotated[bool, typer.Option("--once", help="Stop after catching up with the server.")]
AcceptNewHistory = Annotated[
    bool,
    typer.Option(
        "--accept-new-history",
        help="Move WAL that the server has lost aside, with the backups that need it, and continue.",
    ),
]
Metrics = Annotated[
    Any,  # a host and a port: of a tuple, typer makes an option of two values
    typer.Option("--metrics", parser=_parse_address, metavar="HOST:PORT", help="Serve metrics for Prometheus."),
]


@options.with_groups
def stream(
    repo: options.Repo,
    slot: options.Slot = None,
    create_slot: CreateSlot = False,
    if_not_exists: IfNotExists = False,
    no_loop: NoLoop = False,
    status_interval: StatusInterval = 10.0,
    synchronous: Synchronous = False,
    endpos: Endpos = None,
    once: Once = False,
    compress: options.Compress = "zstd",
    accept_new_history: AcceptNewHistory = False,
    metrics: Metrics = None,
    *,
    guarding: GuardOptions,
    spool: SpoolGroup,
    connection: options.ConnectionOptions,
) -> None:
    """Receive WAL continuously into the repository, and summarise it as it arrives.

    Ends cleanly with exit code 0 on SIGTERM, SIGINT and SIGHUP.
    """
    from pgwal.engine.stop import StopRequest
    from pgwal.engine.stream import Receiver
    from pgwal.engine.stream_options import StreamOptions

    if create_slot and slot is None:
        raise typer.BadParameter("--create-slot needs --slot")
    guarding.require_slot(slot)
    stop = StopRequest()
    manager = ServiceManager()
    _stop_on_signals(stop, manager)
    wanted = StreamOptions(
        slot=slot,
        create_slot=create_slot,
        if_not_exists=if_not_exists,
        reconnect=not no_loop,
        wait_for_room=not no_loop and not once,
        status_interval_s=status_interval,
        synchronous=synchronous,
        end_lsn=endpos,
        once=once,
        accept_new_history=accept_new_history,
        compression=compress,
        spool=spool.chosen(),
    )

    def run(connect_to: ConnectionParameters) -> None:
        def new_receiver() -> Receiver:
            receiver = Receiver(repo, connect_to, wanted, stop, on_alive=lambda: _show_alive(manager, receiver))
            return receiver

        run_watched(repo, connect_to, new_receiver, stop, Watched(slot, guarding, metrics))

    keep_freed_memory()
    try:
        connection.connecting(run)
    finally:
        manager.stopping()


def _stop_on_signals(stop: StopRequest, manager: ServiceManager) -> None:
    def request_stop(*_: object) -> None:
        stop.set()
        manager.stopping()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # What nohup has ignored stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, request_stop)


def _show_alive(manager: ServiceManager, receiver: Receiver) -> None:
    progress = receiver.progress
    metrics = progress.metrics
    if metrics.streaming:
        status = f"receiving WAL on timeline {metrics.timeline_id}, durable up to {metrics.flushed_lsn}"
        if metrics.store_is_away:
            status += f"; the store is away, {metrics.segments_waiting} segments wait"
        if metrics.spool_is_full:
            status = f"waiting for the store, the spool is full; stored up to {metrics.flushed_lsn}"
    else:
        status = progress.waits_for or "connecting to the server"
    # A backup that receives WAL itself does this receiver's work.
    manager.alive(status, ready=progress.streaming.is_set() or progress.waits_for_backup)
