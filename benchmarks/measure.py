"""Measure processes: two sides in turn, the medians of each, and the ratio of what they take."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Measurement(NamedTuple):
    """What one run took: seconds of the clock and of processors, peak memory and what it stored in bytes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    stored_bytes: int = 0


class CommandFailed(Exception):
    """A measured command ended with an exit code other than 0; says what it wrote to stderr."""


def run_command(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Measurement:
    """Run a command to its end and measure it, with the processes that it waited for.  Raises CommandFailed."""
    return _runner().submit(_run, [str(part) for part in command], environment).result()


@cache
def _runner() -> ProcessPoolExecutor:
    """Return a process that starts the commands: each begins as a copy of it, and its memory counts as theirs."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _run(arguments: list[str], environment: Mapping[str, str] | None) -> Measurement:
    with tempfile.TemporaryFile() as errors:
        start_s = time.perf_counter()
        process = subprocess.Popen(
            arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip()
            raise CommandFailed(f"{' '.join(arguments)} ended with {process.returncode}: {text[-2000:]}")
    return Measurement(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


class Side(NamedTuple):
    """One side of a comparison: its name, and what runs it once and measures it."""

    name: str
    run: Callable[[], Measurement]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The medians of some sides; the first is the one that the others are held against.

    ``target`` is what design asks of each other side's time as a share of the first's, where it asks something.
    Sides that are not ``ranked`` do different things: none is held against another.
    """

    title: str
    medians: dict[str, Measurement]
    bytes_processed: int = 0
    target: float | None = None
    ranked: bool = True

    @property
    def peer(self) -> str:
        return next(iter(self.medians))

    def ratio(self, name: str) -> float:
        """Return a side's time as a share of the peer's."""
        return 1.0 if name == self.peer else self.medians[name].seconds / self.medians[self.peer].seconds

    def document(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {
            "title": self.title,
            "bytes": self.bytes_processed,
            "target": self.target,
            "sides": {
                name: {**measured._asdict(), "ratio": self.ratio(name) if self.ranked else None}
                for name, measured in self.medians.items()
            },
        }


def compare(
    title: str, sides: Sequence[Side], rounds: int, *, bytes_processed: int = 0, target: float | None = None
) -> Comparison:
    """Run the sides in turn, once to warm the page cache and then for some rounds, and return the medians."""
    for side in sides:
        side.run()
    runs: dict[str, list[Measurement]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            runs[side.name].append(side.run())
    medians = {
        name: Measurement(
            median(run.seconds for run in own),
            median(run.cpu_seconds for run in own),
            max(run.peak_bytes for run in own),
            own[-1].stored_bytes,
        )
        for name, own in runs.items()
    }
    return Comparison(title, medians, bytes_processed, target)
