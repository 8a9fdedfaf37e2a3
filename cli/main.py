"""The ``pgwal`` command: its subcommands, and how failures end."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from pgwal import __version__
from pgwal.errors import PgwalError
from pgwal.scan_choice import choose_scan
from pgwal_cli import (
    backup,
    check,
    combine,
    demo,
    expire,
    fetch_wal,
    full,
    grants,
    incremental,
    inspect_wal,
    list_backups,
    map_blocks,
    restore,
    show,
    status,
    stream,
    summarize,
    verify,
)
from pgwal_cli.exit_codes import FAILED, exit_code_of
from pgwal_cli.interruption import Interruption
from pgwal_cli.output import log_to_stderr, print_error
from pgwal_cli.restore_command import FATAL

app = typer.Typer(
    name="pgwal",
    help="Incremental backups of PostgreSQL 13 to 18, driven by WAL alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: every command would pay for the import of what draws boxes.
    rich_markup_mode=None,
    # -h is the host, as in every PostgreSQL tool.
    context_settings={"help_option_names": ["-?", "--help"]},
)
app.command("stream")(stream.stream)
app.command("full")(full.full)
app.command("incremental")(incremental.incremental)
app.command("backup")(backup.backup)
app.command("inspect")(inspect_wal.inspect_wal)
app.command("summarize")(summarize.summarize)
app.command("list")(list_backups.list_backups)
app.command("show")(show.show)
app.command("status")(status.status)
app.command("map")(map_blocks.map_blocks)
app.command("restore")(restore.restore)
app.command("combine")(combine.combine)
app.command("fetch-wal")(fetch_wal.fetch_wal)
app.command("verify")(verify.verify)
app.command("expire")(expire.expire)
app.command("check")(check.check)
app.command("grants")(grants.grants)
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
    interruption = Interruption()
    interruption.install()
    code = run(sys.argv[1:])
    if interruption.signal_number is not None:
        print("pgwal: interrupted", file=sys.stderr)
        code = interruption.exit_code
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line with ``arguments`` and return the exit code; never raises for bad input."""
    try:
        if "PGWAL_SCAN" in os.environ:
            choose_scan(os.environ["PGWAL_SCAN"])
        code = app(arguments, standalone_mode=False) or 0
        # Here, where it can still be reported that standard output takes no more.
        sys.stdout.flush()
    except PgwalError as error:
        print_error(error)
        return exit_code_of(error)
    except TyperException as error:
        return _report_misuse(error, arguments)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output went away, as head does; nothing is left to say.
            _drop_output()
        else:
            print_error(PgwalError(str(error)))
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    return code


def _report_misuse(error: TyperException, arguments: list[str]) -> int:
    if not arguments:
        # The message is the help.
        print(error.format_message(), file=sys.stderr)
    else:
        print_error(PgwalError(error.format_message(), hint="See --help."))
    # A server takes an exit code below 126 of its restore_command for "there is no such file".
    return FATAL if arguments[:1] == ["fetch-wal"] else error.exit_code


def _drop_output() -> None:
    """Let the interpreter's own flush at exit succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
