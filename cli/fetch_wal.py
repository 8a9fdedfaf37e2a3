"""``pgwal fetch-wal``: what a restored server's restore_command calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgwal_cli import options
from pgwal_cli.restore_command import fetch_or_explain


def fetch_wal(
    name: Annotated[str, typer.Argument(help="File that the server wants (%f).")],
    destination: Annotated[Path, typer.Argument(help="Path to copy it to (%p).", readable=False)],
    repo: options.Repo,
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Prefetch the following complete segments into DESTINATION.pgwal.")
    ] = False,
    to_gap: Annotated[
        bool, typer.Option("--to-gap", help="Take a missing segment for the end of WAL, even where later ones exist.")
    ] = False,
    standby: Annotated[
        bool, typer.Option("--standby", help="Return complete segments only: a standby streams the rest.")
    ] = False,
) -> None:
    """Copy a WAL segment or history file out of the repository.

    Exit code 0 when it is there, 1 when it is not, 126 when it cannot be had though it should.
    """
    if code := fetch_or_explain(repo, name, destination, prefetch=prefetch, to_gap=to_gap, for_standby=standby):
        raise typer.Exit(code)
