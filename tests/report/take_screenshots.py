"""Take the pictures of README.md anew: ``python tests/report/take_screenshots.py docs``, of a repository made up."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
SHOTS = {"report-light.png": ("light", "header", "#coverage"), "report-dark.png": ("dark", "#churn", "#heat")}
"""Files, with the theme, and the first and last part that is in them."""


def take(directory: Path) -> None:
    """Write both into a directory."""
    from report.chromium import chromium, opened
    from report.made_document import made_document

    from pgwal_cli.report_page import page_of

    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        path = Path(scratch) / "report.html"
        path.write_text("".join(page_of(made_document())))
        for name, (theme, first, last) in SHOTS.items():
            with opened(browser, path, color_scheme=theme) as shown:
                top = shown.page.locator(first).bounding_box()
                bottom = shown.page.locator(last).bounding_box()
                height = bottom["y"] + bottom["height"] - top["y"] + 24
                clip = {"x": 0, "y": max(0, top["y"] - 12), "width": 1100, "height": height}
                shown.page.screenshot(path=directory / name, full_page=True, clip=clip)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    take(Path(sys.argv[1]))
