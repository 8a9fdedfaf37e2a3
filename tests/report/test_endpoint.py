"""The report at the address of a receiver's metrics."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import pytest
from pgwal_process import succeed
from report.chromium import chromium, opened
from report.made_document import made_document
from test_metrics import streaming_with_metrics

from pgwal.errors import RepositoryError
from pgwal.report.document import Document
from pgwal_cli import report_endpoint
from pgwal_cli.report_endpoint import LiveReport
from pgwal_cli.throwaway_server import ThrowawayServer


def get(address: str, path: str = "/report") -> tuple[int, Message, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


@pytest.mark.postgres(18)
def test_a_receiver_shows_its_report(server: ThrowawayServer, scratch: Path) -> None:
    repo = scratch / "repo"
    with server.connect() as connection:
        connection.execute("CREATE TABLE account AS SELECT generate_series(1, 1000) AS id")
    with streaming_with_metrics(server, repo) as running:
        succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
        status, headers, text = get(running.address)
        assert status == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["X-Frame-Options"] == "DENY"
        assert "<strong>receiver</strong>: it runs" in text
        assert "<strong>slot pgwal</strong>: it is in use" in text
        assert "_full" in text
        # Metrics are where they were.
        assert running.scrape()["pgwal_receiver_streaming", ""] == 1
        assert "pgwal_receiver_streaming" in get(running.address, "/reports")[2]
        with chromium() as browser, opened(browser, f"http://{running.address}/report") as shown:
            assert shown.page.locator("#windows-picture canvas").count() == 1
            shown.assert_quiet()


def test_a_page_is_made_once_for_all_who_ask() -> None:
    made, may_end = [], threading.Event()

    def read() -> Document:
        made.append(1)
        may_end.wait(30)
        return made_document(5, 5)

    live = LiveReport(read)
    answers: list[int] = []
    asking = [threading.Thread(target=lambda: answers.append(live.answer().status)) for _ in range(5)]
    for thread in asking:
        thread.start()
    may_end.set()
    for thread in asking:
        thread.join()
    assert (answers, made) == ([200] * 5, [1])
    assert b"/srv/backups/main" in live.answer().content
    assert made == [1]


def test_who_waits_too_long_is_told_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_endpoint, "REPORT_PATIENCE_S", 0.05)
    may_end = threading.Event()

    def read() -> Document:
        may_end.wait(30)
        return made_document(5, 5)

    live = LiveReport(read)
    answer = live.answer()
    assert (answer.status, answer.retry_after_s) == (503, 3)
    assert b"being made" in answer.content
    may_end.set()
    monkeypatch.setattr(report_endpoint, "REPORT_PATIENCE_S", 30.0)
    assert live.answer().status == 200


def test_a_failure_is_told_and_tried_again() -> None:
    failures = [RepositoryError("no <b>access</b>"), ValueError("unforeseen")]

    def read() -> Document:
        if failures:
            raise failures.pop(0)
        return made_document(5, 5)

    live = LiveReport(read)
    answer = live.answer()
    assert answer.status == 503
    assert b"There is no report: no &lt;b&gt;access&lt;/b&gt;" in answer.content
    assert b"ValueError: unforeseen" in live.answer().content
    assert live.answer().status == 200
