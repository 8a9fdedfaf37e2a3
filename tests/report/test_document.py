"""What a report counts, and how it shows text of any kind: values alone, without a repository or a browser."""

from __future__ import annotations

import json
import unicodedata
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap
from report.made_document import made_document

from pgwal.lsn import Lsn
from pgwal.relation import INVALID_BLOCK_NUMBER, RelFileLocator
from pgwal.report.churn import HEAT_COLUMNS, BlockHeat, Churn
from pgwal.report.document import DOCUMENT_VERSION
from pgwal.report.findings import Finding, Severity, worst_first
from pgwal.report.position_times import KnownTime, PositionTimes
from pgwal.report.recovery_windows import Reach, Span, recovery_windows
from pgwal.report.shown_text import MOST_SHOWN, shown
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal_cli.report_page import embedded_json
from pgwal_cli.report_tables import Column, Row, Table

LSNS = st.integers(0, 1 << 20).map(Lsn)
HOSTILE = st.text() | st.sampled_from(
    ["</script>", "<!--", "]]>", "\u2028", "\u202eexe", "'\"&lt;", "${title}", "\ud800"]
)


# ---- text


@given(HOSTILE)
def test_shown_text_is_short_and_has_nothing_that_cannot_be_seen(text: str) -> None:
    found = shown(text)
    assert len(found) <= MOST_SHOWN + 1
    found.encode()
    assert not {unicodedata.category(letter) for letter in found} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    if len(text) <= MOST_SHOWN and text.isascii() and text.isprintable():
        assert found == text


def test_two_megabytes_become_a_line() -> None:
    assert shown("x" * (2 << 20)) == "x" * MOST_SHOWN + "\u2026"


@given(st.lists(HOSTILE, max_size=4))
def test_embedded_json_is_the_value_and_no_html(texts: list[str]) -> None:
    text = embedded_json(texts)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == texts


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 (of the library)
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.lasttag == "td":
            self.cells[-1] += data


