"""``pgwal stream``: receive WAL continuously and summarise it as it arrives."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from pgwal.lsn import Lsn
from pgwal_cli import options


def stream(
    repo: options.Repo,
    slot: options.Slot = None,
    create_slot: Annotated[bool, typer.Option("--create-slot", help="Create the slot first.")] = False,
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", help="With --create-slot: a slot that exists is no error.")
    ] = False,
    no_loop: Annotated[bool, typer.Option("-n", "--no-loop", help="Do not reconnect after an interruption.")] = False,
    status_interval: Annotated[
        float, typer.Option("-s", "--status-interval", min=0, metavar="SECS", help="Time between status updates.")
    ] = 10.0,
    synchronous: Annotated[
        bool, typer.Option("--synchronous", help="Sync and report each write, to be a synchronous standby.")
    ] = False,
    endpos: Annotated[
        Lsn | None, typer.Option("-E", "--endpos", parser=options.parse_lsn, metavar="LSN", help="Stop at this LSN.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when level with the server.")] = False,
    dbname: options.Dbname = None,
    host: options.Host = None,
    port: options.Port = None,
    username: options.Username = None,
    no_password: options.NoPassword = False,
    password: options.Password = False,
) -> None:
    """Receive WAL continuously into the repository, and summarise it as it arrives.

    Ends cleanly with exit code 0 on SIGTERM and SIGINT.
    """
    from pgwal.engine.stop import StopRequest
    from pgwal.engine.stream import Receiver, StreamOptions

    if create_slot and slot is None:
        raise typer.BadParameter("--create-slot needs --slot")
    stop = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    wanted = StreamOptions(
        slot=slot,
        create_slot=create_slot,
        if_not_exists=if_not_exists,
        reconnect=not no_loop,
        status_interval_s=status_interval,
        synchronous=synchronous,
        end_lsn=endpos,
        once=once,
    )
    parameters = options.connection_parameters(dbname, host, port, username, password)
    options.asking_for_password(
        parameters, no_password, lambda connect_to: Receiver(repo, connect_to, wanted, stop).run()
    )
