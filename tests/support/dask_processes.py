"""A scheduler of Dask and its workers, each a process of its own on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_TIMEOUT_S = 60


class DaskProcesses:
    """Runs them as a context; what they log goes to files in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = ""
        """HOST:PORT of the scheduler."""

    def __enter__(self) -> Self:
        file = self._directory / "scheduler.json"
        scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        deadline = time.monotonic() + _TIMEOUT_S
        # It is written, and then filled.
        while not file.exists() or not file.read_text().endswith("}"):
            assert scheduler.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)
        self.address = json.loads(file.read_text())["address"].removeprefix("tcp://")
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def start_worker(self, environment: Mapping[str, str], *, preload: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a worker, which has what is in the environment besides what all processes need."""
        options = ["--no-nanny", "--nthreads", "1", "--local-directory", str(self._directory)]
        options += [] if preload is None else ["--preload", str(preload)]
        return self._start("dask_worker", self.address, *options, environment=environment)

    def stop_scheduler(self) -> None:
        """Kill the scheduler, and leave the workers alone."""
        self._processes[0].kill()
        self._processes[0].wait()

    def stop_workers(self) -> None:
        """Kill all workers, and wait until the scheduler knows that there are none."""
        for process in self._processes[1:]:
            process.kill()
            process.wait()
        scheduler_log = self._directory / "dask_scheduler-0.log"
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            found = scheduler_log.read_text()
            if found.count("Register worker addr") == found.count("Remove worker addr"):
                return
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    def log(self) -> str:
        """Return what all have said."""
        return "\n".join(path.read_text() for path in sorted(self._directory.glob("*.log")))

    def _start(
        self, program: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        needed = ("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "HOME", "TMPDIR", "PGWAL_REQUIRE_COMPILED")
        own = {name: os.environ[name] for name in needed if name in os.environ}
        with (self._directory / f"{program}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{program}", "--no-dashboard", *arguments],
                env={**own, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process
