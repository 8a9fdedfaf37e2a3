"""``pgwal demo``: the main job on a throw-away PostgreSQL 18."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgwal.repository.storage_format import FileFormat
from pgwal_cli import options
from pgwal_cli.demo_repository import DemoRepository
from pgwal_cli.exit_codes import VERIFICATION_FAILED
from pgwal_cli.output import print_json


def demo(
    pgdata_size: Annotated[
        int, typer.Option("--pgdata-size", min=1, metavar="MB", help="Size of the database to begin with.")
    ] = 300,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, metavar="N", help="How many incrementals build on the latest.")
    ] = 3,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Leave repository and data directories in DIR for a look."),
    ] = None,
    repo: Annotated[
        DemoRepository,
        typer.Option("--repo", help="Where the repository lies; for s3, an S3 server (SeaweedFS) is started."),
    ] = DemoRepository.DIRECTORY,
    file_format: Annotated[
        FileFormat | None,
        typer.Option(
            "--format",
            help="How the repository stores the files of backups.",
            show_default="plain, or packed in an object store",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show the main job on a throw-away PostgreSQL 18.

    Streams WAL of a server under load, takes a full and several incremental backups, restores the last one, replays
    to the end of the WAL received, and compares every table with the source.
    """
    from pgwal_cli.demo_steps import run_demo

    chosen = None if file_format is None else file_format.value
    report = run_demo(keep, pgdata_size, rounds, kind=repo, file_format=chosen, quiet=json)
    if json:
        print_json(report.document())
    else:
        print("", *report.lines(), "", report.verdict(), sep="\n")
        if keep is not None:
            print(f"repository, source and restored data directory are in {keep}")
    if not report.is_equal:
        raise typer.Exit(VERIFICATION_FAILED)
