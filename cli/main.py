"""The ``pgwal`` command: its subcommands, and how failures end."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from pgwal import __version__
from pgwal.errors import PgwalError
from pgwal_cli import demo, fetch_wal, full, incremental, list_backups, map_blocks, restore, stream
from pgwal_cli.exit_codes import FAILED, exit_code_of
from pgwal_cli.output import log_to_stderr, print_error

app = typer.Typer(
    name="pgwal",
    help="Incremental backups of PostgreSQL 13 to 18, driven by WAL alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # -h is the host, as in every PostgreSQL tool.
    context_settings={"help_option_names": ["-?", "--help"]},
)
app.command("stream")(stream.stream)
app.command("full")(full.full)
app.command("incremental")(incremental.incremental)
app.command("list")(list_backups.list_backups)
app.command("map")(map_blocks.map_blocks)
app.command("restore")(restore.restore)
app.command("fetch-wal")(fetch_wal.fetch_wal)
app.command("demo")(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from pgwal.wal.scan import COMPILED

        print(f"pgwal {__version__} ({'compiled' if COMPILED else 'interpreted'} WAL scanner)")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit with its code."""
    log_to_stderr()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line with ``arguments`` and return the exit code; never raises for bad input."""
    try:
        return app(arguments, standalone_mode=False) or 0
    except PgwalError as error:
        print_error(error)
        return exit_code_of(error)
    except TyperException as error:
        message = error.format_message()
        if message:
            print(f"pgwal: error: {message}", file=sys.stderr)
            print("pgwal: hint: Try --help.", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away, as head does; nothing is left to say.
        sys.stderr.close()
        return FAILED
    except KeyboardInterrupt:
        print("pgwal: interrupted", file=sys.stderr)
        return 130
