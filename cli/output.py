"""How results and messages look: text for people on a terminal, JSON for programs, messages on stderr."""

from __future__ import annotations

import codecs
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

from pgwal.errors import PgwalError, SlowScanner
from pgwal.lsn import Lsn, LsnRange

if TYPE_CHECKING:
    from pgwal_cli.documents import ErrorMembers, FactsDocument, RangeDocument

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def print_any_text() -> None:
    """Have standard output take any text, whatever its encoding.

    Names of files that are no text are printed as the bytes that they are, and what the encoding lacks as an escape.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        codecs.register_error("pgwal", _printable)
        sys.stdout.reconfigure(errors="pgwal")


def _printable(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escaped = (
        bytes([ord(letter) - 0xDC00]) if "\udc80" <= letter <= "\udcff" else letter.encode("ascii", "backslashreplace")
        for letter in error.object[error.start : error.end]
    )
    return b"".join(escaped), error.end


def size_text(size_bytes: float) -> str:
    """Return a size as pg_size_pretty does: at most four or five digits and a unit."""
    unit = 0
    while abs(size_bytes) >= 10240 and unit < len(_UNITS) - 1:
        size_bytes /= 1024
        unit += 1
    return f"{size_bytes:.0f} {_UNITS[unit]}"


ERROR_LINE = '{"version": 1, "error": '
"""How a line of stderr begins that is an error in JSON."""
_FACTS = {"timeline_id": "timeline", "backup_id": "backup"}
"""Facts that JSON names as it does everywhere."""


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    # In one piece: an unbuffered standard output would get it word by word.
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return lines of columns; those that hold numbers alone are set flush right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [
        all(row[column][:1].isdigit() or row[column] in ("", "-") for row in cells[1:]) for column in range(len(header))
    ]
    lines = []
    for row in cells:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return lines


def print_error(error: PgwalError, *, as_json: bool = False) -> None:
    """Print an error and its hint on stderr; ``as_json`` as one line, in the form that docs/json.md has."""
    if as_json:
        sys.stderr.write(json.dumps({"version": 1, "error": error_document(error)}) + "\n")
        return
    print(f"pgwal: error: {steering_nothing(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"pgwal: hint: {steering_nothing(error.hint)}", file=sys.stderr)


def steering_nothing(message: str) -> str:
    """Return a message with escapes for what would steer a terminal: names of others stand in it."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in message
    )


def error_document(error: PgwalError) -> ErrorMembers:
    """Return what JSON says of an error."""
    facts: Any = {
        _FACTS.get(name, name): str(Lsn(value)) if name in ("lsn", "end_lsn") else value  # type: ignore[call-overload]
        for name, value in error.facts.items()
    }
    known: FactsDocument = facts
    return {
        "kind": type(error).__name__,
        "message": str(error),
        "hint": error.hint,
        "exit_code": error.exit_code,
        "transient": error.is_transient,
        "facts": known,
    }


def range_documents(ranges: Iterable[LsnRange]) -> list[RangeDocument]:
    """Return what JSON says of ranges of WAL."""
    return [{"timeline": part.timeline_id, "start_lsn": str(part.start), "end_lsn": str(part.end)} for part in ranges]


class _MessageFormatter(logging.Formatter):
    has_times = False

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        moment = datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")
        return f"{f'{moment} ' if self.has_times else ''}pgwal: {level}{steering_nothing(record.getMessage())}"


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that time: a progress bar puts lines above itself, in its stead."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


_formatter = _MessageFormatter()


def set_log_times(wanted: bool) -> None:
    """Put the local time before each message that is logged, with its offset."""
    _formatter.has_times = wanted


def set_quiet(wanted: bool) -> None:
    """Log warnings alone."""
    logging.getLogger("pgwal").setLevel(logging.WARNING if wanted else logging.INFO)


def log_to_stderr() -> None:
    """Show what pgwal logs as messages on stderr."""
    handler = _StderrHandler()
    handler.setFormatter(_formatter)
    logger = logging.getLogger("pgwal")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    # What it warns of when a connection ends comes to the user as pgwal's own error.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category is not SlowScanner:
            show_others(message, category, *place, **more)
        elif "PGWAL_SCAN" not in os.environ:
            logger.warning("%s", message)

    warnings.showwarning = show
