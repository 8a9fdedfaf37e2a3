"""The options of a receiver whose repository is in an object store: where WAL waits, how much, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options

if TYPE_CHECKING:
    from pgwal.engine.stream_options import SpoolOptions

_PANEL = "Options for a repository in an object store"

Spool = Annotated[
    Path | None,
    typer.Option(
        "--spool",
        envvar="PGWAL_SPOOL",
        metavar="DIR",
        help="Directory in which WAL waits for the object store.",
        show_default="below XDG_STATE_HOME",
        rich_help_panel=_PANEL,
    ),
]
MaxSpool = Annotated[
    int,
    typer.Option(
        "--max-spool",
        parser=options.parse_size,
        metavar="SIZE",
        help="Size of the spool at which receiving pauses; suffix M, G or T.",
        rich_help_panel=_PANEL,
    ),
]
PartialInterval = Annotated[
    float,
    typer.Option(
        "--partial-interval",
        min=0,
        metavar="SECS",
        help="How long the open segment may grow before it is stored.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class SpoolGroup:
    """Options that say nothing of a repository in a directory."""

    spool: Spool = None
    max_spool: MaxSpool = "4G"  # type: ignore[assignment]
    partial_interval: PartialInterval = 10.0

    def chosen(self) -> SpoolOptions:
        """Return them as a receiver takes them."""
        from pgwal.engine.stream_options import SpoolOptions

        return SpoolOptions(self.spool, self.max_spool, self.partial_interval)
