"""What list, status, show and expire --dry-run print on a terminal: it fits, nothing is cut, no colour stands alone."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keeping.stored_repository import FIRST, FULL, ON_SECOND, SECOND, SECOND_FULL, THIRD_FULL, build_chains
from pgwal_process import run_pgwal
from rich.cells import cell_len
from rich.console import Console
from support.terminal import STYLE, on_terminal, plain, widest

from pgwal.engine.coverage import RecoverableRange, TimelineCoverage
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.repository import Repository
from pgwal_cli.coverage_strip import NONE, NOTHING, PART, WHOLE, CoverageStrip
from pgwal_cli.list_table import ListedBackup, print_backups
from pgwal_cli.terminal import age_text, duration_text, printable

IDS = (FULL, FIRST, SECOND, SECOND_FULL, ON_SECOND, THIRD_FULL)
LSN = re.compile(r"\b[0-9A-F]+/[0-9A-F]+\b")
COMMANDS = (
    ("list",),
    ("list", "--why", "--keep-daily", "2"),
    ("status", "-h", "/nonexistent"),
    ("show", SECOND),
    ("expire", "--keep-daily", "2", "--keep-wal-for", "1", "--dry-run"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with chains, a pin and a gap in its WAL."""
    path = tmp_path_factory.mktemp("terminal") / "repo"
    repository = build_chains(path).repository
    (path / "wal" / repository.geometry.file_name(1, 6)).unlink()
    assert run_pgwal("pin", FIRST, "--repo", path).code == 0
    return path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 200])
def test_it_fits_and_nothing_is_cut(root: Path, command: tuple[str, ...], columns: int) -> None:
    shown = on_terminal(columns, *command, "--repo", root)
    piped = run_pgwal(*command, "--repo", root).stdout
    assert STYLE.search(piped) is None
    assert STYLE.search(shown) is not None
    assert widest(shown) <= columns
    assert "…" not in shown
    text = plain(shown)
    found = set(re.findall(r"\S*2026112\dT\S*?(?=[,\s])", text))
    assert {each.lstrip("+") for each in found} <= set(IDS)
    assert {each for each in IDS if each in piped} <= found
    # Where it starts is left to show, where there is no room beside from where to where it can be recovered.
    starts = {Lsn(number << 20 | 0x28) for number in range(10)} if columns == 80 and command[0] == "list" else set()
    assert {lsn for lsn in LSN.findall(piped) if Lsn.parse(lsn) not in starts} <= set(LSN.findall(text))
    assert re.search(r"\d days ago|\d years ago", text)


def test_a_strip_shows_the_gap_which_stands_in_words_too(root: Path) -> None:
    for columns in (80, 200):
        for command in ("list", "status"):
            text = plain(on_terminal(columns, command, "--repo", root))
            (strip,) = re.findall(r"WAL of TLI 1  0/100000  (.*)  0/A00000", text)
            assert re.fullmatch("█+▒?·+▒?█+", strip)
            assert cell_len(strip) > columns / 2
            assert "· missing  blank: not kept on purpose" in text
            assert "missing: 1024 kB of WAL from 0/600000 to 0/700000" in text
    ascii_alone = plain(on_terminal(80, "list", "--repo", root, PYTHONIOENCODING="ascii"))
    assert re.search(r"0/100000  #+\+?\.+\+?#+  0/A00000", ascii_alone)


def test_no_color_is_honoured(root: Path) -> None:
    for command in COMMANDS[1:]:
        arguments = [*command, "--repo", root]
        coloured, without = on_terminal(80, *arguments), on_terminal(80, *arguments, NO_COLOR="1")
        assert plain(without) == plain(coloured)
        codes = {code for codes in STYLE.findall(without) for code in codes.split(";")}
        assert codes <= {"", "0", "1", "2"}, "bold and faint are no colours"


def test_a_terminal_too_narrow_for_a_table_gets_lines(root: Path) -> None:
    for command in COMMANDS[1::3]:
        shown = on_terminal(50, *command, "--repo", root)
        assert widest(shown) <= 50
        assert {each for each in IDS if each in run_pgwal(*command, "--repo", root).stdout} <= set(
            re.findall(r"2026112\dT\d{6}Z_\w{4}", plain(shown))
        )


def test_the_longest_that_there_is_fits_into_80_columns(root: Path) -> None:
    last = Lsn(0x7FFF_FFFF_FFFF_FFFF)
    entry = replace(Repository.open(root).catalogue.entry(SECOND), start_lsn=Lsn(last - 2), stop_lsn=Lsn(last - 1))
    backup = ListedBackup(entry, 1 << 40, RecoverableRange(1, Lsn(last - 1), last, True), True, 1e6, None)
    output = io.StringIO()
    coverage = TimelineCoverage(1, [LsnRange(1, Lsn(1 << 62), last)], [], [], [])
    heard = {(1, last): datetime.now(UTC) - timedelta(minutes=5)}
    print_backups(Console(file=output, width=80), [backup], [coverage], heard)
    lines = output.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert lines[2].startswith(f"+ {SECOND}  ")
    assert lines[2].endswith("from 7FFFFFFF/FFFFFFFE")
    assert lines[3].startswith("  pinned")
    assert lines[3].rstrip().endswith("to   7FFFFFFF/FFFFFFFF")
    assert lines[4].strip() == "5 min ago"
    assert re.fullmatch("WAL of TLI 1  40000000/0  █+  7FFFFFFF/FFFFFFFF", lines[6])


@given(
    cuts=st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True).map(sorted),
    width=st.integers(1, 300),
    first_is_there=st.booleans(),
)
def test_no_gap_is_too_small_to_be_seen(cuts: list[int], width: int, first_is_there: bool) -> None:
    parts = [LsnRange(1, Lsn(a << 20), Lsn(b << 20)) for a, b in pairwise(cuts)]
    there, gaps = parts[not first_is_there :: 2], parts[first_is_there::2]
    cells = CoverageStrip(LsnRange(1, parts[0].start, parts[-1].end), there, gaps).cells(width)
    assert len(cells) == width
    assert NOTHING not in cells
    assert bool(gaps) == bool({PART, NONE} & set(cells))
    assert bool(there) == bool({PART, WHOLE} & set(cells))
    size = parts[-1].end - parts[0].start
    for gap in gaps:
        first = (gap.start - parts[0].start) * width // size
        assert WHOLE not in cells[first : max(first + 1, (gap.end - parts[0].start) * width // size)]


def test_what_is_not_summarized_yet_is_no_gap() -> None:
    whole = LsnRange(1, Lsn(0), Lsn(100))
    cells = CoverageStrip(whole, [LsnRange(1, Lsn(0), Lsn(50))], []).cells(4)
    assert cells == [WHOLE, WHOLE, NOTHING, NOTHING]


def test_ages_are_those_that_people_say() -> None:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    assert age_text(now - timedelta(seconds=100), now) == "100 s ago"
    assert age_text(now - timedelta(hours=3), now) == "3 h ago"
    assert age_text(now + timedelta(minutes=5), now) == "in 5 min"
    assert [duration_text(days * 86400) for days in (1.9, 2, 700, 800)] == ["46 h", "2 days", "700 days", "2 years"]


def test_what_would_steer_a_terminal_is_shown() -> None:
    assert printable("a\x1b[2Jb\x07\u202e") == r"a\x1b[2Jb\x07\u202e"
    assert printable("Größe 中") == "Größe 中"
