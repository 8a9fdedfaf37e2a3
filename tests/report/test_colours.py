"""The colours of the page can be told from what they stand on, in both themes, as WCAG 2.1 (AA) wants them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

STYLE = (Path(__file__).parents[2] / "cli" / "page" / "page.css").read_text()
TEXT = ("ink", "faint", "accent", "critical", "warning", "notice", "ok")
DRAWN = ("full", "incremental", "reach", "hole", "summary", "mark", "hot", "ink")


def themes() -> list[dict[str, str]]:
    """Return the colours by name of each block of the style that has them: light, dark, and dark by choice."""
    blocks = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", block)) for block in re.split(r"\}", STYLE)]
    return [block for block in blocks if block]


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_dark_is_the_same_by_choice_and_by_the_system() -> None:
    light, dark, chosen = themes()
    assert dark == chosen
    assert dark.keys() == light.keys()


@pytest.mark.parametrize("colours", themes()[:2], ids=["light", "dark"])
def test_text_and_pictures_stand_out(colours: dict[str, str]) -> None:
    for ground in ("paper", "panel"):
        for name in TEXT:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in DRAWN:
        assert contrast(colours[name], colours["paper"]) >= 3, name
    # A button that is pressed.
    assert contrast(colours["paper"], colours["accent"]) >= 4.5
