"""A strip that shows which WAL of a timeline is there: a sign for each part of its range, as wide as there is room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pgwal.lsn import Lsn, LsnRange
from pgwal_cli.output import size_text
from pgwal_cli.terminal import BAD, FAINT, GOOD, HEADER, NOTE

if TYPE_CHECKING:
    from pgwal.engine.coverage import TimelineCoverage

_LEAST = 10
WHOLE, PART, NONE, NOTHING = range(4)
_SIGNS = {False: ("█", "▒", "·", " "), True: ("#", "+", ".", " ")}
"""Of terminals that show any text, and of those that show ASCII alone."""
_STYLES = (GOOD, NOTE, BAD, FAINT)


class CoverageStrip:
    """What is there within a range, and what is missing: a part that lacks any is never shown as whole.

    Where neither is, nothing is shown: what was received last is not summarized yet.
    """

    def __init__(self, whole: LsnRange, there: Sequence[LsnRange], gaps: Sequence[LsnRange]) -> None:
        self._whole, self._there, self._gaps = whole, there, gaps

    def cells(self, width: int) -> list[int]:
        """Return of each of ``width`` equal parts whether it is there: WHOLE, PART, NONE or NOTHING."""
        start, size = self._whole.start, self._whole.end - self._whole.start
        edges = [Lsn(start + size * number // width) for number in range(width + 1)]
        found = []
        for part in (self._whole._replace(start=first, end=last) for first, last in pairwise(edges)):
            is_there, lacks = (any(_meet(part, each) for each in ranges) for ranges in (self._there, self._gaps))
            found.append((PART if lacks else WHOLE) if is_there else (NONE if lacks else NOTHING))
        return found

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_LEAST, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        signs = _SIGNS[options.ascii_only]
        text = Text(no_wrap=True)
        for cell, run in groupby(self.cells(options.max_width)):
            text.append(signs[cell] * len(list(run)), _STYLES[cell])
        yield text


def _meet(one: LsnRange, other: LsnRange) -> bool:
    return max(one.start, other.start) < min(one.end, other.end)


def print_coverage(console: Console, coverage: Sequence[TimelineCoverage], *, with_summaries: bool) -> None:
    """Print of each timeline a strip between its first and last LSN, and each gap in words; nothing without WAL."""
    if not coverage:
        return
    console.print()
    console.print(_table(coverage, with_summaries=with_summaries))
    for line in _gap_lines(coverage, with_summaries=with_summaries, ascii_only=console.options.ascii_only):
        console.print(line)


def _table(coverage: Iterable[TimelineCoverage], *, with_summaries: bool) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for ratio in (None, None, 1, None):
        table.add_column(no_wrap=True, ratio=ratio)
    for timeline in coverage:
        parts = [*timeline.wal, *timeline.wal_holes]
        if not parts:
            continue
        whole = LsnRange(timeline.timeline_id, min(part.start for part in parts), max(part.end for part in parts))
        table.add_row(
            Text(f"WAL of TLI {timeline.timeline_id}", HEADER),
            str(whole.start),
            CoverageStrip(whole, timeline.wal, timeline.wal_holes),
            str(whole.end),
        )
        if with_summaries:
            strip = CoverageStrip(whole, timeline.summaries, timeline.summary_holes)
            ranges = timeline.summaries
            first, last = (str(ranges[0].start), str(ranges[-1].end)) if ranges else ("none", "")
            table.add_row(Text("summaries", HEADER), first, strip, last)
    return table


def _gap_lines(coverage: Iterable[TimelineCoverage], *, with_summaries: bool, ascii_only: bool) -> list[Text]:
    """Return what the signs mean, and each gap in words."""
    whole, part, none, _ = _SIGNS[ascii_only]
    blank = f"blank: not kept on purpose{', or not summarized yet' if with_summaries else ''}"
    lines = [
        Text.assemble(
            (whole, GOOD),
            (" there  ", FAINT),
            (part, NOTE),
            (" in part  ", FAINT),
            (none, BAD),
            (f" missing  {blank}", FAINT),
        )
    ]
    for timeline in coverage:
        lines += [_gap_line("missing", gap, BAD) for gap in timeline.wal_holes]
        if with_summaries:
            lines += [_gap_line("not summarized", gap, NOTE) for gap in timeline.summary_holes]
    return lines


def _gap_line(what: str, gap: LsnRange, style: str) -> Text:
    size = size_text(gap.end - gap.start)
    return Text.assemble(
        (f"{what}: {size} of WAL", style), f" from {gap.start} to {gap.end} on timeline {gap.timeline_id}"
    )
