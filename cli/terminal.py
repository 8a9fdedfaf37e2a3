"""A terminal as the place where results go: tables that fit into it, times with their ages, colours beside words.

What is piped is text as before: nothing of this is for it.  Colours follow rich, which looks at NO_COLOR and TERM.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

GOOD, BAD, NOTE, FAINT, HEADER = "green", "bold red", "yellow", "dim", "bold"
"""Styles, always of words that say the same."""
_GAP = 2
"""Blanks between columns."""
_WIDEST = 10_000
"""No table is as wide as that."""


def terminal() -> Console | None:
    """Return the terminal that standard output is; None where it is none."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    """Return a text of the user's without what would steer a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in text
    )


# ---- times


def parsed_time(text: str) -> datetime:
    """Return a time of a catalogue entry."""
    return datetime.fromisoformat(text).astimezone(UTC)


def moment_text(moment: datetime) -> str:
    """Return a time of UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def age_text(moment: datetime, now: datetime | None = None) -> str:
    """Say how long ago a time is; a clock that differs may have it in the future."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return f"{duration_text(seconds)} ago" if seconds >= 0 else f"in {duration_text(-seconds)}"


def duration_text(seconds: float) -> str:
    """Return a duration in its largest unit of which there are two, as people say it."""
    for unit, unit_s in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


# ---- layout


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; what does not wrap is never cut either: then the table does not fit."""

    title: str
    wraps: bool = False
    is_right: bool = False
    width: int = 0
    """The least; of one that does not wrap that of its longest line."""


def styled(*parts: str | tuple[str, str]) -> Text:
    """Return a text made of parts, each alone or with its style."""
    from rich.text import Text

    return Text.assemble(*parts)


def table_of(columns: Sequence[Column], rows: Iterable[Sequence[Text]]) -> Table:
    """Return a table whose least width is that in which no word is broken."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    lines = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style=HEADER)
    for number, column in enumerate(columns):
        cells = [Text(column.title), *(row[number] for row in lines)]
        parts = [part for cell in cells for part in (cell.plain.split() if column.wraps else cell.plain.split("\n"))]
        table.add_column(
            column.title,
            no_wrap=not column.wraps,
            overflow="fold",
            justify="right" if column.is_right else "left",
            min_width=max([column.width, *map(cell_len, parts)]),
        )
    for row in lines:
        table.add_row(*row)
    return table


def print_first_that_fits(console: Console, *tables: Table) -> None:
    """Print the first table that is no wider than the terminal; the last is for any terminal."""
    # A width is measured within one that is allowed.
    unbounded = console.options.update(max_width=_WIDEST)
    fitting = (table for table in tables[:-1] if console.measure(table, options=unbounded).minimum <= console.width)
    console.print(next(fitting, tables[-1]))


def stacked(columns: Sequence[Column], rows: Iterable[Sequence[Text]]) -> Table:
    """Return the same table with each cell on lines of its own, for terminals that nothing else fits into."""
    from rich.table import Table

    table = Table.grid()
    table.add_column(overflow="fold")
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            table.add_row(styled((column.title.replace("\n", "/"), HEADER)))
            table.add_row(cell)
        table.add_row("")
    return table


def fields_of(fields: Iterable[tuple[str, Text]]) -> Table:
    """Return names and values, one below the other; a value is broken between its words."""
    from rich.table import Table

    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(style=HEADER, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, value)
    return table
