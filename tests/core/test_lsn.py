"""LSNs and ranges of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.errors import FormatError
from pgwal.lsn import Lsn, LsnRange

positions = st.integers(0, (1 << 64) - 1)


@given(positions)
def test_the_text_form_goes_both_ways(position: int) -> None:
    text = str(Lsn(position))
    assert Lsn.parse(text) == position
    assert str(Lsn.parse(text)) == text


@given(positions)
def test_the_zero_padded_form_of_version_19_is_read_too(position: int) -> None:
    assert Lsn.parse(f"{position >> 32:X}/{position & 0xFFFFFFFF:08X}") == position


def test_the_text_form_is_that_of_the_server() -> None:
    assert str(Lsn(0x16_B374D848)) == "16/B374D848"
    assert str(Lsn(0x3000028)) == "0/3000028"
    assert repr(Lsn(1)) == "Lsn('0/1')"
    assert Lsn.parse(" 0/3000028\n") == 0x3000028


def test_format_specifications_of_text_and_of_numbers() -> None:
    lsn = Lsn(0x1_00000028)
    assert f"{lsn}" == "1/28"
    assert f"{lsn:>6}" == "  1/28"
    assert f"{lsn:016X}" == "0000000100000028"
    assert f"{lsn:d}" == "4294967336"


@pytest.mark.parametrize(
    "text",
    ["", "0", "0/", "/0", "0/0/0", "0x0/0", "G/0", "123456789/0", "0/123456789", "-1/0", "0 /0", "0/+1", "\u0660/0"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="invalid LSN"):
        Lsn.parse(text)


def test_ranges_name_their_timeline() -> None:
    assert str(LsnRange(2, Lsn(0x28), Lsn(0x1_00000000))) == "0/28 to 1/0 on timeline 2"
