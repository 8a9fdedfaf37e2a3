"""``pgwal monitor``: one line and an exit code for a monitoring system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.errors import ConnectionFailed, PgwalError
from pgwal_cli import options

if TYPE_CHECKING:
    from pgwal.engine.monitoring import Observed
    from pgwal.repository.place import Place


@options.with_groups
def monitor(
    repo: options.Repo,
    slot: options.Slot = None,
    max_age: Annotated[
        float, typer.Option("--max-age", min=0, metavar="HOURS", help="Warn when the newest backup is older.")
    ] = 26,
    *,
    connection: options.ConnectionOptions,
) -> None:
    """Say in one line whether backups, receiver and slot are in order, for Nagios, Icinga, Zabbix and the like.

    Exit code 0 when they are, 1 for a warning, 2 when something is critical, 3 when that cannot be found out.
    """
    from pgwal.engine.monitoring import Judgement, Level, judge

    try:
        found = judge(_observed(repo, slot, connection), max_age * 3600)
    except PgwalError as error:
        found = [Judgement(Level.UNKNOWN, str(error))]
    print(f"{found[0].level.name}: {'; '.join(judgement.message for judgement in found)}")
    if found[0].level is not Level.OK:
        raise typer.Exit(int(found[0].level))


def _observed(place: Place, slot: str | None, connection: options.ConnectionOptions) -> Observed:
    from pgwal.engine.monitoring import observe
    from pgwal.engine.status import read_server_status
    from pgwal.repository.repository import Repository

    repository = Repository.open(place)
    receiver = repository.receiver_state()
    name = slot or (receiver.slot if receiver is not None else None)
    identifier = repository.identity.system_identifier
    try:
        server = connection.connecting(lambda to: read_server_status(to, name, system_identifier=identifier))
    except ConnectionFailed:
        # What the repository tells counts all the same, and that it was not reached is said.
        server = None
    return observe(repository, server)
