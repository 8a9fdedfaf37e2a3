"""``pgwal fetch-wal``: what a restored server's restore_command calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pgwal.errors import ObjectNotFound, PgwalError
from pgwal_cli import options
from pgwal_cli.output import print_error

NOT_FOUND = 1
FATAL = 126
"""Above 125: the server stops recovery instead of taking the file as absent."""


def fetch_wal(
    name: Annotated[str, typer.Argument(help="File that the server wants (%f).")],
    destination: Annotated[Path, typer.Argument(help="Where it goes (%p).", readable=False)],
    repo: options.Repo,
) -> None:
    """Copy a WAL segment or history file out of the repository.

    Exit code 0 when it is there, 1 when it is not, 126 when it cannot be had though it should.
    """
    from pgwal.engine.fetch_wal import fetch
    from pgwal.repository.repository import Repository

    try:
        try:
            repository = Repository.open(repo)
        except ObjectNotFound as error:
            raise PgwalError(str(error), hint=error.hint) from error
        fetch(repository, name, destination)
    except ObjectNotFound:
        print(f"pgwal: {name} is not in the repository", file=sys.stderr)
        raise typer.Exit(NOT_FOUND) from None
    except PgwalError as error:
        print_error(error)
        raise typer.Exit(FATAL) from error
    except Exception as error:
        # Whatever it is: an exit code below 126 would tell the server that its WAL ends here.
        print_error(PgwalError(f"{type(error).__name__}: {error}"))
        raise typer.Exit(FATAL) from error
