"""What the scanner's modules share agrees: for Python, for C, and with the names that others have for it."""

from __future__ import annotations

import re
from pathlib import Path

from pgwal import segment
from pgwal.wal import layout, record, scan_types
from pgwal.wal.record import EndReason

CONSTANTS = {name: value for name, value in vars(scan_types).items() if type(value) is int}
# What is installed has the compiled form alone.
DECLARATIONS = Path(__file__).parent.parent.parent / "pgwal/wal/scan_types.pxd"


def test_c_has_the_constants_of_python() -> None:
    declared = re.findall(r"^    ([A-Z_0-9]+) = (\w+)$", DECLARATIONS.read_text(), re.MULTILINE)
    assert {name: int(value, 0) for name, value in declared} == CONSTANTS
    # To Cython they are of C's int.
    assert max(CONSTANTS.values()) < 1 << 31


def test_constants_are_those_of_the_format() -> None:
    for module in (layout, record, segment):
        shared = CONSTANTS.keys() & vars(module).keys()
        assert {name: CONSTANTS[name] for name in shared} == {name: getattr(module, name) for name in shared}
        assert len(shared) >= 2
    assert CONSTANTS["PAGE_SIZE"] == segment.WAL_PAGE_SIZE == CONSTANTS["PAGE_MASK"] + 1


def test_reasons_are_those_that_are_told() -> None:
    reasons = {name.removeprefix("END_"): value for name, value in CONSTANTS.items() if name.startswith("END_")}
    assert reasons == {reason.name: reason.value for reason in EndReason}
