"""The options that make a standby of what is restored."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pgwal.backup.recovery import RecoveryTarget
    from pgwal.backup.standby import Standby

logger = logging.getLogger("pgwal")

PANEL = "Standby options"

IsStandby = Annotated[
    bool,
    typer.Option(
        "--standby",
        help="Make a standby, which replays the archive and then streams.",
        rich_help_panel=PANEL,
    ),
]
PrimaryConninfo = Annotated[
    str | None,
    typer.Option(
        "--primary-conninfo",
        metavar="CONNSTR",
        help="primary_conninfo of the standby, without a password: use .pgpass or passfile.",
        rich_help_panel=PANEL,
    ),
]
PrimarySlot = Annotated[
    str | None,
    typer.Option(
        "--primary-slot",
        metavar="NAME",
        help="primary_slot_name: a slot of the primary.",
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True, slots=True)
class StandbyOptions:
    """The options that say whom a restored server follows."""

    standby: IsStandby = False
    primary_conninfo: PrimaryConninfo = None
    primary_slot: PrimarySlot = None

    def followed(self, target: RecoveryTarget) -> Standby | None:
        """Return the settings of a standby, None where there is to be none; raises the usage error of bad options."""
        from pgwal.backup.standby import Standby

        if not self.standby:
            if self.primary_conninfo is not None or self.primary_slot is not None:
                raise typer.BadParameter("--primary-conninfo and --primary-slot are for --standby")
            return None
        if target.is_set:
            raise typer.BadParameter("a standby replays without an end: --standby takes no target but a timeline")
        if self.primary_conninfo is not None:
            _check(self.primary_conninfo)
        return Standby(self.primary_conninfo, self.primary_slot)


def _check(conninfo: str) -> None:
    """Refuse what libpq does not take; what it says of that may quote a password, and is not shown."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parameters = conninfo_to_dict(conninfo)
    except psycopg.Error:
        raise typer.BadParameter(
            "it is no connection string such as 'host=primary user=replicator'", param_hint="--primary-conninfo"
        ) from None
    if "password" in parameters:
        logger.warning(
            "the password in --primary-conninfo is seen by whoever lists processes, and is written into"
            " postgresql.auto.conf: keep it in a file instead, .pgpass or what passfile= names"
        )