@given(st.lists(HOSTILE.map(shown), min_size=1, max_size=3))
def test_cells_of_tables_are_text(texts: list[str]) -> None:
    columns = tuple(Column(f"column {number}") for number in range(len(texts)))
    parser = _Cells()
    parser.feed("".join(Table("of texts", columns, [Row(tuple(texts))]).html()).replace("\n", ""))
    parser.close()
    assert parser.cells == texts
    assert parser.tags <= {"details", "summary", "div", "table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_the_document_is_json_with_a_version() -> None:
    members = made_document(10, 20).members()
    assert next(iter(members)) == "pgwal-report"
    assert members["pgwal-report"] == DOCUMENT_VERSION
    assert json.loads(json.dumps(members))["backups"][0]["backup_id"] == "20261125T093100Z_full"


# ---- times of positions


@given(st.lists(st.builds(KnownTime, LSNS, st.floats(0, 1e9)), min_size=1), st.lists(LSNS, min_size=2))
def test_times_never_go_back(known: list[KnownTime], wanted: list[Lsn]) -> None:
    times = PositionTimes(known)
    found = [times.at(lsn) for lsn in sorted(wanted)]
    assert None not in found
    assert found == sorted(found)  # type: ignore[type-var]
    highest = max(each.time_s for each in known)
    assert all(time is not None and 0 <= time <= highest for time in found)
    assert all(times.is_known(each.lsn) for each in known)


def test_a_time_between_two_is_in_proportion() -> None:
    times = PositionTimes([KnownTime(Lsn(100), 1000.0), KnownTime(Lsn(200), 2000.0)])
    assert [times.at(Lsn(lsn)) for lsn in (50, 100, 125, 200, 900)] == [1000, 1000, 1250, 2000, 2000]
    assert not times.is_known(Lsn(125))
    assert PositionTimes([]).at(Lsn(1)) is None


# ---- recovery windows


def reach(chain: str, start: int, end: int, *, is_long_term: bool = False) -> Reach:
    return Reach(chain, f"{chain}{start}", Lsn(start), Lsn(end), is_long_term)


def test_a_hole_lies_behind_the_last_chain_before_it() -> None:
    found = recovery_windows([reach("a", 10, 40), reach("b", 30, 40), reach("c", 60, 90)], Lsn(90))
    assert [(window.chain_id, window.holes) for window in found] == [
        ("a", []),
        ("b", [Span(Lsn(40), Lsn(60))]),
        ("c", []),
    ]


def test_what_was_received_behind_the_last_window_is_a_hole() -> None:
    (window,) = recovery_windows([reach("a", 10, 40), reach("a", 20, 40)], Lsn(70))
    assert (window.spans, window.holes) == ([Span(Lsn(10), Lsn(40))], [Span(Lsn(40), Lsn(70))])
    assert window.backup_ids == ["a10", "a20"]


def test_a_timeline_that_was_left_fills_no_hole_and_ends_in_none() -> None:
    left = reach("a", 10, 90)._replace(is_left=True)
    found = recovery_windows([left, reach("b", 5, 40), reach("c", 60, 80)], Lsn(80))
    assert [(window.chain_id, window.holes) for window in found] == [
        ("b", [Span(Lsn(40), Lsn(60))]),
        ("a", []),
        ("c", []),
    ]


def test_what_long_term_backups_leave_out_is_no_hole() -> None:
    found = recovery_windows([reach("a", 10, 10, is_long_term=True), reach("b", 60, 90)], Lsn(90))
    assert [window.holes for window in found] == [[], []]


REACHES = st.builds(
    lambda chain, start, size: reach(chain, start, start + size),
    st.sampled_from("abc"),
    st.integers(0, 60),
    st.integers(0, 30),
)


@given(st.lists(REACHES, min_size=1), st.integers(0, 100))
def test_windows_and_holes_are_all_points_from_the_first_on(reaches: list[Reach], newest: int) -> None:
    windows = recovery_windows(reaches, Lsn(newest))
    covered = {point for each in reaches for point in range(each.start, each.end)}
    assert {point for window in windows for span in window.spans for point in range(*span)} == covered
    missing = set(range(min(each.start for each in reaches), max(newest, *(each.end for each in reaches)))) - covered
    holes = [point for window in windows for hole in window.holes for point in range(*hole)]
    # Between two backups alone, and behind the last one: no point twice.
    assert sorted(holes) == sorted(missing)


# ---- churn


def block_map(*changed: tuple[int, int, list[int]]) -> BlockMap:
    made = BlockMap()
    for relation, fork, blocks in changed:
        made.put(RelationFork(1663, 5, relation, fork), INVALID_BLOCK_NUMBER, BitMap(blocks))
    return made


@given(st.lists(st.sets(st.integers(0, 1 << 20), min_size=1, max_size=400), min_size=1, max_size=5))
def test_heat_counts_every_change_where_it_was(sets: list[set[int]]) -> None:
    heat = BlockHeat()
    for blocks in sets:
        heat.add(BitMap(blocks))
    assert len(heat.counts) <= HEAT_COLUMNS
    for column, count in enumerate(heat.counts):
        first = column * heat.width
        assert count == sum(first <= block_no < first + heat.width for blocks in sets for block_no in blocks)


def test_churn_is_by_relation_and_time() -> None:
    churn = Churn(5)
    churn.add(3, block_map((10, 0, [1, 2]), (10, 2, [0]), (11, 0, [7])))
    churn.add(4, block_map((10, 0, [1]), (12, 0, [])))
    first, second = churn.relations()
    assert (first.locator, first.block_count) == (RelFileLocator(1663, 5, 10), 4)
    assert list(first.by_bucket) == [0, 0, 0, 3, 1]
    assert (first.heat.width, list(first.heat.counts)) == (1, [0, 2, 1])
    assert (second.locator.rel_number, list(second.by_bucket)) == (11, [0, 0, 0, 1, 0])
    assert list(churn.total) == [0, 0, 0, 4, 1]


def test_of_too_many_relations_those_that_changed_most_are_kept() -> None:
    churn = Churn(1, most_relations=10)
    churn.add(0, block_map(*((number, 0, list(range(number))) for number in range(1, 31))))
    assert [each.locator.rel_number for each in churn.relations()] == list(range(30, 20, -1))
    assert churn.dropped_count == 20
    assert list(churn.total) == [sum(range(1, 31))]


# ---- findings


def test_the_worst_comes_first_and_others_stay_in_order() -> None:
    found = [Finding(Severity.OK, "a", "1"), Finding(Severity.WARNING, "b", "2"), Finding(Severity.CRITICAL, "c", "3"),
             Finding(Severity.WARNING, "d", "4")]  # fmt: skip
    assert [finding.subject for finding in worst_first(found)] == ["c", "b", "d", "a"]
