"""The page of a report, made when somebody asks a receiver for it, and then shown to all who ask for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import urlsplit

from pgwal.budget import REPORT_AGAIN_S, REPORT_FRESH_S, REPORT_PATIENCE_S
from pgwal.errors import PgwalError
from pgwal.report.document import Document
from pgwal_cli.report_page import page_of

logger = logging.getLogger("pgwal.report")

PATH = "/report"

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The page has its own policy, by digests; this is what only a header can say.
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class Answer(NamedTuple):
    status: int
    content: bytes
    retry_after_s: int | None = None


class LiveReport:
    """Makes pages in a thread of its own, one at a time; ``read`` returns what they show, or raises PgwalError."""

    def __init__(self, read: Callable[[], Document]) -> None:
        self._read = read
        self._changed = threading.Condition()
        self._is_made = False
        self._content: bytes | None = None
        self._made_at_s = 0.0
        self._problem: PgwalError | None = None

    def answer(self) -> Answer:
        """Return a page that is fresh, or that it is still being made, or why there is none."""
        with self._changed:
            if not self._is_made and not self._is_fresh():
                self._is_made = True
                threading.Thread(target=self._make, name="pgwal-report", daemon=True).start()
            self._changed.wait_for(lambda: not self._is_made, REPORT_PATIENCE_S)
            if self._is_made:
                return _note(503, "The report is being made; this page asks again.", REPORT_AGAIN_S)
            if self._problem is not None:
                return _note(503, f"There is no report: {self._problem}")
            return Answer(200, self._content or b"")

    def _is_fresh(self) -> bool:
        return self._content is not None and time.monotonic() - self._made_at_s < REPORT_FRESH_S

    def _make(self) -> None:
        content, problem = None, None
        try:
            content = "".join(page_of(self._read())).encode(errors="backslashreplace")
        except PgwalError as error:
            logger.debug("there is no report: %s", error)
            problem = error
        except Exception as error:
            # Whoever waits must not do so for ever, and the receiver goes on.
            logger.exception("the report cannot be made")
            problem = PgwalError(f"{type(error).__name__}: {error}")
        with self._changed:
            self._content, self._problem = content, problem
            self._made_at_s = time.monotonic()
            self._is_made = False
            self._changed.notify_all()


def _note(status: int, text: str, retry_after_s: int | None = None) -> Answer:
    head = '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>pgwal report</title>'
    page = f"{head}<p>{escape(text)}</p></html>\n"
    return Answer(status, page.encode(errors="backslashreplace"), retry_after_s)


def with_report(handler: type[BaseHTTPRequestHandler], live: LiveReport) -> type[BaseHTTPRequestHandler]:
    """Return a handler that answers PATH with the report, and all else as ``handler`` does."""
    answer_else: Callable[[BaseHTTPRequestHandler], None] = handler.do_GET  # type: ignore[attr-defined]

    class ReportingHandler(handler):  # type: ignore[valid-type, misc]
        def do_GET(self) -> None:
            if urlsplit(self.path).path.rstrip("/") != PATH:
                answer_else(self)
                return
            _send(self, live.answer())

    return ReportingHandler


def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    handler.send_response(answer.status)
    handler.send_header("Content-Type", "text/html; charset=utf-8")
    handler.send_header("Content-Length", str(len(answer.content)))
    for name, value in _HEADERS.items():
        handler.send_header(name, value)
    if answer.retry_after_s is not None:
        handler.send_header("Retry-After", str(answer.retry_after_s))
        handler.send_header("Refresh", str(answer.retry_after_s))
    handler.end_headers()
    handler.wfile.write(answer.content)
