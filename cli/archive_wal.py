"""``pgwal archive-wal``: what a server's archive_command calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgwal.repository.place import address_of
from pgwal_cli import options
from pgwal_cli.archive_command import archive_or_explain


def archive_wal(
    path: Annotated[Path, typer.Argument(help="File that the server hands over (%p).", readable=False)],
    repo: options.Repo,
    compress: options.Compress = "zstd",
) -> None:
    """Archive a file of a server's pg_wal in the repository: archive_command = 'pgwal archive-wal --repo PATH %p'.

    Exit code 0 when it is in the repository, durably, with the same content; from 1 to 125 when it is not, and the
    server has to keep it.
    """
    if code := archive_or_explain(repo, address_of(repo), path, compress):
        raise typer.Exit(code)
