"""WAL segments: names, arithmetic, and where records can start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.errors import FormatError
from pgwal.segment import (
    LONG_PAGE_HEADER_SIZE,
    SHORT_PAGE_HEADER_SIZE,
    WAL_PAGE_SIZE,
    WalGeometry,
    is_history_name,
    is_segment_name,
    parse_segment_size,
)

MB = 1 << 20

geometries = st.integers(20, 30).map(lambda bits: WalGeometry(1 << bits))
positions = st.integers(1, (1 << 63) - 1)


@given(geometries, st.integers(1, 0xFFFFFFFF), positions)
def test_names_go_both_ways(geometry: WalGeometry, timeline_id: int, lsn: int) -> None:
    segment_no = geometry.segment_no(lsn)
    name = geometry.file_name(timeline_id, segment_no)
    assert is_segment_name(name)
    assert geometry.parse_file_name(name) == (timeline_id, segment_no)


def test_the_worked_example() -> None:
    geometry = WalGeometry(16 * MB)
    assert geometry.segment_no(0x16E0198) == 1
    assert geometry.file_name(1, 1) == "000000010000000000000001"
    assert geometry.segments_per_xlogid == 256
    assert geometry.file_name(1, 0x1FF) == "0000000100000001000000FF"


@given(geometries, positions)
def test_a_position_lies_in_its_segment(geometry: WalGeometry, lsn: int) -> None:
    start = geometry.segment_start(geometry.segment_no(lsn))
    assert start <= lsn < start + geometry.segment_size
    last = geometry.segment_start(geometry.last_segment_no(lsn))
    assert last < lsn <= last + geometry.segment_size


@pytest.mark.parametrize(
    "name",
    [
        "000000010000000000000100",  # of no segment of 16 MB
        "000000000000000000000001",  # of timeline 0
        "00000001000000000000000",
        "00000001000000000000000a",
        "000000010000000000000001.partial",
        "00000002.history",
        "",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="not the name of a WAL segment"):
        WalGeometry(16 * MB).parse_file_name(name)


def test_history_names() -> None:
    assert is_history_name("00000002.history")
    assert not is_history_name("00000002.history.tmp")
    assert not is_history_name("2.history")


@pytest.mark.parametrize("size", [0, -MB, MB - 1, MB + 1, 3 * MB, 512 << 10, 2 << 30])
def test_sizes_that_no_cluster_has_are_refused(size: int) -> None:
    with pytest.raises(FormatError, match="segment size"):
        WalGeometry(size)


@given(geometries, positions)
def test_the_first_record_position_is_the_first_place_where_a_record_can_start(geometry: WalGeometry, lsn: int) -> None:
    found = geometry.first_record_position(lsn)
    assert found % 8 == 0
    assert found >= lsn
    assert found - lsn < 8 + LONG_PAGE_HEADER_SIZE
    page_start = found - found % WAL_PAGE_SIZE
    starts_segment = page_start % geometry.segment_size == 0
    assert found - page_start >= (LONG_PAGE_HEADER_SIZE if starts_segment else SHORT_PAGE_HEADER_SIZE)
    assert geometry.first_record_position(found) == found


def test_page_headers_are_stepped_over() -> None:
    geometry = WalGeometry(MB)
    cases = {
        0x100000: 0x100028,
        0x100001: 0x100028,
        0x100028: 0x100028,
        0x100029: 0x100030,
        0x102000: 0x102018,
        0x102018: 0x102018,
        0x101FF8: 0x101FF8,
        0x101FF9: 0x102018,
        0x1FFFF9: 0x200028,
    }
    assert {lsn: int(geometry.first_record_position(lsn)) for lsn in cases} == cases


@pytest.mark.parametrize(("text", "size"), [("16MB", 16 * MB), ("1GB", 1 << 30), ("8kB", 8192), ("512B", 512)])
def test_sizes_as_the_server_shows_them(text: str, size: int) -> None:
    assert parse_segment_size(text) == size


@pytest.mark.parametrize("text", ["", "16", "MB", "16 MB", "16mb", "-1MB", "1.5GB", "16MB ", "\u0661MB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="not a size"):
        parse_segment_size(text)
