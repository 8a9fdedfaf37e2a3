"""A progress bar on stderr, for work that takes long."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pgwal.budget import PROGRESS_LINE_S
from pgwal_cli.output import size_text

logger = logging.getLogger("pgwal")


@contextmanager
def progress_bar(title: str, wanted: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar with bytes, rate and time left while the context lasts; gives what is told (done, total) bytes.

    Where stderr is no terminal, it is a line each half minute.
    """
    if not wanted:
        yield None
        return
    if not sys.stderr.isatty():
        yield _told_by_lines(title)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn(title), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield show


def _told_by_lines(title: str) -> Callable[[int, int], None]:
    """Return what logs how far it is, now and then: for files and pipes, which show no bar."""
    said_s = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said_s
        if (now_s := time.monotonic()) - said_s >= PROGRESS_LINE_S:
            said_s = now_s
            logger.info("%s: %s of %s", title, size_text(done), size_text(total))

    return show
