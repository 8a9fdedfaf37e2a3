"""The recovery target on the command line: up to where a restored server replays WAL, and what it does then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.rebuilding import argument_bytes

if TYPE_CHECKING:
    from pgwal.backup.recovery import RecoveryTarget

PANEL = "Recovery target options"


class Action(StrEnum):
    """What the server can do at the target."""

    PAUSE = "pause"
    PROMOTE = "promote"
    SHUTDOWN = "shutdown"


TargetLsn = Annotated[
    str | None, typer.Option("--target-lsn", metavar="LSN", help="Replay up to an LSN.", rich_help_panel=PANEL)
]
TargetTime = Annotated[
    str | None,
    typer.Option(
        "--target-time", metavar="TIME", help="Replay up to a time, local without offset.", rich_help_panel=PANEL
    ),
]
TargetXid = Annotated[
    int | None,
    typer.Option("--target-xid", metavar="XID", help="Replay up to a transaction's end.", rich_help_panel=PANEL),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target-name", metavar="NAME", help="Replay up to a restore point.", rich_help_panel=PANEL),
]
TargetImmediate = Annotated[
    bool, typer.Option("--target-immediate", help="Stop as soon as the backup is consistent.", rich_help_panel=PANEL)
]
TargetExclusive = Annotated[
    bool, typer.Option("--target-exclusive", help="Stop before the target, not after it.", rich_help_panel=PANEL)
]
TargetTimeline = Annotated[
    str,
    typer.Option("--target-timeline", metavar="TLI|latest|current", help="Timeline to follow.", rich_help_panel=PANEL),
]
AtTarget = Annotated[
    Action | None,
    typer.Option(
        "--target-action", help="What the server does at the target; it pauses by default.", rich_help_panel=PANEL
    ),
]


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """The options that name a recovery target, without what the server does there."""

    target_lsn: TargetLsn = None
    target_time: TargetTime = None
    target_xid: TargetXid = None
    target_name: TargetName = None
    target_immediate: TargetImmediate = False
    target_exclusive: TargetExclusive = False
    target_timeline: TargetTimeline = "latest"

    @property
    def is_given(self) -> bool:
        """Whether any of the options is."""
        return self != TargetOptions()

    def recovery_target(self) -> RecoveryTarget:
        """Return the target; raises the usage error of a bad one."""
        from pgwal.backup.recovery import RecoveryTarget, parse_target_time

        return RecoveryTarget(
            lsn=None if self.target_lsn is None else options.parse_lsn(self.target_lsn),
            time=None if self.target_time is None else parse_target_time(self.target_time),
            xid=self.target_xid,
            name=None if self.target_name is None else argument_bytes(self.target_name),
            immediate=self.target_immediate,
            timeline=_timeline(self.target_timeline),
            exclusive=self.target_exclusive,
        )


@dataclass(frozen=True, slots=True)
class TargetAndActionOptions(TargetOptions):
    """The options that name a recovery target, and what the server does at it."""

    target_action: AtTarget = None

    def recovery_target(self) -> RecoveryTarget:
        """Return the target; raises the usage error of a bad one."""
        from pgwal.backup.recovery import TargetAction

        target = TargetOptions.recovery_target(self)
        return target if self.target_action is None else replace(target, action=TargetAction(self.target_action))


def _timeline(text: str) -> int | str:
    if text in ("latest", "current"):
        return text
    try:
        return options.parse_timeline(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(error.message, param_hint="--target-timeline") from error
