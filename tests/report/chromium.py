"""Chromium, as Debian has it, driven by Playwright; what a page asks for and complains of is noted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Opened:
    """A page that is open: the requests that it made beside that for itself, and what stood on the console."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        assert self.requests == []
        assert self.complaints == []


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser, or skip the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright, which drives browsers")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium: {', '.join(NAMES)} are not there")
    with sync_api.sync_playwright() as playwright:
        # What it starts is shut off from the rest by the namespace that root of a container may not make.
        flags = ["--no-sandbox"] if os.geteuid() == 0 or "CI" in os.environ else []
        browser = playwright.chromium.launch(executable_path=program, args=[*flags, "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, address: str | Path, **wanted: Any) -> Iterator[Opened]:
    """Open a file or an address, and wait until its pictures are drawn; ``wanted`` is of a Playwright context."""
    url = address if isinstance(address, str) else address.as_uri()
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **wanted})
    try:
        page = context.new_page()
        found = Opened(page)
        page.on("request", lambda request: found.requests.append(request.url) if request.url != url else None)
        page.on("console", lambda message: found.complaints.append(message.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (found.complaints.append(dialog.message), dialog.dismiss()))
        page.goto(url)
        page.wait_for_selector("html[data-drawn]", state="attached")
        yield found
    finally:
        context.close()
