"""The ``pgwal`` command: its subcommands, and how failures end."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]
from typer.exceptions import TyperException

from pgwal import __version__
from pgwal.budget import COLLECTED_OBJECTS
from pgwal.errors import PgwalError, SlowScanner
from pgwal.scan_choice import choose_scan
from pgwal_cli.cluster_command import Chosen, Cluster, ClusterCommand, Config, EachCluster, EachClusterCommand
from pgwal_cli.exit_codes import FAILED, INTERRUPTED, UsageError
from pgwal_cli.interruption import Interruption
from pgwal_cli.key_options import with_keys
from pgwal_cli.output import log_to_stderr, print_any_text, print_error
from pgwal_cli.restore_command import FATAL

COMMANDS = {
    "init": "init",
    "key": "key",
    "stream": "stream",
    "full": "full",
    "incremental": "incremental",
    "backup": "backup",
    "inspect": "inspect_wal",
    "summarize": "summarize",
    "list": "list_backups",
    "show": "show",
    "status": "status",
    "report": "report",
    "monitor": "monitor",
    "map": "map_blocks",
    "restore": "restore",
    "combine": "combine",
    "export": "export",
    "fetch-wal": "fetch_wal",
    "archive-wal": "archive_wal",
    "import": "import_wal",
    "verify": "verify",
    "audit": "audit",
    "expire": "expire",
    "delete": "delete",
    "merge": "merge",
    "copy": "copy",
    "pin": "pin",
    "unpin": "unpin",
    "check": "check",
    "grants": "grants",
    "config": "config",
    "demo": "demo",
}
"""The module of each command, whose function has its name, in the order in which help lists them."""

_FOR_ALL = ("list", "status", "verify", "expire", "check")
_BEFORE_A_COMMAND = ("-C", "--cluster", "--config")
"""Options that may stand before the command, each with a value."""
_COMPLETION = "_PGWAL_COMPLETE"


def make_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the command line: with the command that ``arguments`` name alone, if they do, or with all.

    Importing the others would take longer than some commands run.
    """
    app = typer.Typer(
        name="pgwal",
        help="Incremental backups of PostgreSQL 13 to 19, driven by WAL alone.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Plain help: every command would pay for the import of what draws boxes.
        rich_markup_mode=None,
        # -h is the host, as in every PostgreSQL tool.
        context_settings={"help_option_names": ["-?", "--help"]},
    )
    app.callback()(_options)
    named = command_word(arguments)
    wanted = [named] if named in COMMANDS else list(COMMANDS)
    for name in wanted:
        module_name = COMMANDS[name]
        command = getattr(import_module(f"pgwal_cli.{module_name}"), module_name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, cls=EachClusterCommand if name in _FOR_ALL else ClusterCommand)(with_keys(command))
    return app


def command_word(arguments: Sequence[str]) -> str | None:
    """Return the word of the command behind the options that may stand before it; None where there is none."""
    words = iter(arguments)
    for word in words:
        if word in _BEFORE_A_COMMAND:
            next(words, None)
        elif not word.startswith(_BEFORE_A_COMMAND):
            return word
    return None


def _print_version(wanted: bool) -> None:
    if wanted:
        from pgwal.wal.scan import COMPILED

        print(f"pgwal {__version__} ({'compiled' if COMPILED else 'interpreted'} WAL scanner)")
        if not COMPILED:
            print(SlowScanner())
        raise typer.Exit


def _options(
    context: typer.Context,
    cluster: Cluster = None,
    config: Config = None,
    version: Annotated[  # noqa: ARG001 (it was printed)
        bool, typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    chosen: Chosen = context.ensure_object(Chosen)
    chosen.cluster, chosen.config = cluster, config


def main() -> None:
    """Run the command line and exit with its code."""
    # A map has an object or two for each relation that changed: looking for cycles among them after each 700 new ones
    # takes as long as making them.
    gc.set_threshold(COLLECTED_OBJECTS)
    log_to_stderr()
    print_any_text()
    interruption = Interruption()
    interruption.install()
    code = run(sys.argv[1:])
    if interruption.signal_number is not None:
        print("pgwal: interrupted", file=sys.stderr)
        sys.stderr.flush()
        # Without a look at threads: one that was being started when the signal came would never end.
        os._exit(interruption.exit_code)
    # The interpreter need not look for cycles among modules that end with the process: it would take a tenth of the
    # time of a small backup.
    gc.freeze()
    sys.exit(code)


def run(arguments: list[str], chosen: Chosen | None = None) -> int:
    """Run the command line with ``arguments`` and return the exit code; never raises for bad input.

    ``chosen`` is whom it is for, as far as that was said before.
    """
    as_json = "--json" in arguments
    try:
        if "PGWAL_SCAN" in os.environ:
            choose_scan(os.environ["PGWAL_SCAN"])
        code = _call(arguments, chosen or Chosen(), as_json=as_json)
        # Here, where it can still be reported that standard output takes no more.
        sys.stdout.flush()
    except PgwalError as error:
        print_error(error, as_json=as_json)
        return _failed(arguments, error.exit_code)
    except TyperException as error:
        return _report_misuse(error, arguments, as_json=as_json)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output went away, as head does; nothing is left to say.
            _drop_output()
        else:
            print_error(_refusal(error), as_json=as_json)
        return _failed(arguments)
    except MemoryError:
        refusal = PgwalError("there is not enough memory", hint="Use fewer jobs (-j), or free some memory.")
        print_error(refusal, as_json=as_json)
        return _failed(arguments)
    except KeyboardInterrupt:
        return _failed(arguments, INTERRUPTED)
    except Exception as error:
        # Python has no kind of its own for this one.
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            refusal = PgwalError(
                "the system refuses another thread", hint="Use fewer jobs (-j), or raise the limit (ulimit -u)."
            )
        elif _failed(arguments) == FATAL:
            refusal = PgwalError(f"{type(error).__name__}: {error}")
        else:
            raise
        print_error(refusal, as_json=as_json)
        return _failed(arguments)
    return code


def _call(arguments: list[str], chosen: Chosen, *, as_json: bool) -> int:
    if _COMPLETION in os.environ:
        # A shell asks for its script, or which words may follow; typer answers, and ends the process.
        completion_init()
    try:
        return make_app(arguments)(arguments, standalone_mode=False, obj=chosen) or 0
    except EachCluster as each:
        from pgwal_cli.each_cluster import run_for_each

        return run_for_each(each.names, arguments, run, as_json=as_json)


def _failed(arguments: list[str], code: int = FAILED) -> int:
    """Return the exit code of what failed: a server takes one below 126 of fetch-wal for "there is no such file"."""
    return FATAL if command_word(arguments) == "fetch-wal" else code


def _refusal(error: OSError) -> PgwalError:
    """Return the error that says what the operating system refused, with the name where it has one."""
    if error.errno is None:
        return PgwalError(str(error))
    reason = os.strerror(error.errno)
    hint = "Use fewer jobs (-j), or raise the limit (ulimit -n)." if error.errno == errno.EMFILE else None
    return PgwalError(reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}", hint=hint)


def _report_misuse(error: TyperException, arguments: list[str], *, as_json: bool) -> int:
    if not arguments:
        # The message is the help.
        print(error.format_message(), file=sys.stderr)
    else:
        print_error(UsageError(error.format_message(), hint="See --help."), as_json=as_json)
    return _failed(arguments, error.exit_code)


def _drop_output() -> None:
    """Let the interpreter's own flush at exit succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
