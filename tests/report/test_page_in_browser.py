"""The page of a report in a real browser: what it asks for, shows, says and lets itself be led to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report.chromium import Opened, chromium, opened
from report.made_document import made_document

from pgwal.report.document import Document, FindingPart
from pgwal.report.shown_text import shown
from pgwal_cli.report_page import page_of

PICTURES = ("windows", "coverage", "churn", "heat", "backups", "forecast", "lag")
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'`><svg onload=alert(3)>",
    "<!--",
    "\u202egpj.exe\u2066",
    "{a|b} ${title} %s \\u003c",
    "x" * (2 << 20),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def written(document: Document, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "report.html"
    path.write_text("".join(page_of(document)))
    return path


@pytest.fixture(scope="module")
def page_file(module_scratch: Path) -> Path:
    return written(made_document(), module_scratch)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_asks_for_nothing_and_complains_of_nothing(browser: Any, page_file: Path, theme: str) -> None:
    with opened(browser, page_file, color_scheme=theme) as shown_page:
        for name in PICTURES:
            assert shown_page.page.locator(f"#{name}-picture canvas").count() == 1, name
        shown_page.assert_quiet()


def test_tables_stand_behind_every_picture(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as shown_page:
        for name in PICTURES:
            table = shown_page.page.locator(f"#{name} details table").first
            assert not table.is_visible()
            shown_page.page.locator(f"#{name} details summary").first.press("Enter")
            assert table.is_visible()
            assert table.locator("caption").inner_text()
            assert table.locator("th[scope=col]").count() >= 2
            assert table.locator("tbody tr").count() >= 1


def test_without_scripts_the_tables_are_there(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(page_file.as_uri())
        assert page.get_by_text("The pictures need scripts").is_visible()
        page.locator("#backups summary").click()
        assert page.get_by_role("cell", name="20261125T093100Z_full", exact=True).first.is_visible()
    finally:
        context.close()


def focused(shown_page: Opened) -> str:
    text: str = shown_page.page.evaluate("document.activeElement.id || document.activeElement.textContent")
    return text


def test_the_keyboard_reaches_everything_and_goes_through_pictures(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as shown_page:
        page = shown_page.page
        page.keyboard.press("Tab")
        assert focused(shown_page) == "Skip to the findings"
        page.keyboard.press("Enter")
        assert focused(shown_page) == "findings"
        seen: list[str] = []
        while "Skip to the findings" not in seen and len(seen) < 100:
            page.keyboard.press("Tab")
            seen.append(focused(shown_page))
        assert [each for each in seen if each.endswith("-picture")] == [f"{name}-picture" for name in PICTURES]
        assert sum(each.startswith("Table: ") for each in seen) >= len(PICTURES)
        for name in PICTURES:
            picture, said = page.locator(f"#{name}-picture"), page.locator(f"#{name}-read")
            picture.focus()
            page.keyboard.press("ArrowRight")
            first = said.inner_text()
            assert first.startswith("1 of "), name
            count = int(first.split()[2].rstrip(":"))
            page.keyboard.press("End")
            assert said.inner_text().startswith(f"{count} of {count}: ")
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Home")
            assert said.inner_text() == first
            page.keyboard.press("Escape")
            assert said.text_content() == ""
        shown_page.assert_quiet()


def test_a_screen_reader_is_told_what_a_picture_is(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as shown_page:
        page = shown_page.page
        for name in PICTURES:
            title = page.locator(f"#{name} h2").inner_text()
            picture = page.get_by_role("group", name=f"Picture: {title}", exact=True)
            assert picture.count() == 1
            described = picture.get_attribute("aria-describedby")
            assert len(page.locator(f"#{described}").inner_text()) > 20
            assert page.locator(f"#{name}-read").get_attribute("role") == "status"
        headings = page.get_by_role("heading").all_inner_texts()
        assert headings[:2] == ["pgwal report", "Findings"]
        assert page.locator("html").get_attribute("lang") == "en"


def colours(shown_page: Opened) -> tuple[str, bytes]:
    """Return the colour of the paper, and a picture as it is drawn."""
    paper: str = shown_page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return paper, shown_page.page.locator("#windows-picture").screenshot()


def test_light_and_dark_are_as_the_system_says_until_somebody_chooses(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, color_scheme="light") as shown_page:
        page = shown_page.page
        light = colours(shown_page)
        page.emulate_media(color_scheme="dark")
        dark = colours(shown_page)
        assert light[0] != dark[0]
        assert light[1] != dark[1]
        page.get_by_role("button", name="Light").press("Enter")
        assert colours(shown_page)[0] == light[0]
        assert page.get_by_role("button", name="Light").get_attribute("aria-pressed") == "true"
        page.emulate_media(color_scheme="light")
        page.get_by_role("button", name="Dark").press("Space")
        assert colours(shown_page)[0] == dark[0]
        page.get_by_role("button", name="Auto").press("Enter")
        assert colours(shown_page)[0] == light[0]
        shown_page.assert_quiet()


def test_on_paper_tables_are_open_and_colours_light(browser: Any, page_file: Path, tmp_path: Path) -> None:
    with opened(browser, page_file, color_scheme="dark") as shown_page:
        page = shown_page.page
        page.evaluate(
            "addEventListener('beforeprint', () => { window.printed = [document.documentElement.dataset.theme,"
            " document.querySelectorAll('details:not([open])').length,"
            " ...[...document.querySelectorAll('canvas')].map((canvas) => canvas.clientWidth)]; })"
        )
        page.pdf(path=tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
        # Pictures are as wide as paper when they are measured: what is wider is cut off.
        assert page.evaluate("window.printed") == ["light", 0, *[660] * len(PICTURES)]
        page.wait_for_function("document.querySelectorAll('details[open]').length === 0")
        assert page.evaluate("document.documentElement.dataset.theme || 'auto'") == "auto"
        shown_page.assert_quiet()


def test_names_of_any_kind_do_no_harm(browser: Any, tmp_path: Path) -> None:
    made = made_document()
    assert made.churn is not None
    assert made.forecast is not None
    names = [shown(text) for text in HOSTILE]
    relations = [
        replace(relation, name=names[number % len(names)], database_name=names[-number % len(names)])
        for number, relation in enumerate(made.churn.relations)
    ]
    backups = [replace(backup, label=names[number % len(names)]) for number, backup in enumerate(made.backups)]
    document = replace(
        made,
        repository=names[0],
        churn=replace(made.churn, relations=relations),
        backups=backups,
        forecast=replace(made.forecast, relations=[(name, 8192) for name in names]),
        findings=[FindingPart("critical", name, name, name) for name in names],
        problems={"server": names[1]},
    )
    path = written(document, tmp_path)
    assert path.stat().st_size < 5_000_000
    with opened(browser, path) as shown_page:
        page = shown_page.page
        for name in PICTURES:
            page.locator(f"#{name}-picture").focus()
            page.keyboard.press("ArrowRight")
            page.keyboard.press("End")
        assert page.locator("script").count() == 3
        assert page.locator("img, svg, iframe, object").count() == 0
        assert page.locator("#findings strong").all_inner_texts() == names
        shown_page.assert_quiet()


def test_what_somehow_got_into_the_page_would_not_run(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as shown_page:
        page = shown_page.page
        page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.wasRun = true";
                document.body.append(script);
                const frame = document.createElement("div");
                frame.innerHTML = '<img src="http://127.0.0.1:9/x" onerror="window.wasRun = true">';
                document.body.append(frame);
            }"""
        )
        assert page.evaluate("fetch('http://127.0.0.1:9/x').then(() => 'sent', () => 'refused')") == "refused"
        assert page.evaluate("window.wasRun") is None
        while len(shown_page.complaints) < 3:
            page.wait_for_event("console")
        assert all("Content Security Policy" in complaint for complaint in shown_page.complaints)


def test_ten_thousand_relations_and_two_thousand_backups_open_at_once(browser: Any, tmp_path: Path) -> None:
    path = written(made_document(2000, 10_000, days=80), tmp_path)
    assert path.stat().st_size < 5_000_000
    with opened(browser, written(made_document(4, 4), tmp_path / "small")) as shown_page:
        page = shown_page.page
        # In time of the processor: the machine may be busy with something else.
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        assert page.locator("#churn table").first.locator("tbody tr").count() == 10_000
        assert page.locator("#backups tbody tr").count() == 2001
        assert shown_page.complaints == []
    assert 0.1 < metrics["TaskDuration"] < 3, metrics
    print(f"{path.stat().st_size} bytes, open after {metrics['TaskDuration']:.2f} s of the processor")
