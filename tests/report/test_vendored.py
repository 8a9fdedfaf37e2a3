"""Apache ECharts as it was published: version, licence and digest are those that are noted beside it."""

from __future__ import annotations

import json
import re
import tomllib
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "cli" / "page"
NOTED = json.loads((PAGE / "echarts.json").read_text())


def test_the_library_is_the_one_that_is_noted() -> None:
    content = (PAGE / "echarts.min.js").read_bytes()
    assert sha256(content).hexdigest() == NOTED["sha256"]
    assert f't.version="{NOTED["version"]}"'.encode() in content
    assert b"Licensed to the Apache Software Foundation" in content[:400]


def test_its_licences_come_with_it() -> None:
    assert NOTED["licence"] == "Apache-2.0"
    assert "Apache License" in (PAGE / "echarts.LICENSE").read_text()
    assert "Apache ECharts" in (PAGE / "echarts.NOTICE").read_text()
    assert "Mike Bostock" in (PAGE / "echarts.LICENSE-d3").read_text()
    licences = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"])
    assert {f"cli/page/echarts.{end}" for end in ("LICENSE", "LICENSE-d3", "NOTICE")} <= licences


def test_all_files_of_the_page_are_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["pgwal_cli"]
    matched = {found.name for pattern in patterns for found in (ROOT / "cli").glob(pattern)}
    assert {path.name for path in PAGE.iterdir()} <= matched


def test_nothing_in_the_page_ends_its_element() -> None:
    """A browser takes all up to the end of the element as it is, and its digest is that of all of it."""
    for name in ("page.css", "page.js", "echarts.min.js"):
        text = (PAGE / name).read_text()
        assert re.search(r"</(script|style)|<!--|\r", text, re.IGNORECASE) is None, name


def test_the_template_asks_for_nothing() -> None:
    text = (PAGE / "page.html").read_text()
    assert re.findall(r'(?:src|href|action)="([^"]*)"', text) == ["data:,", "#findings"]
    for name in ("page.css", "page.js"):
        assert re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|innerHTML|eval\(", (PAGE / name).read_text()) is None
